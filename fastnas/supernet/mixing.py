"""What weighs a cell's branches: one vector out of the network's architecture parameters."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fastnas.spaces import Alpha, Cell


class CellMixing:
    """The weights of a cell's branches, edge by edge and primitive by primitive, as one vector.

    Args:
        spec: the cell.
        alphas: the space's architecture parameters.

    Attributes:
        names: of the architecture parameters that it reads.
    """

    def __init__(self, spec: Cell, alphas: tuple[Alpha, ...]) -> None:
        used = {mixing.alpha for mixing in spec.mixing if mixing is not None}
        self.names = [alpha.name for alpha in alphas if alpha.name in used]
        begin, columns, end = {}, {}, 0
        for alpha in alphas:
            if alpha.name in used:
                begin[alpha.name], columns[alpha.name] = end, alpha.shape[1]
                end += alpha.shape[0] * alpha.shape[1]
        indices: list[int] = []
        for edge, mixing in zip(spec.edges, spec.mixing, strict=True):
            for k in range(len(edge.primitives)):
                if mixing is None:
                    indices.append(end)
                else:
                    indices.append(
                        begin[mixing.alpha] + mixing.row * columns[mixing.alpha] + mixing.column + k
                    )
        self._ones = int(end in indices)
        # In DARTS and NAS-Bench-201 the vector is alpha as it lies there.
        self._indices = None if indices == list(range(end)) else torch.tensor(indices, device="cpu")

    def __call__(self, softmaxed: Mapping[str, Tensor]) -> Tensor:
        """(branches,) of the architecture parameters after the softmax, by name; 1 for what nothing weighs."""
        parts = [softmaxed[name].reshape(-1) for name in self.names]
        if self._indices is None and len(parts) == 1:
            return parts[0]
        parts += [parts[0].new_ones(1)] * self._ones
        weights = torch.cat(parts)
        if self._indices is None:
            return weights
        if self._indices.device != weights.device:
            self._indices = self._indices.to(weights.device)
        return weights.index_select(0, self._indices)


def first_weights(spec: Cell) -> list[int]:
    """Where the weights of each edge's primitives begin in the vector of :class:`CellMixing`."""
    begins, end = [], 0
    for edge in spec.edges:
        begins.append(end)
        end += len(edge.primitives)
    return begins
