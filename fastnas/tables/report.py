"""Rows of tables as text and as JSON."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

from fastnas.tables.nasbench101 import Nasbench101Row
from fastnas.tables.nasbench201 import Nasbench201Row
from fastnas.tables.standing import DATASETS, SPLITS, Standing


def to_json(row: Nasbench201Row | Nasbench101Row) -> dict[str, Any]:
    """Plain data of a row; what the table does not have is None."""
    return _plain({**asdict(row), "arch": row.arch.to_json()})


def cell_report(row: Nasbench201Row | Nasbench101Row, cells: int) -> str:
    """A row as text: accuracies with their ranks among ``cells`` and their regrets, and what the network costs."""
    return _report201(row, cells) if isinstance(row, Nasbench201Row) else _report101(row, cells)


def top_report(rows: list[Any], dataset: str, split: str) -> str:
    """Cells, best first, a line each."""
    lines = [
        f"best by {SPLITS[split]} accuracy on {DATASETS[dataset]}",
        f"{'val':>7} {'rank':>6}  {'test':>7} {'rank':>6}",
    ]
    for row in rows:
        found = row.standings[dataset]
        val, test = found["val"], found["test"]
        lines.append(f"{val.accuracy:>7.3f} {val.rank:>6}  {test.accuracy:>7.3f} {test.rank:>6}  {row.arch}")
    return "\n".join(lines)


def _report201(row: Nasbench201Row, cells: int) -> str:
    lines = [
        f"NAS-Bench-201, cell {row.index}: {row.arch}",
        "",
        f"{'':<15} {'accuracy':>9} {'rank of':>8} {'regret':>8} {'12 epochs':>10}",
        f"{'':<15} {'%':>9} {cells:>8,} {'points':>8} {'%':>10}",
    ]
    for data, result in row.results.items():
        for split, short in ((result.val, result.val12), (result.test, result.test12)):
            name = f"{DATASETS[data]} val" if split is result.val else "test"
            lines.append(f"{name:<19}{_standing(split)} {_number(short):>10}")
    lines += ["", f"{'':<15} {'parameters':>11} {'MFLOPs':>9} {'training':>10}"]
    for data, result in row.results.items():
        seconds = "-" if math.isnan(result.train_seconds) else f"{result.train_seconds:,.0f} s"
        lines.append(f"{DATASETS[data]:<15} {result.parameters:>11,} {result.mflops:>9.2f} {seconds:>10}")
    return "\n".join(lines)


def _report101(row: Nasbench101Row, cells: int) -> str:
    lines = [
        f"NAS-Bench-101, hash {row.hash}: {row.arch}",
        f"{row.parameters:,} parameters",
        "",
        f"{'CIFAR-10':<15} {'accuracy':>9} {'rank of':>8} {'regret':>8} {'runs':>10}",
        f"{'':<15} {'%':>9} {cells:>8,} {'points':>8} {'%':>10}",
    ]
    for epochs, result in row.results.items():
        for name, split, runs in (
            ("val", result.val, result.val_runs),
            ("test", result.test, result.test_runs),
        ):
            title = f"{epochs} epochs {name}"
            lines.append(f"{title:<19}{_standing(split)}  {' '.join(f'{run:.3f}' for run in runs)}")
        lines.append(
            f"{'':<8} trained in {result.train_seconds:,.0f} s to {result.train:.3f}% of training images"
        )
    return "\n".join(lines)


def _standing(found: Standing) -> str:
    return f" {found.accuracy:>5.3f} {found.rank:>7,} {found.regret:>8.3f}"


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(part) for part in value]
    return None if isinstance(value, float) and math.isnan(value) else value
