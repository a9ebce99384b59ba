"""Lazily conjugate or negative tensors, as ``x.conj()`` is one, in calls of the ops that write into an argument.

torch resolves them for an operator that returns all that it writes. These return something else, or nothing: torch
would fail after the kernel has run.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastnas.errors import FastnasError

WRITING = (
    "separable_stage", "separable_stage_backward", "normalised_mixed_sum", "normalised_mixed_sum_backward",
    "shared_pooling", "shared_pooling_backward", "cell", "cell_backward", "perturb_", "difference_", "neumann_step_",
    "virtual_step_", "sgd_step_", "adam_step_",
)  # fmt: skip


def register() -> None:
    """Lets every op of ``WRITING`` read such tensors, and refuse to write them."""
    for name in WRITING:
        for key in ("Conjugate", "Negative"):
            _LIBRARY.impl(name, _resolving(name), key)


_LIBRARY = torch.library.Library("fastnas", "IMPL")  # keeps what is registered


def _resolving(name: str) -> Callable[..., Any]:
    def kernel(*arguments: Any) -> Any:
        op = getattr(torch.ops.fastnas, name).default
        known = zip(op._schema.arguments, arguments, strict=False)  # the last may be left out
        return op(*(_resolved(name, argument, value) for argument, value in known))

    return kernel


def _resolved(op: str, argument: Any, value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_resolved(op, argument, item) for item in value]
    if not isinstance(value, Tensor) or not (value.is_conj() or value.is_neg()):
        return value
    if argument.alias_info is not None and argument.alias_info.is_write:
        raise FastnasError(
            f"{op}: {argument.name} is written and must not be a lazily conjugate or negative view; "
            "call resolve_conj() and resolve_neg() on it"
        )
    return value.resolve_conj().resolve_neg()
