"""The fused executor: channels last, each node's weighted sum as one op; the remaining stages follow."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastnas.ops import mixed_sum
from fastnas.supernet.reference import Supernet


class FusedSupernet(Supernet):
    """:class:`Supernet` with channels as the innermost dimension, and a node's branches summed in one pass."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images.contiguous(memory_format=torch.channels_last))

    def node(self, branches: Sequence[Tensor], weights: Sequence[Tensor] | None) -> Tensor:
        if weights is None:
            return super().node(branches, weights)
        return mixed_sum(torch.stack(list(weights)), branches)
