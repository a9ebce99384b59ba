"""The node of a recurrent supernet: the weighted sum of all highway updates that enter it, in one pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

import fastnas._extension  # noqa: F401  (registers torch.ops.fastnas)
from fastnas.errors import FastnasError
from fastnas.ops._distrust import DISTRUSTED
from fastnas.ops._vectors import run_triton

_OP = "highway_sum"
OPS = torch.ops.fastnas


def highway_sum(mixing: Tensor, states: Tensor, raw: Tensor) -> Tensor:
    """The weighted sum of the highway updates of all sources and activations, in one pass each way.

        out = sum_j sum_k mixing[j, k] (s_j + c_j (f_k(h_j) - s_j)),    f = tanh, relu, sigmoid, identity

    with s_j = states[j] and (sigmoid^-1(c_j), h_j) the halves of raw[j] (Liu et al. 2019, section 3.1; the update is
    that of recurrent highway networks, Zilly et al. 2017). Sums over elements have a fixed order: the same bits for
    every number of threads. Differentiable once. On CUDA it runs in Triton, without Triton in plain PyTorch.

    Args:
        mixing: (S, 4), S >= 1.
        states: (S, B, units), float32 or float64.
        raw: (S, B, 2 units): gates before their sigmoid, then values h.

    Returns:
        The node, (B, units).

        Kept for backward: the three arguments, nothing else.

    Raises:
        FastnasError: on arguments that do not fit together.

    Example:
        >>> states, raw = torch.ones(1, 1, 2), torch.tensor([[[0.0, 0.0, 3.0, -1.0]]])
        >>> highway_sum(torch.tensor([[0.0, 1.0, 0.0, 0.0]]), states, raw)  # s + (relu(h) - s) / 2
        tensor([[2.0000, 0.5000]])
    """
    for name, value in (("mixing", mixing), ("states", states), ("raw", raw)):
        if not isinstance(value, Tensor):
            raise FastnasError(f"{_OP}: {name} must be a tensor, got {type(value).__name__}")
    if _OP in DISTRUSTED or states.device.type not in ("cpu", "cuda"):
        return _highway_sum_ref(mixing, states, raw)
    try:
        return _HighwaySum.apply(mixing, states, raw)
    except ValueError as error:  # what the binding's checks raise
        raise FastnasError(str(error)) from None


def _highway_sum_ref(mixing: Tensor, states: Tensor, raw: Tensor) -> Tensor:
    """``highway_sum`` as it is commonly written, in plain PyTorch: an activation at a time."""
    gate, value = raw.chunk(2, -1)
    gate = gate.sigmoid()
    out = torch.zeros_like(states[0])
    for k, activated in enumerate((value.tanh(), value.relu(), value.sigmoid(), value)):
        update = states + gate * (activated - states)
        out = out + (mixing[:, k, None, None] * update).sum(0)
    return out


class _HighwaySum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, mixing: Tensor, states: Tensor, raw: Tensor) -> Tensor:
        ctx.save_for_backward(mixing, states, raw)
        return OPS.highway_sum(mixing, states, raw)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return OPS.highway_sum_backward(grad, *ctx.saved_tensors)


def _highway_sum_backward_ref(
    grad: Tensor, mixing: Tensor, states: Tensor, raw: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Its gradients in plain PyTorch."""
    with torch.enable_grad():
        leaves = [tensor.detach().requires_grad_() for tensor in (mixing, states, raw)]
        mixing_grad, states_grad, raw_grad = torch.autograd.grad(_highway_sum_ref(*leaves), leaves, grad)
    return mixing_grad, states_grad, raw_grad


def _check(mixing: Tensor, states: Tensor, raw: Tensor) -> None:
    """What the native binding checks, for tensors that do not reach it."""
    shape = tuple(states.shape)
    if states.dim() != 3 or not shape[0]:
        raise ValueError(f"{_OP}: states must have shape (S, B, units) with S >= 1, got {shape}")
    if states.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"{_OP}: states must be float32 or float64, got {str(states.dtype)[6:]}")
    for name, tensor, wanted in (
        ("mixing", mixing, (shape[0], 4)),
        ("raw", raw, (*shape[:2], 2 * shape[2])),
    ):
        if tensor.device != states.device or tensor.dtype != states.dtype or tuple(tensor.shape) != wanted:
            raise ValueError(
                f"{_OP}: {name} must have shape {wanted}, dtype and device of states {shape}, "
                f"got {tuple(tensor.shape)} of {str(tensor.dtype)[6:]} on {tensor.device}"
            )


@torch.library.register_fake("fastnas::highway_sum")
def _highway_sum_fake(mixing: Tensor, states: Tensor, raw: Tensor) -> Tensor:
    _check(mixing, states, raw)
    return states.new_empty(states.shape[1:])


@torch.library.register_fake("fastnas::highway_sum_backward")
def _highway_sum_backward_fake(
    grad: Tensor, mixing: Tensor, states: Tensor, raw: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    _check(mixing, states, raw)
    if grad.shape != states.shape[1:] or grad.device != states.device or grad.dtype != states.dtype:
        raise ValueError(
            f"{_OP}: grad must have shape {tuple(states.shape[1:])}, dtype and device of states, "
            f"got {tuple(grad.shape)} of {str(grad.dtype)[6:]} on {grad.device}"
        )
    return (
        torch.empty_like(mixing, memory_format=torch.contiguous_format),
        torch.empty_like(states, memory_format=torch.contiguous_format),
        torch.empty_like(raw, memory_format=torch.contiguous_format),
    )


run_triton(_OP, _OP, _highway_sum_fake, _highway_sum_ref)
run_triton(f"{_OP}_backward", _OP, _highway_sum_backward_fake, _highway_sum_backward_ref)
