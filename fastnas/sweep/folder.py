"""The folder of a sweep: its description, a run's folder for each trial, what became of each, the tables."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from fastnas.errors import FastnasError
from fastnas.runs.files import write_atomically
from fastnas.runs.folder import LOCK, locked
from fastnas.search.checkpoint import read_config
from fastnas.sweep.description import Sweep
from fastnas.sweep.trials import Trial


@dataclass(frozen=True)
class Outcome:
    """What became of a trial.

    Attributes:
        row: the metrics of the epoch whose genotype is the search's, None if it failed.
        seconds: of all epochs.
        peak_memory_bytes: the most of any epoch.
        sentence: why it failed, None if it did not.
    """

    row: dict[str, Any] | None = None
    seconds: float = 0.0
    peak_memory_bytes: int = 0
    sentence: str | None = None


@dataclass
class SweepFolder:
    """Files of one sweep under ``path``. One process at a time works in it.

    sweep.yaml            the sweep, overrides included: a sweep's file itself
    trials/NAME/          the run's folder of a trial
    outcomes/NAME.json    what became of it; a trial with an outcome is not run again, unless it failed
    results.csv, .json, .md  the table
    stop                  is there while the trials are told to stop
    ray/                  Ray Tune's own files, not read again
    """

    path: Path
    _lock_file: Any = field(default=None, repr=False)

    @property
    def stop_file(self) -> Path:
        """Its presence tells every trial, on whatever machine, to save and to end."""
        return self.path / "stop"

    def run_of(self, name: str) -> Path:
        """The run's folder of a trial."""
        return self.path / "trials" / name

    def outcome_file(self, name: str) -> Path:
        """Where its outcome is written down."""
        return self.path / "outcomes" / f"{name}.json"

    def begin(self, sweep: Sweep, trials: list[Trial], *, resume: bool) -> None:
        """Takes the folder, new or with what is left of this sweep.

        Raises:
            FastnasError: it holds something else, another sweep, or a sweep that shall not be resumed.
        """
        if self.path.exists() and not self.path.is_dir():
            raise FastnasError(f"--out {self.path} is a file; name a folder")
        held = [entry.name for entry in self.path.iterdir()] if self.path.exists() else []
        if "sweep.yaml" in held and not resume:
            raise FastnasError(
                f"--out {self.path} already holds a sweep: choose another folder, or add --resume to go on with it"
            )
        if "sweep.yaml" not in held and set(held) - {LOCK}:
            raise FastnasError(f"--out {self.path} is not empty and holds no sweep: choose another folder")
        for trial in trials:
            self._check_same(trial)
        for part in ("trials", "outcomes"):
            (self.path / part).mkdir(parents=True, exist_ok=True)
        self._lock()
        self.stop_file.unlink(missing_ok=True)
        text = yaml.safe_dump(sweep.document, sort_keys=False, allow_unicode=True)
        write_atomically(self.path / "sweep.yaml", text)

    def _check_same(self, trial: Trial) -> None:
        """Raises FastnasError if the trial's folder holds a run of another configuration."""
        file = self.run_of(trial.name) / "config.json"
        if not file.exists():
            return
        differing = read_config(file).differences(trial.config)
        if differing:
            raise FastnasError(
                f"{file.parent} holds a search of another configuration: it differs in {', '.join(differing)}; "
                "choose another --out for another sweep"
            )

    def _lock(self) -> None:
        taken = f"another process runs the sweep in {self.path}: wait for it, or stop it"
        self._lock_file = locked(self.path, taken)

    def end(self) -> None:
        """Gives the folder back."""
        self.stop_file.unlink(missing_ok=True)
        if self._lock_file is not None:
            self._lock_file.close()

    def write(self, name: str, outcome: Outcome) -> None:
        """Writes down what became of a trial."""
        content = {key: value for key, value in vars(outcome).items() if value is not None}
        write_atomically(self.outcome_file(name), json.dumps(content, indent=2) + "\n")

    def outcome(self, name: str) -> Outcome | None:
        """What became of a trial; None: it has not ended.

        Raises:
            FastnasError: the file was damaged.
        """
        file = self.outcome_file(name)
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            outcome = Outcome(**content)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, RecursionError):
            outcome = Outcome()
        whole = isinstance(outcome.row, dict) and all(
            type(number) in (int, float) and math.isfinite(number)
            for number in (outcome.seconds, outcome.peak_memory_bytes)
        )
        if not whole and not isinstance(outcome.sentence, str):
            raise FastnasError(f"{file} is damaged: remove it, and --resume makes it anew")
        return outcome
