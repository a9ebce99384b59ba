"""A run's cells as drawings: one of each that ever was, and which of them each epoch has, with its weights."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from xml.sax.saxutils import escape

from fastnas.drawing import Weights, cell_svg, weights_of
from fastnas.drawing.weights import no_weights
from fastnas.drawing.words import in_words
from fastnas.errors import FastnasError
from fastnas.report.read import Run
from fastnas.spaces import AnyGenotype
from fastnas.spaces.genotype import Graph

# The page's style sheet has the colours, its policy forbids styles of elements, and its script sets the same.
_STYLED = re.compile(r' (?:style|fill|stroke|stroke-width|stroke-dasharray|font-family|font-weight)="[^"]*"')
_TIP = re.compile(r"(?<=>)<title>.*?</title>", re.DOTALL)  # of a label; that of the whole has an identifier
_WORDS = re.compile(r"(<desc[^>]*>).*?(</desc>)", re.DOTALL)


@dataclass(frozen=True)
class Drawn:
    """A cell of one epoch.

    Attributes:
        graph: of it.
        weights: of its edges and states, where the alphas are known.
    """

    graph: Graph
    weights: Weights | None


@dataclass(frozen=True)
class Cells:
    """What a run's cells were.

    Attributes:
        names: of the cells, in the order in which they are shown.
        graphs: every one that ever was.
        weighed: of each of these, weights that it once had: where a drawing writes them.
        epochs: of each row, by place in ``names`` the place in ``graphs``, None where there is none.
        weights: of each row, the same for the weights.
        shown: the cells to show first: those of the run's own genotype.
    """

    names: tuple[str, ...]
    graphs: tuple[Graph, ...]
    weighed: tuple[Weights | None, ...]
    epochs: tuple[tuple[int | None, ...], ...]
    weights: tuple[tuple[Weights | None, ...], ...]
    shown: tuple[Drawn, ...]


def cells_of(run: Run) -> Cells:
    """The cells of a search or a retraining; of one without rows those of its genotype alone."""
    by_row = [_drawn(run, epoch, genotype) for epoch, genotype in zip(run.epochs, run.genotypes, strict=True)]
    shown = by_row[-1] if by_row and by_row[-1] else _drawn(run, 0, run.genotype)
    names = tuple(dict.fromkeys(drawn.graph.name for row in [shown, *by_row] for drawn in row))
    places: dict[Graph, int] = {}
    weighed: list[Weights | None] = []
    epochs, weights = [], []
    for row in by_row:
        by_name = {drawn.graph.name: drawn for drawn in row}
        for drawn in row:
            if places.setdefault(drawn.graph, len(places)) == len(weighed):
                weighed.append(drawn.weights)
            elif weighed[places[drawn.graph]] is None:
                weighed[places[drawn.graph]] = drawn.weights
        found = [by_name.get(name) for name in names]
        epochs.append(tuple(None if drawn is None else places[drawn.graph] for drawn in found))
        weights.append(tuple(None if drawn is None else drawn.weights for drawn in found))
    return Cells(names, tuple(places), tuple(weighed), tuple(epochs), tuple(weights), tuple(shown))


def changes(run: Run) -> list[tuple[int, list[str], list[str]]]:
    """The epochs at which the genotype became another: epoch, what came, what went."""
    found = []
    before: set[str] | None = None
    for epoch, genotype in zip(run.epochs, run.genotypes, strict=True):
        if genotype is None:
            continue
        edges = set(_edges(genotype))
        if before is not None and edges != before:
            found.append((epoch, sorted(edges - before), sorted(before - edges)))
        before = edges
    return found


def drawing(graph: Graph, weights: Weights | None, ident: str, *, portrait: bool = False) -> str:
    """``cell_svg`` for a page that holds its style, and allows none of elements."""
    return _STYLED.sub("", cell_svg(graph, weights, ident=ident, portrait=portrait))


@lru_cache(maxsize=2048)  # a page that is made again and again, as a live one, draws what is new
def blank_drawing(graph: Graph, weights: Weights | None, ident: str) -> tuple[str, str]:
    """The same for a script that writes the weights of an epoch into it, wide and narrow: its words name none."""
    words = escape(in_words(graph, no_weights(graph)))
    wide = drawing(graph, weights, ident)
    narrow = drawing(graph, weights, f"{ident}-narrow", portrait=True)
    return _worded(wide, words), _TIP.sub("", _worded(narrow, words))  # a telephone has nothing that hovers


def _worded(svg: str, words: str) -> str:
    return _WORDS.sub(lambda found: found[1] + words + found[2], svg, count=1)


def _drawn(run: Run, epoch: int, genotype: AnyGenotype | None) -> list[Drawn]:
    if genotype is None:
        return []
    graphs = genotype.graphs()
    weights: Sequence[Weights | None] = [None] * len(graphs)
    if run.space is not None and epoch in run.alphas:
        with suppress(
            FastnasError, ValueError, IndexError, KeyError
        ):  # a genotype that these alphas do not give
            weights = weights_of(run.space, genotype, run.alphas[epoch])
    return [Drawn(graph, of) for graph, of in zip(graphs, weights, strict=True)]


def _edges(genotype: AnyGenotype) -> list[str]:
    return [
        f"{graph.name}: {graph.labels[source]} → {graph.labels[target]} {op}".rstrip()
        for graph in genotype.graphs()
        for source, target, op in graph.edges
    ]
