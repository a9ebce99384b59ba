"""What a search says when it begins and when it has ended."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastnas._imports import import_text
from fastnas._terminal import laid_out
from fastnas.runs.options import filled
from fastnas.runs.summary import counted, entry, on_screen, run_took, stands, where
from fastnas.search.config import SearchConfig
from fastnas.search.engine import Search
from fastnas.search.table import ranks

if TYPE_CHECKING:
    from fastnas.search.loop import SearchResult


def beginning(search: Search, run: Path, width: int) -> str:
    """What runs where, and where it goes on.

    Args:
        search: before its first step.
        run: its folder.
        width: of the terminal.
    """
    config, epochs = search.config, filled(search.config.optimiser.epochs)
    phrases = [
        f"space {config.network.space}",
        f"method {config.hypergradient.method}",
        f"data {config.images.dataset}",
        counted(len(search.net.weights), "weight"),
        counted(epochs, "epoch"),
        where(search.device, search.ranks),
    ]
    state = stands(search.done, epochs, begun=search.tally is not None)
    return "\n".join([laid_out([phrases], width), f"run {run}", *state])


def ending(result: SearchResult, report: Path | None) -> str:
    """What a search has come to, for one screen."""
    at = result.stop.epoch if result.stop else len(result.metrics)
    lines = [
        entry("genotype", str(result.genotype)),
        entry("val", judged(result.metrics, at)),
        *([ranks(result.table, result.genotype)] if result.table is not None else []),
        entry("time", run_took(result.metrics)),
        entry("run", str(result.out)),
        *([entry("report", str(report))] if report else []),
        entry("next", f"python -m fastnas.retrain {_retraining(result.config, result.out)}"),
    ]
    return on_screen("\n".join(lines).split("\n"), result.genotype)


def quiet(result: SearchResult) -> str:
    """What it has come to, and nothing else."""
    return "\n".join([entry("genotype", str(result.genotype)), entry("run", str(result.out))])


def judged(rows: Sequence[Mapping[str, Any]], at: int) -> str:
    """How good the supernet was on alpha's data after epoch ``at``, and at best.

    >>> rows = [{"epoch": 1, "val_accuracy": 0.5}, {"epoch": 2, "val_accuracy": 0.25}]
    >>> judged(rows, 2)
    'accuracy 25.0% after epoch 2, best 50.0% after epoch 1'
    """
    perplexity = "val_perplexity" in rows[0]
    name = "val_perplexity" if perplexity else "val_accuracy"
    best = (min if perplexity else max)(rows, key=lambda row: row[name])

    def shown(row: Mapping[str, Any]) -> str:
        value = f"{row[name]:.1f}" if perplexity else f"{100 * row[name]:.1f}%"
        return f"{value} after epoch {row['epoch']}"

    last = rows[at - 1]
    others = ", the best" if last[name] == best[name] else f", best {shown(best)}"
    return f"{name.removeprefix('val_')} {shown(last)}{others}"


def _retraining(config: SearchConfig, run: Path) -> str:
    """The flags by which the genotype is trained on the search's data."""
    images = config.images
    flags = ["--genotype", str(run)]
    if images.dataset != "digits":
        flags += ["--dataset", images.dataset]
    for name, value in (("--data", images.data), ("--image-size", images.image_size)):
        flags += [name, str(value)] if value is not None else []
    return shlex.join(flags) + import_text()
