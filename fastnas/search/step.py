"""One step of a search: T weight steps and one step of alpha along the hypergradient."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from fastnas.bilevel import InnerSettings, InnerSgd, Inspected, Method, Trajectory, Watch
from fastnas.runs.optimiser import Adam, Sgd
from fastnas.runs.ranks import ALONE, Ranks
from fastnas.supernet import Batch, Executor, Graphs, SupernetProblem, eagerly, gradients, narrow, pinned
from fastnas.supernet.graphs import WARM_UP


@dataclass(frozen=True)
class StepReport:
    """What one step saw; tensors stay on the device, so that reading them is the caller's synchronisation.

    Attributes:
        losses: (T,) training loss before each weight step.
        correct: scalar, training images classified right, over the T batches.
        hypergradient_norm: scalar, Euclidean.
        watch: what the estimator noticed; its ``sentences()`` are those to show, and raise ``NotFiniteError`` where an
            oracle or the hypergradient was not finite, so that alpha did not move.
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
    ) -> None:
        self.precision, self.states, self.ranks = precision, dict(states or {}), ranks
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

    def __call__(self, train: Sequence[Batch], val: Batch, learning_rate: float) -> StepReport:
        """T = len(train) weight steps at ``learning_rate`` and one step of alpha.

        Args:
            train: T batches of the weights' split, images (B, C, H, W) and labels (B,) or what else the network reads.
            val: one batch of alpha's split.
            learning_rate: of this epoch, also xi of darts and the default gamma of idarts.
        """
        val = self.placed("val", val)
        step = self.training_loss if self.method.moves_weights else self.weight_step
        if self.method.after_inner_steps:
            recorded = self.method.recorded_steps(self.settings, len(train))
            trajectory = self.trajectory(learning_rate, recorded)
            results = []
            for batch in train:
                placed = self.placed("train", batch)
                trajectory.record(self.problem(placed, val))
                results.append(step(placed, learning_rate))
            norm, watch = self.alpha_step(placed, val, learning_rate, trajectory)
        else:
            norm, watch = self.alpha_step(train[0], val, learning_rate)
            results = [step(batch, learning_rate) for batch in train]
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
            self.states[stream].copy_(state)

    def begin_epoch(self) -> None:
        """Both streams begin anew: their states are zero."""
        for state in self.states.values():
            state.zero_()

    def weight_step(self, batch: Batch, learning_rate: float) -> tuple[Tensor, Tensor]:
        """One step of SGD; BatchNorm's running statistics move. Returns the loss and the number of hits."""
        batch = self.placed("train", batch)
        self.weight_optimiser.set_rate(learning_rate)
        body = self._weight_pass if self.ranks.size == 1 else self._gradient_pass
        if self.graphs is None:
            loss, correct, *states = eagerly(body, batch)
        else:
            loss, correct, *states = self.graphs.run(
                "weight_step", body, batch, of=(self.net, self.weight_optimiser)
            )
        if self.ranks.size > 1:
            grad, *states = states
            grad, loss, correct = self.ranks.of_step(grad, loss, correct)
            self.weight_optimiser.move(grad)
        self._carry("train", states)
        return loss.clone(), correct.clone()  # of a graph: the next one may write there

    def _weight_pass(self, *batch: Tensor) -> tuple[Tensor, ...]:
        """A weight step at the rate that was set, one CUDA graph; loss, hits, and what is carried."""
        loss, correct, grad, *states = self._gradient_pass(*batch)
        self.weight_optimiser.move(grad)
        return loss, correct, *states

    def _gradient_pass(self, *batch: Tensor) -> tuple[Tensor, ...]:
        """:meth:`_weight_pass` without the step; loss, hits, gradient (P,), and what is carried."""
        *inputs, targets = batch
        self.net.train()
        with pinned(tf32=True):
            with narrow(targets.device, self.precision):
                logits = self.net(*inputs)
            loss, penalty = (
                F.cross_entropy(logits.to(self.net.weights.flat.dtype), targets),
                self.net.penalty(targets),
            )
            (grad,) = gradients(loss if penalty is None else loss + penalty, self.net.weights)
        return loss.detach(), self._hits(logits.detach(), targets), grad, *self.net.carried()

    def _hits(self, logits: Tensor, targets: Tensor) -> Tensor:
        if not self.net.classifies:
            return torch.zeros((), dtype=torch.int64, device=targets.device)
        return (logits.argmax(1) == targets).sum()

    def training_loss(self, batch: Batch, learning_rate: float) -> tuple[Tensor, Tensor]:
        """:meth:`weight_step` without the step: BatchNorm's running statistics move, the weights do not."""
        self.net.train()
        *inputs, targets = self.placed("train", batch)
        with torch.no_grad(), narrow(targets.device, self.precision):
            logits = self.net(*inputs)
        loss = F.cross_entropy(logits.to(self.net.weights.flat.dtype), targets)
        self._carry("train", self.net.carried())
        correct = self._hits(logits, targets)
        if self.ranks.size > 1:
            loss = self.ranks.average_(loss.clone())
            correct = self.ranks.sum_(correct.clone())
        return loss, correct

    def alpha_step(
        self, train: Batch, val: Batch, learning_rate: float, trajectory: Trajectory | None = None
    ) -> tuple[Tensor, Watch]:
        """One step of Adam along the hypergradient; its norm, and what was noticed. Nothing waits for the device.

        Where an oracle or the hypergradient has a NaN or an infinity, alpha and Adam's state stay as they were, and
        the watch says so when it is read.
        """
        oracles = self.problem(train, val)
        problem, watch = Inspected(oracles), Watch()
        settings = self.settings_at(learning_rate, trajectory, watch)
        grad = self.method.hypergradient(problem, settings)
        self._carry("val", oracles.carried)
        moved = [self.alpha_optimiser.alpha, *self.alpha_optimiser.state().values()]
        before = [tensor.clone() for tensor in moved]
        self.alpha_optimiser.step(grad)
        finite = problem.check(grad, watch)
        for tensor, old in zip(moved, before, strict=True):
            tensor.copy_(torch.where(finite, tensor, old))
        watch.send()
        return grad.norm(), watch

    def hypergradient(self, train: Batch, val: Batch, learning_rate: float) -> Tensor:
        """The method's estimate of dL2/dalpha, (H,), at the current weights; nothing moves (but by idarts-release)."""
        return self.method.hypergradient(self.problem(train, val), self.settings_at(learning_rate))

    def problem(self, train: Batch, val: Batch) -> SupernetProblem:
        """The oracles on these batches."""
        train, val = self.placed("train", train), self.placed("val", val)
        average = self.ranks.average_ if self.ranks.size > 1 else None
        return SupernetProblem(self.net, train, val, graphs=self.graphs, average=average)

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
