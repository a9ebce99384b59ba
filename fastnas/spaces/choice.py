"""A genotype for any space in which every edge keeps one primitive, and what follows from a supernet alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from fastnas.errors import FastnasError
from fastnas.spaces.counting import edges_of_alphas
from fastnas.spaces.description import Cell, Edge, Space, Stage
from fastnas.spaces.genotype import Drawable, Graph, is_integer, json_object, share, shorten


@dataclass(frozen=True)
class Choice(Drawable):
    """One primitive for each edge of each architecture parameter. Its text is JSON.

    Attributes:
        space: the name of the space.
        edges: by architecture parameter its edges as (source state, target state, primitive), in the cell's order.

    >>> str(Choice("mine", {"cell": ((0, 1, "skip_connect"),)}))
    '{"space": "mine", "edges": {"cell": [[0, 1, "skip_connect"]]}}'
    """

    space: str
    edges: Mapping[str, tuple[tuple[int, int, str], ...]]

    def __str__(self) -> str:
        return json.dumps(self.to_json())

    def to_json(self) -> dict[str, Any]:
        """Plain data for ``json.dump``; :meth:`parse` reads it back."""
        edges = {name: [list(edge) for edge in edges] for name, edges in self.edges.items()}
        return {"space": self.space, "edges": edges}

    def skip_share(self) -> float:
        """The share of skip_connect among all edges."""
        return share("skip_connect", [op for edges in self.edges.values() for _, _, op in edges])

    def graphs(self) -> tuple[Graph, ...]:
        """A graph for each architecture parameter."""
        return tuple(
            Graph(name, tuple(map(str, range(1 + max(target for _, target, _ in edges)))), edges)
            for name, edges in self.edges.items()
        )

    @classmethod
    def parse(cls, text: str) -> Choice:
        """From JSON.

        Raises:
            FastnasError: it is something else.
        """
        fields = json_object(text) or {}
        space, edges = fields.get("space"), fields.get("edges")
        if (
            not isinstance(space, str)
            or not isinstance(edges, dict)
            or not edges
            or not all(map(_are_edges, edges.values()))
        ):
            raise FastnasError(
                'not a choice of primitives: expected {"space": NAME, "edges": {ALPHA: [[source, target, primitive], '
                f"...], ...}}}}, got {shorten(text)}"
            )
        return cls(space, {name: tuple(map(tuple, rows)) for name, rows in edges.items()})


def derive(supernet: Space, alphas: Mapping[str, Tensor]) -> Choice:
    """On every edge the primitive that weighs most.

    Args:
        supernet: in which each edge of a cell has its row of the cell's alpha.
        alphas: by name, each (edges, primitives) float, before the softmax.
    """
    edges = edges_of_alphas(supernet)
    chosen = {
        name: tuple(
            (edge.source, edge.target, edge.primitives[k])
            for edge, k in zip(edges[name], alpha.detach().argmax(-1).tolist(), strict=True)
        )
        for name, alpha in alphas.items()
    }
    return Choice(supernet.name, chosen)


def network(supernet: Space, genotype: Choice) -> Space:
    """The discrete network of ``genotype``: the supernet with one primitive on each edge.

    Its BatchNorms have scale and shift, and none is behind a pooling.

    Raises:
        FastnasError: the genotype is none of this space.
    """
    if genotype.space != supernet.name:
        raise FastnasError(
            f"this genotype does not fit the space {supernet.name}: it is one of {genotype.space}"
        )
    return Space(
        supernet.name, supernet.image_channels, tuple(_discrete(stage, genotype) for stage in supernet.stages)
    )


def _discrete(stage: Stage, genotype: Choice) -> Stage:
    if not isinstance(stage, Cell) or stage.alpha is None:
        return stage
    chosen = genotype.edges.get(stage.alpha, ())
    fits = len(chosen) == len(stage.edges) and all(
        (source, target) == (edge.source, edge.target) and op in edge.primitives
        for (source, target, op), edge in zip(chosen, stage.edges, strict=True)
    )
    if not fits:
        raise FastnasError(
            f"this genotype does not fit the space {genotype.space}: {stage.alpha!r} has others there"
        )
    edges = tuple(
        Edge(edge.source, edge.target, (op,), edge.stride)
        for edge, (_, _, op) in zip(stage.edges, chosen, strict=True)
    )
    return replace(stage, edges=edges, alpha=None, affine=True, normalise_pools=False)


def _are_edges(value: Any) -> bool:
    """Whether it is a list of [source, target, primitive] with source < target, one at least."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(
            isinstance(edge, list)
            and len(edge) == 3
            and is_integer(edge[0])
            and is_integer(edge[1])
            and 0 <= edge[0] < edge[1]
            and isinstance(edge[2], str)
            for edge in value
        )
    )
