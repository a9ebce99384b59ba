"""The state of a search in one safetensors file, written whole or not at all."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from fastnas.errors import FastnasError
from fastnas.search.config import SearchConfig
from fastnas.search.step import SearchStep

FORMAT = "fastnas-search-1"


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


def save_checkpoint(path: Path, step: SearchStep, config: SearchConfig, epoch: int) -> None:
    """Weights, alpha, running statistics, both optimisers and the random states after ``epoch`` epochs."""
    tensors = {name: tensor.detach().cpu() for name, tensor in moving_tensors(step).items()}
    tensors["rng.cpu"] = torch.get_rng_state()
    if step.net.weights.flat.is_cuda:
        tensors["rng.cuda"] = torch.cuda.get_rng_state(step.net.weights.flat.device)
    metadata = {"format": FORMAT, "epoch": str(epoch), "config": json.dumps(config.to_options())}
    write_atomically(path, save(tensors, metadata))


def load_checkpoint(path: Path, step: SearchStep, config: SearchConfig) -> int:
    """Puts the state of ``path`` into ``step`` and the random generators; returns the epochs done.

    Raises:
        FastnasError: it cannot be read, is no checkpoint of a search, or one of another configuration.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise FastnasError(f"checkpoint {path} cannot be read, it may be cut short: {error}") from None
    if metadata.get("format") != FORMAT:
        raise FastnasError(f"{path} is not a checkpoint of a search (format {metadata.get('format')!r})")
    saved = SearchConfig.from_options(_json(path, metadata.get("config", "")))
    differing = saved.differences(config)
    if differing:
        raise FastnasError(
            f"checkpoint {path} is of another configuration: it differs in {', '.join(differing)}"
        )
    _check_tensors(path, tensors, step)
    for name, target in moving_tensors(step).items():
        target.copy_(tensors[name])
    torch.set_rng_state(tensors["rng.cpu"])
    if "rng.cuda" in tensors and step.net.weights.flat.is_cuda:
        torch.cuda.set_rng_state(tensors["rng.cuda"], step.net.weights.flat.device)
    return int(metadata["epoch"])


def moving_tensors(step: SearchStep) -> dict[str, Tensor]:
    """Every tensor that moves in a search, by name, live."""
    net = step.net
    state = {"weights": net.weights.flat, "alphas": net.alphas.flat, "running": net.running.flat}
    for kind, optimiser in (("sgd", step.weight_optimiser), ("adam", step.alpha_optimiser)):
        state.update({f"{kind}.{name}": tensor for name, tensor in optimiser.state().items()})
    return state


def _check_tensors(path: Path, tensors: dict[str, Tensor], step: SearchStep) -> None:
    expected = {**moving_tensors(step), "rng.cpu": torch.get_rng_state()}
    for name, like in expected.items():
        found = tensors.get(name)
        if found is None or found.shape != like.shape or found.dtype != like.dtype:
            got = "nothing" if found is None else f"{tuple(found.shape)} {found.dtype}"
            raise FastnasError(
                f"checkpoint {path}: {name} must be {tuple(like.shape)} {like.dtype}, found {got}"
            )


def _json(path: Path, text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise FastnasError(f"{path} holds no readable configuration")
    return value


def read_config(path: Path) -> SearchConfig:
    """The configuration that a run folder's config.json holds.

    Raises:
        FastnasError: it cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise FastnasError(f"no run to resume in {path.parent}: {path.name}: {reason}") from None
    options = _json(path, text).get("config")
    if not isinstance(options, dict) or not options:
        raise FastnasError(f"{path} holds no readable configuration")
    try:
        return SearchConfig.from_options(options)
    except FastnasError as error:
        raise FastnasError(f"{path}: {error}") from None
