"""The state of a search in its checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastnas.errors import FastnasError
from fastnas.runs.checkpoint import Kind
from fastnas.runs.folder import read_stored
from fastnas.search.config import SearchConfig
from fastnas.search.step import SearchStep

COMMAND = "fastnas.search"
SEARCH = Kind("fastnas-search", "search", 2)


def moving_tensors(step: SearchStep) -> dict[str, Tensor]:
    """Every tensor that moves in a search, by name, live: weights, alpha, running statistics, both optimisers."""
    net = step.net
    state = {"weights": net.weights.flat, "alphas": net.alphas.flat, "running": net.running.flat}
    for kind, optimiser in (("sgd", step.weight_optimiser), ("adam", step.alpha_optimiser)):
        state.update({f"{kind}.{name}": tensor for name, tensor in optimiser.state().items()})
    state.update({f"state.{stream}": tensor for stream, tensor in step.states.items()})
    return state


def order_tensors(streams: Mapping[str, Any]) -> dict[str, Tensor]:
    """Where the passes of the ``streams`` (of ``Task``) stand, in the middle of an epoch."""
    return {
        f"order.{stream}.{name}": torch.as_tensor(value)
        for stream, batches in streams.items()
        for name, value in batches.state_dict().items()
    }


def put_back_order(where: str, tensors: Mapping[str, Tensor], streams: Mapping[str, Any]) -> None:
    """Lets the ``streams`` go on where ``order_tensors`` was taken.

    Raises:
        FastnasError: the tensors of the checkpoint ``where`` are of other streams, or of another kind of device.
    """
    for stream, batches in streams.items():
        begin = f"order.{stream}."
        state: dict[str, Any] = {
            name.removeprefix(begin): tensor for name, tensor in tensors.items() if name.startswith(begin)
        }
        served = state.get("served")
        if served is not None and served.numel() == 1:
            state["served"] = int(served)
        try:
            batches.load_state_dict(state)
        except FastnasError as error:
            raise FastnasError(
                f"the checkpoint of {where} is in the middle of an epoch, whose order cannot be taken up here: "
                f"{error}; resume it on the kind of device that it ran on"
            ) from None


def read_config(path: Path) -> SearchConfig:
    """The configuration that a run folder's config.json holds.

    Raises:
        FastnasError: it cannot be read.
    """
    return read_stored(path, SearchConfig, COMMAND)
