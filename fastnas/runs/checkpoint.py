"""Checkpoints: the whole state of a run at one moment, with checksums, the newest few kept.

A checkpoint is two files, EPOCH-STEP.safetensors and EPOCH-STEP.json. The second is written when the first is whole and
seals it: it holds the first one's checksum, and its own. Which one is newest is told by their names, not by a clock.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from fastnas._version import __version__
from fastnas.errors import FastnasError
from fastnas.runs.files import naming, remove_parts, write_atomically
from fastnas.runs.options import Options

KEPT = 3
_NAME = re.compile(r"(\d{5,})-(\d{7,})\.json")


class Kind(NamedTuple):
    """What sort of run checkpoints are of.

    Attributes:
        mark: the word in their format, MARK-VERSION.
        name: how a sentence calls such a run.
        version: of the format that is written.
    """

    mark: str
    name: str
    version: int

    @property
    def format(self) -> str:
        """What a checkpoint's "format" says."""
        return f"{self.mark}-{self.version}"


class Moment(NamedTuple):
    """When: whole epochs done, and steps done of the next one."""

    epoch: int
    step: int = 0

    def __str__(self) -> str:
        return (
            f"epoch {self.epoch + 1} after step {self.step}"
            if self.step
            else f"the end of epoch {self.epoch}"
        )


@dataclass(frozen=True)
class State:
    """What a run is at one moment.

    Attributes:
        moment: when.
        tensors: by name, on the CPU.
        rows: of metrics, one for each whole epoch.
        numbers: of the epoch in progress: sums that its row is made of; empty between two epochs.
    """

    moment: Moment
    tensors: dict[str, Tensor]
    rows: list[dict[str, Any]]
    numbers: dict[str, float] = field(default_factory=dict)


class DamagedError(FastnasError):
    """A checkpoint is not what was written."""


class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: where they are; made with the first of them.
        kind: of run.
    """

    def __init__(self, folder: Path, kind: Kind) -> None:
        self.folder, self.kind = folder, kind

    def write(self, state: State, options: Mapping[str, Any]) -> None:
        """Writes one of a run with these ``options``, then removes all but the newest ``KEPT``."""
        made = not self.folder.exists()
        with naming(self.folder):
            self.folder.mkdir(exist_ok=True)
        path = self._path(state.moment)
        data = save(state.tensors)
        content = {
            "format": self.kind.format,
            "fastnas": __version__,
            "torch": torch.__version__,
            "epoch": state.moment.epoch,
            "step": state.moment.step,
            "config": dict(options),
            "numbers": state.numbers,
            "rows": state.rows,
            "tensors": {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()},
        }
        try:
            write_atomically(path.with_suffix(".safetensors"), data)
            write_atomically(path, sealed(content))
        except BaseException:
            if not path.exists():
                path.with_suffix(".safetensors").unlink(missing_ok=True)
            if made and not any(self.folder.iterdir()):
                self.folder.rmdir()
            raise
        for old in self.paths()[KEPT:]:
            self._remove(old)

    def paths(self) -> list[Path]:
        """The .json files of all checkpoints that were written to their end, the newest first."""
        found = [
            (Moment(int(m[1]), int(m[2])), file)
            for file in self.folder.glob("*.json")
            if (m := _NAME.fullmatch(file.name))
        ]
        return [file for _, file in sorted(found, reverse=True)]

    def newest(self, config: Options, say: Callable[[str], None]) -> State | None:
        """The newest whole one; None if none was ever written to its end.

        Args:
            config: of the run; a checkpoint of another one is refused.
            say: told of each newer one that is damaged.

        Raises:
            FastnasError: none is whole, or one is of another run or of a newer fastnas.
        """
        paths = self.paths()
        for i, path in enumerate(paths):
            try:
                return self._read(path, config)
            except DamagedError as error:
                if i + 1 == len(paths):
                    raise FastnasError(
                        f"{error}, and there is no older one: start again in another --out"
                    ) from None
                say(f"{error}; taking the one before it, {paths[i + 1].stem}")
        return None

    def clear(self) -> None:
        """Removes what a stop in the middle of writing left: parts, and tensors that nothing seals."""
        remove_parts(self.folder)
        for file in self.folder.glob("*.safetensors"):
            if not file.with_suffix(".json").exists():
                self._remove(file.with_suffix(".json"))

    def _path(self, moment: Moment) -> Path:
        return self.folder / f"{moment.epoch:05d}-{moment.step:07d}.json"

    @staticmethod
    def _remove(path: Path) -> None:
        for file in (path, path.with_suffix(".safetensors")):  # unsealed first
            with naming(file):
                file.unlink(missing_ok=True)

    def _read(self, path: Path, config: Options) -> State:
        content = _unsealed(path)
        self._check_format(path, content)
        try:
            options, rows, numbers = content["config"], content["rows"], content["numbers"]
            moment = Moment(content["epoch"], content["step"])
            size, digest = content["tensors"]["bytes"], content["tensors"]["sha256"]
        except (KeyError, TypeError) as error:
            raise DamagedError(f"checkpoint {path} is damaged: it lacks {error}") from None
        if not (_are_counts(moment) and _are_rows(rows, moment.epoch) and _are_numbers(numbers)):
            raise DamagedError(f"checkpoint {path} is damaged: its epoch, rows or numbers are none")
        if path != self._path(moment):
            raise DamagedError(f"checkpoint {path} is of another moment, {moment}, than its name says")
        check_same_run(path, options, config)
        file = path.with_suffix(".safetensors")
        try:
            data = file.read_bytes()
        except OSError as error:
            raise DamagedError(f"checkpoint {file} cannot be read: {error.strerror}") from None
        if len(data) != size:
            raise DamagedError(f"checkpoint {file} is damaged: {len(data)} bytes where {size} were written")
        if hashlib.sha256(data).hexdigest() != digest:
            raise DamagedError(f"checkpoint {file} is damaged: its checksum is another")
        try:
            return State(moment, load(data), rows, numbers)
        except SafetensorError as error:
            raise DamagedError(f"checkpoint {file} is damaged: {error}") from None

    def _check_format(self, path: Path, content: Mapping[str, Any]) -> None:
        mark, _, version = str(content.get("format")).rpartition("-")
        if mark != self.kind.mark or not version.isdecimal():
            raise FastnasError(
                f"{path} is not a checkpoint of a {self.kind.name} (format {content.get('format')!r})"
            )
        if int(version) > self.kind.version:
            raise FastnasError(
                f"checkpoint {path} was written by fastnas {content.get('fastnas')}, in a format that this one, "
                f"{__version__}, does not know: install that one or a newer one to go on"
            )


def _are_counts(moment: Moment) -> bool:
    return all(type(count) is int and 0 <= count < 2**53 for count in moment)


def _are_rows(rows: Any, epochs: int) -> bool:
    return isinstance(rows, list) and len(rows) == epochs and all(isinstance(row, dict) for row in rows)


def _are_numbers(numbers: Any) -> bool:
    return isinstance(numbers, dict) and all(type(number) in (int, float) for number in numbers.values())


def sealed(content: Mapping[str, Any]) -> str:
    """``content`` as JSON with its own checksum in it."""
    return json.dumps({**content, "sha256": _digest(content)}, indent=1) + "\n"


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _unsealed(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
        if not isinstance(content, dict) or content.pop("sha256", None) != _digest(content):
            raise ValueError
    except OSError as error:
        raise DamagedError(f"checkpoint {path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError):  # of JSON, of UTF-8, or of the checksum
        raise DamagedError(f"checkpoint {path} is damaged: its checksum is another") from None
    return content


def check_same_run(path: Path, options: Any, config: Options) -> None:
    """Raises FastnasError if the checkpoint ``path`` is of a run with other ``options`` than ``config``'s."""
    if not isinstance(options, dict):
        raise DamagedError(f"checkpoint {path} is damaged: it holds no readable configuration")
    try:
        differing = type(config).from_options(options).differences(config)
    except FastnasError as error:
        raise FastnasError(
            f"checkpoint {path} cannot be read by this version of fastnas, {__version__}: {error}"
        ) from None
    if differing:
        raise FastnasError(
            f"checkpoint {path} is of another configuration: it differs in {', '.join(differing)}"
        )


def random_states(device: torch.device) -> dict[str, Tensor]:
    """The random states of the CPU and of ``device``, by name."""
    found = {"rng.cpu": torch.get_rng_state()}
    if device.type == "cuda":
        found["rng.cuda"] = torch.cuda.get_rng_state(device)
    return found


def put_back(where: str, tensors: Mapping[str, Tensor], live: Mapping[str, Tensor]) -> None:
    """Copies a checkpoint's tensors into the ``live`` ones of the same names.

    Args:
        where: the run, for the sentence.
        tensors: its tensors.
        live: where they go.

    Raises:
        FastnasError: one is missing, or of another shape or type; nothing is written then.
    """
    for name, like in {**live, "rng.cpu": torch.get_rng_state()}.items():
        found = tensors.get(name)
        if found is None or found.shape != like.shape or found.dtype != like.dtype:
            got = "nothing" if found is None else f"{tuple(found.shape)} {found.dtype}"
            raise FastnasError(
                f"checkpoint of {where}: {name} must be {tuple(like.shape)} {like.dtype}, found {got}"
            )
    with torch.no_grad():
        for name, target in live.items():
            target.copy_(tensors[name])


def put_back_random_states(tensors: Mapping[str, Tensor], device: torch.device) -> None:
    """The random states of a checkpoint become those of the CPU and of ``device``.

    Raises:
        FastnasError: one is no state of a generator.
    """
    try:
        torch.set_rng_state(tensors["rng.cpu"])
        if "rng.cuda" in tensors and device.type == "cuda":
            torch.cuda.set_rng_state(tensors["rng.cuda"], device)
    except (RuntimeError, TypeError) as error:
        raise FastnasError(f"the random state in the checkpoint is none of this PyTorch: {error}") from None
