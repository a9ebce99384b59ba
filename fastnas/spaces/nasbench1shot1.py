"""NAS-Bench-1Shot1 (Zela, Siems, Hutter 2020): three spaces of supernets whose cells are cells of NAS-Bench-101.

A cell has nodes 1 to n, the choice blocks, between its input, node 0, and its output. Each node and the output choose
their parents among the nodes before them, each node one of three primitives.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from fastnas.spaces.description import Alpha, Cell, Edge, Head, Input, Mixing, Space
from fastnas.spaces.nasbench101 import NASBENCH101_PRIMITIVES, CellMatrix, stacks

# Parents of each node and, last, of the output (section 3.2, table 1), by the number of the space.
PARENTS = {
    1: (0, 1, 2, 2, 2, 2),
    2: (0, 1, 1, 2, 2, 3),
    3: (0, 1, 1, 1, 2, 2, 2),
}


def supernet(number: int, channels: int, layers: int, classes: int, image_channels: int = 3) -> Space:
    """The supernet of space ``number`` (1, 2 or 3), of ``layers`` cells in three stacks."""
    parents = PARENTS[number]
    edges, output = _edges(parents)
    blocks = len(parents) - 2

    def cell(width: int, source: int) -> Cell:
        return Cell(
            kind="cell",
            # A projection for each block, and the output's, of which each block adds up with a part.
            inputs=(Input(source, "conv_bn_relu"),) * (2 * blocks),
            edges=edges,
            channels=width,
            output=output,
            alpha=None,
            affine=True,
            normalise_pools=False,
        )

    stages = stacks(channels, layers, cell)
    last = stages[-1]
    assert isinstance(last, Cell)
    head = Head(classes, projection=last.channels)
    return Space(f"nasbench1shot1-{number}", image_channels, (*stages, head), _alphas(parents))


def derive(number: int, alphas: Mapping[str, Tensor]) -> CellMatrix:
    """The cell of alpha: the strongest parents of each node, as many as its space says, and the strongest primitives.

    Ties go to the earlier node or primitive. Nodes that nothing reads stay; ``pruned()`` leaves them out.

    Args:
        number: of the space.
        alphas: those of :func:`supernet` by name, before the softmax.
    """
    parents = PARENTS[number]
    last = len(parents) - 1
    matrix = [[0] * (last + 1) for _ in parents]
    for node in range(1, last + 1):
        weights = alphas.get("output" if node == last else f"parents_{node}")
        chosen = range(node) if weights is None else _strongest(weights.detach()[0], parents[node])
        for parent in chosen:
            matrix[parent][node] = 1
    operations = [NASBENCH101_PRIMITIVES[int(k)] for k in alphas["operations"].detach().argmax(-1)]
    return CellMatrix(tuple(map(tuple, matrix)), ("input", *operations, "output"))


def _alphas(parents: Sequence[int]) -> tuple[Alpha, ...]:
    """For the primitives, the output's parents and the parents of each node that has a choice."""
    blocks = len(parents) - 2
    nodes = ["input", *(f"node {node}" for node in range(1, blocks + 1))]
    choosing = [node for node in range(1, blocks + 1) if _chooses(parents, node)]
    return (
        Alpha("operations", blocks, NASBENCH101_PRIMITIVES),
        Alpha("output", 1, tuple(nodes)),
        *(Alpha(f"parents_{node}", 1, tuple(nodes[:node])) for node in choosing),
    )


def _chooses(parents: Sequence[int], node: int) -> bool:
    """Whether there are more nodes before it than it takes."""
    return parents[node] < node


def _edges(parents: Sequence[int]) -> tuple[tuple[Edge, ...], tuple[int, ...]]:
    """The edges of a cell, and its output states.

    States are, of n blocks, n projections of the input, n parts of its projection to the output, for each block the
    weighted sum of its sources (where there are several) and its value, and n parts of the output: every one of C
    channels.
    """
    blocks = len(parents) - 2
    edges: list[Edge] = []
    values: list[int] = []
    state = 2 * blocks
    for node in range(1, blocks + 1):
        source = node - 1
        if node > 1:
            for column, earlier in enumerate((source, *values)):
                mixing = Mixing(f"parents_{node}", 0, column) if _chooses(parents, node) else None
                edges.append(Edge(earlier, state, ("skip_connect",), mixing=mixing))
            source, state = state, state + 1
        edges.append(Edge(source, state, NASBENCH101_PRIMITIVES, mixing=Mixing("operations", node - 1)))
        values.append(state)
        state += 1
    output = tuple(range(state, state + blocks))
    for part, (value, target) in enumerate(zip(values, output, strict=True)):
        edges.append(Edge(blocks + part, target, ("skip_connect",), mixing=Mixing("output", 0, 0)))
        edges.append(Edge(value, target, ("skip_connect",), mixing=Mixing("output", 0, part + 1)))
    return tuple(edges), output


def _strongest(weights: Tensor, count: int) -> list[int]:
    values = weights.tolist()
    return sorted(range(len(values)), key=lambda k: -values[k])[:count]
