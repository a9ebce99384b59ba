"""What the ops on flat vectors share: the call, and the checks where no kernel of a device's own makes them."""

from __future__ import annotations

import functools
import importlib
import math
from collections.abc import Callable, Sequence
from numbers import Real
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

import fastnas._extension  # noqa: F401  (registers torch.ops.fastnas)
from fastnas.errors import FastnasError
from fastnas.ops._distrust import DISTRUSTED

_REFERENCES: dict[str, Callable[..., Any]] = {}  # by the op's name, with their checks


def call(name: str, *arguments: Any, written: Sequence[Tensor] = ()) -> Any:
    """``torch.ops.fastnas.<name>(*arguments)`` outside of autograd, which learns what was ``written``.

    Raises:
        FastnasError: on arguments that do not fit together.
    """
    try:
        with torch.no_grad():
            op = _REFERENCES[name] if name in DISTRUSTED else getattr(torch.ops.fastnas, name)
            result = op(*arguments)
    except ValueError as error:  # what the checks raise
        raise FastnasError(str(error)) from None
    # A graph that has saved one of them must refuse to go on, as after any operation in place.
    for tensor in written:
        torch.autograd.graph.increment_version(tensor)
    return result


def run_elsewhere(name: str, check: Callable[..., Any], reference: Callable[..., Any]) -> None:
    """Lets the plain-PyTorch ``reference`` do the op on every device that has no kernel of its own."""

    def checked(*arguments: Any) -> Any:
        check(*arguments)
        return reference(*arguments)

    torch.library.register_kernel(f"fastnas::{name}", None, checked)
    _REFERENCES[name] = checked


def run_triton(name: str, module: str, check: Callable[..., Any], reference: Callable[..., Any]) -> None:
    """Lets ``fastnas.kernels.<module>.<name>`` do the op on CUDA, without Triton the ``reference``."""

    @torch.library.register_kernel(f"fastnas::{name}", "cuda")
    def checked(*arguments: Any) -> Any:
        check(*arguments)
        kernels = triton_kernels(module)
        return (reference if kernels is None else getattr(kernels, name))(*arguments)


@functools.cache
def triton_kernels(module: str) -> ModuleType | None:
    """``fastnas.kernels.<module>``, or None where Triton cannot be imported, which takes a while."""
    try:
        return importlib.import_module(f"fastnas.kernels.{module}")
    except ImportError:
        return None


def check_tensors(op: str, **arguments: object) -> None:
    """Raise unless every argument is a tensor."""
    for name, value in arguments.items():
        if not isinstance(value, Tensor):
            raise FastnasError(f"{op}: {name} must be a tensor, got {type(value).__name__}")


def number(op: str, name: str, value: object, *, low: float = 0, above: bool = False) -> float:
    """``value`` as a float; raise unless it is a finite number >= ``low`` (``above``: > ``low``)."""
    # A tensor is no Real on purpose: reading its value would stop the host until the device is done.
    if isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value):
        known = float(value)
        if known > low or (known == low and not above):
            return known
    raise FastnasError(f"{op}: {name} must be a finite number {'>' if above else '>='} {low}, got {value!r}")


def number_or_tensor(op: str, name: str, value: object) -> tuple[float, Tensor | None]:
    """A constant that may lie on the device, where a captured graph reads it anew, as an op takes it: the number, >= 0,
    and no tensor; or a tensor, whose value nothing checks, with a number that the op does not look at.
    """
    return (0.0, value) if isinstance(value, Tensor) else (number(op, name, value), None)


def check_vectors(op: str, **vectors: Tensor) -> None:
    """The checks of csrc/vectors.h, in its words: the first is float32 or float64, the others are like it."""
    (model_name, model), *_ = vectors.items()
    if model.dtype not in (torch.float32, torch.float64):
        raise FastnasError(f"{op}: {model_name} must be float32 or float64, got {_dtype(model)}")
    for name, vector in vectors.items():
        if (vector.shape, vector.dtype, vector.device) != (model.shape, model.dtype, model.device):
            raise FastnasError(
                f"{op}: {name} must be like {model_name}, {_described(model)}; got {_described(vector)}"
            )
        if not vector.is_contiguous():
            raise FastnasError(f"{op}: {name} must be contiguous; call contiguous() on it")


def check_scalar(op: str, name: str, scalar: Tensor, dtype: torch.dtype, model: Tensor) -> None:
    """Raise unless ``scalar`` is one number of ``dtype`` on the model's device."""
    if scalar.dim() != 0 or scalar.dtype != dtype or scalar.device != model.device:
        wanted = f"() of {str(dtype).removeprefix('torch.')} on {model.device}"
        raise FastnasError(f"{op}: {name} must be {wanted}; got {_described(scalar)}")


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _described(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} of {_dtype(tensor)} on {tensor.device}"
