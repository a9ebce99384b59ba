"""NAS-Bench-101's official files, nasbench_only108.tfrecord and nasbench_full.tfrecord, turned into a table.

A record is JSON: [hash, epochs, adjacency as 0 and 1 row by row, operations with commas between, metrics]. Metrics are
a Protocol Buffers message in base64: evaluation_data = 1 (three times: before, halfway and after the training), of
which training_time = 2, train_accuracy = 3, validation_accuracy = 4, test_accuracy = 5; trainable_parameters = 2.
"""

from __future__ import annotations

import base64
import json
import math
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from fastnas.errors import FastnasError
from fastnas.spaces import CellMatrix
from fastnas.tables.nasbench101 import EPOCHS, METRICS, Nasbench101Table, cell_hash, pack_cell
from fastnas.tables.tfrecord import fields, records

_EVALUATION, _PARAMETERS = 1, 2
_RUN = struct.Struct(f"<{len(METRICS)}f")
# metric -> (its field in an evaluation, a factor to what the table holds)
_FIELDS = {"seconds": (2, 1.0), "train": (3, 100.0), "val": (4, 100.0), "test": (5, 100.0)}
# What reading a record can raise that is not what it should be.
_DAMAGE = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError, struct.error)
_CHECKED = 500  # Of so many cells spread over the file the hash is computed again.


class _Cell:
    """A cell as its records come."""

    __slots__ = ("packed", "parameters", "runs")

    def __init__(self, packed: tuple[int, list[int]], parameters: int) -> None:
        self.packed, self.parameters = packed, parameters
        self.runs: dict[int, list[bytes]] = {}  # by epochs, METRICS as float32


def read_official(path: Path, progress: Callable[[int], object] | None = None) -> Nasbench101Table:
    """The table in a record file; about 1 GB of memory while it reads the full one.

    Args:
        path: of the file.
        progress: is told how many bytes have been read.

    Raises:
        FastnasError: the file is damaged, or holds something else.
    """
    cells: dict[str, _Cell] = {}
    for number, record in enumerate(records(path, progress)):
        try:
            _add(cells, record)
        except _DAMAGE as error:
            raise FastnasError(f"{path}: record {number} is none of NAS-Bench-101 ({error})") from None
    if not cells:
        raise FastnasError(f"{path}: it holds no records")
    return _table(path, cells)


def _add(cells: dict[str, _Cell], record: bytes) -> None:
    digest, epochs, adjacency, operations, metrics = json.loads(record)
    if epochs not in EPOCHS:
        raise ValueError(f"a training of {epochs} epochs")
    evaluations, parameters = _metrics(base64.b64decode(metrics, validate=True))
    cell = cells.get(digest)
    if cell is None:
        cells[digest] = cell = _Cell(pack_cell(_cell(adjacency, operations)), parameters)
    last = evaluations[-1]
    numbers = (factor * last[field] for field, factor in (_FIELDS[name] for name in METRICS))
    cell.runs.setdefault(epochs, []).append(_RUN.pack(*numbers))


def _cell(adjacency: str, operations: str) -> CellMatrix:
    size = math.isqrt(len(adjacency))
    if size * size != len(adjacency) or set(adjacency) > {"0", "1"}:
        raise ValueError(f"an adjacency of {len(adjacency)} characters")
    rows = (adjacency[i * size : (i + 1) * size] for i in range(size))
    return CellMatrix(tuple(tuple(map(int, row)) for row in rows), tuple(operations.split(",")))


def _metrics(message: bytes) -> tuple[list[dict[int, Any]], int]:
    evaluations, parameters = [], 0
    for field, value in fields(message):
        if field == _EVALUATION:
            evaluations.append(dict(fields(value)))
        elif field == _PARAMETERS:
            parameters = value
    if len(evaluations) != 3 or not 0 < parameters < 2**31:
        raise ValueError(f"{len(evaluations)} evaluations instead of 3, {parameters} parameters")
    return evaluations, parameters


def _table(path: Path, cells: dict[str, _Cell]) -> Nasbench101Table:
    epochs = sorted({e for cell in cells.values() for e in cell.runs})
    counts = {len(cell.runs.get(e, ())) for cell in cells.values() for e in epochs}
    if len(counts) != 1:
        raise FastnasError(
            f"{path}: its cells were trained from {min(counts)} to {max(counts)} times with one number of epochs; "
            "is the download complete?"
        )
    try:
        order = sorted(cells, key=bytes.fromhex)
        hashes = np.array([list(bytes.fromhex(digest)) for digest in order], dtype=np.uint8)
    except (ValueError, TypeError) as error:
        raise FastnasError(f"{path}: a cell's hash is not hexadecimal ({error})") from None
    if hashes.shape[1:] != (16,):
        raise FastnasError(f"{path}: a cell's hash has not 32 digits")
    packed = b"".join(run for digest in order for e in epochs for run in cells[digest].runs[e])
    runs = np.frombuffer(packed, "<f4").reshape(len(order), len(epochs), -1, len(METRICS))
    table = Nasbench101Table(
        {
            "epochs": np.array(epochs, dtype=np.int32),
            "hashes": hashes,
            "edges": np.array([cells[digest].packed[0] for digest in order], dtype=np.int32),
            "operations": np.array([cells[digest].packed[1] for digest in order], dtype=np.uint8),
            "params": np.array([cells[digest].parameters for digest in order], dtype=np.int32),
            **{name: np.ascontiguousarray(runs[..., i]) for i, name in enumerate(METRICS)},
        }
    )
    for index in range(0, len(order), max(1, len(order) // _CHECKED)):
        if cell_hash(table.arch(index)) != order[index]:
            raise FastnasError(f"{path}: the hash {order[index]} is not that of its cell")
    return table
