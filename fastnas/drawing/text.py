"""Cells drawn with characters, for terminals."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from fastnas.drawing.layout import label_text, short
from fastnas.drawing.weights import Weights, no_weights
from fastnas.drawing.words import state_names
from fastnas.spaces.genotype import AnyGenotype, Graph

UNICODE = {"line": "─", "first": "┬", "inner": "┤", "last": "┘", "arrow": "▸"}
ASCII = {"line": "-", "first": "+", "inner": "+", "last": "+", "arrow": ">"}
GAP, LINES = 4, 24


def text_drawing(
    genotype: AnyGenotype,
    width: int = 80,
    *,
    unicode: bool | None = None,
    weights: Sequence[Weights] | None = None,
    lines: int = LINES,
) -> str:
    """The cells as lines of text, side by side where that fits.

    Args:
        genotype: any.
        width: of the terminal, in characters; a longer line is cut.
        unicode: whether to draw with box characters; None: if standard output has them.
        weights: of ``weights_of``, written behind the primitives; None: without.
        lines: at most so many; what is left out is said.

    >>> from fastnas.spaces import CellString
    >>> cell = CellString(("nor_conv_3x3", "skip_connect", "none", "none", "none", "skip_connect"))
    >>> print(text_drawing(cell, unicode=False))
    cell
    input -- nor_conv_3x3 ---> 1
    input -- skip_connect -+-> 2
    1 ------ none ---------+
    input -- none ---------+-> output
    1 ------ none ---------+
    2 ------ skip_connect -+
    """
    signs = UNICODE if (_shows_unicode() if unicode is None else unicode) else ASCII
    graphs = genotype.graphs()
    blocks = [
        _block(graph, weight, signs)
        for graph, weight in zip(graphs, weights or map(no_weights, graphs), strict=True)
    ]
    drawn: list[str] = []
    left = list(range(len(blocks)))
    while left:
        row = [blocks[left[0]]]
        while len(row) < len(left) and _width([*row, blocks[left[len(row)]]]) <= width:
            row.append(blocks[left[len(row)]])
        below = _beside(row)
        if drawn and len(drawn) + len(below) > lines - (len(row) < len(left)):
            drawn.append(f"and {len(left)} more of {len(blocks)} cells")
            break
        drawn += below
        left = left[len(row) :]
    return "\n".join(line[:width].rstrip() for line in drawn)


def _shows_unicode() -> bool:
    try:
        "".join(UNICODE.values()).encode(getattr(sys.stdout, "encoding", None) or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def _width(blocks: Sequence[list[str]]) -> int:
    return sum(max(map(len, block)) for block in blocks) + GAP * (len(blocks) - 1)


def _beside(blocks: Sequence[list[str]]) -> list[str]:
    height, widths = max(map(len, blocks)), [max(map(len, block)) for block in blocks]
    rows = [[block[i] if i < len(block) else "" for block in blocks] for i in range(height)]
    return [
        (" " * GAP).join(text.ljust(w) for text, w in zip(row, widths, strict=True)).rstrip() for row in rows
    ]


def _block(graph: Graph, weights: Weights, signs: dict[str, str]) -> list[str]:
    """A line for each labelled edge, the edges into one state joined; states that read others plainly take one line."""
    names = state_names(graph)
    shown = [label_text(name, weights.nodes[i]) for i, name in enumerate(names)]
    labelled = [
        (source, label, weights.edges[i]) for i, (source, _, label) in enumerate(graph.edges) if label
    ]
    longest = max((len(names[source]) for source, _, _ in labelled), default=0)
    labels = max((len(label_text(label, weight)) for _, label, weight in labelled), default=0)
    line, lines = signs["line"], [short(graph.name)]
    entering: dict[int, list[int]] = {}
    for i, (_, target, _) in enumerate(graph.edges):
        entering.setdefault(target, []).append(i)
    for state in sorted(entering):
        edges = [(i, names[graph.edges[i][0]], graph.edges[i][2]) for i in entering[state]]
        several = [(source, label_text(label, weights.edges[i])) for i, source, label in edges if label]
        plain = [source for _, source, label in edges if not label]
        for k, (source, label) in enumerate(several):
            end = _end(k, len(several), signs) + (f"{line}{signs['arrow']} {shown[state]}" if k == 0 else "")
            room = line * (longest - len(source) + 2), line * (labels - len(label) + 1)
            lines.append(f"{source} {room[0]} {label} {room[1]}{end}")
        if plain:
            lines.append(f"{', '.join(plain)} {line * 2}{signs['arrow']} {shown[state]}")
    return lines


def _end(k: int, count: int, signs: dict[str, str]) -> str:
    if count == 1:
        return signs["line"]
    return signs["first"] if k == 0 else signs["last"] if k == count - 1 else signs["inner"]
