"""``python -m bench.search_curves RUN [RUN ...] --table F``: what searches found, epoch by epoch, by a table.

Reads the folders of searches on NAS-Bench-201, groups them by method, and looks every epoch's cell up: the accuracy of
the cell trained by the benchmark, not that of the supernet. The searches may differ in seed and method alone.
"""

from __future__ import annotations

import io
import json
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import tyro
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fastnas._command import clear_errors
from fastnas.errors import FastnasError
from fastnas.spaces import CellString
from fastnas.tables.nasbench201 import Nasbench201Row, Nasbench201Table
from fastnas.tables.standing import DATASETS

DESCRIPTION = """What searches on NAS-Bench-201 found: a table in Markdown, mean and standard deviation over the seeds,
and by --svg a picture of every epoch's cell, its accuracy being that of the benchmark's training."""
# Colours that the colour-blind tell apart; dashes say it again.
STYLES = [("#0072b2", "-"), ("#d55e00", "--"), ("#009e73", "-."), ("#cc79a7", ":")]
MAY_DIFFER = {"method", "seed", "inner_steps", "out", "resume", "table", "threads", "device", "graphs"}


@dataclass(frozen=True)
class CurvesConfig:
    """What to read and to write."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Folders of the searches."""
    table: Path
    """NAS-Bench-201's table, as of python -m fastnas.tables."""
    svg: Path | None = None
    """Write the picture here."""


@dataclass(frozen=True)
class Run:
    """One search: its configuration, its rows of metrics, and its cell after each epoch in the table."""

    options: dict[str, Any]
    metrics: list[dict[str, Any]]
    cells: list[Nasbench201Row]

    @property
    def method(self) -> str:
        name: str = self.options["method"]
        return name


def read_run(folder: Path, table: Nasbench201Table) -> Run:
    """The search in ``folder``.

    Raises:
        FastnasError: it is no run, or one in another space.
    """
    try:
        options = json.loads((folder / "config.json").read_text(encoding="utf-8"))["config"]
        lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in lines]
    except (OSError, ValueError, KeyError) as error:
        raise FastnasError(f"{folder} is no folder of a search that has ended: {error}") from None
    if options["space"] != "nasbench201":
        raise FastnasError(f"{folder} is a search in {options['space']}; the table is of nasbench201")
    if len(rows) != options["epochs"]:
        raise FastnasError(
            f"{folder} holds {len(rows)} of {options['epochs']} epochs: let the search end first"
        )
    return Run(options, rows, [table.row(CellString.parse(row["genotype"])) for row in rows])


def grouped(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """The runs of each method.

    Raises:
        FastnasError: they differ in more than method and seed.
    """
    first = runs[0].options
    for run in runs[1:]:
        differing = [n for n in first if n not in MAY_DIFFER and run.options.get(n) != first[n]]
        if differing:
            raise FastnasError(
                f"the searches differ in {', '.join(differing)}: compare them in groups that do not"
            )
    methods: dict[str, list[Run]] = {}
    for run in runs:
        methods.setdefault(run.method, []).append(run)
    return methods


def markdown(methods: dict[str, list[Run]]) -> str:
    """The cells after the last epoch, mean and standard deviation over the seeds."""
    lines = [
        "| method | seeds | "
        + " | ".join(f"{name} validation | test" for name in DATASETS.values())
        + " | regret | rank | supernet |",
        "|---" * (2 * len(DATASETS) + 5) + "|",
    ]
    for method, runs in methods.items():
        last = [run.cells[-1].results for run in runs]
        accuracies = [
            _spread([getattr(cell[data], split).accuracy for cell in last])
            for data in DATASETS
            for split in ("val", "test")
        ]
        regret = _spread([cell["cifar10"].test.regret for cell in last])
        ranks = ", ".join(f"{cell['cifar10'].test.rank:,}" for cell in last)
        supernet = _spread([100 * run.metrics[-1]["val_accuracy"] for run in runs])
        lines.append(
            f"| {method} | {len(runs)} | " + " | ".join(accuracies) + f" | {regret} | {ranks} | {supernet} |"
        )
    return "\n".join(lines) + "\n"


def _spread(values: Sequence[float]) -> str:
    mean = f"{statistics.mean(values):.2f}"
    return f"{mean} ± {statistics.stdev(values):.2f}" if len(values) > 1 else mean


def svg(methods: dict[str, list[Run]], table: Nasbench201Table) -> bytes:
    """The picture; it depends on the numbers alone."""
    accuracies = table.accuracies("cifar10", "test")
    usual = float(accuracies.max() - np.median(accuracies))
    with matplotlib.rc_context({"svg.hashsalt": "fastnas", "font.size": 8, "axes.titlesize": 9}):
        figure = Figure(figsize=(11, 3.6), layout="constrained")
        regret, supernet, entropy = figure.subplots(1, 3)
        _curves(regret, methods, lambda run: [cell.results["cifar10"].test.regret for cell in run.cells])
        regret.set_yscale("log")
        regret.yaxis.set_major_formatter("{x:g}")
        regret.axhline(usual, color="0.35", linewidth=0.9)
        regret.annotate("median of all cells", (1, usual), (0, 3), textcoords="offset points", fontsize=7)
        regret.set_title("each epoch's cell, trained by the benchmark:\nregret on CIFAR-10's test (points)")
        _curves(supernet, methods, lambda run: [100 * row["val_accuracy"] for row in run.metrics])
        supernet.set_title("supernet: accuracy on alpha's split (%)")
        _curves(entropy, methods, lambda run: [row["alpha_entropy"] for row in run.metrics])
        entropy.set_title("mean entropy of alpha's rows (nats)")
        for axes in (regret, supernet, entropy):
            axes.set_xlabel("epoch")
            axes.grid(color="0.9")
            axes.set_axisbelow(True)
        figure.legend(*regret.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def _curves(axes: Axes, methods: dict[str, list[Run]], values: Callable[[Run], list[float]]) -> None:
    """A thin line a seed, a thick one for their median."""
    for (method, runs), (colour, dash) in zip(methods.items(), STYLES, strict=False):
        curves = [values(run) for run in runs]
        epochs = range(1, len(curves[0]) + 1)
        for curve in curves:
            axes.plot(epochs, curve, dash, color=colour, linewidth=0.6, alpha=0.45)
        middle = [statistics.median(heights) for heights in zip(*curves, strict=True)]
        axes.plot(epochs, middle, dash, color=colour, linewidth=1.8, label=f"{method}, median of {len(runs)}")


def main(arguments: list[str] | None = None) -> None:
    """Parses the flags, reads, prints."""
    with clear_errors():
        config = tyro.cli(
            CurvesConfig,
            prog="python -m bench.search_curves",
            description=DESCRIPTION,
            args=sys.argv[1:] if arguments is None else arguments,
        )
        if not config.runs:
            raise FastnasError(
                "name the folders of the searches: python -m bench.search_curves RUN [RUN ...]"
            )
        table = Nasbench201Table.load(config.table)
        methods = grouped([read_run(folder, table) for folder in config.runs])
        print(markdown(methods), end="")
        if config.svg is not None:
            config.svg.write_bytes(svg(methods, table))


if __name__ == "__main__":
    main()
