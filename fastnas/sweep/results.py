"""The table of a sweep: a row a point, mean and standard deviation over its seeds."""

from __future__ import annotations

import csv
import io
import json
import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from fastnas.errors import FastnasError
from fastnas.runs.checkpoint import write_atomically
from fastnas.search.curvature import CURVATURE
from fastnas.search.self_audit import NO_AUDIT
from fastnas.sweep.description import Sweep
from fastnas.sweep.folder import Outcome, SweepFolder
from fastnas.sweep.trials import Point, said
from fastnas.tables import DATASETS, SPLITS

MIB = 1 << 20
# What a row of metrics has: of any search, of images, of text; with --spectrum-every, --audit-every and --table more.
COLUMNS = {
    "any": (
        "train_loss",
        "val_loss",
        "hypergradient_norm",
        "hypergradient_warnings",
        "alpha_entropy",
        "skip_share",
    ),
    "images": ("train_accuracy", "val_accuracy"),
    "text": ("train_perplexity", "val_perplexity"),
}
USUAL = {"images": "val_accuracy", "text": "val_perplexity"}
OF_TABLE = [*SPLITS, *(f"{split}_regret" for split in SPLITS)]


@dataclass(frozen=True)
class Statistic:
    """Over the seeds of a point that have a value.

    Attributes:
        mean: None if there is no value.
        std: of the sample, with n - 1; None if n < 2.
        n: how many.
        values: of each, in the order of the seeds.
    """

    mean: float | None
    std: float | None
    n: int
    values: list[float]


@dataclass(frozen=True)
class Row:
    """A point of the sweep.

    Attributes:
        options: what varies, here.
        metrics: by column, seconds and peak_memory_bytes among them.
        failed: sentence by the name of a failed trial.
        missing: names of trials that have not ended.
    """

    options: dict[str, Any]
    metrics: dict[str, Statistic]
    failed: dict[str, str]
    missing: list[str]


def columns_of(sweep: Sweep, points: list[Point]) -> list[str]:
    """What the table reports.

    Raises:
        FastnasError: a column that the rows of these searches will not have.
    """
    configs = [point.trials[0].config for point in points]
    if not sweep.report:
        return list(dict.fromkeys(USUAL[config.reads] for config in configs))
    for config in configs:
        known = [*COLUMNS["any"], *COLUMNS[config.reads]]
        known += CURVATURE if config.curvature.spectrum_every else ()
        known += (
            [name for name in NO_AUDIT if name != "audit_against"] if config.hypergradient.audit_every else []
        )
        known += [f"table.{data}.{of}" for data in DATASETS for of in OF_TABLE] if config.run.table else []
        for column in sweep.report:
            if column not in known:
                raise FastnasError(
                    f"{sweep.name}: report has {column!r}, which these searches do not measure; they do "
                    f"{', '.join(known)}"
                )
    return sweep.report


def rows_of(points: list[Point], folder: SweepFolder, columns: list[str]) -> list[Row]:
    """The table's rows, out of the outcomes that there are."""
    return [_row(point, folder, columns) for point in points]


def statistic(values: list[float]) -> Statistic:
    """Mean and standard deviation of the sample.

    >>> statistic([1.0, 2.0, 3.0])
    Statistic(mean=2.0, std=1.0, n=3, values=[1.0, 2.0, 3.0])
    """
    n = len(values)
    mean = float(np.mean(values)) if n else None
    return Statistic(mean, float(np.std(values, ddof=1)) if n > 1 else None, n, values)


def _row(point: Point, folder: SweepFolder, columns: list[str]) -> Row:
    outcomes = {trial.name: folder.outcome(trial.name) for trial in point.trials}
    done = [outcome for outcome in outcomes.values() if outcome is not None and outcome.row is not None]
    metrics = {column: statistic(_values(done, column)) for column in columns}
    metrics["seconds"] = statistic([outcome.seconds for outcome in done])
    metrics["peak_memory_bytes"] = statistic([float(outcome.peak_memory_bytes) for outcome in done])
    failed = {
        name: outcome.sentence
        for name, outcome in outcomes.items()
        if outcome is not None and outcome.sentence is not None
    }
    return Row(
        point.options, metrics, failed, [name for name, outcome in outcomes.items() if outcome is None]
    )


def _values(done: list[Outcome], column: str) -> list[float]:
    """The column's numbers; a cell that a partial table lacks has none."""
    found = [value_of(outcome.row, column) for outcome in done]
    return [value for value in found if value is not None]


def value_of(row: Any, column: str) -> float | None:
    """A number of a row of metrics, by its dotted name.

    >>> value_of({"table": {"cifar10": {"test": 93.5}}}, "table.cifar10.test")
    93.5
    """
    for name in column.split("."):
        row = row.get(name) if isinstance(row, dict) else None
    return float(row) if type(row) in (int, float) and math.isfinite(row) else None


def markdown(rows: list[Row]) -> str:
    """The table as aligned Markdown, which reads well in a terminal, too; what failed stands behind it."""
    options, metrics = list(rows[0].options), list(rows[0].metrics)
    cells = [[*options, "n", *(name.replace("peak_memory_bytes", "peak MiB") for name in metrics)]]
    for row in rows:
        n = len(row.metrics["seconds"].values)
        trials = n + len(row.failed) + len(row.missing)
        cells.append(
            [
                *(_shown(value) for value in row.options.values()),
                str(n) if n == trials else f"{n} of {trials}",
                *(
                    _plus_minus(row.metrics[name], MIB if name == "peak_memory_bytes" else 1)
                    for name in metrics
                ),
            ]
        )
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [f"| {' | '.join(map(str.ljust, line, widths))} |" for line in cells]
    lines.insert(1, f"|{'|'.join('-' * (width + 2) for width in widths)}|")
    failed = [f"{name}: {sentence}" for row in rows for name, sentence in row.failed.items()]
    return "\n".join([*lines, *(["", "failed:", *(f"- {line}" for line in failed)] if failed else [])])


def _shown(value: Any) -> str:
    return "default" if value is None else said({"": value})[1:]


def _plus_minus(found: Statistic, unit: float) -> str:
    if found.mean is None:
        return "-"
    return f"{found.mean / unit:.4g}" + ("" if found.std is None else f" ± {found.std / unit:.2g}")


def as_csv(rows: list[Row]) -> str:
    """Options, n, then mean and standard deviation of each metric; full precision."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    metrics = list(rows[0].metrics)
    figures = [f"{name}_{figure}" for name in metrics for figure in ("mean", "std", "n")]
    writer.writerow([*rows[0].options, *figures, "failed", "missing"])
    for row in rows:
        found = [row.metrics[name] for name in metrics]
        numbers = [number for one in found for number in (one.mean, one.std, one.n)]
        options = [said({"": value})[1:] for value in row.options.values()]
        writer.writerow([*options, *numbers, len(row.failed), len(row.missing)])
    return file.getvalue()


def save(rows: list[Row], folder: SweepFolder) -> str:
    """Writes results.csv, results.json and results.md; the last's text."""
    text = markdown(rows)
    write_atomically(folder.path / "results.csv", as_csv(rows))
    content = json.dumps({"rows": [asdict(row) for row in rows]}, indent=2, allow_nan=False)
    write_atomically(folder.path / "results.json", content + "\n")
    write_atomically(folder.path / "results.md", text + "\n")
    return text
