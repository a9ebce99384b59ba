"""What a retraining says when it begins and when it has ended."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastnas._imports import import_text
from fastnas._terminal import laid_out
from fastnas.retrain.config import RetrainConfig
from fastnas.retrain.trainer import Trainer
from fastnas.runs.summary import counted, entry, on_screen, run_took, stands, where

if TYPE_CHECKING:
    from fastnas.retrain.run import RetrainResult


def beginning(trainer: Trainer, config: RetrainConfig, run: Path, done: int, width: int) -> str:
    """What runs where, and where it goes on.

    Args:
        trainer: of the run.
        config: resolved.
        run: its folder.
        done: whole epochs.
        width: of the terminal.
    """
    phrases = [
        f"space {config.space}",
        f"recipe {config.network.recipe}",
        f"data {config.images.dataset}",
        f"{trainer.parameters:,} parameters",
        counted(config.epochs, "epoch"),
        where(trainer.device, trainer.ranks),
    ]
    state = stands(done, config.epochs, begun=trainer.tally is not None)
    return "\n".join([laid_out([phrases], width), f"run {run}", *state])


def ending(found: RetrainResult, report: Path | None) -> str:
    """What a retraining has come to, for one screen."""
    result = found.result
    network = f"{result['parameters']:,} parameters, {result['multiply_adds']:,} multiply-adds"
    lines = [
        entry("test", judged(result)),
        entry("network", network),
        entry("time", run_took(found.metrics)),
        entry("run", str(found.out)),
        *([entry("report", str(report))] if report else []),
        entry("next", f"python -m fastnas.describe --genotype {shlex.quote(str(found.out))}{import_text()}"),
    ]
    return on_screen(lines, found.genotype)


def quiet(found: RetrainResult) -> str:
    """What it has come to, and nothing else."""
    return "\n".join([entry("test", judged(found.result)), entry("run", str(found.out))])


def judged(result: Mapping[str, Any]) -> str:
    """How good the network is on the test data.

    >>> judged({"test_accuracy": 0.5, "test_top5": 0.75, "best_test_accuracy": 0.625, "best_epoch": 3})
    'accuracy 50.00% (top 5 75.00%), best 62.50% after epoch 3'
    """
    if "test_perplexity" in result:
        return (
            f"perplexity {result['test_perplexity']:.2f} (validation {result['val_perplexity']:.2f}), with the weights "
            f"of epoch {result['best_epoch']}"
        )
    best = f"best {100 * result['best_test_accuracy']:.2f}% after epoch {result['best_epoch']}"
    top5 = f" (top 5 {100 * result['test_top5']:.2f}%)" if "test_top5" in result else ""
    return f"accuracy {100 * result['test_accuracy']:.2f}%{top5}, {best}"
