"""The supernet as a bilevel problem: three oracles on flat vectors, on the current pair of batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from fastnas.supernet.arena import gradients
from fastnas.supernet.reference import Supernet

Batch: TypeAlias = tuple[Tensor, Tensor]


class SupernetProblem:
    """L1 = training loss, L2 = validation loss of ``net`` on one minibatch each (the protocol of ``bilevel``).

    Every oracle runs in training mode with the batch's own BatchNorm statistics, leaves the running statistics
    and the random state untouched, and starts from the same random state, so that both sides of a finite
    difference see the same dropout masks. It runs in IEEE float32 (or wider): a difference moves each weight by
    about 1e-5, which TF32 would round away.

    Args:
        net: the supernet; ``w`` and ``alpha`` are its arenas' buffers, live.
        train: images (B, C, H, W) and labels (B,) of L1.
        val: the same of L2.
        loss: (logits, labels) -> scalar.
    """

    def __init__(
        self,
        net: Supernet,
        train: Batch,
        val: Batch,
        loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
    ) -> None:
        self.net, self.train, self.val, self.loss = net, train, val, loss
        self.w, self.alpha = net.weights.flat, net.alphas.flat

    def train_grad_w(self) -> Tensor:
        """dL1/dw, (P,)."""
        with self._pass(self.train) as loss:
            return gradients(loss, self.net.weights)[0]

    def train_grad_alpha(self) -> Tensor:
        """dL1/dalpha, (H,)."""
        with self.net.weights.constant(), self._pass(self.train) as loss:
            return gradients(loss, self.net.alphas)[0]

    def val_grads(self) -> tuple[Tensor, Tensor]:
        """dL2/dw (P,) and dL2/dalpha (H,)."""
        with self._pass(self.val) as loss:
            weights, alphas = gradients(loss, self.net.weights, self.net.alphas)
            return weights, alphas

    def val_grad_alpha(self) -> Tensor:
        """dL2/dalpha, (H,)."""
        with self.net.weights.constant(), self._pass(self.val) as loss:
            return gradients(loss, self.net.alphas)[0]

    @contextmanager
    def _pass(self, batch: Batch) -> Iterator[Tensor]:
        """The loss of ``batch``, its graph alive, the network's state as it will be found again afterwards."""
        images, labels = batch
        devices = [images.device.index or 0] if images.is_cuda else []
        mode = self.net.training
        self.net.train()
        try:
            with (
                torch.random.fork_rng(devices),
                self.net.frozen_statistics(),
                _without_tf32(),
                torch.enable_grad(),
            ):
                yield self.loss(self.net(images), labels)
        finally:
            self.net.train(mode)


@contextmanager
def _without_tf32() -> Iterator[None]:
    backends: tuple[Any, ...] = (torch.backends.cudnn, torch.backends.cuda.matmul)
    before = [backend.allow_tf32 for backend in backends]
    for backend in backends:
        backend.allow_tf32 = False
    try:
        yield
    finally:
        for backend, allowed in zip(backends, before, strict=True):
            backend.allow_tf32 = allowed
