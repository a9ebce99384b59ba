"""``--deterministic``: operators that repeat to the bit, or a sentence that one does not."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from fastnas.errors import FastnasError

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
# What cuBLAS says to be enough for the same bits on every stream (its manual, "Results reproducibility").
WORKSPACES = (":4096:8", ":16:8")


@contextmanager
def deterministic(wanted: bool, device: torch.device) -> Iterator[torch.device]:
    """``device``; within it, if it is ``wanted``, torch takes deterministic algorithms alone, and not behind it.

    Raises:
        FastnasError: an operator has none, or cuBLAS cannot be told any more.
    """
    if not wanted:
        yield device
        return
    if device.type == "cuda":
        _tell_cublas()
    cudnn: Any = torch.backends.cudnn
    memory: Any = torch.utils.deterministic
    enabled, warn_only = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    fills = memory.fill_uninitialized_memory
    before = cudnn.deterministic, cudnn.benchmark
    torch.use_deterministic_algorithms(True)
    # It finds reads of fresh memory and changes no result of who reads none, in a pass over every new tensor.
    memory.fill_uninitialized_memory = False
    cudnn.deterministic, cudnn.benchmark = True, False
    try:
        yield device
    except RuntimeError as error:
        operator = _without(str(error))
        if operator is None:
            raise
        raise FastnasError(
            f"--deterministic: {operator} has no deterministic implementation on {device}; leave the option out, or "
            "take a network without it"
        ) from None
    finally:
        torch.use_deterministic_algorithms(enabled, warn_only=warn_only)
        memory.fill_uninitialized_memory = fills
        cudnn.deterministic, cudnn.benchmark = before


@contextmanager
def unrestricted() -> Iterator[None]:
    """Within it, inside of ``deterministic``, operators may be any: what they compute is compared, and not kept."""
    enabled = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(False)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(enabled, warn_only=warn_only)


def _tell_cublas() -> None:
    """cuBLAS reads its variable once, when CUDA begins; it stays set, for what this process does afterwards, too."""
    if os.environ.get(WORKSPACE) in WORKSPACES:
        return
    if WORKSPACE in os.environ or torch.cuda.is_initialized():
        raise FastnasError(
            f"--deterministic needs {WORKSPACE}={WORKSPACES[0]} in the environment before CUDA begins; set it and "
            "start again"
        )
    os.environ[WORKSPACE] = WORKSPACES[0]


def _without(message: str) -> str | None:
    """The operator without a deterministic implementation that torch complains about; None: that is another error."""
    name, found, _ = message.partition(" does not have a deterministic implementation")
    return name.split()[-1] if found else None
