"""Checkpoints as fastnas wrote them at first: one file, RUN/checkpoint.safetensors, at the end of an epoch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from fastnas.errors import FastnasError
from fastnas.runs.checkpoint import Kind, Moment, State, check_same_run
from fastnas.runs.options import Options


def read_first_version(run: Path, kind: Kind, config: Options, keys: frozenset[str]) -> State | None:
    """The checkpoint in the run's folder; None: there is none. It has no checksums; its rows are in metrics.jsonl.

    Args:
        run: the folder.
        kind: of run.
        config: of the run; a checkpoint of another one is refused.
        keys: of a row of metrics.

    Raises:
        FastnasError: it cannot be read, is of another run, or rows of its epochs are missing.
    """
    path = run / "checkpoint.safetensors"
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise FastnasError(f"checkpoint {path} cannot be read, it may be cut short: {error}") from None
    if metadata.get("format") != f"{kind.mark}-1":
        raise FastnasError(f"{path} is not a checkpoint of a {kind.name} (format {metadata.get('format')!r})")
    try:
        options, epoch = json.loads(metadata["config"]), int(metadata["epoch"])
    except (KeyError, ValueError, RecursionError):
        raise FastnasError(f"checkpoint {path} holds no readable configuration or epoch") from None
    check_same_run(path, options, config)
    return State(Moment(epoch), tensors, _rows(run / "metrics.jsonl", epoch, keys))


def _rows(path: Path, epochs: int, keys: frozenset[str]) -> list[dict[str, Any]]:
    """The first ``epochs`` rows; later ones were written before a stop that came before their checkpoint."""
    rows: dict[int, dict[str, Any]] = {}
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    for line in text.splitlines():
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):  # cut short by a stop; its epoch has no checkpoint
            continue
        if isinstance(row, dict) and row.keys() >= keys and isinstance(row["epoch"], int):
            rows[row["epoch"]] = row
    if epochs > len(rows) or not rows.keys() >= set(range(1, epochs + 1)):
        raise FastnasError(
            f"{path} does not hold the {epochs} epochs of the checkpoint; it was cut short or edited"
        )
    return [rows[epoch] for epoch in range(1, epochs + 1)]
