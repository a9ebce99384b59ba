"""What a supernet's architecture parameters say of the edges and nodes that are drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fastnas.errors import FastnasError
from fastnas.spaces.counting import edges_of_alphas
from fastnas.spaces.description import Edge, Space
from fastnas.spaces.genotype import AnyGenotype, Graph
from fastnas.spaces.nasbench101 import NASBENCH101_PRIMITIVES, CellMatrix
from fastnas.spaces.recurrent import RecurrentSpace

Softmaxed = Mapping[str, Sequence[Sequence[float]]]


@dataclass(frozen=True)
class Weights:
    """Of a graph's edges and states, each None where nothing weighs it."""

    edges: tuple[float | None, ...]
    nodes: tuple[float | None, ...]


def no_weights(graph: Graph) -> Weights:
    """Of a graph that nothing weighs."""
    return Weights((None,) * len(graph.edges), (None,) * len(graph.labels))


def weights_of(space: Space, genotype: AnyGenotype, alphas: Mapping[str, Tensor]) -> tuple[Weights, ...]:
    """The weights, softmax over the options, of what ``genotype.graphs()`` draws, one for each graph.

    Args:
        space: the supernet as data.
        genotype: derived in it.
        alphas: its architecture parameters by name, before the softmax.

    Raises:
        FastnasError: alphas that are not this space's.

    >>> import torch
    >>> from fastnas.spaces import make_space, CellString
    >>> cell = CellString(("none",) * 5 + ("skip_connect",))
    >>> weights_of(make_space("nasbench201"), cell, {"cell": torch.zeros(6, 5)})[0].edges[5]
    0.20000000298023224
    """
    softmaxed = _softmaxed(space, alphas)
    if isinstance(genotype, CellMatrix):
        return (_of_matrix(genotype, softmaxed),)
    rows, graphs = _rows(space), genotype.graphs()
    in_order: Sequence[Any] = list(rows) if len(rows) == len(graphs) else [None] * len(graphs)
    names = [
        graph.name if graph.name in rows else other for graph, other in zip(graphs, in_order, strict=True)
    ]
    return tuple(
        no_weights(graph) if name is None else _of_edges(graph, rows[name], softmaxed[name])
        for graph, name in zip(graphs, names, strict=True)
    )


def _softmaxed(space: Space, alphas: Mapping[str, Tensor]) -> Softmaxed:
    for alpha in space.alphas:
        got = tuple(alphas[alpha.name].shape) if alpha.name in alphas else None
        if got != alpha.shape:
            found = "is missing" if got is None else f"has the shape {got}"
            raise FastnasError(
                f"the alphas are not those of the space {space.name}: {alpha.name!r} must have the shape {alpha.shape} "
                f"and {found}"
            )
    return {alpha.name: alphas[alpha.name].detach().float().softmax(-1).tolist() for alpha in space.alphas}


def _rows(space: Space) -> dict[str, tuple[Edge, ...]]:
    """The edges that each architecture parameter weighs."""
    if isinstance(space, RecurrentSpace):
        return {space.alphas[0].name: space.edges}
    return edges_of_alphas(space)


def _of_edges(graph: Graph, edges: Sequence[Edge], rows: Sequence[Sequence[float]]) -> Weights:
    """Of a graph whose states are those of the supernet's cell."""
    found = {
        (edge.source, edge.target, primitive): weight
        for edge, row in zip(edges, rows, strict=True)
        for primitive, weight in zip(edge.primitives, row, strict=False)
    }
    return Weights(tuple(map(found.get, graph.edges)), (None,) * len(graph.labels))


def _of_matrix(genotype: CellMatrix, softmaxed: Softmaxed) -> Weights:
    """Of NAS-Bench-1Shot1's parents, which are edges, and primitives, which are nodes; ``pruned`` leaves some out."""
    (graph,) = genotype.graphs()
    vertices, last = genotype.used(), len(genotype.matrix) - 1

    def edge(source: int, target: int) -> float | None:
        name = "output" if target == last else f"parents_{target}"
        return softmaxed[name][0][source] if name in softmaxed else None

    nodes: list[float | None] = [None] * len(vertices)
    for i, vertex in enumerate(vertices[1:-1], start=1):
        if "operations" in softmaxed:
            k = NASBENCH101_PRIMITIVES.index(genotype.operations[vertex])
            nodes[i] = softmaxed["operations"][vertex - 1][k]
    return Weights(tuple(edge(vertices[a], vertices[b]) for a, b, _ in graph.edges), tuple(nodes))
