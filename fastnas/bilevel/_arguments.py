"""Checks of what the user passes, in one place: each names the function and the argument."""

from __future__ import annotations

import math
from numbers import Integral, Real

import torch
from torch import Tensor

from fastnas.errors import FastnasError


def _is_finite_number(value: object) -> bool:
    # A tensor is no Real on purpose: reading its value would stop the host until the device is done.
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def positive(where: str, name: str, value: object) -> None:
    """Raise unless ``value`` is a finite number > 0."""
    if not (_is_finite_number(value) and value > 0):  # type: ignore[operator]
        raise FastnasError(f"{where}: {name} must be a finite number > 0, got {value!r}")


def not_negative(where: str, name: str, value: object) -> None:
    """Raise unless ``value`` is a finite number >= 0."""
    if not (_is_finite_number(value) and value >= 0):  # type: ignore[operator]
        raise FastnasError(f"{where}: {name} must be a finite number >= 0, got {value!r}")


def rate(where: str, name: str, value: object, w: Tensor, *, above: bool = False) -> None:
    """Raise unless ``value`` is a finite number >= 0 (``above``: > 0), or a tensor that holds one on w's device.

    What a tensor holds is not looked at.
    """
    if not isinstance(value, Tensor):
        return (positive if above else not_negative)(where, name, value)
    if value.dim() != 0 or value.dtype != torch.float64 or value.device != w.device:
        got = f"shape {tuple(value.shape)}, {value.dtype}, on {value.device}"
        raise FastnasError(
            f"{where}: {name} must be a number, or a tensor of shape (), torch.float64, on {w.device}; got {got}"
        )


def momentum_factor(where: str, value: object) -> None:
    """Raise unless ``value`` is a momentum factor, a number in [0, 1)."""
    if not (_is_finite_number(value) and 0 <= value < 1):  # type: ignore[operator]
        raise FastnasError(f"{where}: momentum must be a number in [0, 1), got {value!r}")


def count(where: str, name: str, value: object, *, least: int = 0) -> None:
    """Raise unless ``value`` is an integer >= ``least``."""
    if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
        raise FastnasError(f"{where}: {name} must be an integer >= {least}, got {value!r}")


def like_w(where: str, name: str, value: object, w: Tensor) -> None:
    """Raise unless ``value`` is a vector of ``w``'s shape, dtype and device."""
    like(where, name, value, "w", w)


def like(where: str, name: str, value: object, model_name: str, model: Tensor) -> None:
    """Raise unless ``value`` is a tensor of ``model``'s shape, dtype and device."""
    wanted = f"a tensor like {model_name}: shape {tuple(model.shape)}, {model.dtype}, on {model.device}"
    if not isinstance(value, Tensor):
        raise FastnasError(f"{where}: {name} must be {wanted}; got {type(value).__name__}")
    if value.shape != model.shape or value.dtype != model.dtype or value.device != model.device:
        got = f"shape {tuple(value.shape)}, {value.dtype}, on {value.device}"
        raise FastnasError(f"{where}: {name} must be {wanted}; got {got}")


def flat_vector(where: str, name: str, value: object) -> None:
    """Raise unless ``value`` is one float32 or float64 vector.

    bfloat16 and float16 are refused: the differences move each weight by far less than their spacing.
    """
    if not isinstance(value, Tensor):
        raise FastnasError(f"{where}: {name} must be a tensor, got {type(value).__name__}")
    if value.dim() != 1:
        raise FastnasError(
            f"{where}: {name} must be one flat vector, got shape {tuple(value.shape)}; flatten it first"
        )
    if value.dtype not in (torch.float32, torch.float64):
        raise FastnasError(f"{where}: {name} must be float32 or float64, got {value.dtype}")


def weight_step(where: str, w: Tensor, momentum: object, buffer: Tensor | None, weight_decay: object) -> None:
    """Raise unless these are the constants and the buffer of a step of SGD on ``w``."""
    flat_vector(where, "w", w)
    momentum_factor(where, momentum)
    if buffer is not None:
        like_w(where, "momentum_buffer", buffer, w)
    not_negative(where, "weight_decay", weight_decay)
