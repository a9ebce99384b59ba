"""The one state of a supernet at which everything is measured: weights, batches, the last weight steps."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from fastnas._imports import MissingImport
from fastnas.audit.config import AuditConfig
from fastnas.audit.problems import Averaged, Meter, Metered
from fastnas.bilevel import InnerSettings, Products, Trajectory, Watch
from fastnas.bilevel.problem import kept
from fastnas.errors import FastnasError
from fastnas.runs.interrupt import Interrupt
from fastnas.search.checkpoint import read_config
from fastnas.search.config import SearchConfig
from fastnas.search.engine import Search, device_of, inner_settings, learning_rate
from fastnas.search.folder import RunFolder
from fastnas.supernet import Batch, Supernet, SupernetProblem, smooth_twin

TWIN_IMAGES = 16


@dataclass
class State:
    """A supernet at one w and alpha, and what its hypergradients need.

    Attributes:
        search: data, supernet, optimisers.
        epoch: epochs that the run had made; 0: a fresh supernet.
        warm_up: weight steps that the audit made itself.
        learning_rate: of the weights.
        trajectory: the last T weight steps.
        train, val: n minibatches of either split. Hypergradients are taken on the first of each; the last weight step
            was made on the first of ``train``, as in a search.
        meter: counts every oracle.
    """

    search: Search
    epoch: int
    warm_up: int
    learning_rate: float
    trajectory: Trajectory
    train: list[Batch]
    val: list[Batch]
    meter: Meter

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self.search.device

    @property
    def problem(self) -> Metered:
        """The oracles on the first minibatches."""
        return self._problem(0)

    @property
    def problems(self) -> list[Metered]:
        """The oracles on each pair of minibatches."""
        return [self._problem(i) for i in range(len(self.train))]

    @property
    def large(self) -> Averaged:
        """The mean of all minibatches."""
        return Averaged(self.problems)

    def twin(self) -> Metered:
        """The network without kinks, with the same weights, on the first images of the first minibatches.

        It is plain PyTorch, which keeps every activation for two derivatives: 250 MB an image for the papers' supernet.
        """
        net = self.search.net
        assert isinstance(net, Supernet)  # of a space that reads images
        twin = smooth_twin(net)
        train, val = (
            (images[:TWIN_IMAGES], labels[:TWIN_IMAGES]) for images, labels in (self.train[0], self.val[0])
        )
        return Metered(SupernetProblem(twin, train, val), self.meter)

    def settings(self, products: Products, watch: Watch | None = None) -> InnerSettings:
        """What an estimator is told, with these products."""
        told = self.search.step.settings_at(self.learning_rate, self.trajectory, watch or Watch())
        return replace(told, products=products)

    def kept(self) -> AbstractContextManager[Tensor]:
        """Whatever the block does to the weights, they come back."""
        return kept(self.search.net.weights.flat)

    def _problem(self, i: int) -> Metered:
        return Metered(self.search.step.problem(self.train[i], self.val[i]), self.meter)


def prepare(config: AuditConfig, audited: SearchConfig, meter: Meter, minibatches: int) -> State:
    """Builds the supernet or takes the run's, makes its weight steps and draws the minibatches.

    Args:
        config: the audit's.
        audited: ``config.search()``, or the run's own.
        meter: counts every oracle from here on.
        minibatches: n at the most.

    Raises:
        FastnasError: a mistake in the configuration, the data or the run's folder.
    """
    torch.set_num_threads(audited.run.threads or torch.get_num_threads())
    checkpoint = config.audit.checkpoint
    search = Search(_as_saved(audited, checkpoint), device_of(audited), Interrupt())
    epoch = 0 if checkpoint is None else _load(search, checkpoint)
    # What the run searched with is one matter, what is asked about its state another.
    measured = search.config.hypergradient.difference_radius == "auto" and checkpoint is not None
    search.config, search.inner_steps = audited, audited.hypergradient.inner_steps or 1
    search.step.settings = inner_settings(audited)
    if audited.hypergradient.difference_radius == "auto":
        folder = RunFolder(checkpoint or Path())
        search.take_radius(folder.measured("difference_radius") if measured else search.best_radius())
    rate = learning_rate(audited.optimiser, min(epoch + 1, audited.optimiser.epochs or 1))
    steps = search.inner_steps if checkpoint else max(config.audit.warm_up_steps, search.inner_steps)
    state = State(search, epoch, steps, rate, search.step.trajectory(rate, search.inner_steps), [], [], meter)
    _warm_up(state, steps, minibatches)
    return state


def _warm_up(state: State, steps: int, minibatches: int) -> None:
    """The weight steps, the last T recorded; the minibatches, which begin with the last step's."""
    search = state.search
    search.begin_epoch(state.epoch + 1)
    before = list(islice(map(search.cast, search.train.forever()), steps - 1))
    search.begin_epoch(state.epoch + 2)
    most = min(minibatches, len(search.train), len(search.val))
    state.train = list(islice(map(search.cast, search.train), most))
    state.val = list(islice(map(search.cast, search.val), most))
    for batch in [*before, state.train[0]]:
        problem = search.step.problem(batch, state.val[0])
        state.trajectory.record(Metered(problem, state.meter))
        search.step.weight_step(batch, state.learning_rate)


def _load(search: Search, folder: Path) -> int:
    state = RunFolder(folder).newest(search.config)
    if state is None:
        raise FastnasError(
            f"the run in {folder} has no checkpoint yet: wait for its first, or audit a fresh supernet"
        )
    search.take_up(state, str(folder))
    return state.moment.epoch


def _as_saved(audited: SearchConfig, checkpoint: Path | None) -> SearchConfig:
    """The configuration to build with: the run's own, which its checkpoint must match."""
    if checkpoint is None:
        return audited
    saved = stored_config(checkpoint)
    free = vars(audited.hypergradient) | vars(audited.curvature)
    differing = [name for name in saved.differences(audited) if name not in free]
    if differing:
        raise FastnasError(
            f"the run in {checkpoint} has another configuration: it differs in {', '.join(differing)}; leave these "
            "options out to audit it, or leave out --checkpoint"
        )
    return replace(saved, run=audited.run)


def stored_config(checkpoint: Path) -> SearchConfig:
    """The configuration of the run in a folder.

    Raises:
        FastnasError: there is none, or another version wrote it.
    """
    file = checkpoint / "config.json"
    if not file.exists():
        raise FastnasError(f"--checkpoint {checkpoint} is no folder of a run: there is no config.json in it")
    try:
        return read_config(file)
    except MissingImport:
        raise
    except FastnasError as error:
        raise FastnasError(
            f"the run in {checkpoint} cannot be read, by this version at least: {error}"
        ) from None
