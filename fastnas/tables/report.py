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
    lines = [f"NAS-Bench-201, cell {row.index}: {row.arch}", "", *_heading("200 epochs", cells, "12 epochs")]
    for data, result in row.results.items():
        lines.append(f"{DATASETS[data]:<16}val {_standing(result.val)} {_number(result.val12):>10}")
        lines.append(f"{'':<15}test {_standing(result.test)} {_number(result.test12):>10}")
    lines += ["", f"{'':<19} {'parameters':>10} {'MFLOPs':>8} {'training':>10}"]
    for data, result in row.results.items():
        seconds = "-" if math.isnan(result.train_seconds) else f"{result.train_seconds:,.0f} s"
        lines.append(f"{DATASETS[data]:<19} {result.parameters:>10,} {result.mflops:>8.2f} {seconds:>10}")
    return "\n".join(lines)


def _report101(row: Nasbench101Row, cells: int) -> str:
    lines = [
        f"NAS-Bench-101, {row.hash}: {row.arch}",
        f"{row.parameters:,} parameters",
        "",
        *_heading("CIFAR-10", cells, "each run"),
    ]
    for epochs, result in row.results.items():
        lines.append(f"{f'{epochs} epochs':<16}val {_standing(result.val)}     {_several(result.val_runs)}")
        lines.append(f"{'':<15}test {_standing(result.test)}     {_several(result.test_runs)}")
        lines.append(f"{'':<14}train  {result.train:>8.3f} in {result.train_seconds:,.0f} s")
    return "\n".join(lines)


def _heading(what: str, cells: int, last: str) -> list[str]:
    return [
        f"{what:<19}  {'accuracy':>8} {'rank of':>8} {'regret':>8} {last:>10}",
        f"{'':<19}  {'%':>8} {cells:>8,} {'points':>8} {'%':>10}",
    ]


def _several(runs: tuple[float, ...]) -> str:
    return " ".join(f"{run:.3f}" for run in runs)


def _standing(found: Standing) -> str:
    return f" {found.accuracy:>8.3f} {found.rank:>8,} {found.regret:>8.3f}"


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(part) for part in value]
    return None if isinstance(value, float) and math.isnan(value) else value
