"""The weight step that second-order DARTS differentiates through."""

from __future__ import annotations

import torch
from torch import Tensor

from fastnas.ops._vectors import (
    call,
    check_scalar,
    check_tensors,
    check_vectors,
    number,
    number_or_tensor,
    run_elsewhere,
    run_triton,
)


def virtual_step_(
    w: Tensor,
    grad: Tensor,
    buffer: Tensor | None,
    learning_rate: float | Tensor,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
) -> Tensor:
    """One step of SGD, of w alone, in one pass.

        w <- w - learning_rate (momentum buffer + grad + weight_decay w)

    (Liu et al. 2019, eq. 7, with momentum and decay as in their code.) As ``sgd_step_`` without clipping, which leaves
    the buffer alone. On CUDA it runs in Triton, without Triton in plain PyTorch.

    Args:
        w: shape (P,), float32 or float64, contiguous; written.
        grad: like w; left alone.
        buffer: like w; left alone. None: zero.
        learning_rate: >= 0; or shape (), float64, on w's device: read there when the step is made, so that a captured
            CUDA graph follows its changes. Nothing checks its value then.
        momentum, weight_decay: >= 0.

    Returns:
        w.

    Raises:
        FastnasError: on arguments that do not fit together; nothing is written then.

    Example:
        >>> buffer = torch.tensor([1.0, -1.0])
        >>> virtual_step_(torch.ones(2), torch.tensor([2.0, 2.0]), buffer, learning_rate=0.1, momentum=0.5)
        tensor([0.7500, 0.8500])
    """
    check_tensors("virtual_step_", w=w, grad=grad, **({} if buffer is None else {"buffer": buffer}))
    given, rate = number_or_tensor("virtual_step_", "learning_rate", learning_rate)
    momentum = number("virtual_step_", "momentum", momentum)
    weight_decay = number("virtual_step_", "weight_decay", weight_decay)
    call("virtual_step_", w, grad, buffer, given, momentum, weight_decay, rate, written=[w])
    return w


def _virtual_step_ref(
    w: Tensor,
    grad: Tensor,
    buffer: Tensor | None,
    learning_rate: float,
    momentum: float,
    weight_decay: float,
    rate: Tensor | None = None,
) -> None:
    """``virtual_step_`` in plain PyTorch."""
    step = grad.add(w, alpha=weight_decay) if weight_decay else grad.clone()
    if momentum and buffer is not None:
        step.add_(buffer, alpha=momentum)
    w.sub_(step.mul_(learning_rate if rate is None else rate))


@torch.library.register_fake("fastnas::virtual_step_")
def _virtual_step_fake(
    w: Tensor,
    grad: Tensor,
    buffer: Tensor | None,
    learning_rate: float,
    momentum: float,
    weight_decay: float,
    rate: Tensor | None = None,
) -> None:
    check_vectors("virtual_step_", w=w, grad=grad, **({} if buffer is None else {"buffer": buffer}))
    if rate is not None:
        check_scalar("virtual_step_", "learning_rate", rate, torch.float64, w)


run_elsewhere("virtual_step_", _virtual_step_fake, _virtual_step_ref)
run_triton("virtual_step_", "virtual_step", _virtual_step_fake, _virtual_step_ref)
