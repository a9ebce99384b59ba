"""Cells as SVG: colours are classes, so a page or the style embedded says how they look in light and dark."""

from __future__ import annotations

from collections.abc import Sequence
from xml.sax.saxutils import escape

from fastnas.drawing.layout import (
    CHARACTER,
    DIGITS,
    LABEL_FONT,
    NODE_FONT,
    Box,
    Curve,
    Layout,
    Point,
    columns,
    label_text,
    layout_of,
    short,
)
from fastnas.drawing.palette import DARK, KINDS, LIGHT, css_name, kind_of, stroke_width
from fastnas.drawing.weights import Weights, no_weights
from fastnas.drawing.words import in_words, state_names
from fastnas.spaces.genotype import Graph

ARROW, ARROW_WIDTH = 7.5, 8.0
FONTS = 'ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace'


def style(scope: str = ":root") -> str:
    """The CSS of drawings; ``scope`` selects what gets the colours' custom properties."""
    kinds = "\n".join(
        f".cell-drawing .kind-{kind} {{ --kind: var(--{kind}); --kind-paper: var(--{kind}-paper); }}"
        for kind in KINDS
    )
    return f"""{scope} {{ {_properties(LIGHT)} }}
@media (prefers-color-scheme: dark) {{ {scope} {{ {_properties(DARK)} }} }}
@media print {{ {scope} {{ {_properties(LIGHT)} }} }}
.cell-drawing text {{ font-family: {FONTS}; fill: var(--ink); }}
.cell-drawing .cell-paper {{ fill: var(--paper); }}
.cell-drawing .cell-heading {{ font: 600 14px system-ui, sans-serif; }}
.cell-drawing .cell-edge {{ fill: none; stroke: var(--kind); stroke-width: var(--width, 1.6px); }}
.cell-drawing .cell-edge.kind-none {{ stroke-width: 1.2px; }}
.cell-drawing .cell-edge.kind-none, .cell-drawing .cell-op.kind-none rect {{ stroke-dasharray: 3 3; }}
.cell-drawing .cell-arrow {{ fill: var(--kind); }}
.cell-drawing .cell-node rect {{ fill: var(--node); stroke: var(--muted); }}
.cell-drawing .cell-input rect, .cell-drawing .cell-output rect {{ fill: var(--input); }}
.cell-drawing .cell-node.has-kind rect, .cell-drawing .cell-op rect {{ fill: var(--kind-paper); stroke: var(--kind); }}
.cell-drawing .cell-weight {{ font-weight: 700; }}
.cell-drawing .kind-none text {{ fill: var(--muted); }}
{kinds}
"""


def _properties(colours: dict[str, str]) -> str:
    return " ".join(f"--{name}: {colour};" for name, colour in colours.items())


STYLE = style()
"""The CSS of a drawing, light and dark, which a page includes once."""


def cell_svg(graph: Graph, weights: Weights | None = None, *, ident: str, portrait: bool = False) -> str:
    """A cell as one ``<svg>`` for a page that holds ``STYLE``.

    Each labelled edge has ``data-edge``, its place in ``graph.edges``, on its path, its label and the ``<tspan>`` of
    its weight; a weighted node has ``data-node``. A page's script may write another weight there, and the path's width
    as the custom property ``--width``: ``1 + 4 * weight`` pixels.

    Args:
        graph: of ``genotype.graphs()``.
        weights: of ``weights_of``; None: without.
        ident: begins the identifiers of the elements; another one for each drawing of a page.
        portrait: from the top to the bottom and narrow enough for a phone; else from left to right.

    Raises:
        FastnasError: a graph that cannot be drawn: too many edges, or one that leads back.
    """
    weights = weights or no_weights(graph)
    layout = layout_of(graph, weights, portrait)
    return svg(
        layout.width,
        layout.height,
        content(graph, weights, layout),
        ident=ident,
        title=f"{short(graph.name)} cell",
        words=in_words(graph, weights),
    )


def svg(width: float, height: float, inside: str, *, ident: str, title: str, words: str) -> str:
    """The ``<svg>`` around ``inside``, named by ``title`` and described by ``words``."""
    name = css_name(ident)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="cell-drawing" viewBox="0 0 {width:g} {height:g}" '
        f'width="{width:g}" height="{height:g}" role="img" aria-labelledby="{name}-title {name}-desc">\n'
        f'<title id="{name}-title">{escape(title)}</title>\n<desc id="{name}-desc">{escape(words)}</desc>\n'
        f"{inside}</svg>\n"
    )


def content(graph: Graph, weights: Weights, layout: Layout) -> str:
    """The elements of a cell: edges below, labels and nodes above them.

    Colours are attributes, too, for programs that know no custom properties.
    """
    parts, names = [], state_names(graph)
    for i, curves in enumerate(layout.curves):
        parts.append(_edge(i, graph.edges[i][2], weights.edges[i], curves))
    for i, box in layout.labels.items():
        source, target, label = graph.edges[i]
        parts.append(_label(i, f"{names[source]} → {names[target]}", label, weights.edges[i], box))
    targets = {target for _, target, _ in graph.edges}
    sources = {source for source, _, _ in graph.edges}
    for state, box in layout.nodes.items():
        role = " cell-input" * (state not in targets) or " cell-output" * (state not in sources)
        parts.append(_node(graph.labels[state], state, weights.nodes[state], box, role))
    return "\n".join([*parts, ""])


def _edge(i: int, label: str, weight: float | None, curves: Sequence[Curve]) -> str:
    classes, colour = f"cell-edge{_classes(label)}", LIGHT[kind_of(label)]
    data = f' data-edge="{i}"' if label or weight is not None else ""
    width = f"{stroke_width(weight):g}"
    shown = "" if weight is None else f' style="--width: {width}px"'
    dash = ' stroke-dasharray="3 3"' if label == "none" else ""
    path, corners = path_data(curves), " ".join(f"{x:g},{y:g}" for x, y in arrow(curves))
    return (
        f'<path class="{classes}"{data} d="{path}" fill="none" stroke="{colour}" stroke-width="{width}"{dash}{shown}/>'
        f'<polygon class="{classes.replace("cell-edge", "cell-arrow")}" points="{corners}" fill="{colour}"/>'
    )


def path_data(curves: Sequence[Curve]) -> str:
    """The curves as a path that ends where the arrow's head begins."""
    (x, y), parts = curves[0][0], []
    for begin, first, second, end in shortened(curves):
        straight = begin[0] == end[0] or begin[1] == end[1]
        points = [end] if straight else [first, second, end]
        parts.append(("L" if straight else "C") + " ".join(f"{a:g} {b:g}" for a, b in points))
    return f"M{x:g} {y:g}" + "".join(parts)


def shortened(curves: Sequence[Curve]) -> list[Curve]:
    """The curves up to the arrow's head."""
    (begin, first, second, end), (dx, dy) = curves[-1], direction(curves)
    second, end = ((round(x - (ARROW - 1) * dx, 1), round(y - (ARROW - 1) * dy, 1)) for x, y in (second, end))
    return [*curves[:-1], (begin, first, second, end)]


def direction(curves: Sequence[Curve]) -> Point:
    """Which way the arrow of an edge points: (1, 0) or (0, 1)."""
    _, _, before, end = curves[-1]
    return (1.0, 0.0) if abs(end[0] - before[0]) > abs(end[1] - before[1]) else (0.0, 1.0)


def arrow(curves: Sequence[Curve]) -> list[Point]:
    """The three corners of an edge's arrow."""
    (x, y), (dx, dy) = curves[-1][3], direction(curves)
    back, half = (x - ARROW * dx, y - ARROW * dy), ARROW_WIDTH / 2
    sides = [(back[0] - half * dy, back[1] - half * dx), (back[0] + half * dy, back[1] + half * dx)]
    return [(x, y), *((round(a, 1), round(b, 1)) for a, b in sides)]


def _label(i: int, ends: str, label: str, weight: float | None, box: Box) -> str:
    kind = kind_of(label)
    dash = ' stroke-dasharray="3 3"' if kind == "none" else ""
    colours = f'fill="{LIGHT[kind + "-paper"]}" stroke="{LIGHT[kind]}"{dash}'
    tip = escape(f"{ends}: {short(label)}" if label else ends)
    return (
        f'<g class="cell-op{_classes(label)}" data-edge="{i}"><title>{tip}</title>{_rect(box, 9, colours)}'
        f"{_text(box, label, weight, LABEL_FONT, 'edge', i)}</g>"
    )


def _node(label: str, state: int, weight: float | None, box: Box, role: str) -> str:
    primitive = kind_of(label) in ("convolution", "pooling")
    kind = kind_of(label) if primitive else ""
    fill = LIGHT[f"{kind}-paper"] if primitive else LIGHT["input" if role else "node"]
    colours = f'fill="{fill}" stroke="{LIGHT[kind or "muted"]}"'
    classes = f"cell-node{role}" + (f" has-kind{_classes(label)}" if primitive else "")
    data = "" if weight is None else f' data-node="{state}"'
    text = _text(box, label, weight, NODE_FONT, "node", state)
    return f'<g class="{classes}"{data}>{_rect(box, 5, colours)}{text}</g>'


def _rect(box: Box, radius: int, colours: str) -> str:
    x, y = box.x - box.width / 2, box.y - box.height / 2
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{box.width:g}" height="{box.height:g}" rx="{radius}" {colours}/>'


def _text(box: Box, label: str, weight: float | None, size: float, what: str, index: int) -> str:
    text = escape(short(label))
    if weight is not None:
        text += " " if text else ""
        text += (
            f'<tspan class="cell-weight" data-{what}="{index}" font-weight="700">{weight:.{DIGITS}f}</tspan>'
        )
    # Other fonts write what is not ASCII: as wide as the layout took it to be.
    room = columns(label_text(label, weight)) * CHARACTER * size
    fit = f' textLength="{room:.1f}" lengthAdjust="spacingAndGlyphs"' if not label.isascii() else ""
    return (
        f'<text x="{box.x:g}" y="{box.y + 0.35 * size:.1f}" font-family="monospace" font-size="{size:g}" '
        f'text-anchor="middle" fill="{LIGHT["ink"]}"{fit}>{text}</text>'
    )


def _classes(primitive: str) -> str:
    return f" op-{css_name(short(primitive))} kind-{kind_of(primitive)}" if primitive else " kind-plain"
