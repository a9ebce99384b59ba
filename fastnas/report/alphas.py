"""What alpha said over the epochs: each parameter's softmax weights, and what its rows and columns choose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from fastnas.report.read import Run
from fastnas.spaces import Space
from fastnas.spaces.description import Cell, Edge, Mixing
from fastnas.spaces.recurrent import RecurrentSpace

Array = np.ndarray


@dataclass(frozen=True)
class History:
    """An architecture parameter over the epochs.

    Attributes:
        name: of the parameter.
        rows: what each of its rows decides about, "0 → 2" being an edge.
        columns: (rows, columns) what may be chosen there, "" where nothing can.
        primitives: whether the columns are primitives, of an edge or of an operation.
        epochs: in which it is known.
        weights: (epochs, rows, columns) softmax over the columns.
    """

    name: str
    rows: tuple[str, ...]
    columns: tuple[tuple[str, ...], ...]
    primitives: bool
    epochs: tuple[int, ...]
    weights: Array


@dataclass(frozen=True)
class Shares:
    """How much each primitive has, (epochs, primitives); a row's sum is at most 1."""

    primitives: tuple[str, ...]
    epochs: tuple[int, ...]
    shares: Array

    def ordered(self, names: Sequence[str]) -> Shares:
        """The same with the primitives in the order in which ``names`` has them."""
        order = sorted(range(len(self.primitives)), key=lambda i: names.index(self.primitives[i]))
        return Shares(tuple(self.primitives[i] for i in order), self.epochs, self.shares[:, order])


def histories(run: Run) -> tuple[History, ...]:
    """Every architecture parameter of the epochs whose alphas are there, in the space's order.

    Where a file has another shape than the first, it is left out.
    """
    if not run.alphas:
        return ()
    first = run.alphas[min(run.alphas)]
    in_order = [alpha.name for alpha in run.space.alphas if alpha.name in first] if run.space else []
    return tuple(_history(run, name) for name in [*in_order, *sorted(set(first) - set(in_order))])


def _history(run: Run, name: str) -> History:
    shape = run.alphas[min(run.alphas)][name].shape
    epochs = tuple(
        e for e in sorted(run.alphas) if name in run.alphas[e] and run.alphas[e][name].shape == shape
    )
    weights = torch.stack([run.alphas[epoch][name] for epoch in epochs]).softmax(-1).numpy()
    rows, columns, primitives = _labels(run.space, name, *shape)
    return History(name, rows, columns, primitives, epochs, weights)


def mean_weights(found: Sequence[History]) -> Shares | None:
    """The mean softmax weight of each primitive over all rows that choose among primitives."""
    usable = [history for history in found if history.primitives]
    if not usable:
        return None
    epochs = usable[0].epochs
    sums: dict[str, Array] = {}
    rows = 0
    for history in usable:
        if history.epochs != epochs:
            continue
        rows += len(history.rows)
        for r, columns in enumerate(history.columns):
            for c, primitive in enumerate(columns):
                if primitive:
                    sums[primitive] = sums.get(primitive, np.zeros(len(epochs))) + history.weights[:, r, c]
    names = tuple(sums)
    return Shares(names, epochs, np.stack([sums[name] for name in names], axis=1) / rows)


def genotype_shares(run: Run) -> Shares | None:
    """The share of each primitive among the edges (or the operations) of the epoch's genotype."""
    counts = [
        (row["epoch"], _counts(genotype))
        for row, genotype in zip(run.rows, run.genotypes, strict=True)
        if genotype is not None
    ]
    names = tuple(sorted({name for _, count in counts for name in count}))
    if not names:
        return None
    table = np.array([[count.get(name, 0) for name in names] for _, count in counts], float)
    return Shares(
        names, tuple(epoch for epoch, _ in counts), table / np.maximum(table.sum(1, keepdims=True), 1)
    )


def entropies(found: Sequence[History]) -> dict[str, Array]:
    """The mean entropy of each parameter's rows in nats, by name, each as long as its epochs."""
    return {
        history.name: -(history.weights * np.log(np.maximum(history.weights, 1e-300))).sum(-1).mean(-1)
        for history in found
    }


def _counts(genotype: object) -> Mapping[str, int]:
    """How often each primitive is in a genotype: on edges, or in the vertices of cells that have them there."""
    counts: dict[str, int] = {}
    for graph in genotype.graphs():  # type: ignore[attr-defined]
        named = [label for _, _, label in graph.edges if label] or list(graph.labels[1:-1])
        for label in named:
            counts[label] = counts.get(label, 0) + 1
    return counts


def _labels(
    space: Space | None, name: str, rows: int, columns: int
) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...], bool]:
    """What the rows and the columns of alpha ``name`` stand for, and whether the columns are primitives."""
    alpha = next((alpha for alpha in space.alphas if alpha.name == name), None) if space else None
    if space is None or alpha is None or alpha.shape != (rows, columns):
        plain = tuple(f"option {column}" for column in range(columns))
        return tuple(f"row {row}" for row in range(rows)), (plain,) * rows, False
    chosen = _chosen(space, name)
    if any(len(chosen.get(row, [])) != 1 or chosen[row][0].mixing is not None for row in range(rows)):
        # Of sources, or of a node's operation: its edges are between states that no drawing has.
        of_operations = all(
            edge.primitives == alpha.primitives for edges in chosen.values() for edge in edges
        )
        titles = tuple(f"node {row + 1}" for row in range(rows)) if rows > 1 else (name.replace("_", " "),)
        return titles, (alpha.primitives,) * rows, of_operations
    edges = [chosen[row][0] for row in range(rows)]
    inputs, output = _ends(space, name)
    titles = tuple(
        f"{_state(edge.source, inputs, output)} → {_state(edge.target, inputs, output)}" for edge in edges
    )
    return (
        titles,
        tuple((*edge.primitives, *("",) * (columns - len(edge.primitives))) for edge in edges),
        True,
    )


def _chosen(space: Space, name: str) -> dict[int, list[Edge]]:
    """The edges that each row weighs, in the first cell that it does."""
    if isinstance(space, RecurrentSpace):
        return {row: [edge] for row, edge in enumerate(space.edges)}
    for stage in space.stages:
        mixed: Sequence[Mixing | None] = stage.mixing if isinstance(stage, Cell) else ()
        found: dict[int, list[Edge]] = {}
        for edge, mixing in zip(stage.edges if isinstance(stage, Cell) else (), mixed, strict=True):
            if mixing is not None and mixing.alpha == name:
                found.setdefault(mixing.row, []).append(edge)
        if found:
            return found
    return {}


def _ends(space: Space, name: str) -> tuple[int, tuple[int, ...]]:
    """How many inputs the cells have whose edges alpha ``name`` weighs, and the states that they put out."""
    cells = (stage for stage in space.stages if isinstance(stage, Cell))
    found = (cell for cell in cells if any(m and m.alpha == name for m in cell.mixing))
    return next(((len(cell.inputs), cell.output) for cell in found), (1, ()))


def _state(state: int, inputs: int, output: tuple[int, ...]) -> str:
    """As the drawings call a state of a cell."""
    if inputs == 2:
        return ("c(k-2)", "c(k-1)")[state] if state < 2 else str(state - 2)
    return "input" if state == 0 else "output" if output == (state,) else str(state)
