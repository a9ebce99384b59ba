"""The space S2 of Bi et al. 2019 (section 4): the 20 cells of a network, each with edges of its own to choose for.

Edges are fixed as in S1, 8 a cell. With two primitives, skip_connect and sep_conv_3x3, that are 2^160 = 1.5e48
networks; any other set may be searched, too. A genotype lists all cells.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fastnas.errors import FastnasError
from fastnas.spaces.darts import CONCAT, Content, discrete, reductions, skeleton
from fastnas.spaces.description import Alpha, Space
from fastnas.spaces.genotype import (
    Drawable,
    Graph,
    Pair,
    call_fields,
    cell_graph,
    check_cell,
    json_object,
    read_integers,
    read_pairs,
    share,
    shorten,
)
from fastnas.spaces.s1 import fixed_edges, strongest

PRIMITIVES = ("skip_connect", "sep_conv_3x3")


@dataclass(frozen=True)
class CellSequence(Drawable):
    """The cells of a whole network, one after the other, each as DARTS writes one.

    Attributes:
        cells: of each layer two (primitive, source state) a node.
        concats: of each layer the states that it puts side by side.
        reductions: the layers that are reduction cells.

    >>> pairs = (("skip_connect", 0), ("none", 1))
    >>> str(CellSequence((pairs, pairs), ((2,), (2,)), (0, 1)))[:45]
    "CellSequence(cells=[[('skip_connect', 0), ('n"
    """

    cells: tuple[tuple[Pair, ...], ...]
    concats: tuple[tuple[int, ...], ...]
    reductions: tuple[int, ...]

    def __post_init__(self) -> None:
        count = len(self.cells)
        if not count or len(self.concats) != count:
            raise FastnasError(
                f"genotype: a sequence needs a concat for each cell, got {len(self.concats)} for {count} cells"
            )
        for layer, (cell, concat) in enumerate(zip(self.cells, self.concats, strict=True)):
            check_cell(f"cell {layer}", cell, concat)
        if len(set(self.reductions)) != len(self.reductions) or not all(
            0 <= layer < count for layer in self.reductions
        ):
            raise FastnasError(
                f"genotype: reductions must list different cells from 0 to {count - 1}, got {list(self.reductions)}"
            )

    def __str__(self) -> str:
        cells, concats = [list(cell) for cell in self.cells], [list(concat) for concat in self.concats]
        return f"CellSequence(cells={cells}, concats={concats}, reductions={list(self.reductions)})"

    def to_json(self) -> dict[str, Any]:
        """Plain data for ``json.dump``; :meth:`parse` reads it back."""
        return {
            "space": "s2",
            "cells": [[list(pair) for pair in cell] for cell in self.cells],
            "concats": [list(concat) for concat in self.concats],
            "reductions": list(self.reductions),
        }

    def skip_share(self) -> float:
        """The share of skip_connect among the edges of all cells."""
        return share("skip_connect", [op for cell in self.cells for op, _ in cell])

    def graphs(self) -> tuple[Graph, ...]:
        """All cells as graphs."""
        return tuple(
            cell_graph(f"cell_{layer}" + ("_reduce" if layer in self.reductions else ""), cell, concat)
            for layer, (cell, concat) in enumerate(zip(self.cells, self.concats, strict=True))
        )

    @classmethod
    def parse(cls, text: str) -> CellSequence:
        """From what ``str()`` gives, or from JSON.

        Raises:
            FastnasError: it is neither, or the cells are not valid.
        """
        names = ("cells", "concats", "reductions")
        fields = json_object(text) or call_fields("CellSequence", names, text)
        lists: list[Any] = [(fields or {}).get(name) for name in names]
        if not all(isinstance(value, list | tuple) for value in lists):
            raise FastnasError(
                "not a sequence of cells: expected CellSequence(cells=[[('sep_conv_3x3', 0), ...], ...], "
                f"concats=[[...], ...], reductions=[...]) or the same as JSON, got {shorten(text)}"
            )
        cells, concats, reduced = lists
        return cls(
            tuple(read_pairs(f"cell {layer}", cell) for layer, cell in enumerate(cells)),
            tuple(read_integers(f"concat {layer}", concat) for layer, concat in enumerate(concats)),
            read_integers("reductions", reduced),
        )


def supernet(
    channels: int,
    layers: int,
    classes: int,
    image_channels: int = 3,
    primitives: Sequence[str] = PRIMITIVES,
) -> Space:
    """The supernet: DARTS' skeleton, ``primitives`` on each of 8 edges a cell, an architecture parameter a cell."""
    edges = fixed_edges(primitives)

    def content(layer: int, reduction: bool) -> Content:
        return Content(edges, CONCAT, _alpha_name(layer))

    alphas = tuple(Alpha(_alpha_name(layer), len(edges), tuple(primitives)) for layer in range(layers))
    stages = skeleton("s2", channels, layers, classes, content, reductions(layers))
    return Space("s2", image_channels, stages, alphas)


def network(
    genotype: CellSequence, channels: int, layers: int, classes: int, image_channels: int = 3
) -> Space:
    """The discrete network of ``genotype``, in DARTS' skeleton.

    Raises:
        FastnasError: the genotype has not as many cells as ``layers``.
    """
    if layers != len(genotype.cells):
        raise FastnasError(
            f"space s2: this genotype has {len(genotype.cells)} cells, not {layers}; leave out --layers"
        )

    def content(layer: int, reduction: bool) -> Content:
        return discrete(genotype.cells[layer], genotype.concats[layer])

    stages = skeleton("s2", channels, layers, classes, content, genotype.reductions)
    return Space("s2", image_channels, stages)


def derive(alphas: Mapping[str, Tensor], primitives: Sequence[str] = PRIMITIVES) -> CellSequence:
    """The genotype of alpha: on every edge of every cell the primitive that weighs most.

    Args:
        alphas: "cell_00", "cell_01" and so on, each (8, primitives) float, before the softmax.
        primitives: those of the supernet.
    """
    layers = len(alphas)
    cells = tuple(strongest(alphas[_alpha_name(layer)], primitives) for layer in range(layers))
    return CellSequence(cells, (CONCAT,) * layers, reductions(layers))


def _alpha_name(layer: int) -> str:
    return f"cell_{layer:02d}"
