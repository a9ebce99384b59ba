"""NAS-Bench-201 (Dong and Yang 2020): every one of its 15,625 cells, trained.

Accuracies are means over the table's training runs, in percent. CIFAR-10's validation accuracy is that of networks
trained on half of the training images (the table's cifar10-valid), its test accuracy that of networks trained on all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from fastnas.errors import FastnasError
from fastnas.spaces import CellString
from fastnas.spaces.genotype import NASBENCH201_PRIMITIVES
from fastnas.tables.arrays import Archive, write_arrays
from fastnas.tables.standing import DATASETS, SPLITS, Ranking, Standing, rounded

EDGES = 6
CELLS = len(NASBENCH201_PRIMITIVES) ** EDGES  # 15,625
EPOCHS = (200, 12)
# The name of the array that holds the training time on a data set, in seconds.
TRAINING_TIME = {
    "cifar10": "cifar10valid_train_s_200ep",
    "cifar100": "cifar100_train_s_200ep",
    "imagenet16": "imagenet16_train_s_200ep",
}
_PLACES = len(NASBENCH201_PRIMITIVES) ** np.arange(EDGES)


@dataclass(frozen=True)
class Nasbench201Result:
    """A cell on one data set.

    Attributes:
        val, test: after the training of 200 epochs.
        val12, test12: accuracy in percent after the training of 12 epochs; NaN: not in the file.
        parameters: weights of the network (C = 16, N = 5).
        mflops: multiply-adds of convolutions and of the classifier with its bias for one image, in millions.
        train_seconds: of one training of 200 epochs on the benchmark's GPU (CIFAR-10: on half of the training images);
            NaN: not in the file.
    """

    val: Standing
    test: Standing
    val12: float
    test12: float
    parameters: int
    mflops: float
    train_seconds: float


@dataclass(frozen=True)
class Nasbench201Row:
    """A cell and what became of it, by data set ("cifar10", "cifar100", "imagenet16").

    Attributes:
        index: the benchmark's own number of the cell, from 0.
        arch: the cell.
        results: by data set.
    """

    index: int
    arch: CellString
    results: Mapping[str, Nasbench201Result]

    @property
    def standings(self) -> dict[str, dict[str, Standing]]:
        """By data set and split ("val", "test")."""
        return {name: {"val": result.val, "test": result.test} for name, result in self.results.items()}


class Nasbench201Table:
    """The whole benchmark in memory, about 1.5 MB.

    Args:
        ops: (15625, 6) integers, row = the benchmark's index, which index NASBENCH201_PRIMITIVES in the edges' order of
            the architecture string; every cell once.
        columns: the arrays of a table's file by name, (15625,) each (docs/tables.md).
    """

    title = "NAS-Bench-201"
    datasets = tuple(DATASETS)
    cells = CELLS

    def __init__(self, ops: np.ndarray, columns: Mapping[str, np.ndarray]) -> None:
        self._ops, self._columns = ops, columns
        self._row_of = np.empty(CELLS, dtype=np.int64)
        self._row_of[ops.astype(np.int64) @ _PLACES] = np.arange(CELLS)

    @classmethod
    def load(cls, path: Path) -> Nasbench201Table:
        """Out of a compact .npz file.

        Raises:
            FastnasError: the file is missing, damaged, or not such a table; nothing in it is unpickled.
        """
        with Archive(path) as archive:
            names = archive.texts("op_names", len(NASBENCH201_PRIMITIVES))
            if sorted(names) != sorted(NASBENCH201_PRIMITIVES):
                raise FastnasError(
                    f"table {path}: op_names must be {', '.join(NASBENCH201_PRIMITIVES)}, got {', '.join(names)}"
                )
            ops = archive.integers("ops", (CELLS, EDGES), 0, len(names) - 1)
            ops = np.array([NASBENCH201_PRIMITIVES.index(name) for name in names])[ops]
            if len(np.unique(ops @ _PLACES)) != CELLS:
                raise FastnasError(f"table {path}: ops must hold each of the {CELLS:,} cells once")
            columns = {}
            for data in DATASETS:
                for epochs in EPOCHS:
                    for split in SPLITS:
                        name = f"{data}_{split}{epochs}"
                        columns[name] = archive.numbers(name, (CELLS,), 0, 100, missing=epochs == 12)
                name = f"{data}_params"
                columns[name] = archive.integers(name, (CELLS,), 1, 2**31 - 1)
                name = f"{data}_mflops"
                columns[name] = archive.numbers(name, (CELLS,), 0, 1e6)
                name = TRAINING_TIME[data]
                columns[name] = archive.numbers(name, (CELLS,), 0, 1e9, missing=True)
        return cls(ops, columns)

    def save(self, path: Path) -> None:
        """Writes the compact .npz file that :meth:`load` reads."""
        arrays = {"ops": self._ops.astype(np.uint8), "op_names": np.array(NASBENCH201_PRIMITIVES)}
        write_arrays(path, arrays | dict(self._columns))

    def arch(self, index: int) -> CellString:
        """The cell of number ``index``.

        Raises:
            FastnasError: there is no such cell.
        """
        if not 0 <= index < CELLS:
            raise FastnasError(f"NAS-Bench-201 has the cells 0 to {CELLS - 1}, got {index}")
        return CellString(tuple(NASBENCH201_PRIMITIVES[op] for op in self._ops[index]))

    def index(self, arch: CellString | str) -> int:
        """The benchmark's number of a cell.

        Raises:
            FastnasError: a text that is no cell of this space, or a cell with a primitive of the user's own.
        """
        cell = CellString.parse(arch) if isinstance(arch, str) else arch
        if own := [op for op in cell.ops if op not in NASBENCH201_PRIMITIVES]:
            raise FastnasError(f"NAS-Bench-201 has no cell with {own[0]}")
        return int(self._row_of[_PLACES @ [NASBENCH201_PRIMITIVES.index(op) for op in cell.ops]])

    def row(self, arch: CellString | str | int) -> Nasbench201Row:
        """What the table says of a cell, given as such, as its string or by the benchmark's number.

        Raises:
            FastnasError: there is no such cell.
        """
        index = arch if isinstance(arch, int) else self.index(arch)
        return Nasbench201Row(index, self.arch(index), {data: self._result(data, index) for data in DATASETS})

    def accuracies(self, dataset: str = "cifar10", split: str = "val") -> np.ndarray:
        """(15625,) of all cells by their number, in percent, after 200 epochs."""
        return self._columns[f"{dataset}_{split}200"].copy()

    def top(self, count: int, dataset: str = "cifar10", split: str = "val") -> list[Nasbench201Row]:
        """The ``count`` best cells by the accuracy on ``split`` of ``dataset`` after 200 epochs, best first."""
        return [self.row(index) for index in self._rankings[dataset, split].top(count)]

    @cached_property
    def _rankings(self) -> dict[tuple[str, str], Ranking]:
        return {
            (data, split): Ranking(self._columns[f"{data}_{split}200"])
            for data in DATASETS
            for split in SPLITS
        }

    def _result(self, data: str, index: int) -> Nasbench201Result:
        column = {name: rounded(values[index]) for name, values in self._columns.items()}
        return Nasbench201Result(
            val=self._rankings[data, "val"].standing(index),
            test=self._rankings[data, "test"].standing(index),
            val12=column[f"{data}_val12"],
            test12=column[f"{data}_test12"],
            parameters=int(column[f"{data}_params"]),
            mflops=column[f"{data}_mflops"],
            train_seconds=column[TRAINING_TIME[data]],
        )
