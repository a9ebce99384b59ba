"""One step of a search: T weight steps and one step of alpha along the hypergradient."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from fastnas.bilevel import InnerSettings, InnerSgd, Inspected, Method, NotFiniteError, Trajectory, Watch
from fastnas.errors import FastnasError
from fastnas.runs.guard import Guard
from fastnas.runs.optimiser import Adam, Sgd
from fastnas.runs.ranks import ALONE, Ranks
from fastnas.supernet import (
    AnomalyError,
    Batch,
    Executor,
    Graphs,
    SupernetProblem,
    eagerly,
    gradients,
    narrow,
    pinned,
)
from fastnas.supernet.anomaly import (
    RandomState,
    account,
    part_not_finite,
    put_back,
    random_state,
    step_watched,
)
from fastnas.supernet.graphs import WARM_UP


@dataclass(frozen=True)
class StepReport:
    """What one step saw; tensors stay on the device, so that reading them is the caller's synchronisation.

    Attributes:
        losses: (T,) training loss before each weight step.
        correct: scalar, training images classified right, over the T batches.
        hypergradient_norm: scalar, Euclidean.
        watch: what the estimator noticed; its ``sentences()`` are those to show, and raise ``NotFiniteError`` where a
            weight step, an oracle or the hypergradient was not finite, so that nothing has moved since.
    """

    losses: Tensor
    correct: Tensor
    hypergradient_norm: Tensor
    watch: Watch


class SearchStep:
    """The two optimisers of a search, and the order in which a method moves them.

    Weights: SGD with momentum, weight decay and clipping, one flat vector. Alpha: Adam, one flat vector, betas
    (0.5, 0.999) (Liu et al. 2019, section 3.1.1). ``idarts`` and ``t1-t2`` take their T weight steps first and
    the hypergradient at the weights these reach, on the last batch; the others move alpha first, then the
    weights, as their authors' loops do, with the hypergradient on the first batch.

    Args:
        net: the supernet.
        method: an entry of ``fastnas.bilevel.METHODS``.
        settings: constants of the estimator; learning rate and momentum buffer are filled in at each step.
        grad_clip: largest norm of the weights' gradient.
        arch_learning_rate, arch_weight_decay: of Adam.
        graphs: of the device where ``net`` is: after some steps every oracle and the weight step are captured and
            replayed. None: no graphs.
        precision: of activations in weight steps: torch.bfloat16, or None: that of the weights. Hypergradients are
            computed in the weights' precision always: a difference moves each weight by less than bfloat16 can tell.
        states: of a recurrent network: the hidden states (B, units), live, that the next batches of the streams "train"
            and "val" begin with. A batch then comes as words and targets, and its stream's state is put between them.
            A weight step leaves its own in "train", a hypergradient that of its last validation pass in "val".
        ranks: the processes of a data-parallel search, each with its shard of every batch, all of the same size. What
            the oracles and the weight step compute is averaged over them, so all move alike.
        detect_anomaly: look at every operator's output, without graphs: ``AnomalyError`` names the first that is not
            finite.
    """

    def __init__(
        self,
        net: Executor,
        method: Method,
        settings: InnerSettings,
        *,
        grad_clip: float = 5.0,
        arch_learning_rate: float = 3e-4,
        arch_weight_decay: float = 1e-3,
        graphs: Graphs | None = None,
        precision: torch.dtype | None = None,
        states: Mapping[str, Tensor] | None = None,
        ranks: Ranks = ALONE,
        detect_anomaly: bool = False,
    ) -> None:
        self.precision, self.states, self.detect_anomaly = precision, dict(states or {}), detect_anomaly
        self.ranks = ranks
        graphs = None if detect_anomaly else graphs
        self.net, self.method, self.settings, self.graphs = net, method, settings, graphs
        self._warming_up = WARM_UP
        if graphs is not None:
            graphs.allowed = False
        self.weight_optimiser = Sgd(
            net.weights.flat,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
            clip=grad_clip,
        )
        self.alpha_optimiser = Adam(
            net.alphas.flat,
            learning_rate=arch_learning_rate,
            betas=(0.5, 0.999),
            weight_decay=arch_weight_decay,
        )
        self.guard = Guard(self.weight_optimiser, net.running.flat)

    def __call__(self, train: Sequence[Batch], val: Batch, learning_rate: float) -> StepReport:
        """T = len(train) weight steps at ``learning_rate`` and one step of alpha.

        Args:
            train: T batches of the weights' split, images (B, C, H, W) and labels (B,) or what else the network reads.
            val: one batch of alpha's split.
            learning_rate: of this epoch, also xi of darts and the default gamma of idarts.
        """
        val, watch = self.placed("val", val), Watch()
        step = self.training_loss if self.method.moves_weights else self.weight_step
        if self.method.after_inner_steps:
            recorded = self.method.recorded_steps(self.settings, len(train))
            trajectory = self.trajectory(learning_rate, recorded)
            results = []
            for batch in train:
                placed = self.placed("train", batch)
                trajectory.record(self.problem(placed, val))
                results.append(step(placed, learning_rate, watch))
            norm, _ = self.alpha_step(placed, val, learning_rate, trajectory, watch)
        else:
            norm, _ = self.alpha_step(train[0], val, learning_rate, None, watch)
            results = [step(batch, learning_rate, watch) for batch in train]
        watch.send()
        self._warming_up -= 1
        if self.graphs is not None and not self._warming_up:
            self.graphs.allowed = True  # all that a step runs has run
        losses, correct = zip(*results, strict=True)
        return StepReport(torch.stack(losses), torch.stack(correct).sum(), norm, watch)

    def placed(self, stream: str, batch: Batch) -> Batch:
        """A batch with the state of its ``stream``, a copy, if the network has one and the batch not yet."""
        if stream not in self.states or len(batch) > 2:
            return batch
        words, targets = batch
        return words, self.states[stream].clone(), targets

    def _carry(self, stream: str, states: Sequence[Tensor]) -> None:
        for state in states:
            self.states[stream].copy_(self.guard.kept(self.states[stream], state))

    def begin_epoch(self) -> None:
        """Both streams begin anew: their states are zero."""
        for state in self.states.values():
            state.zero_()

    def weight_step(
        self, batch: Batch, learning_rate: float, watch: Watch | None = None
    ) -> tuple[Tensor, Tensor]:
        """One step of SGD; BatchNorm's running statistics move. Returns the loss and the number of hits.

        Where the step is not finite, nothing moves, and the watch says so when it is read; without one it is read at
        once, which waits for the device.
        """
        batch, random = self.placed("train", batch), random_state(self.net)
        self.weight_optimiser.set_rate(learning_rate)
        body = self._weight_pass if self.ranks.size == 1 else self._gradient_pass
        if self.graphs is None:
            found = eagerly(body, batch)
        else:
            found = self.graphs.run("weight_step", body, batch, of=(self.net, self.weight_optimiser))
        loss, correct, seen, *states = found if self.ranks.size == 1 else self._move_together(*found)
        self._carry("train", states)
        self.guard.report(watch, seen.clone(), partial(self._account, batch, random))
        return loss.clone(), correct.clone()  # of a graph: the next one may write there

    def _weight_pass(self, *batch: Tensor) -> tuple[Tensor, ...]:
        """A weight step at the rate that was set, one CUDA graph; loss, hits, the guard's, and what is carried."""
        loss, correct, total, grad, *states = self._gradient_pass(*batch)
        return loss, correct, self.guard.move(total, grad), *states

    def _move_together(
        self, loss: Tensor, correct: Tensor, total: Tensor, grad: Tensor, *states: Tensor
    ) -> tuple[Tensor, ...]:
        """What :meth:`_weight_pass` does behind the gradient, and returns, along the mean of all ranks' gradients."""
        seen, loss, correct = self.guard.move_with(self.ranks, total, grad, loss, correct)
        return loss, correct, seen, *states

    def _gradient_pass(self, *batch: Tensor) -> tuple[Tensor, ...]:
        """A weight step without the step: loss, hits, what is differentiated, its gradient (P,), what is carried."""
        self.net.train()
        self.guard.begin()
        value = partial(self._value, batch)
        with step_watched(self.detect_anomaly, self.net, lambda: value()[0], self._by_name(batch)):
            total, loss, logits = value()
            with pinned(tf32=True):
                (grad,) = gradients(total, self.net.weights)
        hits = self._hits(logits.detach(), batch[-1])
        return loss.detach(), hits, total.detach(), grad, *self.net.carried()

    def _value(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """A weight step's forward pass: what it differentiates, the loss without the penalty in it, and the logits."""
        *inputs, targets = batch
        with pinned(tf32=True):
            with narrow(targets.device, self.precision):
                logits = self.net(*inputs)
            loss = F.cross_entropy(logits.to(self.net.weights.flat.dtype), targets)
            penalty = self.net.penalty(targets)
        return loss if penalty is None else loss + penalty, loss, logits

    def _account(self, batch: Batch, random: RandomState, quantity: str) -> str:
        return account(self.net, lambda: self._value(batch)[0], self._by_name(batch), random, quantity)

    def _by_name(self, batch: Batch) -> dict[str, Tensor]:
        names = (
            ("the words", "the hidden state", "the targets") if self.states else ("the images", "the labels")
        )
        return dict(zip(names, batch, strict=True))

    def _hits(self, logits: Tensor, targets: Tensor) -> Tensor:
        if not self.net.classifies:
            return torch.zeros((), dtype=torch.int64, device=targets.device)
        return (logits.argmax(1) == targets).sum()

    def training_loss(
        self, batch: Batch, learning_rate: float, watch: Watch | None = None
    ) -> tuple[Tensor, Tensor]:
        """:meth:`weight_step` without the step: BatchNorm's running statistics move, the weights do not."""
        batch, random = self.placed("train", batch), random_state(self.net)
        self.net.train()
        self.guard.begin()
        with torch.no_grad():
            _, loss, logits = self._value(batch)
        correct = self._hits(logits, batch[-1])
        if self.ranks.size > 1:
            self.guard.mark(loss, shared := loss.clone()[None])
            loss, correct = self.ranks.average_(shared)[0], self.ranks.sum_(correct.clone())
        seen = self.guard.look(loss)
        self._carry("train", self.net.carried())
        self.guard.report(watch, seen, partial(self._account, batch, random))
        return loss, correct

    def alpha_step(
        self,
        train: Batch,
        val: Batch,
        learning_rate: float,
        trajectory: Trajectory | None = None,
        watch: Watch | None = None,
    ) -> tuple[Tensor, Watch]:
        """One step of Adam along the hypergradient; its norm, and what was noticed. Nothing waits for the device.

        Where an oracle, the hypergradient or what Adam makes of it has a NaN or an infinity, alpha and Adam's state
        stay as they were, and the watch says so when it is read.
        """
        sent, watch = watch is not None, watch or Watch()
        oracles, random = self.problem(train, val), random_state(self.net)
        moved = [self.alpha_optimiser.alpha, *self.alpha_optimiser.state().values()]
        moved += [self.net.weights.flat] if self.method.moves_weights else []
        before = [tensor.clone() for tensor in moved]
        problem = Inspected(oracles)
        try:
            grad = self.method.hypergradient(problem, self.settings_at(learning_rate, trajectory, watch))
        except FastnasError as error:
            watch.sentences()  # what was not finite before comes first
            if not isinstance(error, AnomalyError):
                raise
            raise NotFiniteError(
                f"NaN or infinity in the hypergradient, {error}, so alpha was not moved"
            ) from None
        self.alpha_optimiser.step(grad)
        repeats = not self.method.moves_weights and (trajectory is None or not trajectory.steps)
        again = partial(self._again, train, val, learning_rate, random) if repeats else self._forget
        self.guard.spoil(~problem.check(grad, watch, again))
        finite = torch.stack([tensor.isfinite().all() for tensor in moved])
        self.guard.spoil(~finite.all())
        watch.add(finite, self._say_moved)
        for tensor, old in zip(moved, before, strict=True):
            tensor.copy_(self.guard.kept(old, tensor))
        self._carry("val", oracles.carried)
        if not sent:
            watch.send()
        return grad.norm(), watch

    def _again(self, train: Batch, val: Batch, learning_rate: float, random: RandomState) -> str:
        """Where the hypergradient that was not finite first became so."""
        problem = SupernetProblem(self.net, train, val, detect_anomaly=True)
        now = random_state(self.net)
        try:
            put_back(self.net, random)
            self.method.hypergradient(problem, self.settings_at(learning_rate, None, Watch()))
        except AnomalyError as error:
            return f"{error}, {self._forget()}"
        except FastnasError:  # a solver's, of what is not finite
            pass
        finally:
            put_back(self.net, now)
        return self._forget()

    def _forget(self) -> str:
        self.guard.forget()
        return "so alpha was not moved"

    def _say_moved(self, finite: list[float]) -> None:
        if all(finite):
            return
        self._forget()
        already = part_not_finite(self.net.alphas, self.net.alphas.flat)
        if already is not None:
            raise NotFiniteError(f"NaN or infinity in the architecture parameters {already}")
        names = ["alpha", *(f"Adam's {name}" for name in self.alpha_optimiser.state()), "the weights"]
        raise NotFiniteError(
            f"{names[finite.index(False)]} would have become NaN or infinite at this --arch-learning-rate"
        )

    def hypergradient(self, train: Batch, val: Batch, learning_rate: float) -> Tensor:
        """The method's estimate of dL2/dalpha, (H,), at the current weights; nothing moves (but by idarts-release)."""
        return self.method.hypergradient(self.problem(train, val), self.settings_at(learning_rate))

    def problem(self, train: Batch, val: Batch) -> SupernetProblem:
        """The oracles on these batches."""
        train, val = self.placed("train", train), self.placed("val", val)
        average = self.ranks.average_ if self.ranks.size > 1 else None
        return SupernetProblem(
            self.net, train, val, graphs=self.graphs, average=average, detect_anomaly=self.detect_anomaly
        )

    def settings_at(
        self, learning_rate: float, trajectory: Trajectory | None = None, watch: Watch | None = None
    ) -> InnerSettings:
        """What an estimator is told at this learning rate."""
        return replace(
            self.settings,
            learning_rate=learning_rate,
            momentum_buffer=self.weight_optimiser.momentum_buffer,
            trajectory=trajectory,
            watch=watch,
        )

    def trajectory(self, learning_rate: float, last: int) -> Trajectory:
        """An empty one for ``last`` weight steps at this learning rate, as reverse modes go back through them."""
        weights = self.weight_optimiser
        sgd = InnerSgd(learning_rate, weights.momentum, weights.weight_decay, weights.clip)
        return Trajectory(sgd, last)
