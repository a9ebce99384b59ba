"""Where the parts of a drawn cell lie, in pixels.

Along the main axis, x or (portrait) y, ranks follow each other; across it every item lies as near as its neighbours
allow to those that it is joined with.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple
from unicodedata import east_asian_width

from fastnas.drawing.ranks import BEND, LABEL, STATE, Item, Ranks, Shape, ranked
from fastnas.drawing.weights import Weights
from fastnas.errors import FastnasError
from fastnas.spaces.genotype import Graph

NODE_FONT, LABEL_FONT = 12.0, 11.0
CHARACTER = 0.602  # of its font's size, in the monospaced fonts that there are
LABEL_HEIGHT, NODE_SIZE, PORT = 19.0, 26.0, 10.0
MARGIN = 8.0
PHONE = 300.0  # of its 360 pixels, what a cell may always take across
MOST_EDGES = 200  # of a cell: the reader of more would see a grey area
DIGITS = 3  # of a weight: after a few epochs all of eight are 0.12 or 0.13
LONGEST_NAME = 40
PASSES = 40

_GAPS = {(STATE, BEND): 10.0, (LABEL, LABEL): 7.0, (LABEL, BEND): 7.0, (BEND, BEND): 9.0}

Point = tuple[float, float]
Curve = tuple[Point, Point, Point, Point]


class Box(NamedTuple):
    """A rectangle by its centre."""

    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True)
class Layout:
    """Attributes:
    width, height: of all.
    nodes: by state.
    labels: by edge that has a primitive or a weight to show.
    curves: of each edge, cubic Bezier curves from its source to its target; the last ends in an arrow.
    """

    width: float
    height: float
    nodes: dict[int, Box]
    labels: dict[int, Box]
    curves: tuple[tuple[Curve, ...], ...]


def short(name: str) -> str:
    """A label as it is drawn: what XML or a screen cannot show is a replacement character, what is too long is cut."""
    shown = "".join(c if c.isprintable() else "\ufffd" for c in name)
    return shown if len(shown) <= LONGEST_NAME else shown[: LONGEST_NAME - 1] + "…"


def columns(text: str) -> int:
    """How many characters' room ``text`` takes: East Asian ones take two."""
    return sum(1 + (east_asian_width(c) in "WF") for c in text)


def label_text(label: str, weight: float | None) -> str:
    """What a label says; a weight takes the same room whatever it is."""
    return short(label) if weight is None else f"{short(label)} {weight:.{DIGITS}f}".strip()


def layout_of(graph: Graph, weights: Weights, portrait: bool = False) -> Layout:
    """The layout of ``graph``, which depends on what has a weight, but not on how much it is.

    Args:
        graph: its edges lead from a state to a later one.
        weights: of its edges and states.
        portrait: from the top to the bottom, and narrow; else from left to right.

    Raises:
        FastnasError: more edges than can be drawn, or one that leads back.
    """
    _check(graph)
    states = (
        columns(label_text(name, weight)) for name, weight in zip(graph.labels, weights.nodes, strict=True)
    )
    labels = (
        columns(label_text(edge[2], weight)) for edge, weight in zip(graph.edges, weights.edges, strict=True)
    )
    edges = tuple((source, target) for source, target, _ in graph.edges)
    return laid_out(Shape(tuple(states), edges, tuple(labels)), portrait)


@lru_cache(maxsize=512)
def laid_out(shape: Shape, portrait: bool) -> Layout:
    """The layout of a cell of this shape."""
    ranks = ranked(shape, portrait=portrait)
    return _placed(ranks, _Room(shape, ranks, portrait), portrait)


def _check(graph: Graph) -> None:
    if len(graph.edges) > MOST_EDGES:
        raise FastnasError(
            f"the cell {short(graph.name)} has {len(graph.edges):,} edges, and {MOST_EDGES} can be drawn; "
            "print it with python -m fastnas.describe --dot"
        )
    for i, (source, target, _) in enumerate(graph.edges):
        if not 0 <= source < target < len(graph.labels):
            raise FastnasError(
                f"the cell {short(graph.name)} cannot be drawn: edge {i} leads from state {source} to state {target}, "
                f"and states must lead to later ones, up to {len(graph.labels) - 1}"
            )


class _Room:
    """What each item takes, and where its edges touch it.

    Attributes:
        main, cross: sizes along the two axes.
        ports: by (item, edge, whether it leaves) how far from the item's middle the edge is.
        widest: how far across the axis the drawing may reach: as little as it can on a phone, endless in landscape.
    """

    def __init__(self, shape: Shape, ranks: Ranks, portrait: bool) -> None:
        self.main: dict[Item, float] = {}
        self.cross: dict[Item, float] = {}
        self.ports: dict[tuple[Item, int, bool], float] = {}
        at = {item: i for row in ranks.rows for i, item in enumerate(row)}
        touching = _touching(ranks, at)
        for row in ranks.rows:
            for item in row:
                width, height = _size(shape, item)
                main, cross = (height, width) if portrait else (width, height)
                if item.what == STATE:
                    most = max(len(touching.get((item, leaving), ())) for leaving in (False, True))
                    cross = max(cross, PORT * most + 6)
                self.main[item], self.cross[item] = main, cross
        for (item, leaving), edges in touching.items():
            step = PORT if item.what == STATE else 0.0
            for k, edge in enumerate(edges):
                self.ports[item, edge, leaving] = step * (k - (len(edges) - 1) / 2)
        self.widest = max([PHONE, *map(self._packed, ranks.rows)]) if portrait else math.inf

    def port(self, item: Item, edge: int, leaving: bool) -> float:
        return self.ports[item, edge, leaving]

    def _packed(self, row: Sequence[Item]) -> float:
        """What the items of a rank take at least."""
        between = sum(self.apart(a, b) for a, b in pairwise(row))
        return (self.cross[row[0]] + self.cross[row[-1]]) / 2 + between

    def apart(self, a: Item, b: Item) -> float:
        """The least distance of two neighbours' middles."""
        gap = _GAPS.get((min(a.what, b.what), max(a.what, b.what)), 18.0)
        return (self.cross[a] + self.cross[b]) / 2 + gap


def _size(shape: Shape, item: Item) -> tuple[float, float]:
    """Width and height."""
    if item.what == BEND:
        return 0.0, 0.0
    if item.what == LABEL:
        return shape.labels[item.index] * CHARACTER * LABEL_FONT + 14, LABEL_HEIGHT
    return max(NODE_SIZE, shape.states[item.index] * CHARACTER * NODE_FONT + 16), NODE_SIZE


def _touching(ranks: Ranks, at: dict[Item, int]) -> dict[tuple[Item, bool], list[int]]:
    """By item and side (whether edges leave it there) the edges, in the order of their other ends."""
    found: dict[tuple[Item, bool], list[tuple[int, int]]] = {}
    for edge, chain in enumerate(ranks.chains):
        for a, b in pairwise(chain):
            found.setdefault((a, True), []).append((at[b], edge))
            found.setdefault((b, False), []).append((at[a], edge))
    return {key: [edge for _, edge in sorted(ends)] for key, ends in found.items()}


def _placed(ranks: Ranks, room: _Room, portrait: bool) -> Layout:
    cross = _across(ranks, room)
    top = min((cross[item] - room.cross[item] / 2 for item in cross), default=0.0)
    cross = {item: y - top + MARGIN for item, y in cross.items()}
    starts, length = _along(ranks, room, cross, portrait)
    depth = max((cross[item] + room.cross[item] / 2 for item in cross), default=0.0) + MARGIN

    def point(main: float, across: float) -> Point:
        x, y = (across, main) if portrait else (main, across)
        return round(x, 1), round(y, 1)

    nodes: dict[int, Box] = {}
    labels: dict[int, Box] = {}
    for row, (begin, end) in zip(ranks.rows, starts, strict=True):
        for item in row:
            if item.what == BEND:
                continue
            size = (room.cross[item], room.main[item]) if portrait else (room.main[item], room.cross[item])
            box = Box(*point((begin + end) / 2, cross[item]), *(round(value, 1) for value in size))
            (nodes if item.what == STATE else labels)[item.index] = box
    curves = tuple(
        tuple(
            (point(a, y), point((a + b) / 2, y), point((a + b) / 2, z), point(b, z))
            for (a, y), (b, z) in pairwise(stops)
        )
        for stops in (_stops(edge, chain, room, cross, starts) for edge, chain in enumerate(ranks.chains))
    )
    width, height = (depth, length) if portrait else (length, depth)
    nodes, labels = (dict(sorted(boxes.items())) for boxes in (nodes, labels))
    return Layout(round(width, 1), round(height, 1), nodes, labels, curves)


def _stops(
    edge: int, chain: Sequence[Item], room: _Room, cross: dict[Item, float], starts: Sequence[Point]
) -> list[Point]:
    """Where an edge's curves meet: straight within a rank, bent between two."""
    source, *between, target = chain
    (begin, end), (first, last) = starts[source.rank], starts[target.rank]
    y = cross[source] + room.port(source, edge, True)
    z = cross[target] + room.port(target, edge, False)
    stops = [((begin + end + room.main[source]) / 2, y), (end, y)]
    for item in between:
        stops += [(main, cross[item]) for main in starts[item.rank]]
    stops += [(first, z), ((first + last - room.main[target]) / 2, z)]
    straight: list[Point] = []
    for stop in stops:  # what lies between two others on one line is left out
        if len(straight) > 1 and abs(straight[-2][1] - stop[1]) < 0.05 > abs(straight[-1][1] - stop[1]):
            straight.pop()
        if not straight or abs(straight[-1][0] - stop[0]) > 0.05:
            straight.append(stop)
    return straight


Pulls = dict[Item, list[tuple[Item, float, float]]]  # the other item, how far apart, how strongly


def _across(ranks: Ranks, room: _Room) -> dict[Item, float]:
    """Every item near those that it is joined with, long edges straight."""
    pulls: Pulls = {item: [] for row in ranks.rows for item in row}
    for edge, chain in enumerate(ranks.chains):
        for a, b in pairwise(chain):
            offset = room.port(a, edge, True) - room.port(b, edge, False)
            strength = (1.0, 2.0, 6.0)[(a.what != STATE) + (b.what != STATE)]
            pulls[b].append((a, offset, strength))
            pulls[a].append((b, -offset, strength))
    cross: dict[Item, float] = {}
    for row in ranks.rows:
        cross.update(zip(row, _kept_apart([0.0] * len(row), [1.0] * len(row), row, room), strict=True))
    order = list(ranks.rows)
    for _ in range(PASSES):
        moved = max(_settle(row, pulls, room, cross) for row in order)
        if moved < 0.2:
            break
        order.reverse()
    for edge, chain in enumerate(ranks.chains):
        _straighten(edge, chain, ranks, room, cross)
    return cross


def _settle(row: Sequence[Item], pulls: Pulls, room: _Room, cross: dict[Item, float]) -> float:
    """Moves a rank's items to where they are pulled; how far one went at most."""
    wanted, strengths = [], []
    for item in row:
        total, pull = 0.0, 0.0
        for other, offset, strength in pulls[item]:
            total += strength
            pull += (cross[other] + offset) * strength
        wanted.append(pull / total if total else cross[item])
        strengths.append(total or 1.0)
    places = _kept_apart(wanted, strengths, row, room)
    moved = max(abs(place - cross[item]) for item, place in zip(row, places, strict=True))
    cross.update(zip(row, places, strict=True))
    return moved


def _straighten(
    edge: int, chain: Sequence[Item], ranks: Ranks, room: _Room, cross: dict[Item, float]
) -> None:
    """Brings the inner items of an edge onto as few lines as their neighbours allow."""
    inner = list(chain[1:-1])
    before = cross[chain[0]] + room.port(chain[0], edge, True)
    behind = cross[chain[-1]] + room.port(chain[-1], edge, False)
    while inner:
        low, high, run = -math.inf, math.inf, 0
        for item in inner:
            least, most = _free(item, ranks, room, cross)
            if max(low, least) > min(high, most):
                break
            low, high, run = max(low, least), min(high, most), run + 1
        begun, inner = inner[:run], inner[run:]
        near = [before, behind] if not inner else [before]
        line = min((min(max(y, low), high) for y in near), key=lambda line: sum(abs(line - y) for y in near))
        cross.update(dict.fromkeys(begun, line))
        before = line


def _free(item: Item, ranks: Ranks, room: _Room, cross: dict[Item, float]) -> tuple[float, float]:
    """How far ``item`` may move between its neighbours."""
    row = ranks.rows[item.rank]
    i = row.index(item)
    bound = (room.widest - room.cross[item]) / 2
    low = cross[row[i - 1]] + room.apart(row[i - 1], item) if i else -bound
    high = cross[row[i + 1]] - room.apart(item, row[i + 1]) if i + 1 < len(row) else bound
    return min(low, cross[item]), max(high, cross[item])


def _kept_apart(
    wanted: Sequence[float], strengths: Sequence[float], row: Sequence[Item], room: _Room
) -> list[float]:
    """The places nearest to those ``wanted``, by weighted squares, that keep order and distance.

    Isotonic regression by pooling adjacent violators (Best and Chakravarti 1990).
    """
    shift, shifts = 0.0, []
    for i, item in enumerate(row):
        shift += room.apart(row[i - 1], item) if i else 0.0
        shifts.append(shift)
    pools: list[tuple[float, float, int]] = []  # mean, strength, how many
    for value, strength, offset in zip(wanted, strengths, shifts, strict=True):
        pool = (value - offset, strength, 1)
        while pools and pools[-1][0] > pool[0]:
            mean, mass, count = pools.pop()
            total = mass + pool[1]
            pool = ((mean * mass + pool[0] * pool[1]) / total, total, count + pool[2])
        pools.append(pool)
    half = room.widest / 2  # clipped, it is the best within these bounds
    low, high = room.cross[row[0]] / 2 - half, half - room.cross[row[-1]] / 2 - shift
    places = [max(low, min(mean, high)) for mean, _, count in pools for _ in range(count)]
    return [place + offset for place, offset in zip(places, shifts, strict=True)]


def _along(ranks: Ranks, room: _Room, cross: dict[Item, float], portrait: bool) -> tuple[list[Point], float]:
    """Begin and end of each rank along the main axis, and the length of all; steep edges get more room."""
    least, slope, most = (17.0, 0.08, 28.0) if portrait else (24.0, 0.2, 44.0)
    steep = [0.0] * len(ranks.rows)
    for edge, chain in enumerate(ranks.chains):
        for a, b in pairwise(chain):
            rise = cross[b] + room.port(b, edge, False) - cross[a] - room.port(a, edge, True)
            steep[b.rank] = max(steep[b.rank], abs(rise))
    starts, at = [], MARGIN
    for rank, row in enumerate(ranks.rows):
        at += min(most, least + slope * steep[rank]) if rank else 0.0
        thickness = max(room.main[item] for item in row)
        starts.append((at, at + thickness))
        at += thickness
    return starts, at + MARGIN
