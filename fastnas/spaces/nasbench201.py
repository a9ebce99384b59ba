"""NAS-Bench-201 (Dong and Yang 2020): one cell of 4 states and 6 edges, in three stages of N cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from fastnas.spaces.description import (
    Alpha,
    Cell,
    Edge,
    Head,
    Input,
    Residual,
    Space,
    Stage,
    Stem,
    dense_edges,
)
from fastnas.spaces.genotype import NASBENCH201_PRIMITIVES, CellString

EDGES = dense_edges(1, 3, NASBENCH201_PRIMITIVES)


def supernet(
    channels: int,
    layers: int,
    classes: int,
    image_channels: int = 3,
    primitives: Sequence[str] = NASBENCH201_PRIMITIVES,
) -> Space:
    """The supernet with ``layers`` = N cells in each of the three stages, ``primitives`` on each edge."""
    edges = dense_edges(1, 3, primitives)
    alpha = Alpha("cell", len(edges), tuple(primitives))
    return Space(
        "nasbench201", image_channels, _stages(channels, layers, classes, edges, search=True), (alpha,)
    )


def network(genotype: CellString, channels: int, layers: int, classes: int, image_channels: int = 3) -> Space:
    """The discrete network of ``genotype``, as the benchmark trained it (C = 16, N = 5)."""
    edges = tuple(Edge(edge.source, edge.target, (op,)) for edge, op in zip(EDGES, genotype.ops, strict=True))
    return Space("nasbench201", image_channels, _stages(channels, layers, classes, edges, search=False))


def derive(alphas: Mapping[str, Tensor], primitives: Sequence[str] = NASBENCH201_PRIMITIVES) -> CellString:
    """The cell of alpha: on each edge the primitive that weighs most, ``none`` included.

    Args:
        alphas: "cell", (6, primitives) float, before the softmax.
        primitives: those of the supernet.
    """
    return CellString(tuple(primitives[int(k)] for k in alphas["cell"].detach().argmax(-1)))


def _stages(
    channels: int, layers: int, classes: int, edges: tuple[Edge, ...], *, search: bool
) -> tuple[Stage, ...]:
    stages: list[Stage] = [Stem(channels)]
    for i, width in enumerate((channels, 2 * channels, 4 * channels)):
        if i > 0:
            stages.append(Residual(width))
        for _ in range(layers):
            stages.append(
                Cell(
                    kind="cell",
                    inputs=(Input(len(stages) - 1),),
                    edges=edges,
                    channels=width,
                    output=(3,),
                    alpha="cell" if search else None,
                    affine=not search,
                    normalise_pools=False,
                )
            )
    return (*stages, Head(classes, normalise=True))
