"""The folder of a run: its configuration, one row of metrics an epoch, its checkpoint."""

from __future__ import annotations

import fcntl
import json
import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch

from fastnas._version import __version__
from fastnas.errors import FastnasError
from fastnas.runs.checkpoint import naming, read_stored, write_atomically
from fastnas.runs.options import Options

LOCK = ".lock"
AnyFolder = TypeVar("AnyFolder", bound="Folder")


class Folder:
    """Files of one run under ``path``. One process at a time works in it: it holds a lock to its end.

    config.json              the full configuration and the versions
    metrics.jsonl            one row an epoch
    checkpoint.safetensors   the newest state; replaced whole

    Attributes:
        COMMAND: the module that makes such runs.
        DOING: what a process does in one, for the sentence of the lock.
        ROW: the keys of a row of metrics that are always there.
    """

    COMMAND: ClassVar[str]
    DOING: ClassVar[str]
    ROW: ClassVar[frozenset[str]]

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config_file = path / "config.json"
        self.metrics_file = path / "metrics.jsonl"
        self.checkpoint_file = path / "checkpoint.safetensors"

    @classmethod
    def named(
        cls: type[AnyFolder], config: Options, *, out: Path | None, resume: Path | None, name: str
    ) -> AnyFolder:
        """The folder of a run: the one to resume, ``out``, or a dated one under runs/ that ends with ``name``.

        Raises:
            FastnasError: a new run into a folder that is not empty, or no run where one should be resumed.
        """
        if resume is not None:
            if out is not None and out.absolute() != resume.absolute():
                raise FastnasError(
                    f"--resume {resume} goes on in that folder: leave out --out {out}, or name the same"
                )
            folder = cls(resume)
            differing = read_stored(folder.config_file, type(config), cls.COMMAND).differences(config)
            if differing:
                raise FastnasError(
                    f"the run in {resume} has another configuration: it differs in {', '.join(differing)}; "
                    "leave these options out to resume it, or choose another --out for a new run"
                )
            return folder
        path = out or _dated_path(name)
        try:
            str(path).encode()
        except UnicodeEncodeError:
            raise FastnasError(f"--out {str(path)!r} is not valid UTF-8; choose another name") from None
        if path.exists() and not path.is_dir():
            raise FastnasError(f"--out {path} is a file; name a folder")
        _check_empty(path)
        return cls(path)

    def make(self, config: Options, more: Mapping[str, Any] | None = None) -> None:
        """Makes the folder and writes config.json, with ``more`` in it; if that fails, what it wrote is removed.

        Raises:
            FastnasError: another process has taken the folder in the meantime.
        """
        made = not self.path.exists()
        self.path.mkdir(parents=True, exist_ok=True)
        self.lock()
        _check_empty(self.path)
        try:
            options = {**config.to_options(), "out": str(self.path), "resume": None}
            versions = {"fastnas": __version__, "torch": torch.__version__}
            content = {"command": self.COMMAND, **versions, "config": options, **(more or {})}
            write_atomically(self.config_file, json.dumps(content, indent=2) + "\n")
            self._fill()
        except BaseException:
            self.config_file.unlink(missing_ok=True)
            (self.path / LOCK).unlink(missing_ok=True)
            if made:
                self.path.rmdir()
            raise

    def _fill(self) -> None:
        """What else a new folder holds."""

    def lock(self) -> None:
        """Takes the folder, until the process ends, however it ends.

        Raises:
            FastnasError: another process has it.
        """
        self._lock_file = (self.path / LOCK).open("w")
        try:
            fcntl.flock(self._lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FastnasError(
                f"another process is {self.DOING} in {self.path}: wait for it, or stop it"
            ) from None

    def rows_until(self, epoch: int) -> list[dict[str, Any]]:
        """The metrics of the first ``epoch`` epochs.

        Rows of later epochs, written before a stop that came before their checkpoint, are dropped.

        Raises:
            FastnasError: some are missing.
        """
        rows = [row for row in self._rows() if row["epoch"] <= epoch]
        if [row["epoch"] for row in rows] != list(range(1, epoch + 1)):
            raise FastnasError(
                f"{self.metrics_file} does not hold the {epoch} epochs of the checkpoint; it was cut short or edited"
            )
        if self.metrics_file.exists():
            write_atomically(self.metrics_file, "".join(json.dumps(row) + "\n" for row in rows))
        return rows

    def add_row(self, row: Mapping[str, Any]) -> None:
        """Writes an epoch's row behind the others."""
        with naming(self.metrics_file), self.metrics_file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    @contextmanager
    def resumable(self) -> Iterator[None]:
        """Within it Ctrl-C and a system that refuses (a full disk) end with the command that goes on."""
        try:
            yield
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"interrupted; to go on: {self.resume_command()}") from None
        except OSError as error:
            raise FastnasError(
                f"{error.strerror or error}: {error.filename or 'while writing'}; once that is mended, go on by: "
                f"{self.resume_command()}"
            ) from None

    def resume_command(self) -> str:
        """What to type to go on with this run."""
        return f"python -m {self.COMMAND} --resume {shlex.quote(str(self.path))}"

    def _rows(self) -> list[dict[str, Any]]:
        if not self.metrics_file.exists():
            return []
        rows = []
        for line in self.metrics_file.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                row = json.loads(line)
            except ValueError:  # cut short by a stop; its epoch has no checkpoint
                continue
            if isinstance(row, dict) and row.keys() >= self.ROW and isinstance(row["epoch"], int):
                rows.append(row)
        return rows


def _dated_path(name: str) -> Path:
    """runs/<date>-<time>-<name>, numbered if that second has one already."""
    name = f"{datetime.now().strftime('%Y%m%d-%H%M%S')}-{name}"
    paths = (Path("runs") / (name if i == 1 else f"{name}-{i}") for i in range(1, 1000))
    return next(path for path in paths if not path.exists())


def _check_empty(path: Path) -> None:
    if not path.is_dir() or not any(entry.name != LOCK for entry in path.iterdir()):
        return
    if (path / "config.json").exists():
        raise FastnasError(
            f"--out {path} already holds a run: choose another folder, or go on with it by --resume {path}"
        )
    raise FastnasError(f"--out {path} is not empty: choose another folder")
