"""The fused executor: each node's weighted sum as one op; the remaining stages follow."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastnas.ops.mixed_sum import mixed_sum
from fastnas.supernet.reference import Supernet


class FusedSupernet(Supernet):
    """:class:`Supernet` that sums all branches of a node in one pass over them (``fastnas.ops.mixed_sum``)."""

    def node(self, branches: Sequence[Tensor], weights: Sequence[Tensor] | None) -> Tensor:
        if weights is None:
            return super().node(branches, weights)
        return mixed_sum(torch.stack(list(weights)), branches)
