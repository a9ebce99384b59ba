"""The state of a search in its checkpoint."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from fastnas.runs.checkpoint import (
    Kind,
    put_back,
    put_back_random_states,
    read_state,
    read_stored,
    write_state,
)
from fastnas.search.config import SearchConfig
from fastnas.search.step import SearchStep

COMMAND = "fastnas.search"
SEARCH = Kind("fastnas-search-1", "search")


def save_checkpoint(path: Path, step: SearchStep, config: SearchConfig, epoch: int) -> None:
    """Weights, alpha, running statistics, both optimisers and the random states after ``epoch`` epochs."""
    device = step.net.weights.flat.device
    write_state(path, SEARCH, moving_tensors(step), config.to_options(), epoch, device)


def load_checkpoint(path: Path, step: SearchStep, config: SearchConfig) -> int:
    """Puts the state of ``path`` into ``step`` and the random generators; returns the epochs done.

    Raises:
        FastnasError: it cannot be read, is no checkpoint of a search, or one of another configuration.
    """
    state = read_state(path, SEARCH, config)
    put_back(path, state.tensors, moving_tensors(step))
    put_back_random_states(state.tensors, step.net.weights.flat.device)
    return state.epoch


def moving_tensors(step: SearchStep) -> dict[str, Tensor]:
    """Every tensor that moves in a search, by name, live."""
    net = step.net
    state = {"weights": net.weights.flat, "alphas": net.alphas.flat, "running": net.running.flat}
    for kind, optimiser in (("sgd", step.weight_optimiser), ("adam", step.alpha_optimiser)):
        state.update({f"{kind}.{name}": tensor for name, tensor in optimiser.state().items()})
    state.update({f"state.{stream}": tensor for stream, tensor in step.states.items()})
    return state


def read_config(path: Path) -> SearchConfig:
    """The configuration that a run folder's config.json holds.

    Raises:
        FastnasError: it cannot be read.
    """
    return read_stored(path, SearchConfig, COMMAND)
