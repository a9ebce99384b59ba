"""A cell's states, labels and bends in ranks, ordered so that few edges cross.

Sugiyama, Tagawa and Toda 1981: layers by longest path, order within them by barycentres. A label is an item of its own
rank between two layers, and an edge that passes a rank has a bend in it, so that nothing can run through anything.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

STATE, LABEL, BEND = range(3)
SWEEPS = 8


class Shape(NamedTuple):
    """All of a cell that its layout depends on; cells with other primitives of equally long names have the same.

    Attributes:
        states: of each state how many characters are written on it.
        edges: of each edge its source and target.
        labels: of each edge how many characters its label has; 0: none.
    """

    states: tuple[int, ...]
    edges: tuple[tuple[int, int], ...]
    labels: tuple[int, ...]

    @property
    def drawn(self) -> list[int]:
        """The states that have an edge, or all if none has."""
        return sorted({end for edge in self.edges for end in edge}) or list(range(len(self.states)))


@dataclass(frozen=True, eq=False)
class Item:
    """What takes room in a rank: state ``index``, or the label or a bend of edge ``index``. One object each."""

    what: int
    index: int
    rank: int


@dataclass(frozen=True)
class Ranks:
    """Attributes:
    rows: of each rank its items, in order.
    chains: of each edge its items from source to target.
    """

    rows: tuple[tuple[Item, ...], ...]
    chains: tuple[tuple[Item, ...], ...]


def ranked(shape: Shape, *, portrait: bool) -> Ranks:
    """The ranks of a cell: few of them, or (portrait) narrow ones, with one node and the labels that enter it."""
    layers = _own_layers(shape) if portrait else _longest_paths(shape)
    labels = _label_ranks(shape, layers, at_target=portrait)
    used = sorted({2 * layer for layer in layers.values()} | set(labels.values()))
    number = {rank: i for i, rank in enumerate(used)}
    states = {state: Item(STATE, state, number[2 * layer]) for state, layer in layers.items()}
    chains = []
    for i, (source, target) in enumerate(shape.edges):
        begin, end, at = states[source], states[target], number.get(labels.get(i, -1))
        between = [Item(LABEL if rank == at else BEND, i, rank) for rank in range(begin.rank + 1, end.rank)]
        chains.append((begin, *between, end))
    items = dict.fromkeys([*states.values(), *(item for chain in chains for item in chain)])
    rows: Rows = [[] for _ in used]
    for item in items:
        rows[item.rank].append(item)
    return Ranks(tuple(map(tuple, _few_crossings(rows, chains))), tuple(chains))


def _longest_paths(shape: Shape) -> dict[int, int]:
    layers = dict.fromkeys(shape.drawn, 0)
    for source, target in sorted(shape.edges, key=lambda edge: edge[1]):
        layers[target] = max(layers[target], layers[source] + 1)
    return layers


def _own_layers(shape: Shape) -> dict[int, int]:
    entered = {target for _, target in shape.edges}
    layers, last = {}, 0
    for state in shape.drawn:
        last += state in entered
        layers[state] = last if state in entered else 0
    return layers


def _label_ranks(shape: Shape, layers: dict[int, int], *, at_target: bool) -> dict[int, int]:
    """By labelled edge the rank of its label: before its target, or where there are fewest."""
    spans = {
        i: range(2 * layers[source] + 1, 2 * layers[target], 2)
        for i, (source, target) in enumerate(shape.edges)
        if shape.labels[i]
    }
    if at_target:
        return {i: span[-1] for i, span in spans.items()}
    found: dict[int, int] = {}
    load: dict[int, int] = {}
    for i in sorted(spans, key=lambda i: len(spans[i])):
        found[i] = min(reversed(spans[i]), key=lambda rank: load.get(rank, 0))
        load[found[i]] = load.get(found[i], 0) + 1
    return found


Rows = list[list[Item]]
Links = dict[Item, list[Item]]


def _few_crossings(rows: Rows, chains: Sequence[Sequence[Item]]) -> Rows:
    """``rows`` in an order with few crossings; the first, a cell's inputs, stays as it is."""
    before: Links = {item: [] for row in rows for item in row}
    behind: Links = {item: [] for row in rows for item in row}
    for chain in chains:
        for a, b in pairwise(chain):
            behind[a].append(b)
            before[b].append(a)
    best, fewest = rows, _crossings(rows, before)
    current = [list(row) for row in rows]
    for _ in range(SWEEPS):
        for rank in range(1, len(rows)):
            current[rank] = _by_barycentre(current[rank], current[rank - 1], before)
        for rank in range(len(rows) - 2, 0, -1):
            current[rank] = _by_barycentre(current[rank], current[rank + 1], behind)
        _swap_neighbours(current, before, behind)
        if (crossings := _crossings(current, before)) < fewest:
            best, fewest = [list(row) for row in current], crossings
        if not fewest:
            break
    return best


def _by_barycentre(row: list[Item], beside: list[Item], links: Links) -> list[Item]:
    at = {item: i for i, item in enumerate(beside)}
    old = {item: i for i, item in enumerate(row)}

    def centre(item: Item) -> float:
        near = links[item]
        return sum(at[other] for other in near) / len(near) if near else old[item]

    return sorted(row, key=centre)


def _swap_neighbours(rows: Rows, before: Links, behind: Links) -> None:
    """Exchanges neighbours in a rank as long as that takes crossings away."""
    for rank in range(1, len(rows)):
        row = rows[rank]
        sides = [(rows[rank - 1], before)] + ([(rows[rank + 1], behind)] if rank + 1 < len(rows) else [])
        ends = [
            {item: sorted(at[other] for other in links[item]) for item in row}
            for beside, links in sides
            for at in [{item: i for i, item in enumerate(beside)}]
        ]
        for i in range(len(row) - 1):
            a, b = row[i], row[i + 1]
            if sum(_pair(near[b], near[a]) - _pair(near[a], near[b]) for near in ends) < 0:
                row[i], row[i + 1] = b, a


def _pair(upper: Sequence[int], lower: Sequence[int]) -> int:
    """Crossings of the edges of two neighbours, whose other ends are given."""
    return sum(a > b for a in upper for b in lower)


def _crossings(rows: Rows, before: Links) -> int:
    total = 0
    for above, row in pairwise(rows):
        at = {item: i for i, item in enumerate(above)}
        seen: list[int] = []
        for item in row:
            ends = sorted(at[other] for other in before[item])
            total += sum(len(seen) - bisect_right(seen, end) for end in ends)
            for end in ends:
                insort(seen, end)
    return total
