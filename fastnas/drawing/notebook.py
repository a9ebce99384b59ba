"""What a notebook shows of genotypes, spaces and results."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import escape

from fastnas.drawing.drawing import draw
from fastnas.drawing.layout import short
from fastnas.errors import FastnasError
from fastnas.spaces.description import Cell, Edge, MatrixCell, Space, Stage, Stem
from fastnas.spaces.family import SPACES
from fastnas.spaces.genotype import AnyGenotype
from fastnas.spaces.recurrent import RecurrentSpace

if TYPE_CHECKING:
    from fastnas.retrain import RetrainResult
    from fastnas.search import SearchResult

# Of a row of metrics or a result, what it is called and how it is shown.
_PERCENT = {
    "val_accuracy": "validation accuracy",
    "test_accuracy": "test accuracy",
    "best_test_accuracy": "best test accuracy",
}
_NUMBERS = {
    "val_perplexity": "validation perplexity",
    "test_perplexity": "test perplexity",
    "val_loss": "validation loss",
}
_COUNTS = {"epochs": "epochs", "parameters": "parameters", "multiply_adds": "multiply-adds"}


def genotype_svg(genotype: AnyGenotype) -> str | None:
    """Its drawing; None, and a notebook shows its text, if it cannot be drawn."""
    try:
        return draw(genotype).svg()
    except FastnasError:
        return None


def search_html(result: SearchResult) -> str:
    """The cells with what alpha weighs, the last epoch's figures, and where the run is."""
    rows = [("epochs", f"{len(result.metrics)}")]
    if result.metrics:
        rows += _figures(result.metrics[-1])
    rows += [("space", result.config.network.space), ("method", result.config.hypergradient.method)]
    if result.stop is not None:
        rows.append(("stopped early", f"back to epoch {result.stop.epoch}"))
    return _drawn(result) + _table([*rows, ("run", str(result.out))])


def retrain_html(result: RetrainResult) -> str:
    """The cells, what the network reached and costs, and where the run is."""
    return _drawn(result) + _table([*_figures(result.result), ("run", str(result.out))])


def space_html(space: Space) -> str:
    """A network's stages, and the architecture parameters; nothing is built."""
    heading = f"<p><b>{escape(short(space.name))}</b>: {escape(_summary(space))}</p>"
    if isinstance(space, RecurrentSpace):
        return heading + _table(
            [("cell", f"{space.nodes} nodes; edges: {_edges(space.edges)}"), *_alphas(space)]
        )
    rows: list[tuple[str, ...]] = [("stages", "what", "channels", "edges", "weighed by")]
    stages = list(enumerate(space.stages))
    for shown, run in groupby(stages, key=lambda numbered: _stage(numbered[1])):
        numbers = [number for number, _ in run]
        first, last = numbers[0], numbers[-1]
        rows.append((f"{first}" if first == last else f"{first} to {last}", *shown))
    alphas = f"<p>Architecture parameters</p>{_table(_alphas(space))}" if space.alphas else ""
    return heading + _table(rows, header=True) + alphas


def _drawn(result: SearchResult | RetrainResult) -> str:
    try:
        return f'<div style="overflow-x: auto">{draw(result).svg()}</div>'
    except FastnasError:  # too large to draw, or alphas that a caller has changed
        return f"<pre>{escape(str(result.genotype))}</pre>"


def _figures(row: dict[str, Any]) -> list[tuple[str, str]]:
    kinds = (
        (_PERCENT, lambda v: f"{100 * v:.2f} %"),
        (_NUMBERS, lambda v: f"{v:.3f}"),
        (_COUNTS, lambda v: f"{v:,}"),
    )
    return [
        (name, show(row[key]))
        for names, show in kinds
        for key, name in names.items()
        if isinstance(row.get(key), int | float)
    ]


def _summary(space: Space) -> str:
    if isinstance(space, RecurrentSpace):
        parts = [f"{space.units:,} units, {space.words:,} words"]
    else:
        parts = [f"images of {space.image_channels} channels, {space.classes:,} classes"]
    if space.alphas:
        numbers = sum(rows * columns for rows, columns in (alpha.shape for alpha in space.alphas))
        parts.append(f"{numbers:,} architecture parameters")
        known = SPACES.get(space.name)
        if known is not None and known.networks is not None:
            parts.append(f"{known.networks(space):.2g} networks")
    return "; ".join(parts)


def _stage(stage: Stage) -> tuple[str, str, str, str]:
    """What it is, its channels, its edges and what weighs them."""
    channels = f"{stage.out_channels:,}"
    if isinstance(stage, Cell):
        weighed = ", ".join(dict.fromkeys(mixing.alpha for mixing in stage.mixing if mixing is not None))
        kind = "cell" if stage.kind == "cell" else f"{stage.kind} cell"
        if len(stage.output) > 1:
            channels = f"{len(stage.output)} × {stage.channels:,}"
        return kind, channels, _edges(stage.edges), weighed
    if isinstance(stage, MatrixCell):
        return (
            f"{stage.kind}, {len(stage.operations)} operations",
            channels,
            f"{sum(map(sum, stage.matrix))}",
            "",
        )
    if isinstance(stage, Stem) and len(stage.strides) > 1:
        return f"{stage.kind}, strides {stage.strides}", channels, "", ""
    return stage.kind, channels, "", ""


def _edges(edges: Sequence[Edge]) -> str:
    counts = sorted({len(edge.primitives) for edge in edges})
    if not counts or counts == [1]:
        return f"{len(edges)}"
    most = f"{counts[0]} to {counts[-1]}" if len(counts) > 1 else f"{counts[0]}"
    return f"{len(edges)}, {most} primitives each"


def _alphas(space: Space) -> list[tuple[str, str]]:
    shown = [
        (alpha.name, f"{alpha.rows} × {len(alpha.primitives)}: {', '.join(map(short, alpha.primitives))}")
        for alpha in space.alphas
    ]
    return shown if len(shown) <= 8 else [*shown[:7], ("…", f"{len(shown)} in all")]


def _table(rows: Iterable[Sequence[str]], *, header: bool = False) -> str:
    parts = []
    for i, (name, *cells) in enumerate(rows):
        kind = "th" if header and i == 0 else "td"
        shown = "".join(f'<{kind} style="text-align: left">{escape(cell)}</{kind}>' for cell in cells)
        parts.append(f'<tr><th style="text-align: left">{escape(name)}</th>{shown}</tr>')
    return f"<table>{''.join(parts)}</table>"
