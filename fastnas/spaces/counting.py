"""How many discrete networks a space holds, as papers count them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations

from fastnas.spaces.description import Cell, Edge, Space


def edges_of_alphas(space: Space) -> dict[str, tuple[Edge, ...]]:
    """The edges that each architecture parameter of ``space`` weighs; row i is edge i."""
    found: dict[str, tuple[Edge, ...]] = {}
    for stage in space.stages:
        if isinstance(stage, Cell) and stage.alpha is not None:
            found.setdefault(stage.alpha, stage.edges)
    return found


def one_an_edge(space: Space) -> int:
    """Every edge stays, with one of its primitives.

    >>> from fastnas.spaces import make_space
    >>> one_an_edge(make_space("nasbench201"))
    15625
    """
    return math.prod(len(edge.primitives) for edges in edges_of_alphas(space).values() for edge in edges)


def two_edges_a_node(space: Space) -> int:
    """Of the edges into each node two stay, each with one of its primitives other than ``none`` (Liu et al. 2019).

    >>> from fastnas.spaces import make_space
    >>> f"{two_edges_a_node(make_space('darts')):.1e}"
    '1.1e+18'
    """
    return math.prod(_two_edges_a_node(edges) for edges in edges_of_alphas(space).values())


def _two_edges_a_node(edges: Sequence[Edge]) -> int:
    networks = 1
    for target in sorted({edge.target for edge in edges}):
        choices = [len({*edge.primitives} - {"none"}) for edge in edges if edge.target == target]
        networks *= sum(a * b for a, b in combinations(choices, 2))
    return networks
