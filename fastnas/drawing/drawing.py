"""``fastnas.draw``: a genotype's cells in one picture."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from xml.sax.saxutils import escape

from torch import Tensor

from fastnas.drawing.layout import Layout, layout_of, short
from fastnas.drawing.svg import content, style, svg
from fastnas.drawing.weights import Weights, no_weights, weights_of
from fastnas.drawing.words import in_words
from fastnas.errors import FastnasError
from fastnas.spaces import AnyGenotype, Space, find_genotype, make_space
from fastnas.spaces.genotype import Graph

if TYPE_CHECKING:
    from fastnas.retrain import RetrainResult
    from fastnas.search import SearchResult

WIDEST, FEW = 1240.0, 4  # of a row of cells, in pixels; more cells than these few may take twice that
GAP, HEADING = 28.0, 30.0
MOST_CELLS = 200
SUFFIXES = (".svg", ".png", ".pdf")


class Part(NamedTuple):
    """A cell in a drawing, and where its corner is."""

    heading: str
    graph: Graph
    weights: Weights
    layout: Layout
    x: float
    y: float


@dataclass(frozen=True)
class Drawing:
    """Cells as graphs; a notebook shows it as SVG.

    Attributes:
        graphs: the cells.
        weights: of each of them.
    """

    graphs: tuple[Graph, ...]
    weights: tuple[Weights, ...]

    def svg(self) -> str:
        """All cells as one SVG with its style: light or dark as the reader's system is, light in print."""
        inside = [f"<style>{style('.cell-drawing.alone')}</style>"]
        inside.append(
            f'<rect class="cell-paper" width="{self.width:g}" height="{self.height:g}" rx="6" fill="#ffffff"/>'
        )
        for part in self.parts:
            drawn = content(part.graph, part.weights, part.layout)
            heading = f'<text class="cell-heading" x="8" y="-8" font-size="14">{escape(part.heading)}</text>'
            inside.append(f'<g transform="translate({part.x:g} {part.y:g})">\n{heading}\n{drawn}</g>')
        words = " ".join(f"{part.heading}: {in_words(part.graph, part.weights)}" for part in self.parts)
        title = f"cells: {', '.join(part.heading for part in self.parts)}"
        ident = "cells-" + hashlib.sha256(words.encode()).hexdigest()[:8]
        whole = svg(self.width, self.height, "\n".join([*inside, ""]), ident=ident, title=title, words=words)
        return whole.replace('class="cell-drawing"', 'class="cell-drawing alone"', 1)

    def _repr_svg_(self) -> str:
        return self.svg()

    def save(self, path: str | Path) -> Path:
        """Writes the drawing as SVG, PNG or PDF, by the end of the file's name, whole or not at all.

        Raises:
            FastnasError: another ending, or a file that cannot be written.
        """
        path = checked_path(path)
        if path.suffix.lower() == ".svg":
            data: bytes | str = self.svg()
        else:
            from fastnas.drawing.figure import rendered  # here: matplotlib takes half a second

            data = rendered(self, path.suffix.lower()[1:])
        from fastnas.runs.files import write_atomically

        try:
            write_atomically(path, data)
        except (OSError, ValueError) as error:  # a NUL in the name is the latter
            reason = getattr(error, "strerror", None) or error
            raise FastnasError(f"the drawing {path} cannot be written: {reason}") from None
        return path

    @cached_property
    def parts(self) -> tuple[Part, ...]:
        """The cells in rows, equal ones that follow each other as one."""
        found, x, y, depth = [], 0.0, HEADING, 0.0
        runs = list(self._runs())
        if len(runs) > MOST_CELLS:
            raise FastnasError(
                f"the genotype has {len(runs):,} different cells, and {MOST_CELLS} can be drawn; "
                "print them with python -m fastnas.describe --dot"
            )
        widest = WIDEST if len(runs) <= FEW else 2 * WIDEST
        for heading, graph, weights in runs:
            layout = layout_of(graph, weights)
            if x and x + layout.width > widest:
                x, y, depth = 0.0, y + depth + GAP + HEADING, 0.0
            found.append(Part(heading, graph, weights, layout, x, y))
            x, depth = x + layout.width + GAP, max(depth, layout.height)
        return tuple(found)

    @property
    def width(self) -> float:
        """In pixels."""
        return max(part.x + part.layout.width for part in self.parts)

    @property
    def height(self) -> float:
        """In pixels."""
        return max(part.y + part.layout.height for part in self.parts)

    def _runs(self) -> Iterator[tuple[str, Graph, Weights]]:
        begun = 0
        for i in range(1, len(self.graphs) + 1):
            if i < len(self.graphs) and self._like(i) == self._like(begun):
                continue
            first, last = short(self.graphs[begun].name), short(self.graphs[i - 1].name)
            yield (first if first == last else f"{first} to {last}"), self.graphs[begun], self.weights[begun]
            begun = i

    def _like(self, i: int) -> Any:
        return self.graphs[i].labels, self.graphs[i].edges, self.weights[i]


def draw(
    genotype: AnyGenotype | SearchResult | RetrainResult | str | Path,
    path: str | Path | None = None,
    *,
    alphas: Mapping[str, Tensor] | None = None,
    space: Space | None = None,
) -> Drawing:
    """Draws a genotype's cells; with architecture parameters what they weigh, too.

    ``fastnas.draw("DARTS_V2", "cells.svg")``, ``fastnas.draw("runs/found")`` or ``fastnas.draw(fastnas.search())``

    Args:
        genotype: it, what a search or a retraining ended with, a run's folder, a file, a published name or its text.
        path: where to save the drawing, as .svg, .png or .pdf; None: nowhere.
        alphas: architecture parameters by name, before the softmax; None: the search's, or the folder's.
        space: the supernet as data whose they are; None: the search's, or that of the genotype in the papers' size.

    Raises:
        FastnasError: no such genotype, alphas of another space, or a path that cannot be written.

    >>> draw("DARTS_V2").graphs[0].name
    'normal'
    """
    if path is not None:
        checked_path(path)
    drawing = _drawing(genotype, alphas, space)
    if path is not None:
        drawing.save(path)
    return drawing


def checked_path(path: str | Path) -> Path:
    """Where a drawing is to be saved.

    Raises:
        FastnasError: an ending other than .svg, .png and .pdf, or no such folder.
    """
    from fastnas._paths import user_path

    found = user_path("the drawing", path)
    if found.suffix.lower() not in SUFFIXES:
        raise FastnasError(
            f"the drawing {str(path)!r} must end in {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}"
        )
    if found.is_dir():
        raise FastnasError(f"the drawing {str(path)!r} is a folder; name a file")
    if not found.parent.is_dir():
        raise FastnasError(f"the drawing {str(path)!r} cannot be written: there is no folder {found.parent}")
    return found


def _drawing(genotype: Any, alphas: Mapping[str, Tensor] | None, space: Space | None) -> Drawing:
    if isinstance(genotype, str | Path):
        from fastnas.drawing.stored import stored_alphas

        found = find_genotype(genotype)
        if alphas is None:
            alphas, space = stored_alphas(Path(genotype)) or (None, space)
        elif space is None:
            space = make_space(found.space)
        genotype = found.genotype
    elif not isinstance(genotype, AnyGenotype):
        from fastnas.drawing.stored import searched_space

        if alphas is None and hasattr(genotype, "alphas"):
            alphas, space = genotype.alphas, space or searched_space(genotype.config)
        genotype = getattr(genotype, "genotype", genotype)
    if not isinstance(genotype, AnyGenotype):
        raise FastnasError(
            f"nothing to draw in a {type(genotype).__name__}: give a genotype, a search's result, or where one is"
        )
    graphs = genotype.graphs()
    if alphas is None:
        return Drawing(graphs, tuple(map(no_weights, graphs)))
    space = space or make_space(genotype.to_json()["space"])
    return Drawing(graphs, weights_of(space, genotype, alphas))
