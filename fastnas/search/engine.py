"""The parts of a search, and what an epoch of it does."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from fastnas._measure import peak_memory
from fastnas.bilevel import InnerSettings, NotFiniteError, Products, method, radius_sweep, recommended_radius
from fastnas.bilevel.solvers import DENSE_LIMIT
from fastnas.build_info import build_info
from fastnas.errors import FastnasError
from fastnas.runs.checkpoint import Moment, State, put_back, put_back_random_states, random_states
from fastnas.runs.interrupt import Interrupt
from fastnas.runs.notices import Notices
from fastnas.runs.options import filled
from fastnas.runs.ranks import ALONE, Ranks
from fastnas.runs.ranks_state import own_part
from fastnas.runs.saving import Saving
from fastnas.search.checkpoint import moving_tensors, order_tensors, put_back_order
from fastnas.search.config import SearchConfig
from fastnas.search.curvature import CURVATURE, measured_curvature
from fastnas.search.self_audit import NO_AUDIT, self_audit, untouched
from fastnas.search.step import SearchStep
from fastnas.search.table import table_entries
from fastnas.search.tally import Tally
from fastnas.search.task import Stream, Task, make_task
from fastnas.spaces import family
from fastnas.spaces.family import AnyGenotype
from fastnas.supernet import Batch, Executor, Graphs, check_twice_differentiable, cuda_graphs
from fastnas.tables import Table

RANKS_CHECKED_EVERY = 50  # steps; and before every checkpoint


class Search:
    """The parts of a search on one device: data, supernet, optimisers.

    Attributes:
        done: whole epochs.
        tally: of the epoch in progress; None between two.
        ranks: the processes of a data-parallel search.
    """

    def __init__(
        self,
        config: SearchConfig,
        device: torch.device,
        interrupt: Interrupt,
        task: Task | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        self.config, self.device, self.interrupt, self.ranks = config, device, interrupt, ranks
        self.table: Table | None = None  # run_search opens it
        self.task = task or make_task(config, device, ranks)
        self.train, self.val = self.task.train, self.task.val
        self.inner_steps = config.hypergradient.inner_steps or 1
        self.task.check_inner_steps(self.inner_steps)
        torch.manual_seed(config.run.seed)
        try:
            self.net = self.task.supernet()
        except (RuntimeError, MemoryError) as error:
            if "alloc" not in str(error):
                raise
            raise FastnasError(f"{self.task.size_flags()}: no memory for this supernet on {device}") from None
        _check_products(config, self.net)
        weights = len(self.net.weights)
        if config.hypergradient.method == "exact" and weights > DENSE_LIMIT:
            raise FastnasError(
                f"--method exact writes the Hessian out, for at most {DENSE_LIMIT:,} weights, and this supernet has "
                f"{weights:,}; take a smaller one, or --method cg"
            )
        if config.hypergradient.method == "nystroem" and config.hypergradient.rank > weights:
            raise FastnasError(
                f"--rank {config.hypergradient.rank} is more than the {weights:,} weights of this supernet; "
                "take fewer columns of its Hessian"
            )
        self.step = _search_step(self.net, config, _graphs(config, device), self.task.states(self.net), ranks)
        if ranks.size > 1:
            torch.manual_seed(ranks.own_seed(config.run.seed))  # weights and alpha are alike, masks are not
        self.done = 0
        self.tally: Tally | None = None
        self.shown: dict[str, str] = {}  # of the epoch before, for the progress bar
        self._said: set[str] = set()  # by the notices of all epochs
        self.radius: float | None = None  # where it was measured

    @property
    def steps(self) -> int:
        """Of alpha in an epoch."""
        return math.ceil(len(self.train) / self.inner_steps)

    def genotype(self) -> AnyGenotype:
        """The discrete cells of the current alpha."""
        network = self.config.network
        return family(network.space, network.primitives).derive(self.net.alphas.tensors)

    def alphas(self) -> dict[str, Tensor]:
        """A copy of the current alpha by name, on the CPU."""
        return {name: alpha.detach().cpu().clone() for name, alpha in self.net.alphas.tensors.items()}

    def state(self, rows: list[dict[str, Any]]) -> State:
        """The whole state, between two steps; ``rows`` are those of the epochs done.

        Raises:
            FastnasError: a step before was not finite.
        """
        tensors, numbers, tally = {**moving_tensors(self.step), **random_states(self.device)}, {}, self.tally
        if tally is not None and tally.steps:
            tally.warnings = self.notices.finish()
            tensors |= order_tensors(self.streams) | tally.tensors()
            numbers = tally.numbers()
        tensors = {name: tensor.detach().cpu() for name, tensor in tensors.items()}
        return State(Moment(self.done, tally.steps if tally else 0), tensors, rows, numbers)

    def take_up(self, state: State, where: str) -> None:
        """Puts everything where ``state`` was taken; ``where`` is the run, for sentences.

        Raises:
            FastnasError: the state does not fit.
        """
        state = own_part(state, self.ranks)
        self.done = state.moment.epoch
        if state.moment.step:
            self.begin_epoch(self.done + 1)
        put_back(where, state.tensors, moving_tensors(self.step))
        if state.moment.step:
            put_back_order(where, state.tensors, self.streams)
            self.tally = Tally.of(state, self.device)
        put_back_random_states(state.tensors, self.device)

    def check_ranks(self) -> None:
        """Raises a FastnasError if weights or alpha are not the same to the bit on all ranks."""
        if self.ranks.size > 1:
            step = self.tally.steps if self.tally else 0
            moving = {"weights": self.net.weights.flat, "alpha": self.net.alphas.flat}
            self.ranks.check_same(moving, f"at {Moment(self.done, step)}")

    def epoch(self, epoch: int, bar: tqdm[Any], saving: Saving) -> dict[str, Any]:
        """Epoch ``epoch`` (from 1), what is left of it; its row of metrics. KeyboardInterrupt comes between steps.

        Args:
            epoch: its number.
            bar: that is moved on.
            saving: is told between two steps.
        """
        optimiser = self.config.optimiser
        if self.tally is None:
            self.begin_epoch(epoch)
            self.tally = Tally.new(self.device)
        tally, rate = self.tally, learning_rate(optimiser, epoch)
        bar.set_description(f"epoch {epoch}/{optimiser.epochs}")
        train, val = map(self.cast, self.train), map(self.cast, self.val.forever())
        self.notices = Notices(
            epoch, self.device, tally.steps, tally.warnings, self.ranks.is_first, self._said
        )
        batches: tuple[list[Batch], Batch] | None = None
        while tally.steps < self.steps:
            self._between_steps(saving)
            batches = group, alpha_batch = list(islice(train, self.inner_steps)), next(val)
            with self.notices.naming():
                report = self.step(group, alpha_batch, rate)
            self.notices.add(report.watch)
            tally.add(report, count := self.ranks.size * sum(len(batch[-1]) for batch in group))
            self._show(bar, count, report.losses[-1], tally.correct / tally.seen)
            if tally.steps % RANKS_CHECKED_EVERY == 0:
                self.check_ranks()
        self._between_steps(saving)
        # What the last whole batch leaves over belongs to the epoch, too.
        bar.update(self.task.size - tally.seen)
        with saving.state_kept():
            found = self.task.evaluate(self.net, self.interrupt.check)
            row = self._row(epoch, rate, tally, found)
            row |= self._self_audit(epoch, rate, batches) | self._curvature(epoch)
        self.done, self.tally = epoch, None
        return row | table_entries(self.table, self.genotype())

    def _between_steps(self, saving: Saving) -> None:
        if self.tally is not None and self.tally.steps:
            saving.between_steps()
        else:
            self.interrupt.check()  # the end of the epoch before was saved

    def _row(self, epoch: int, rate: float, tally: Tally, found: dict[str, Any]) -> dict[str, Any]:
        """An epoch's row of metrics, as far as every search has it."""
        seconds, genotype = tally.seconds, self.genotype()
        row: dict[str, Any] = {
            "epoch": epoch,
            "learning_rate": rate,
            **self.task.metrics(tally.train_loss, (tally.correct / tally.seen).item(), found),
            "hypergradient_norm": tally.hypergradient_norm,
            "hypergradient_warnings": self.notices.finish(),
            "alpha_entropy": alpha_entropy(self.net),
            "skip_share": genotype.skip_share(),
            "seconds": seconds,
            f"{self.task.unit}_per_second": tally.seen / seconds,
            "peak_memory_bytes": peak_memory(self.device),
            "genotype": str(genotype),
        }
        self.shown = self.task.shown_of(row)
        if self.radius is not None:
            row["difference_radius"] = self.radius
        for name in ("train_loss", "val_loss", "hypergradient_norm"):
            if not math.isfinite(row[name]):
                raise NotFiniteError(f"epoch {epoch}: {name} became {row[name]}")
        return row

    def _self_audit(
        self, epoch: int, rate: float, batches: tuple[list[Batch], Batch] | None
    ) -> dict[str, Any]:
        """The row's entries of the audit on the ``batches`` of the epoch's last step, nothing if there is never one."""
        every = self.config.hypergradient.audit_every
        if not every:
            return {}
        return (
            self_audit(self.step, *(batches or self._last_batches(epoch)), rate)
            if epoch % every == 0
            else NO_AUDIT
        )

    def _last_batches(self, epoch: int) -> tuple[list[Batch], Batch]:
        """The batches of an epoch's last step, drawn again: a run that was resumed behind it has not seen them."""
        self._begin_streams(epoch)
        before = len(self.train) - 1 - (len(self.train) - 1) % self.inner_steps
        train, val = map(self.cast, self.train), map(self.cast, self.val.forever())
        return list(islice(train, before, None)), next(islice(val, before // self.inner_steps, None))

    def _curvature(self, epoch: int) -> dict[str, Any]:
        """The curvature after ``epoch``, None where it is not measured, nothing if it never is.

        On the first batches of both splits, as they are: from epoch to epoch the network changes and not the batch.
        """
        every = self.config.curvature.spectrum_every
        if not every:
            return {}
        if epoch % every:
            return dict.fromkeys(CURVATURE)
        train, val = self.task.first_batches(self.net)
        problem = self.step.problem(train, val)
        products = self.step.settings.products
        if problem.exact_by == "tangents":  # in the time of differences, and right
            products = replace(products, hessian="exact")
        return measured_curvature(problem, products, self.interrupt.check)

    def _show(self, bar: tqdm[Any], count: int, loss: Tensor, accuracy: Tensor) -> None:
        # Reading the numbers waits for the device, so they are read when the bar is drawn anew only.
        if bar.update(count):
            bar.set_postfix(self.task.shown(loss.item(), accuracy.item()) | self.shown)

    def begin_epoch(self, epoch: int) -> None:
        """The order of an epoch depends on seed and epoch alone: a resumed run sees the same batches."""
        self.task.prepare(self.net, epoch)
        self._begin_streams(epoch)
        self.step.begin_epoch()

    def _begin_streams(self, epoch: int) -> None:
        for i, stream in enumerate(self.streams.values()):
            stream.begin((self.config.run.seed * 1_000_003 + epoch) * 2 + i)

    @property
    def streams(self) -> dict[str, Stream]:
        """The two splits by name."""
        return {"train": self.train, "val": self.val}

    def take_radius(self, radius: float) -> None:
        """From now on differences have this radius, and every row says so."""
        self.radius = radius
        settings = self.step.settings
        self.step.settings = replace(settings, products=replace(settings.products, radius=radius))

    def best_radius(self, steps: int = 12) -> float:
        """The radius that differences should have (``fastnas.bilevel.radius``) after some weight steps, then undone.

        At the first weights other units switch than a few steps later.
        """
        with untouched(self.step):
            self.begin_epoch(1)
            train, val = map(self.cast, self.train.forever()), map(self.cast, self.val.forever())
            for _ in range(steps):
                self.interrupt.check()
                self.step.weight_step(next(train), learning_rate(self.config.optimiser, 1))
            problem = self.step.problem(next(train), next(val))
            scheme = self.config.hypergradient.difference_scheme
            rows = radius_sweep([problem], problem.val_grads()[0], scheme=scheme)
        return recommended_radius(rows)

    def cast(self, batch: Batch) -> Batch:
        """A batch in the precision of the weights."""
        return self.task.cast(batch)


def learning_rate(optimiser: Any, epoch: int) -> float:
    """The weights' learning rate in epoch ``epoch`` (from 1): cosine from the first value towards the last.

    lr_min + (lr - lr_min) (1 + cos(pi (epoch - 1) / epochs)) / 2, as DARTS' scheduler gives it.
    """
    low, high = filled(optimiser.learning_rate_min), filled(optimiser.learning_rate)
    return low + (high - low) * (1 + math.cos(math.pi * (epoch - 1) / optimiser.epochs)) / 2


def alpha_entropy(net: Executor) -> float:
    """Mean entropy of the softmaxed rows of alpha, in nats; log(primitives) at uniform."""
    entropies = [
        -(alpha.softmax(-1) * alpha.log_softmax(-1)).sum(-1) for alpha in net.alphas.tensors.values()
    ]
    return torch.cat(entropies).mean().item()


def inner_settings(config: SearchConfig) -> InnerSettings:
    """What the estimators are told of a resolved configuration."""
    hyper, optimiser = config.hypergradient, config.optimiser
    return InnerSettings(
        learning_rate=filled(optimiser.learning_rate),
        momentum=filled(optimiser.momentum),
        weight_decay=filled(optimiser.weight_decay),
        # As their authors do: the virtual step of a recurrent search is clipped, that of a convolutional one not.
        clip=filled(optimiser.grad_clip) if config.reads == "text" else math.inf,
        eta=hyper.eta,
        gamma=hyper.gamma,
        neumann_terms=hyper.neumann_terms,
        products=Products(
            hessian=hyper.hvp,
            mixed=hyper.mixed_product,
            scheme=hyper.difference_scheme,
            # What is measured is put in its place before the first step.
            radius=0.01 if hyper.difference_radius == "auto" else hyper.difference_radius,
        ),
        tolerance=hyper.tolerance,
        limit=hyper.solver_steps,
        damping=hyper.damping,
        rank=hyper.rank,
        reverse_steps=hyper.reverse_steps,
    )


def _search_step(
    net: Executor, config: SearchConfig, graphs: Graphs | None, states: Mapping[str, Tensor], ranks: Ranks
) -> SearchStep:
    optimiser = config.optimiser
    return SearchStep(
        net,
        method(config.hypergradient.method),
        inner_settings(config),
        grad_clip=filled(optimiser.grad_clip),
        arch_learning_rate=filled(optimiser.arch_learning_rate),
        arch_weight_decay=optimiser.arch_weight_decay,
        graphs=graphs,
        precision=torch.bfloat16 if config.network.dtype == "bf16" else None,
        states=states,
        ranks=ranks,
        detect_anomaly=config.run.detect_anomaly,
    )


def _check_products(config: SearchConfig, net: Executor) -> None:
    """Raises FastnasError if exact products are asked for, and a primitive of the user's own has none."""
    hyper = config.hypergradient
    exact = {"--hvp exact": hyper.hvp, "--mixed-product exact": hyper.mixed_product}
    asked = [flag for flag, way in exact.items() if way == "exact"] + ["--audit-every"] * bool(
        hyper.audit_every
    )
    for flag in asked + ["--difference-radius auto"] * (hyper.difference_radius == "auto"):
        check_twice_differentiable(net.space, flag)


def _graphs(config: SearchConfig, device: torch.device) -> Graphs | None:
    if config.run.graphs == "off" or config.run.detect_anomaly:
        return None
    # Not print: a progress bar may stand in the last line.
    return cuda_graphs(device, say=lambda sentence: tqdm.write(sentence, file=sys.stderr))


def device_of(config: SearchConfig, ranks: Ranks = ALONE) -> torch.device:
    """The device of a resolved configuration, on this rank.

    Raises:
        FastnasError: there is none like it, or it is not for this configuration.
    """
    device = ranks.device(config.run.device)
    if config.network.dtype == "bf16" and device.type != "cuda":
        raise FastnasError(
            f"--dtype bf16 needs a GPU, but this search runs on {device}; take --dtype float32"
        )
    if config.run.graphs == "on" and device.type != "cuda":
        raise FastnasError(
            f"--graphs on needs a GPU, but this search runs on {device}; leave it out, or take --graphs off"
        )
    if device.type == "cuda" and config.network.backend == "fused" and not build_info().cuda:
        raise FastnasError(
            f"--device {device}: the extension was built without CUDA; reinstall it by FASTNAS_CUDA=1 pip install ., "
            "or take --backend reference or --device cpu"
        )
    return device
