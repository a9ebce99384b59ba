"""The supernet as a bilevel problem: three oracles on flat vectors, on the current pair of batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastnas.bilevel import _arguments as check
from fastnas.supernet.anomaly import put_back, random_state, watched
from fastnas.supernet.arena import Arena, gradient_parts, joined
from fastnas.supernet.executor import Executor
from fastnas.supernet.fused import FusedSupernet
from fastnas.supernet.graphs import Batch, Graphs, eagerly
from fastnas.supernet.own_primitives import check_twice_differentiable
from fastnas.supernet.tangents import carries_tangents, loss_tangent


class SupernetProblem:
    """L1 = training loss, L2 = validation loss of ``net`` on one minibatch each (the protocol of ``bilevel``).

    Every oracle runs in training mode with the batch's own BatchNorm statistics, leaves the running statistics
    and the random state untouched, and starts from the same random state, so that both sides of a finite
    difference see the same dropout masks. It runs in IEEE float32 (or wider): a difference moves each weight by
    about 1e-5, which TF32 would round away.

    With ``graphs`` each oracle is captured and replayed. What a replay leaves are the gradients of the single leaves;
    joining them to one flat vector, which happens anyway, makes the result the caller's own at no cost.

    Args:
        net: the supernet; ``w`` and ``alpha`` are its arenas' buffers, live.
        train: images (B, C, H, W) and labels (B,) of L1; or whatever else ``net`` reads, then the targets.
        val: the same of L2.
        loss: (logits, labels) -> scalar.
        graphs: of the device where ``net`` is, kept from one problem to the next; None: no graphs. ``loss`` is then
            the same function each time, too.
        average: replaces a flat tensor by the mean of all processes' ones, where each has its shard of both batches,
            and returns it: the oracles are those of the whole batches then, but for BatchNorm. One call an oracle.
            None: the batches are whole.
        detect_anomaly: look at every operator's output, without graphs; ``AnomalyError`` names the first that is not
            finite.

    Attributes:
        carried: what the next batch of the validation stream begins with, as the newest pass over ``val`` left it: the
            hidden state of a recurrent network.
    """

    def __init__(
        self,
        net: Executor,
        train: Batch,
        val: Batch,
        loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
        *,
        graphs: Graphs | None = None,
        average: Callable[[Tensor], Tensor] | None = None,
        detect_anomaly: bool = False,
    ) -> None:
        self.net, self.train, self.val, self.loss, self.graphs = net, train, val, loss, graphs
        self.average, self.detect_anomaly = average, detect_anomaly
        if detect_anomaly:
            self.graphs = None
        self.w, self.alpha = net.weights.flat, net.alphas.flat
        self.carried: tuple[Tensor, ...] = ()

    def train_grad_w(self) -> Tensor:
        """dL1/dw, (P,)."""
        return self._gradients("train_grad_w", self.train, self.net.weights)[0]

    def train_grad_alpha(self) -> Tensor:
        """dL1/dalpha, (H,)."""
        return self._gradients("train_grad_alpha", self.train, self.net.alphas)[0]

    def val_grads(self) -> tuple[Tensor, Tensor]:
        """dL2/dw (P,) and dL2/dalpha (H,)."""
        weights, alphas = self._gradients("val_grads", self.val, self.net.weights, self.net.alphas)
        return weights, alphas

    def val_grad_alpha(self) -> Tensor:
        """dL2/dalpha, (H,)."""
        return self._gradients("val_grad_alpha", self.val, self.net.alphas)[0]

    @property
    def exact_by(self) -> str:
        """How the products below come about.

        "tangents": by the fused kernels over dual numbers, on the CPU; else "double backward" through plain PyTorch on
        the same weights.
        """
        return "tangents" if carries_tangents(self.net) else "double backward"

    def train_hessian_product(self, u: Tensor) -> Tensor:
        """d2L1/dw2 u, (P,), exact, for u (P,)."""
        check.like("train_hessian_product", "u", u, "w", self.w)
        return self._product(self.train, self.net.weights, weights=u)

    def train_mixed_product(self, u: Tensor) -> Tensor:
        """d2L1/dalpha dw u, (H,), exact, for u (P,)."""
        check.like("train_mixed_product", "u", u, "w", self.w)
        return self._product(self.train, self.net.alphas, weights=u)

    def val_alpha_hessian_product(self, p: Tensor) -> Tensor:
        """d2L2/dalpha2 p, (H,), exact, for p (H,)."""
        check.like("val_alpha_hessian_product", "p", p, "alpha", self.alpha)
        return self._product(self.val, self.net.alphas, alphas=p)

    def _product(
        self, batch: Batch, of: Arena, *, weights: Tensor | None = None, alphas: Tensor | None = None
    ) -> Tensor:
        """The gradient by ``of`` of the loss's derivative along the directions."""
        check_twice_differentiable(self.net.space, "exact second-order products")
        body = partial(self._product_parts, batch is self.train, of, weights, alphas)
        parts = eagerly(body, batch, keep_random_state=True)
        product = torch.cat([part.reshape(-1) for part in parts])
        return product if self.average is None else self.average(product)

    def _product_parts(
        self, training: bool, of: Arena, weights: Tensor | None, alphas: Tensor | None, *batch: Tensor
    ) -> tuple[Tensor, ...]:
        net, value = self.net, partial(self._value, training, *batch)
        if not carries_tangents(net):
            with self._oracle(value):
                return double_backward(net, value, of, weights, alphas)
        if self.detect_anomaly:
            self._look_before(value)
        with self._oracle():
            assert isinstance(net, FusedSupernet)
            images, labels = batch
            with nullcontext() if of is net.weights else net.weights.constant():
                return gradient_parts(loss_tangent(net, self.loss, images, labels, weights, alphas), of)

    def _look_before(self, value: Callable[[], Tensor]) -> None:
        """Looks at the passes of the loss itself: what torch computes of tangents does not bear being looked at."""
        random = random_state(self.net)
        with self._oracle(value):
            gradient_parts(value(), self.net.weights, self.net.alphas)
        put_back(self.net, random)

    def _gradients(self, oracle: str, batch: Batch, *arenas: Arena) -> tuple[Tensor, ...]:
        training = batch is self.train
        body = partial(self._parts, training, arenas)
        if self.graphs is None:
            parts = eagerly(body, batch, keep_random_state=True)
        else:
            parts = self.graphs.run(oracle, body, batch, of=(self.net, self.loss), keep_random_state=True)
        count = sum(len(arena.leaves) for arena in arenas)
        if not training:
            self.carried = tuple(
                tensor.clone() for tensor in parts[count:]
            )  # of a graph: the next one may write there
        if self.average is None:
            return joined(parts[:count], *arenas)
        return self._averaged(parts[:count], arenas)

    def _averaged(self, parts: Sequence[Tensor], arenas: Sequence[Arena]) -> tuple[Tensor, ...]:
        """:func:`joined`, and the mean over all processes in one call; outside of any graph."""
        assert self.average is not None
        flat = self.average(torch.cat([part.reshape(-1) for part in parts]))
        first, *rest = flat.split([len(arena) for arena in arenas])
        return first, *(part.clone() for part in rest)  # a kernel may ask for aligned memory

    def _parts(self, training: bool, arenas: tuple[Arena, ...], *batch: Tensor) -> tuple[Tensor, ...]:
        """The gradients of a batch's loss, then what is carried; the network's state as it was."""
        weights = self.net.weights
        value = partial(self._value, training, *batch)
        with self._oracle(value), nullcontext() if weights in arenas else weights.constant():
            return *gradient_parts(value(), *arenas), *self.net.carried()

    def _value(self, training: bool, *batch: Tensor) -> Tensor:
        """The loss of a batch; ``training``: with the network's own penalty, if it has one."""
        *inputs, targets = batch
        value, penalty = self.loss(self.net(*inputs), targets), self.net.penalty(targets)
        return value + penalty if training and penalty is not None else value

    @contextmanager
    def _oracle(self, value: Callable[[], Tensor] | None = None) -> Iterator[None]:
        """What every oracle runs in; ``value``, if it may be looked at, is the loss that it differentiates."""
        mode = self.net.training
        self.net.train()
        try:
            looking = watched(self.net, value) if self.detect_anomaly and value is not None else nullcontext()
            with self.net.frozen_statistics(), pinned(), torch.enable_grad(), looking:
                yield
        finally:
            self.net.train(mode)


def narrow(device: torch.device | str, precision: torch.dtype | None) -> torch.autocast:
    """Within it convolutions and products are computed in ``precision``; None: as they are.

    Without autocast's cache: a CUDA graph would read the copies of weights that it held when it was captured.
    """
    kind = torch.device(device).type
    return torch.autocast(kind, precision, enabled=precision is not None, cache_enabled=False)


def double_backward(
    net: Executor,
    loss: Callable[[], Tensor],
    of: Arena,
    weights: Tensor | None = None,
    alphas: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """d/d ``of`` of d/dt loss(w + t u, alpha + t p) at t = 0, tensor by tensor, by plain PyTorch.

    ``loss`` runs a forward pass of ``net``.
    """
    moved = [(net.weights, weights), (net.alphas, alphas)]
    along = [
        (tensor, arena.part(direction, name))
        for arena, direction in moved
        if direction is not None
        for name, tensor in arena.tensors.items()
    ]
    with net.twice_differentiable():
        value = loss()
        grads = torch.autograd.grad(value, [t for t, _ in along], create_graph=True, materialize_grads=True)
        phi = sum(
            ((grad * t).sum() for grad, (_, t) in zip(grads, along, strict=True)), start=value.new_zeros(())
        )
        wanted = list(of.tensors.values())
        if not phi.requires_grad:
            return tuple(torch.zeros_like(tensor) for tensor in wanted)
        return torch.autograd.grad(phi, wanted, materialize_grads=True)


@contextmanager
def pinned(*, tf32: bool = False) -> Iterator[None]:
    """Within it cuDNN takes algorithms that repeat to the bit, and without ``tf32`` float32 is IEEE's on CUDA.

    A difference of two gradients would amplify what an algorithm that adds by atomics scatters, and TF32 rounds away
    the step that they differ by.
    """
    cudnn: Any = torch.backends.cudnn
    wanted = [(cudnn, "deterministic", True), (cudnn, "benchmark", False)]
    if not tf32:
        wanted += [(cudnn, "allow_tf32", False), (torch.backends.cuda.matmul, "allow_tf32", False)]
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in wanted]
    for owner, name, value in wanted:
        setattr(owner, name, value)
    try:
        yield
    finally:
        for owner, name, value in before:
            setattr(owner, name, value)
