"""The folder of a run: its configuration, one row of metrics an epoch, its checkpoints."""

from __future__ import annotations

import fcntl
import json
import os
import shlex
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import IO, Any, ClassVar, TypeVar

import torch

from fastnas._imports import check_imports, import_text, imported, imports_recorded
from fastnas._paths import user_path
from fastnas._version import __version__
from fastnas.bilevel import NotFiniteError
from fastnas.errors import FastnasError, UnreadableError
from fastnas.runs.checkpoint import Checkpoints, Kind, State
from fastnas.runs.files import PART, naming, remove_parts, write_atomically
from fastnas.runs.first_version import read_first_version
from fastnas.runs.interrupt import stopped
from fastnas.runs.options import Configured, Options
from fastnas.runs.progress import say

LOCK = ".lock"
CONFIG = "config.json"
AnyFolder = TypeVar("AnyFolder", bound="Folder")


class Folder:
    """Files of one run under ``path``. One process at a time works in it: it holds a lock to its end.

    config.json     the full configuration and the versions; what makes the folder a run
    metrics.jsonl   one row an epoch; the checkpoints hold them, too
    checkpoints/    the newest three (``Checkpoints``)

    Attributes:
        COMMAND: the module that makes such runs.
        DOING: what a process does in one, for the sentence of the lock.
        ROW: the keys of a row of metrics that are always there.
        KIND: of its checkpoints.
    """

    COMMAND: ClassVar[str]
    DOING: ClassVar[str]
    ROW: ClassVar[frozenset[str]]
    KIND: ClassVar[Kind]

    def __init__(self, path: Path, processes: int = 1) -> None:
        self.path, self.processes = path, processes
        self.config_file = path / CONFIG
        self.metrics_file = path / "metrics.jsonl"
        self.checkpoints = Checkpoints(path / "checkpoints", self.KIND)
        self._lock_file: IO[str] | None = None

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
        _check_can_be_made(path)
        _check_empty(path)
        return cls(path)

    def make(self, config: Options, more: Mapping[str, Any] | None = None) -> None:
        """Makes the folder and writes config.json, with ``more`` in it; if that fails, what it wrote is removed.

        Whatever else belongs into a new folder is made anew when a run that was killed in between is resumed.

        Raises:
            FastnasError: another process has taken the folder in the meantime.
        """
        made = not self.path.exists()
        self.path.mkdir(parents=True, exist_ok=True)
        self.lock()
        _check_empty(self.path)
        try:
            remove_parts(self.path)
            options = {**config.to_options(), "out": str(self.path), "resume": None}
            versions = {"fastnas": __version__, "torch": torch.__version__}
            told = {"imports": imports_recorded()} if imported() else {}
            content = {"command": self.COMMAND, **versions, "config": options, **told, **(more or {})}
            write_atomically(self.config_file, json.dumps(content, indent=2) + "\n")
            self.fill()
        except BaseException:
            self.config_file.unlink(missing_ok=True)
            (self.path / LOCK).unlink(missing_ok=True)
            if made:
                self.path.rmdir()
            raise

    def fill(self) -> None:
        """Makes what else a folder holds from the beginning, where it is not there."""

    def lock(self) -> None:
        """Takes the folder, until the process ends, however it ends.

        Raises:
            FastnasError: another process has it.
        """
        self._lock_file = locked(
            self.path, f"another process is {self.DOING} in {self.path}: wait for it, or stop it"
        )

    def newest(self, config: Options) -> State | None:
        """What the newest whole checkpoint holds, one that fastnas 0.1 wrote among them; None: there is none yet.

        Damaged ones are said on the standard error, and the one before them is taken.

        Raises:
            FastnasError: none is whole, or they are of another configuration.
        """
        found = self.checkpoints.newest(config, lambda sentence: say(sentence, sys.stderr))
        return found or read_first_version(self.path, self.KIND, config, self.ROW)

    def taken_up(self, config: Options) -> State | None:
        """:meth:`newest`, to go on: the folder is locked, cleared of what a stop left, and holds the state's rows."""
        self.lock()
        state = self.newest(config)
        if state is None:
            self._check_nothing_lost()
        remove_parts(self.path)
        self.fill()
        self.checkpoints.clear()
        rows = [] if state is None else state.rows
        write_atomically(self.metrics_file, "".join(json.dumps(row) + "\n" for row in rows))
        return state

    def _check_nothing_lost(self) -> None:
        """Raises FastnasError if there have been checkpoints: the first row alone is written before any."""
        text = self.metrics_file.read_bytes() if self.metrics_file.exists() else b""
        if (epochs := text.count(b"\n")) > 1:
            raise FastnasError(
                f"{self.metrics_file} tells of {epochs} epochs, but {self.checkpoints.folder} holds no checkpoint: put "
                "it back, or start again in another --out"
            )
        say("there is no checkpoint yet: the run begins anew", sys.stderr)

    def add_row(self, row: Mapping[str, Any]) -> None:
        """Writes an epoch's row behind the others."""
        with naming(self.metrics_file), self.metrics_file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    @contextmanager
    def resumable(self, detect_anomaly: bool = False) -> Iterator[None]:
        """Within it a signal and a system that refuses (a full disk) end with the command that goes on, and what is not
        finite with the checkpoint from before.

        Behind it the folder is free for another process.

        Args:
            detect_anomaly: whether every operator is looked at already.
        """
        try:
            yield
        except KeyboardInterrupt as stop:
            raise stopped(stop, f"interrupted; to go on: {self.resume_command()}") from None
        except UnreadableError as error:
            raise FastnasError(f"{error}; once that is mended, go on by: {self.resume_command()}") from None
        except NotFiniteError as error:
            raise NotFiniteError(f"{error}; {self._after_it(detect_anomaly)}") from None
        except OSError as error:
            raise FastnasError(
                f"{error.strerror or error}: {error.filename or 'while writing'}; {self._last_good()}once that is "
                f"mended, go on by: {self.resume_command()}"
            ) from None
        finally:
            if self._lock_file is not None:
                self._lock_file.close()

    def _last_good(self) -> str:
        paths = self.checkpoints.paths()
        return f"checkpoint {paths[0].stem} is whole; " if paths else ""

    def _after_it(self, detect_anomaly: bool) -> str:
        """What to do about a step that was not finite; a checkpoint holds finite ones alone."""
        again = "start again with a lower --learning-rate in another --out"
        paths = self.checkpoints.paths()
        if not paths:
            return f"there is no checkpoint yet: {again}" + (
                "" if detect_anomaly else ", or with --detect-anomaly"
            )
        newest, flag = paths[0].with_suffix(".safetensors"), "" if detect_anomaly else " --detect-anomaly"
        return f"{newest} is from before: {again}, or go on from there by: {self.resume_command()}{flag}"

    def resume_command(self) -> str:
        """What to type to go on with this run."""
        one_machine = os.environ.get("LOCAL_WORLD_SIZE") == str(self.processes)
        several = f"torchrun {'--standalone ' if one_machine else ''}--nproc-per-node {self.processes}"
        start = "python" if self.processes == 1 else several
        return f"{start} -m {self.COMMAND} --resume {shlex.quote(str(self.path))}{import_text()}"


def locked(folder: Path, taken: str) -> IO[str]:
    """Takes ``folder`` until the file that is returned is closed, or the process ends, however it ends.

    Raises:
        FastnasError: another process has it; ``taken`` is what it says.
    """
    file = (folder / LOCK).open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise FastnasError(taken) from None
    return file


def holds_run(path: Path) -> bool:
    """Whether there is a run in the folder ``path`` to go on with."""
    return (path / CONFIG).exists()


def read_stored(path: Path, config_class: type[Configured], command: str) -> Configured:
    """The configuration that the config.json of a run of ``command`` holds.

    Raises:
        FastnasError: it cannot be read, or is of another command.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        utf8 = "not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)
        reason = error.strerror if isinstance(error, OSError) else utf8
        raise FastnasError(f"no run to resume in {path.parent}: {path.name}: {reason}") from None
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise FastnasError(f"{path} holds no readable configuration")
    if content.get("command", command) != command:
        raise FastnasError(f"the run in {path.parent} is one of {content['command']}, not of {command}")
    options = content.get("config")
    if not isinstance(options, dict) or not options:
        raise FastnasError(f"{path} holds no readable configuration")
    check_imports(path.parent, content)
    try:
        return config_class.from_options(options)
    except FastnasError as error:
        raise FastnasError(f"{path}: {error}") from None


def _dated_path(name: str) -> Path:
    """runs/<date>-<time>-<name>, numbered if that second has one already."""
    name = f"{datetime.now().strftime('%Y%m%d-%H%M%S')}-{name}"
    paths = (Path("runs") / (name if i == 1 else f"{name}-{i}") for i in range(1, 1000))
    return next(path for path in paths if not path.exists())


def _check_can_be_made(path: Path) -> None:
    """Raises FastnasError if ``path`` is a file, or no folder can be made or written there."""
    user_path("--out", path)
    if path.exists() and not path.is_dir():
        raise FastnasError(f"--out {path} is a file; name a folder")
    there = next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.exists())
    if not there.is_dir():
        raise FastnasError(f"--out {path} cannot be made, since {there} is a file; name another folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise FastnasError(f"--out {path}: there is no permission to write in {there}; name another folder")


def _check_empty(path: Path) -> None:
    """Raises FastnasError if ``path`` holds more than what a process killed in the making of a run leaves."""
    if holds_run(path):
        raise FastnasError(
            f"--out {path} already holds a run: choose another folder, or go on with it by --resume {path}"
        )
    if path.is_dir() and any(entry.name != LOCK and entry.suffix != PART for entry in path.iterdir()):
        raise FastnasError(f"--out {path} is not empty: choose another folder")
