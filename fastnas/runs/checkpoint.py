"""The state of a run in one safetensors file, written whole or not at all."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from fastnas.errors import FastnasError
from fastnas.runs.options import Configured


class Kind(NamedTuple):
    """What sort of run a checkpoint is of: the mark in the file, and how a sentence calls it."""

    format: str
    name: str


class State(NamedTuple):
    """What a checkpoint holds: tensors by name, and the epochs that had been done."""

    tensors: dict[str, Tensor]
    epoch: int


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """An error of the system (a full disk) says which file it was about."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None


def write_atomically(path: Path, content: bytes | str) -> None:
    """``path`` holds either what it held before or all of ``content``, whatever happens in between."""
    data = content.encode() if isinstance(content, str) else content
    with naming(path):
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with naming(path), os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def write_state(
    path: Path,
    kind: Kind,
    live: Mapping[str, Tensor],
    options: Mapping[str, Any],
    epoch: int,
    device: torch.device,
) -> None:
    """The ``live`` tensors and the random states of CPU and ``device`` after ``epoch`` epochs."""
    tensors = {name: tensor.detach().cpu() for name, tensor in live.items()}
    tensors["rng.cpu"] = torch.get_rng_state()
    if device.type == "cuda":
        tensors["rng.cuda"] = torch.cuda.get_rng_state(device)
    metadata = {"format": kind.format, "epoch": str(epoch), "config": json.dumps(dict(options))}
    write_atomically(path, save(tensors, metadata))


def read_state(path: Path, kind: Kind, config: Configured) -> State:
    """What ``write_state`` wrote there.

    Raises:
        FastnasError: it cannot be read, is no checkpoint of this kind, or one of another configuration.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise FastnasError(f"checkpoint {path} cannot be read, it may be cut short: {error}") from None
    if metadata.get("format") != kind.format:
        raise FastnasError(f"{path} is not a checkpoint of a {kind.name} (format {metadata.get('format')!r})")
    saved = type(config).from_options(_json(path, metadata.get("config", "")))
    differing = saved.differences(config)
    if differing:
        raise FastnasError(
            f"checkpoint {path} is of another configuration: it differs in {', '.join(differing)}"
        )
    return State(tensors, int(metadata["epoch"]))


def put_back(path: Path, tensors: Mapping[str, Tensor], live: Mapping[str, Tensor]) -> None:
    """Copies the tensors of the checkpoint ``path`` into the ``live`` ones of the same names.

    Raises:
        FastnasError: one is missing, or of another shape or type; nothing is written then.
    """
    for name, like in {**live, "rng.cpu": torch.get_rng_state()}.items():
        found = tensors.get(name)
        if found is None or found.shape != like.shape or found.dtype != like.dtype:
            got = "nothing" if found is None else f"{tuple(found.shape)} {found.dtype}"
            raise FastnasError(
                f"checkpoint {path}: {name} must be {tuple(like.shape)} {like.dtype}, found {got}"
            )
    for name, target in live.items():
        target.copy_(tensors[name])


def put_back_random_states(tensors: Mapping[str, Tensor], device: torch.device) -> None:
    """The random states of a checkpoint become those of the CPU and of ``device``."""
    torch.set_rng_state(tensors["rng.cpu"])
    if "rng.cuda" in tensors and device.type == "cuda":
        torch.cuda.set_rng_state(tensors["rng.cuda"], device)


def read_stored(path: Path, config_class: type[Configured], command: str) -> Configured:
    """The configuration that the config.json of a run of ``command`` holds.

    Raises:
        FastnasError: it cannot be read, or is of another command.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise FastnasError(f"no run to resume in {path.parent}: {path.name}: {reason}") from None
    content = _json(path, text)
    if content.get("command", command) != command:
        raise FastnasError(f"the run in {path.parent} is one of {content['command']}, not of {command}")
    options = content.get("config")
    if not isinstance(options, dict) or not options:
        raise FastnasError(f"{path} holds no readable configuration")
    try:
        return config_class.from_options(options)
    except FastnasError as error:
        raise FastnasError(f"{path}: {error}") from None


def _json(path: Path, text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise FastnasError(f"{path} holds no readable configuration")
    return value
