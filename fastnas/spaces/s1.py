"""The space S1 of Bi et al. 2019 ("Stabilizing DARTS with Amended Gradient Estimation", section 4): DARTS' cells with
their edges fixed.

Node i reads the state before it and c_{k-2}, so a cell has 8 edges and only primitives are searched: seven on each,
DARTS' without ``none``. 7^16 = 3.3e13 pairs of cells. A genotype is one of DARTS'.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from fastnas.spaces.darts import CONCAT, KINDS, NODES, shared_cells
from fastnas.spaces.description import Edge, Space
from fastnas.spaces.genotype import DARTS_PRIMITIVES, Genotype, Pair

PRIMITIVES = tuple(name for name in DARTS_PRIMITIVES if name != "none")


def fixed_edges(primitives: Sequence[str]) -> tuple[Edge, ...]:
    """The 8 edges of a cell: c_{k-2} (state 0) and the state before it into every node."""
    return tuple(
        Edge(source, target, tuple(primitives))
        for target in range(2, 2 + NODES)
        for source in (0, target - 1)
    )


def supernet(channels: int, layers: int, classes: int, image_channels: int = 3) -> Space:
    """The supernet: DARTS' skeleton, seven primitives on each of 8 edges a cell."""
    edges = dict.fromkeys(KINDS, fixed_edges(PRIMITIVES))
    return shared_cells("s1", edges, channels, layers, classes, image_channels)


def strongest(alpha: Tensor, primitives: Sequence[str]) -> tuple[Pair, ...]:
    """The cell of alpha (8, primitives): on every edge the primitive that weighs most."""
    best = alpha.detach().argmax(-1).tolist()
    return tuple((primitives[k], edge.source) for k, edge in zip(best, fixed_edges(primitives), strict=True))


def derive(alphas: Mapping[str, Tensor]) -> Genotype:
    """The genotype of alpha: on every edge the primitive that weighs most.

    Args:
        alphas: "normal" and "reduce", each (8, 7) float, before the softmax.
    """
    normal, reduce = (strongest(alphas[kind], PRIMITIVES) for kind in KINDS)
    return Genotype(normal, CONCAT, reduce, CONCAT)
