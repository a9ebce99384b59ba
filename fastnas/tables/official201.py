"""NAS-Bench-201's official files, turned into columns.

Three layouts hold the same dictionaries: NAS-Bench-201-v1_0-e61699.pth and v1_1-096897.pth (torch.save), NATS-Bench's
NATS-tss-v1_0-3ffb9.pickle.pbz2, and its folder NATS-tss-v1_0-3ffb9-simple with a file for each cell.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np

from fastnas.errors import FastnasError
from fastnas.spaces import CellString
from fastnas.spaces.genotype import NASBENCH201_PRIMITIVES
from fastnas.tables.nasbench201 import CELLS, TRAINING_TIME, Nasbench201Table
from fastnas.tables.official_pickle import stream_dict

# epochs -> what the two formats call that training
_TRAININGS = {200: ("full", "200"), 12: ("less", "12")}
# column -> (what the networks were trained on, what they were evaluated on)
_ACCURACIES = {
    "cifar10_val": ("cifar10-valid", "x-valid"),
    "cifar10_test": ("cifar10", "ori-test"),
    "cifar100_val": ("cifar100", "x-valid"),
    "cifar100_test": ("cifar100", "x-test"),
    "imagenet16_val": ("ImageNet16-120", "x-valid"),
    "imagenet16_test": ("ImageNet16-120", "x-test"),
}
_TRAINED_ON = {"cifar10": "cifar10", "cifar100": "cifar100", "imagenet16": "ImageNet16-120"}
_TIMED_ON = _TRAINED_ON | {"cifar10": "cifar10-valid"}
_SUM = "sum over epochs"
_LARGEST = 2**31  # of all numbers in a table
_KEPT = {
    *("meta_archs", "arch2infos", "all_results", "params", "flop", "eval_acc1es", "train_times"),
    *(name for names in _TRAININGS.values() for name in names),
    *(f"{split}@{epochs - 1}" for epochs in _TRAININGS for split in ("x-valid", "x-test", "ori-test")),
}


def official_columns(
    path: Path, progress: Callable[[int], object] | None = None
) -> tuple[dict[int, CellString], dict[str, np.ndarray]]:
    """What an official file says of the cells that it holds.

    Args:
        path: one of the files, or the folder.
        progress: is told how many bytes (of the folder: files) have been read.

    Returns:
        The cells by their number in the benchmark, in its order; and the columns of ``Nasbench201Table``, one entry a
        cell in the same order. Accuracies that the file has not (v1.0: 12 epochs on CIFAR-100) are NaN.

    Raises:
        FastnasError: the file is damaged, no such benchmark, or asks for Python objects (nothing of it is run).
    """
    if path.is_dir():
        cells, infos = _folder(path, progress)
    else:
        content = stream_dict(path, needed, progress)
        cells = _cells(path, content)
        infos = iter(_in_order(path, _dictionary(path, content, "arch2infos"), len(cells)))
    found: dict[int, CellString] = {}
    rows = []
    for index, info in infos:
        found[index] = cells[index]
        rows.append(_numbers(f"{path}: cell {index}", info))
    if not rows:
        raise FastnasError(f"{path}: it holds no training results")
    return found, {name: _column(name, [row[name] for row in rows]) for name in rows[0]}


def read_official(path: Path, progress: Callable[[int], object] | None = None) -> Nasbench201Table:
    """The whole benchmark out of one of its official files or folders; arguments as in :func:`official_columns`.

    Raises:
        FastnasError: as there, or cells are missing.
    """
    found, columns = official_columns(path, progress)
    if len(found) != CELLS:
        raise FastnasError(f"{path}: it holds {len(found):,} of the {CELLS:,} cells, and a table needs all")
    ops = np.array([[NASBENCH201_PRIMITIVES.index(op) for op in cell.ops] for cell in found.values()])
    if len(np.unique(ops, axis=0)) != CELLS:
        raise FastnasError(f"{path}: two of its cells are the same")
    return Nasbench201Table(ops, columns)


def needed(items: list[Any]) -> Iterator[tuple[Any, Any]]:
    """Of a dictionary's keys and values those that a table is made from; numbers by epoch become their sum."""
    total, epochs = 0.0, 0
    for key, value in zip(items[::2], items[1::2], strict=True):
        if type(key) is str:
            if key in _KEPT:
                yield key, value
        elif type(value) is float:
            total, epochs = total + value, epochs + 1
        else:
            yield key, value
    if epochs:
        yield _SUM, total


def _folder(
    path: Path, progress: Callable[[int], object] | None
) -> tuple[list[CellString], Iterator[tuple[int, Any]]]:
    meta = path / "meta.pickle.pbz2"
    cells = _cells(meta, stream_dict(meta, needed))

    def infos() -> Iterator[tuple[int, Any]]:
        for index in range(len(cells)):
            file = path / f"{index:06d}.pickle.pbz2"
            if file.is_file():
                yield index, stream_dict(file, needed)
            if progress:
                progress(index + 1)

    return cells, infos()


def _cells(path: Path, content: dict[str, Any]) -> list[CellString]:
    archs = content.get("meta_archs")
    if (
        not isinstance(archs, list)
        or not 0 < len(archs) <= CELLS
        or any(type(arch) is not str for arch in archs)
    ):
        raise FastnasError(f"{path}: not a NAS-Bench-201 file: it has no list of architectures, 'meta_archs'")
    try:
        return [CellString.parse(arch) for arch in archs]
    except FastnasError as error:
        raise FastnasError(f"{path}: not a NAS-Bench-201 file: {error}") from None


def _in_order(path: Path, infos: dict[Any, Any], cells: int) -> list[tuple[int, Any]]:
    for index in infos:
        if type(index) is not int or not 0 <= index < cells:
            raise FastnasError(f"{path}: it holds a cell {index!r}, but there are {cells} architectures")
    return sorted(infos.items(), key=itemgetter(0))


def _numbers(where: str, info: Any) -> dict[str, float]:
    """A cell's row: the means over its training runs."""
    row: dict[str, float] = {}
    for epochs, names in _TRAININGS.items():
        training = next((info[name] for name in names if isinstance(info, dict) and name in info), None)
        runs = _runs(where, training)
        for column, (trained_on, evaluated_on) in _ACCURACIES.items():
            values = [
                _number(run, "eval_acc1es", f"{evaluated_on}@{epochs - 1}")
                for run in runs.get(trained_on, [])
            ]
            row[f"{column}{epochs}"] = _mean(values)
        if epochs == 200:
            row |= _costs(where, runs)
    for name, value in row.items():
        if math.isnan(value) and (name.endswith("200") or "_params" in name or "_mflops" in name):
            raise FastnasError(f"{where} lacks {name}; is the file complete?")
    return row


def _costs(where: str, runs: dict[str, list[dict[str, Any]]]) -> dict[str, float]:
    row = {}
    for data, trained_on in _TRAINED_ON.items():
        row[f"{data}_params"] = _mean(
            [_number(run, "params", factor=1e6) for run in runs.get(trained_on, [])]
        )
        row[f"{data}_mflops"] = _mean([_number(run, "flop") for run in runs.get(trained_on, [])])
        timed = runs.get(_TIMED_ON[data], [])
        row[TRAINING_TIME[data]] = _mean([_number(run, "train_times", _SUM) for run in timed])
    return row


def _runs(where: str, training: Any) -> dict[str, list[dict[str, Any]]]:
    """The training runs of a cell by what they were trained on, whatever their seeds."""
    results = training.get("all_results") if isinstance(training, dict) else None
    if not isinstance(results, dict):
        raise FastnasError(f"{where} lacks the results of a training; is the file complete?")
    runs: dict[str, list[dict[str, Any]]] = {}
    for key, run in results.items():
        if not (
            isinstance(key, tuple) and len(key) == 2 and isinstance(key[0], str) and isinstance(run, dict)
        ):
            raise FastnasError(f"{where}: a training run is called {key!r}, and not by data set and seed")
        runs.setdefault(key[0], []).append(run)
    return runs


def _number(run: dict[str, Any], *names: str, factor: float = 1) -> float:
    value: Any = run
    for name in names:
        value = value.get(name) if isinstance(value, dict) else None
    known = isinstance(value, int | float) and abs(value) < _LARGEST / factor
    return factor * float(value) if known else math.nan


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def _column(name: str, values: list[float]) -> np.ndarray:
    return np.rint(values).astype(np.int32) if name.endswith("_params") else np.array(values, np.float32)


def _dictionary(path: Path, content: dict[str, Any], name: str) -> dict[Any, Any]:
    value = content.get(name)
    if not isinstance(value, dict):
        raise FastnasError(f"{path}: not a NAS-Bench-201 file: {name!r} is missing")
    return value
