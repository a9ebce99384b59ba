"""What a user may name as parameters, and what is wrong with it in one sentence."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeAlias

import torch
from torch import Tensor, nn

from fastnas.errors import FastnasError

Parameters: TypeAlias = nn.Module | Tensor | Iterable[Tensor]


def leaves(name: str, given: Parameters) -> list[Tensor]:
    """The leaf tensors that ``given`` stands for, each once, in their order.

    Args:
        name: "inner" or "outer", for the errors.
        given: a module (those of its parameters that require a gradient), a tensor, or several tensors.

    Raises:
        FastnasError: there is none, or one is no leaf, requires no gradient, or is not float32 or float64.
    """
    if isinstance(given, nn.Module):
        tensors: list[Tensor] = [parameter for parameter in given.parameters() if parameter.requires_grad]
    elif isinstance(given, Tensor):
        tensors = [given]
    elif isinstance(given, Iterable):
        tensors = list(given)
    else:
        kind = type(given).__name__
        raise FastnasError(f"hypergradient: {name} must be a module, a tensor or several tensors, got {kind}")
    for i, tensor in enumerate(tensors):
        _check(f"{name}[{i}]", tensor)
    once = list({id(tensor): tensor for tensor in tensors}.values())
    if not sum(tensor.numel() for tensor in once):
        raise FastnasError(f"hypergradient: {name} holds no parameters that require a gradient")
    return once


def check_together(inner: list[Tensor], outer: list[Tensor]) -> None:
    """Raise unless inner and outer parameters are different ones, of one dtype, on one device."""
    if {id(tensor) for tensor in inner} & {id(tensor) for tensor in outer}:
        raise FastnasError("hypergradient: a parameter is both inner and outer; it must be one of them")
    kinds = {(tensor.dtype, tensor.device): None for tensor in [*inner, *outer]}
    if len(kinds) > 1:
        got = " and ".join(f"{dtype} on {device}" for dtype, device in kinds)
        raise FastnasError(
            f"hypergradient: inner and outer parameters must have one dtype and be on one device, got {got}"
        )


def _check(name: str, tensor: object) -> None:
    if not isinstance(tensor, Tensor):
        raise FastnasError(f"hypergradient: {name} must be a tensor, got {type(tensor).__name__}")
    if not tensor.is_leaf:
        raise FastnasError(
            f"hypergradient: {name} is computed from other tensors; give the parameter that it is computed from"
        )
    if not tensor.requires_grad:
        raise FastnasError(f"hypergradient: {name} requires no gradient; call requires_grad_() on it first")
    if tensor.dtype not in (torch.float32, torch.float64):
        raise FastnasError(f"hypergradient: {name} must be float32 or float64, got {tensor.dtype}")
