"""DARTS' convolutional space (Liu et al. 2019, section 3.1): a normal and a reduction cell, 14 edges each."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from fastnas.errors import FastnasError
from fastnas.spaces.description import Alpha, Cell, Edge, Head, Input, Space, Stage, Stem, dense_edges
from fastnas.spaces.genotype import DARTS_PRIMITIVES, Genotype

NODES = 4
STEM_MULTIPLIER = 3
EDGES = dense_edges(2, NODES, DARTS_PRIMITIVES)


def supernet(channels: int, layers: int, classes: int, image_channels: int = 3) -> Space:
    """The supernet: ``layers`` cells, reductions at 1/3 and 2/3, eight primitives on each of 14 edges a cell."""

    def cell(reduction: bool) -> tuple[tuple[Edge, ...], tuple[int, ...]]:
        edges = dense_edges(2, NODES, DARTS_PRIMITIVES, stride=2 if reduction else 1)
        return edges, tuple(range(2, 2 + NODES))

    alphas = tuple(Alpha(kind, len(EDGES), DARTS_PRIMITIVES) for kind in ("normal", "reduce"))
    stages = _stages(channels, layers, classes, cell, search=True)
    return Space("darts", image_channels, stages, alphas)


def network(genotype: Genotype, channels: int, layers: int, classes: int, image_channels: int = 3) -> Space:
    """The discrete network of ``genotype``, as DARTS evaluates it (without the auxiliary head)."""

    def cell(reduction: bool) -> tuple[tuple[Edge, ...], tuple[int, ...]]:
        pairs, concat = (
            (genotype.reduce, genotype.reduce_concat)
            if reduction
            else (genotype.normal, genotype.normal_concat)
        )
        edges = tuple(
            Edge(source, 2 + i // 2, (op,), 2 if reduction and source < 2 else 1)
            for i, (op, source) in enumerate(pairs)
        )
        return edges, concat

    return Space("darts", image_channels, _stages(channels, layers, classes, cell, search=False))


def derive(alphas: Mapping[str, Tensor]) -> Genotype:
    """The genotype of alpha (Liu et al. 2019, section 2.4).

    For each node the two edges whose strongest primitive other than ``none`` weighs most, each with that
    primitive; ties go to the earlier state.

    Args:
        alphas: "normal" and "reduce", each (14, 8) float, before the softmax.
    """

    def cell(alpha: Tensor) -> tuple[tuple[str, int], ...]:
        weights = alpha.detach().softmax(-1)
        best = [
            max((float(weight), -k) for k, weight in enumerate(row) if DARTS_PRIMITIVES[k] != "none")
            for row in weights
        ]
        pairs = []
        for target in range(2, 2 + NODES):
            rows = [row for row, edge in enumerate(EDGES) if edge.target == target]
            strongest = sorted(rows, key=lambda row: -best[row][0])[:2]
            pairs += [(DARTS_PRIMITIVES[-best[row][1]], EDGES[row].source) for row in strongest]
        return tuple(pairs)

    concat = tuple(range(2, 2 + NODES))
    return Genotype(cell(alphas["normal"]), concat, cell(alphas["reduce"]), concat)


def _stages(
    channels: int,
    layers: int,
    classes: int,
    cell_of: Callable[[bool], tuple[tuple[Edge, ...], tuple[int, ...]]],
    *,
    search: bool,
) -> tuple[Stage, ...]:
    """Stem, cells and head; ``cell_of(reduction)`` gives a cell's edges and the states it concatenates."""
    if channels % 2:
        raise FastnasError(f"space darts: channels must be even (its reductions halve them), got {channels}")
    stages: list[Stage] = [Stem(STEM_MULTIPLIER * channels)]
    width, reduced_before = channels, False
    for layer in range(layers):
        reduction = layer in (layers // 3, 2 * layers // 3)
        width *= 2 if reduction else 1
        edges, output = cell_of(reduction)
        stages.append(
            Cell(
                kind="reduce" if reduction else "normal",
                # The first cell reads the stem twice. A state two cells back is twice as large if the
                # cell between was a reduction.
                inputs=(
                    Input(max(layer - 1, 0), "factorized_reduce" if reduced_before else "relu_conv_bn"),
                    Input(layer, "relu_conv_bn"),
                ),
                edges=edges,
                channels=width,
                output=output,
                alpha=("reduce" if reduction else "normal") if search else None,
                affine=not search,
                normalise_pools=search,
            )
        )
        reduced_before = reduction
    return (*stages, Head(classes))
