"""One trial, in a process of its own: a search in its folder, begun or gone on with."""

from __future__ import annotations

import _thread
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fastnas
from fastnas._imports import import_user_code
from fastnas.errors import FastnasError
from fastnas.runs.folder import LOCK, holds_run, locked
from fastnas.sweep.folder import Outcome, SweepFolder

LEAVING = 60.0  # seconds that a killed sweep's process may take to leave a run's folder


def run_trial(folder: Path, name: str, options: dict[str, Any], imports: Sequence[str] = ()) -> None:
    """Searches with ``options`` to the end, or until the sweep's stop file appears; writes the outcome down.

    In the main thread of a process: a stop comes as Ctrl-C, after which the search saves and ends.

    Args:
        folder: of the sweep.
        name: of the trial.
        options: keywords of ``fastnas.search``.
        imports: what the sweep's ``--import`` named.
    """
    sweep = SweepFolder(folder)
    try:
        with stopped_by(sweep.stop_file):
            for source in imports:
                import_user_code(source)
            outcome = _searched(sweep.run_of(name), options)
    except KeyboardInterrupt:  # no outcome: the trial goes on when the sweep is resumed
        return
    except Exception as error:  # one trial's end is not the sweep's
        outcome = Outcome(sentence=_sentence(error))
    sweep.write(name, outcome)


def _searched(run: Path, options: dict[str, Any]) -> Outcome:
    _wait_for(run)
    where = {"resume": run, "out": None} if holds_run(run) else {"resume": None, "out": run}
    result = fastnas.search(**{**options, **where})
    rows = result.metrics
    row = rows[-1] if result.stop is None else rows[result.stop.epoch - 1]
    return Outcome(row, sum(r["seconds"] for r in rows), max(r["peak_memory_bytes"] for r in rows))


def _sentence(error: Exception) -> str:
    """What a table says of a failed trial: one line."""
    text = " ".join(str(error).split())
    if isinstance(error, FastnasError):
        return text
    return f"{type(error).__name__}: {text}"[:500]


def _wait_for(run: Path) -> None:
    """Waits while another process has the run's folder: that of a sweep that was killed a moment ago."""
    end = time.monotonic() + LEAVING
    while (run / LOCK).exists() and time.monotonic() < end:
        try:
            locked(run, f"another process has {run}").close()
            return
        except FastnasError:
            time.sleep(0.2)


@contextmanager
def stopped_by(file: Path, every: float = 0.5) -> Iterator[None]:
    """Within it the appearance of ``file`` is Ctrl-C to the main thread.

    A file, because the trials of a sweep may run on many machines, and Ray's workers do not get the terminal's signals.
    """
    done = threading.Event()

    def watch() -> None:
        while not done.wait(every):
            if file.exists():
                _thread.interrupt_main()
                return

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # it may have been ignored
    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        signal.signal(signal.SIGINT, before)
