"""NAS-Bench-101 (Ying et al. 2019): 423,624 cells, each trained three times on CIFAR-10.

A cell is found by the benchmark's own hash of its graph, the same for isomorphic cells. Accuracies are in percent.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from fastnas.errors import FastnasError
from fastnas.spaces import CellMatrix
from fastnas.tables.arrays import Archive, write_arrays
from fastnas.tables.standing import Ranking, Standing, rounded

# The benchmark's order: its hashes depend on these numbers.
OPERATIONS = ("conv3x3-bn-relu", "conv1x1-bn-relu", "maxpool3x3")
_INPUT, _OUTPUT = -1, -2
VERTICES = 7
EPOCHS = (4, 12, 36, 108)
METRICS = ("train", "val", "test", "seconds")
_UPPER = np.triu_indices(VERTICES, 1)


@dataclass(frozen=True)
class Nasbench101Training:
    """What a number of epochs made of a cell.

    Attributes:
        val, test: of the means over the runs.
        train: accuracy in percent on training images, the mean over the runs.
        val_runs, test_runs: accuracy in percent of each run.
        train_seconds: of one run on the benchmark's TPU, the mean.
    """

    val: Standing
    test: Standing
    train: float
    val_runs: tuple[float, ...]
    test_runs: tuple[float, ...]
    train_seconds: float


@dataclass(frozen=True)
class Nasbench101Row:
    """A cell and what became of it.

    Attributes:
        index: of the cell in the table, by its hash.
        hash: the benchmark's, 32 hexadecimal digits.
        arch: the cell as the table has it, perhaps with its vertices in another order.
        parameters: weights of the network (C = 128, 9 cells).
        results: by epochs.
    """

    index: int
    hash: str
    arch: CellMatrix
    parameters: int
    results: Mapping[int, Nasbench101Training]

    @property
    def standings(self) -> dict[str, dict[str, Standing]]:
        """By data set ("cifar10") and split ("val", "test"), after the longest training."""
        longest = self.results[max(self.results)]
        return {"cifar10": {"val": longest.val, "test": longest.test}}


def cell_hash(cell: CellMatrix) -> str:
    """The benchmark's hash of the pruned cell, as in its graph_util.py (Ying et al. 2019, section 2.2): 32 digits.

    Each vertex begins with (edges out, edges in, operation) and takes in its neighbours' hashes, as many times as there
    are vertices; the sorted hashes of all are the cell's.
    """
    pruned = cell.pruned()
    labels = [_INPUT, *(OPERATIONS.index(operation) for operation in pruned.operations[1:-1]), _OUTPUT]
    return matrix_hash(pruned.matrix, labels)


def matrix_hash(matrix: Sequence[Sequence[int]], labels: Sequence[int]) -> str:
    """:func:`cell_hash` of any adjacency matrix, without pruning.

    Args:
        matrix: (V, V), 1 where an edge leads from row to column.
        labels: of the V vertices.
    """
    vertices = range(len(matrix))
    before = [[source for source in vertices if matrix[source][vertex]] for vertex in vertices]
    after = [[target for target in vertices if matrix[vertex][target]] for vertex in vertices]
    hashes = [_md5(str((len(after[v]), len(before[v]), labels[v]))) for v in vertices]
    for _ in vertices:
        hashes = [
            _md5(
                "|".join(
                    (
                        "".join(sorted(hashes[source] for source in before[v])),
                        "".join(sorted(hashes[target] for target in after[v])),
                        hashes[v],
                    )
                )
            )
            for v in vertices
        ]
    return _md5(str(sorted(hashes)))


def _md5(text: str) -> str:
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()


class Nasbench101Table:
    """The benchmark, or a part of it, in memory: about 30 MB with the training of 108 epochs, 95 MB with all four.

    Args:
        arrays: by name, as in a table's file (docs/tables.md).
    """

    title = "NAS-Bench-101"
    datasets = ("cifar10",)

    def __init__(self, arrays: Mapping[str, np.ndarray]) -> None:
        self._arrays = arrays
        self.epochs: tuple[int, ...] = tuple(int(e) for e in arrays["epochs"])
        self._keys = arrays["hashes"].view(">u8")  # (N, 2), sorted

    @property
    def cells(self) -> int:
        """How many cells it has."""
        return len(self._keys)

    @classmethod
    def load(cls, path: Path) -> Nasbench101Table:
        """Out of a compact .npz file, as ``python -m fastnas.tables convert`` writes it.

        Raises:
            FastnasError: the file is missing, damaged, or not such a table; nothing in it is unpickled.
        """
        with Archive(path) as archive:
            names = archive.texts("op_names", len(OPERATIONS))
            if tuple(names) != OPERATIONS:
                raise FastnasError(
                    f"table {path}: op_names must be {', '.join(OPERATIONS)}, got {', '.join(names)}"
                )
            epochs = archive.integers("epochs", (None,), min(EPOCHS), max(EPOCHS)).astype(np.int32)
            hashes = archive.integers("hashes", (None, 16), 0, 255).astype(np.uint8)
            cells = len(hashes)
            if not cells or not len(epochs) or not (np.diff(epochs) > 0).all():
                raise FastnasError(f"table {path}: it must have cells, and epochs in rising order")
            arrays: dict[str, np.ndarray] = {
                "epochs": epochs,
                "hashes": np.ascontiguousarray(hashes),
                "edges": archive.integers("edges", (cells,), 1, 2 ** len(_UPPER[0]) - 1),
                "operations": archive.integers("operations", (cells, VERTICES - 2), 0, len(OPERATIONS)),
                "params": archive.integers("params", (cells,), 1, 2**31 - 1),
            }
            runs = archive.array("val", "f", (cells, len(epochs), None)).shape[2]
            if not runs:
                raise FastnasError(f"table {path}: val must have a run at least")
            for name in METRICS:
                high = 1e9 if name == "seconds" else 100
                arrays[name] = archive.numbers(name, (cells, len(epochs), runs), 0, high)
        table = cls(arrays)
        high, low = table._keys.T
        if not ((high[1:] > high[:-1]) | ((high[1:] == high[:-1]) & (low[1:] > low[:-1]))).all():
            raise FastnasError(f"table {path}: hashes must be sorted, each of them once")
        return table

    def save(self, path: Path) -> None:
        """Writes the compact .npz file that :meth:`load` reads."""
        write_arrays(path, {"op_names": np.array(OPERATIONS), **self._arrays})

    def index(self, cell: CellMatrix) -> int:
        """The table's number of a cell or of one isomorphic to it.

        Raises:
            FastnasError: the table does not have it.
        """
        key = np.frombuffer(bytes.fromhex(cell_hash(cell)), ">u8")
        first, last = (
            int(np.searchsorted(self._keys[:, 0], key[0], side=side)) for side in ("left", "right")
        )
        for index in range(first, last):
            if self._keys[index, 1] == key[1]:
                return index
        raise FastnasError(f"the table of {self.cells:,} cells does not have {cell}")

    def arch(self, index: int) -> CellMatrix:
        """The cell of number ``index``, as the benchmark has it."""
        return unpack_cell(int(self._arrays["edges"][index]), self._arrays["operations"][index])

    def row(self, arch: CellMatrix | str | int) -> Nasbench101Row:
        """What the table says of a cell, given as such, as text or by its number here.

        Raises:
            FastnasError: it is none, or the table does not have it.
        """
        if isinstance(arch, int) and not 0 <= arch < self.cells:
            raise FastnasError(f"this NAS-Bench-101 table has the cells 0 to {self.cells - 1}, got {arch}")
        if isinstance(arch, str):
            arch = CellMatrix.parse(arch)
        index = arch if isinstance(arch, int) else self.index(arch)
        return Nasbench101Row(
            index,
            self._arrays["hashes"][index].tobytes().hex(),
            self.arch(index),
            int(self._arrays["params"][index]),
            {epochs: self._training(place, index) for place, epochs in enumerate(self.epochs)},
        )

    def top(self, count: int, dataset: str = "cifar10", split: str = "val") -> list[Nasbench101Row]:
        """The ``count`` best cells by the mean accuracy on ``split`` after the longest training, best first."""
        return [self.row(index) for index in self._rankings[split, len(self.epochs) - 1].top(count)]

    @cached_property
    def _rankings(self) -> dict[tuple[str, int], Ranking]:
        return {
            (split, place): Ranking(self._arrays[split][:, place].mean(-1, dtype=np.float64))
            for split in ("val", "test")
            for place in range(len(self.epochs))
        }

    def _training(self, place: int, index: int) -> Nasbench101Training:
        runs = {name: self._arrays[name][index, place] for name in METRICS}
        return Nasbench101Training(
            val=self._rankings["val", place].standing(index),
            test=self._rankings["test", place].standing(index),
            train=rounded(runs["train"].mean(dtype=np.float64)),
            val_runs=tuple(map(rounded, runs["val"])),
            test_runs=tuple(map(rounded, runs["test"])),
            train_seconds=rounded(runs["seconds"].mean(dtype=np.float64)),
        )


def pack_cell(cell: CellMatrix) -> tuple[int, list[int]]:
    """A cell as two fields of the compact file: a bit an edge, and the operations from 1 on, 0 beyond the last.

    Bits are in the order of the rows of a 7 x 7 matrix above its diagonal; the output comes after the last operation.
    """
    size = len(cell.matrix)
    edges = sum(
        1 << bit
        for bit, (source, target) in enumerate(zip(*_UPPER, strict=True))
        if target < size and cell.matrix[source][target]
    )
    operations = [OPERATIONS.index(operation) + 1 for operation in cell.operations[1:-1]]
    return edges, operations + [0] * (VERTICES - size)


def unpack_cell(edges: int, operations: Sequence[int] | np.ndarray) -> CellMatrix:
    """The cell of :func:`pack_cell`."""
    names = [OPERATIONS[number - 1] for number in operations if number]
    matrix = np.zeros((VERTICES, VERTICES), dtype=int)
    matrix[_UPPER] = [edges >> bit & 1 for bit in range(len(_UPPER[0]))]
    size = len(names) + 2
    return CellMatrix(tuple(map(tuple, matrix[:size, :size].tolist())), ("input", *names, "output"))
