"""DARTS' convolutional space (Liu et al. 2019, section 3.1): a normal and a reduction cell, 14 edges each.

Other spaces put other cells into its skeleton (``skeleton``), or other primitives on its edges.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from torch import Tensor

from fastnas.errors import FastnasError
from fastnas.spaces.description import Alpha, Cell, Edge, Head, Input, Space, Stage, Stem, dense_edges
from fastnas.spaces.genotype import DARTS_PRIMITIVES, Genotype, Pair

NODES = 4
STEM_MULTIPLIER = 3
KINDS = ("normal", "reduce")
CONCAT = tuple(range(2, 2 + NODES))
EDGES = dense_edges(2, NODES, DARTS_PRIMITIVES)


class Content(NamedTuple):
    """What a cell of the skeleton holds: edges (their strides are the skeleton's), output states, alpha's name."""

    edges: tuple[Edge, ...]
    output: tuple[int, ...]
    alpha: str | None = None


def supernet(
    channels: int,
    layers: int,
    classes: int,
    image_channels: int = 3,
    primitives: Sequence[str] = DARTS_PRIMITIVES,
) -> Space:
    """The supernet: ``layers`` cells, reductions at 1/3 and 2/3, ``primitives`` on each of 14 edges a cell."""
    edges = dict.fromkeys(KINDS, dense_edges(2, NODES, primitives))
    return shared_cells("darts", edges, channels, layers, classes, image_channels)


def network(genotype: Genotype, channels: int, layers: int, classes: int, image_channels: int = 3) -> Space:
    """The discrete network of ``genotype``, as DARTS evaluates it (without the auxiliary head)."""

    def content(layer: int, reduction: bool) -> Content:
        if reduction:
            return discrete(genotype.reduce, genotype.reduce_concat)
        return discrete(genotype.normal, genotype.normal_concat)

    stages = skeleton("darts", channels, layers, classes, content, reductions(layers))
    return Space("darts", image_channels, stages)


def derive(
    alphas: Mapping[str, Tensor],
    edges: Mapping[str, Sequence[Edge]] | None = None,
    primitives: Sequence[str] = DARTS_PRIMITIVES,
) -> Genotype:
    """The genotype of alpha (Liu et al. 2019, section 2.4).

    For each node the two edges whose strongest primitive other than ``none`` weighs most, each with that
    primitive; ties go to the earlier state.

    Args:
        alphas: "normal" and "reduce", each (edges, primitives) float, before the softmax.
        edges: of each of them; DARTS' own 14 with ``primitives`` if None.
        primitives: those of the supernet; one at least is not ``none``.
    """
    rows = edges or dict.fromkeys(KINDS, dense_edges(2, NODES, primitives))
    normal, reduce = (_two_strongest(alphas[kind], rows[kind]) for kind in KINDS)
    return Genotype(normal, CONCAT, reduce, CONCAT)


def shared_cells(
    name: str,
    edges: Mapping[str, tuple[Edge, ...]],
    channels: int,
    layers: int,
    classes: int,
    image_channels: int,
) -> Space:
    """A supernet whose normal cells share one architecture parameter, and its reductions another.

    Args:
        name: of the space.
        edges: of the cells, "normal" and "reduce"; those of one kind have the same number of primitives each.
        channels, layers, classes, image_channels: as in ``make_space``.
    """

    def content(layer: int, reduction: bool) -> Content:
        kind = KINDS[reduction]
        return Content(edges[kind], CONCAT, kind)

    alphas = tuple(Alpha(kind, len(edges[kind]), edges[kind][0].primitives) for kind in KINDS)
    stages = skeleton(name, channels, layers, classes, content, reductions(layers))
    return Space(name, image_channels, stages, alphas)


def reductions(layers: int) -> tuple[int, ...]:
    """The layers that are reduction cells: those at 1/3 and 2/3."""
    return tuple(sorted({layers // 3, 2 * layers // 3}))


def discrete(pairs: Sequence[Pair], concat: tuple[int, ...]) -> Content:
    """A cell of a genotype: two edges a node, one primitive an edge."""
    return Content(tuple(Edge(source, 2 + i // 2, (op,)) for i, (op, source) in enumerate(pairs)), concat)


def skeleton(
    name: str,
    channels: int,
    layers: int,
    classes: int,
    content: Callable[[int, bool], Content],
    reductions: Sequence[int],
) -> tuple[Stage, ...]:
    """DARTS' stem, cells and head around any cells of two inputs.

    Args:
        name: of the space, for messages.
        channels: C, of the first cells; a reduction doubles it.
        layers: the number of cells.
        classes: outputs of the classifier.
        content: (layer, whether it is a reduction) -> what the cell holds. A cell with an alpha is a supernet's.
        reductions: the layers that halve the image: there edges out of the inputs have stride 2.

    Raises:
        FastnasError: channels are odd.
    """
    if channels % 2:
        raise FastnasError(f"space {name}: channels must be even (its reductions halve them), got {channels}")
    stages: list[Stage] = [Stem(STEM_MULTIPLIER * channels)]
    width, reduced_before = channels, False
    for layer in range(layers):
        reduction = layer in reductions
        width *= 2 if reduction else 1
        edges, output, alpha = content(layer, reduction)
        stages.append(
            Cell(
                kind=KINDS[reduction],
                # The first cell reads the stem twice. A state two cells back is twice as large if the
                # cell between was a reduction.
                inputs=(
                    Input(max(layer - 1, 0), "factorized_reduce" if reduced_before else "relu_conv_bn"),
                    Input(layer, "relu_conv_bn"),
                ),
                edges=tuple(replace(e, stride=2 if reduction and e.source < 2 else 1) for e in edges),
                channels=width,
                output=output,
                alpha=alpha,
                affine=alpha is None,
                normalise_pools=alpha is not None,
            )
        )
        reduced_before = reduction
    return (*stages, Head(classes))


def _two_strongest(alpha: Tensor, edges: Sequence[Edge]) -> tuple[Pair, ...]:
    best = []
    for edge, row in zip(edges, alpha.detach().softmax(-1), strict=True):
        weights = [(float(w), -k) for k, w in enumerate(row) if edge.primitives[k] != "none"]
        best.append((*max(weights), edge))
    pairs: list[Pair] = []
    for target in range(2, 2 + NODES):
        entering = [(weight, k, edge) for weight, k, edge in best if edge.target == target]
        strongest = sorted(entering, key=lambda found: -found[0])[:2]
        pairs += [(edge.primitives[-k], edge.source) for _, k, edge in strongest]
    return tuple(pairs)
