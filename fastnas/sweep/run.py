"""A sweep from its description to its table."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

from fastnas.errors import FastnasError
from fastnas.runs.interrupt import interrupt_flag, stopped
from fastnas.sweep.description import Sweep
from fastnas.sweep.folder import Outcome, SweepFolder
from fastnas.sweep.results import Row, columns_of, rows_of, save, value_of
from fastnas.sweep.trials import Point, Trial, points_of, said


def listing(sweep: Sweep) -> str:
    """Every search of a sweep and its options, each checked.

    Raises:
        FastnasError: a configuration that no search can have, a column that none measures.
    """
    points = points_of(sweep)
    columns = columns_of(sweep, points)
    trials = _trials(points)
    lines = [
        f"{sweep.name}: {len(trials)} searches, {len(points)} points with {len(sweep.seeds)} seeds each, "
        f"{sweep.resources.cpus} CPU and {sweep.resources.gpus:g} GPU each",
        f"every search: {said(sweep.search) or 'the defaults'}",
        f"reported:     {', '.join(columns)}, seconds, peak memory",
        *(
            f"{trial.name}: {said({**point.options, 'seed': trial.config.run.seed})}"
            for point in points
            for trial in point.trials
        ),
    ]
    return "\n".join(lines)


def run_sweep(
    sweep: Sweep,
    out: Path,
    *,
    resume: bool = False,
    ray_address: str | None = None,
    max_concurrent: int | None = None,
    quiet: bool = False,
    command: str = "",
) -> tuple[str, bool]:
    """Runs what is left of a sweep; its table, and whether a trial failed.

    Args:
        sweep: of ``read_sweep``.
        out: its folder.
        resume: go on with what the folder holds, if anything.
        ray_address: of a cluster; None: a Ray on this machine.
        max_concurrent: trials at once.
        quiet: say nothing of searches that end.
        command: what to type to go on, for the sentence after Ctrl-C.

    Raises:
        FastnasError: a mistake in the sweep, before any search begins. A search that fails is a line of the table.
        KeyboardInterrupt: Ctrl-C or SIGTERM, after all trials that ran have saved and ended.
    """
    points = points_of(sweep)
    columns = columns_of(sweep, points)
    trials = _trials(points)
    for trial in trials:
        _check_files(sweep, trial)
    folder = SweepFolder(out)
    folder.begin(sweep, trials, resume=resume)
    try:
        left = [trial for trial in trials if _is_left(folder, trial)]
        counter = _Counter(len(trials), len(trials) - len(left), columns[0], quiet)
        with interrupt_flag() as interrupt:
            if left:
                from fastnas.sweep.tuning import check_resources, connected, run_trials

                with connected(ray_address):
                    check_resources(sweep.resources)
                    interrupt.defer()
                    counter.begin(out)
                    run_trials(
                        left,
                        folder,
                        sweep.resources,
                        say=counter.say,
                        interrupt=interrupt,
                        max_concurrent=max_concurrent,
                    )
            rows = rows_of(points, folder, columns)
            text = save(rows, folder)
            try:
                interrupt.check()
            except KeyboardInterrupt as stop:
                print(f"\n{text}")
                raise stopped(stop, f"interrupted; to go on: {command}" if command else "") from None
    finally:
        folder.end()
    shown = (
        f"\nnext:     python -m fastnas.report {shlex.quote(str(out))}"
        if any(row.metrics["seconds"].n for row in rows)
        else ""
    )
    return f"{text}\n\nsweep:    {out}{shown}", _failed(rows)


class _Counter:
    """Prints a line for every trial that ends, unless it is to be quiet."""

    def __init__(self, total: int, done: int, column: str, quiet: bool) -> None:
        self.total, self.done, self.column, self.quiet = total, done, column, quiet
        if done and not quiet:
            print(f"{done} of {total} searches had ended before", flush=True)

    def begin(self, out: Path) -> None:
        """Says what is to be waited for."""
        if not self.quiet:
            left = self.total - self.done
            print(f"{left} search{'' if left == 1 else 'es'} to run in {out}", flush=True)

    def say(self, name: str, outcome: Outcome) -> None:
        self.done += 1
        if self.quiet:
            return
        value = value_of(outcome.row, self.column)
        if outcome.row is None:
            told = f"failed: {outcome.sentence}"
        else:
            told = f"{self.column} {'-' if value is None else f'{value:.4g}'}  {outcome.seconds:.1f} s"
        print(f"{self.done}/{self.total}  {name}  {told}")
        sys.stdout.flush()


def _trials(points: list[Point]) -> list[Trial]:
    return [trial for point in points for trial in point.trials]


def _is_left(folder: SweepFolder, trial: Trial) -> bool:
    """Whether the trial has not ended yet, or failed: then it is tried again."""
    outcome = folder.outcome(trial.name)
    return outcome is None or outcome.row is None


def _check_files(sweep: Sweep, trial: Trial) -> None:
    """Raises FastnasError if data or a table is not there: all trials would fail by it."""
    options: dict[str, Any] = trial.options
    for name in ("data", "table"):
        if options[name] is not None and not Path(options[name]).exists():
            raise FastnasError(
                f"{sweep.name}: {name} {options[name]} is not there; name it by --override {name}=PATH"
            )


def _failed(rows: list[Row]) -> bool:
    return any(row.failed or row.missing for row in rows)
