"""The figures of a run: its head line, what the slider reads out, what a table of runs compares."""

from __future__ import annotations

from collections.abc import Callable

from fastnas.report.read import Row, Run, number
from fastnas.tables import DATASETS

MIB = 1 << 20
# entry of a row -> (label, how its value is written, factor)
READOUT: dict[str, tuple[str, str, float]] = {
    "train_loss": ("training loss", "{:.4f}", 1),
    "val_loss": ("validation loss", "{:.4f}", 1),
    "test_loss": ("test loss", "{:.4f}", 1),
    "train_accuracy": ("training accuracy", "{:.2f} %", 100),
    "val_accuracy": ("validation accuracy", "{:.2f} %", 100),
    "test_accuracy": ("test accuracy", "{:.2f} %", 100),
    "train_perplexity": ("training perplexity", "{:.1f}", 1),
    "val_perplexity": ("validation perplexity", "{:.1f}", 1),
    "test_perplexity": ("test perplexity", "{:.1f}", 1),
    "alpha_entropy": ("entropy of alpha", "{:.3f}", 1),
    "skip_share": ("skip connections", "{:.0f} %", 100),
    "hypergradient_norm": ("hypergradient", "{:.3g}", 1),
    "seconds": ("time", "{:.1f} s", 1),
}
# What says how good a run is, the first that it has: entry, whether more is better.
_JUDGES = (
    ("test_accuracy", True),
    ("val_accuracy", True),
    ("test_perplexity", False),
    ("val_perplexity", False),
)


def readout_of(run: Run, i: int) -> dict[str, str]:
    """The figures of its ``i``-th row by label, those that any of its rows has."""
    found = {}
    for entry, (label, text, factor) in READOUT.items():
        if any(row.get(entry) is not None for row in run.rows):
            value = number(run.rows[i], entry)
            found[label] = "–" if value is None else text.format(factor * value)
    return found


def judged(run: Run) -> tuple[str, Row, Row] | None:
    """By which entry a run is judged, its best and its last row; None: it has none of them."""
    for entry, more in _JUDGES:
        rows = [row for row in run.rows if number(row, entry) is not None]
        if rows:
            choose: Callable[..., Row] = max if more else min
            return entry, choose(rows, key=lambda row: row[entry]), rows[-1]
    return None


def head_of(run: Run) -> dict[str, tuple[str, str]]:
    """What stands above all else, with what is to be added to it."""
    config, epochs = run.config, run.config.get("epochs")
    found = {"space": (str(config.get("space") or "–"), "")}
    deciding = "method" if run.kind == "search" else "recipe"
    found[deciding] = str(config.get(deciding) or "–"), ""
    found["data set"] = str(config.get("dataset") or "–"), ""
    done = run.epochs[-1] if run.rows else 0
    found["epochs"] = str(done), f"of {epochs}" if type(epochs) is int and epochs != done else ""
    judge = judged(run)
    if judge is not None:
        entry, best, last = judge
        label, text, factor = READOUT[entry]
        found[f"best {label}"] = text.format(factor * best[entry]), f"epoch {best['epoch']}"
        found[f"last {label}"] = text.format(factor * last[entry]), ""
    seconds = [s for s in run.values("seconds") if s is not None]
    if seconds:
        found["time"] = duration(sum(seconds)), ""
    return found


def figures_of(run: Run) -> dict[str, tuple[float, str]]:
    """What a table of runs has: numbers, and how they are written."""
    found: dict[str, tuple[float, str]] = {}
    if run.rows:
        found["epochs"] = float(run.epochs[-1]), "{:.0f}"
    judge = judged(run)
    if judge is not None:
        entry, best, last = judge
        label, text, factor = READOUT[entry]
        found[f"best {label}"] = factor * best[entry], text
        found[f"last {label}"] = factor * last[entry], text
    found |= _of_table(run)
    for entry in ("skip_share", "alpha_entropy"):
        value = number(run.rows[-1], entry) if run.rows else None
        if value is not None:
            label, text, factor = READOUT[entry]
            found[label] = factor * value, text
    seconds = [s for s in run.values("seconds") if s is not None]
    if seconds:
        found["seconds"] = sum(seconds), "{:,.1f}"
    memory = [m for m in run.values("peak_memory_bytes") if m is not None]
    if memory:
        found["peak MiB"] = max(memory) / MIB, "{:,.0f}"
    return found


def _of_table(run: Run) -> dict[str, tuple[float, str]]:
    """What a benchmark says of the last cell, on its first data set: the others have their charts."""
    table = run.rows[-1].get("table") if run.rows else None
    data = next(iter(table), None) if isinstance(table, dict) else None
    found = {}
    for entry, label, text in (
        ("test", "test in the table", "{:.2f} %"),
        ("test_regret", "regret", "{:.2f}"),
    ):
        value = run.values(f"table.{data}.{entry}")[-1] if data is not None else None
        if value is not None:
            found[f"{DATASETS.get(str(data), str(data))} {label}"] = value, text
    return found


def duration(seconds: float) -> str:
    """Seconds as people say them.

    >>> duration(7.25), duration(75), duration(7510)
    ('7.2 s', '1 min 15 s', '2 h 05 min')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min"
