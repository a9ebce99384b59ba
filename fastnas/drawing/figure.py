"""Drawings by matplotlib: PNG and PDF, on light paper, in the layout of the SVG."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, PathPatch, Polygon
from matplotlib.path import Path

from fastnas.drawing.drawing import Drawing, Part
from fastnas.drawing.layout import LABEL_FONT, NODE_FONT, Box, Curve, label_text
from fastnas.drawing.palette import LIGHT, kind_of, stroke_width
from fastnas.drawing.svg import arrow, shortened

DPI = 72  # one point a pixel, so that the fonts' sizes are the SVG's
SHARPNESS = 200  # dots an inch of a PNG
DASHES = (0, (3, 3))


def rendered(drawing: Drawing, form: str) -> bytes:
    """The drawing as a file: "png" or "pdf"."""
    settings: Any = {"font.family": "monospace", "font.monospace": ["DejaVu Sans Mono"], "pdf.fonttype": 42}
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(drawing.width / DPI, drawing.height / DPI), facecolor=LIGHT["paper"])
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set(xlim=(0, drawing.width), ylim=(drawing.height, 0))
        axes.axis("off")
        for part in drawing.parts:
            for patch in [*_edges(part), *_boxes(part)]:
                axes.add_patch(patch)
            for x, y, text, options in _texts(part):
                axes.text(x, y, text, color=LIGHT["ink"], zorder=4, parse_math=False, **options)
        out = io.BytesIO()
        figure.savefig(
            out, format=form, dpi=SHARPNESS, metadata={"CreationDate": None} if form == "pdf" else {}
        )
    return out.getvalue()


def _edges(part: Part) -> list[PathPatch | Polygon]:
    patches: list[PathPatch | Polygon] = []
    for (_, _, label), weight, curves in zip(
        part.graph.edges, part.weights.edges, part.layout.curves, strict=True
    ):
        colour = LIGHT[kind_of(label)]
        style = DASHES if label == "none" else "solid"
        path = _path(shortened(curves), part)
        patches.append(
            PathPatch(
                path, fill=False, edgecolor=colour, linewidth=stroke_width(weight), linestyle=style, zorder=1
            )
        )
        corners = [(x + part.x, y + part.y) for x, y in arrow(curves)]
        patches.append(Polygon(corners, facecolor=colour, linewidth=0, zorder=2))
    return patches


def _path(curves: Sequence[Curve], part: Part) -> Path:
    points, codes = [curves[0][0]], [Path.MOVETO]
    for _, first, second, end in curves:
        points += [first, second, end]
        codes += [Path.CURVE4] * 3
    return Path([(x + part.x, y + part.y) for x, y in points], codes)


def _boxes(part: Part) -> list[FancyBboxPatch]:
    sources, targets = ({edge[end] for edge in part.graph.edges} for end in (0, 1))
    patches = []
    for i, box in part.layout.labels.items():
        kind = kind_of(part.graph.edges[i][2])
        style = DASHES if kind == "none" else "solid"
        patches.append(_box(part, box, 9, LIGHT[f"{kind}-paper"], LIGHT[kind], style))
    for state, box in part.layout.nodes.items():
        kind = kind_of(part.graph.labels[state])
        if kind in ("convolution", "pooling"):
            patches.append(_box(part, box, 5, LIGHT[f"{kind}-paper"], LIGHT[kind]))
        else:
            end = state not in sources or state not in targets
            patches.append(_box(part, box, 5, LIGHT["input" if end else "node"], LIGHT["muted"]))
    return patches


def _box(part: Part, box: Box, radius: float, fill: str, line: str, style: Any = "solid") -> FancyBboxPatch:
    corner = (part.x + box.x - box.width / 2, part.y + box.y - box.height / 2)
    shape = f"round,pad=0,rounding_size={radius}"
    return FancyBboxPatch(
        corner,
        box.width,
        box.height,
        boxstyle=shape,
        facecolor=fill,
        edgecolor=line,
        linestyle=style,
        zorder=3,
    )


def _texts(part: Part) -> Iterator[tuple[float, float, str, dict[str, Any]]]:
    """Place, text and options of all that is written."""
    yield (
        part.x + 8,
        part.y - 8,
        part.heading,
        {"fontsize": 14, "fontweight": "bold", "family": "sans-serif"},
    )
    middle = {"ha": "center", "va": "center_baseline"}
    for i, box in part.layout.labels.items():
        text = label_text(part.graph.edges[i][2], part.weights.edges[i])
        yield part.x + box.x, part.y + box.y, text, {"fontsize": LABEL_FONT, **middle}
    for state, box in part.layout.nodes.items():
        text = label_text(part.graph.labels[state], part.weights.nodes[state])
        yield part.x + box.x, part.y + box.y, text, {"fontsize": NODE_FONT, **middle}
