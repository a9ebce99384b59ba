"""What every network has that a search or a retraining moves: arenas, and BatchNorms that can be told what to do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from fastnas.spaces import Alpha, Space
from fastnas.supernet.arena import Arena
from fastnas.supernet.primitives import Statistics


class Executor(nn.Module):
    """A space executed. The weights are ``parameters()``; architecture parameters are kept apart from them.

    Attributes:
        space: the description that it executes.
        weights: arena of the P weights, in the order of ``named_parameters()``.
        alphas: arena of the H architecture parameters, before the softmax; empty for a discrete network.
        running: arena of the BatchNorms' running statistics.
        classifies: whether its hits are worth counting.
    """

    space: Space
    weights: Arena
    alphas: Arena
    running: Arena
    classifies = True

    def __init__(self) -> None:
        super().__init__()
        self._statistics = Statistics()

    def _gather(self, alphas: Mapping[str, Tensor], dtype: torch.dtype, device: torch.device | str) -> None:
        """Makes the arenas; the modules are all there."""
        # On the device that the modules were made on, if that is not the default one (torch.device("meta")).
        device = next(self.parameters()).device if device == "cpu" else device
        self.weights = Arena(dict(self.named_parameters()), dtype=dtype, device=device)
        self.running = Arena(dict(self.named_buffers()), dtype=dtype, device=device)
        self.alphas = Arena(alphas, dtype=dtype, device=device)

    def penalty(self, targets: Tensor) -> Tensor | None:
        """The training loss's part beside that of the logits, of the last forward pass, given once; None: none."""
        return None

    def carried(self) -> tuple[Tensor, ...]:
        """What the next batch of the same stream begins with, of the last forward pass, detached; mostly nothing."""
        return ()

    @contextmanager
    def frozen_statistics(self) -> Iterator[None]:
        """Within it, BatchNorms in training mode use the batch's statistics and leave the running ones alone."""
        self._statistics.moving = False
        try:
            yield
        finally:
            self._statistics.moving = True

    @contextmanager
    def composed_norms(self) -> Iterator[None]:
        """Within it BatchNorms in training mode are differentiable in every way; use with frozen statistics."""
        self._statistics.composed = True
        try:
            yield
        finally:
            self._statistics.composed = False

    @contextmanager
    def twice_differentiable(self) -> Iterator[None]:
        """Within it a forward pass may be differentiated twice, by the arenas' ``tensors``."""
        yield

    @property
    def statistics_move(self) -> bool:
        """Whether a forward pass in training mode moves the running statistics."""
        return self._statistics.moving


def initial_alpha(alpha: Alpha) -> nn.Parameter:
    """1e-3 N(0, 1), as DARTS starts."""
    return nn.Parameter(1e-3 * torch.randn(alpha.shape))
