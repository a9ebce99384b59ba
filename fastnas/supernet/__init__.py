"""Supernets: a space executed, its weights in one arena."""

from __future__ import annotations

import torch

from fastnas.errors import FastnasError
from fastnas.spaces import Space
from fastnas.spaces.recurrent import RecurrentSpace
from fastnas.supernet.anomaly import AnomalyError
from fastnas.supernet.arena import Arena, gradient_parts, gradients, joined
from fastnas.supernet.executor import Executor
from fastnas.supernet.fused import FusedSupernet
from fastnas.supernet.graphs import Batch, Graphs, cuda_graphs, eagerly
from fastnas.supernet.own_primitives import check_twice_differentiable, own_primitives, register_primitive
from fastnas.supernet.primitives import BatchNorm, Context
from fastnas.supernet.problem import SupernetProblem, narrow, pinned
from fastnas.supernet.recurrent import FusedRecurrentNetwork, RecurrentNetwork, mean_loss, perplexity
from fastnas.supernet.reference import Supernet, check_auxiliary, smooth_twin

BACKENDS: dict[str, type[Supernet]] = {"fused": FusedSupernet, "reference": Supernet}
"""Executors of a space of images by their names."""


def build_supernet(
    space: Space,
    *,
    backend: str = "fused",
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    recompute: bool = False,
) -> Supernet:
    """The supernet (or discrete network) that executes ``space``; weights from torch's current random state.

    Args:
        space: from ``fastnas.spaces.make_space`` or ``make_network``.
        backend: "fused" (this library's ops) or "reference" (plain PyTorch, differentiable twice).
        dtype: of weights, running statistics and alpha.
        device: where they live.
        recompute: (fused) keep no cell's activations for the backward pass, compute them again there; the same
            numbers, in more time and less memory.

    Raises:
        FastnasError: an unknown backend or primitive, or ``recompute`` with the reference.
    """
    if backend not in BACKENDS:
        raise FastnasError(f"unknown backend {backend!r}; known are {', '.join(BACKENDS)}")
    if backend == "fused":
        return FusedSupernet(space, dtype=dtype, device=device, recompute=recompute)
    if recompute:
        raise FastnasError(f"backend {backend} keeps its activations; recompute needs backend fused")
    return BACKENDS[backend](space, dtype=dtype, device=device)


RECURRENT_BACKENDS: dict[str, type[RecurrentNetwork]] = {
    "fused": FusedRecurrentNetwork,
    "reference": RecurrentNetwork,
}


def build_recurrent(
    space: RecurrentSpace,
    *,
    backend: str = "fused",
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> RecurrentNetwork:
    """:func:`build_supernet` for a space that reads text; arguments as there.

    Raises:
        FastnasError: an unknown backend.
    """
    if backend not in RECURRENT_BACKENDS:
        raise FastnasError(f"unknown backend {backend!r}; known are {', '.join(RECURRENT_BACKENDS)}")
    return RECURRENT_BACKENDS[backend](space, dtype=dtype, device=device)


__all__ = [
    "BACKENDS",
    "AnomalyError",
    "Arena",
    "Batch",
    "BatchNorm",
    "Context",
    "Executor",
    "FusedRecurrentNetwork",
    "FusedSupernet",
    "Graphs",
    "RecurrentNetwork",
    "Supernet",
    "SupernetProblem",
    "build_recurrent",
    "build_supernet",
    "check_auxiliary",
    "check_twice_differentiable",
    "cuda_graphs",
    "eagerly",
    "gradient_parts",
    "gradients",
    "joined",
    "mean_loss",
    "narrow",
    "own_primitives",
    "perplexity",
    "pinned",
    "register_primitive",
    "smooth_twin",
]
