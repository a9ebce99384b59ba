"""The steps of a search's two optimisers: clipped SGD with momentum, and Adam, each in place on flat vectors."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastnas.errors import FastnasError
from fastnas.ops._vectors import (
    call,
    check_scalar,
    check_tensors,
    check_vectors,
    number,
    number_or_tensor,
    run_elsewhere,
)
from fastnas.ops.vector_norm import _vector_norm_ref


def sgd_step_(
    w: Tensor,
    grad: Tensor,
    buffer: Tensor | None,
    learning_rate: float | Tensor,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    clip: float = math.inf,
) -> Tensor:
    """One step of SGD with clipping, decay and momentum, in two passes over memory.

        d = min(1, clip / (|grad| + 1e-6)) grad + weight_decay w
        buffer <- momentum buffer + d
        w      <- w - learning_rate buffer

    What ``torch.nn.utils.clip_grad_norm_`` and ``torch.optim.SGD`` (no dampening, no Nesterov) do in turn where |grad|
    is finite; where it is not, no step is made. A buffer of zeros makes the first step. The same bits in every run and
    for every number of threads.

    Args:
        w: shape (P,), float32 or float64, contiguous; written.
        grad: like w; left alone.
        buffer: like w; written. Without momentum it is neither read nor written, and may be None.
        learning_rate: >= 0; or shape (), float64, on w's device: read there when the step is made, so that a captured
            CUDA graph follows its changes. Nothing checks its value then.
        momentum, weight_decay: >= 0.
        clip: largest norm of the gradient, > 0; infinite: no clipping.

    Returns:
        |grad| before clipping, shape (), float64, on w's device; nothing waits for it. Where it is NaN or infinite, w
        and buffer stay as they are.

    Raises:
        FastnasError: on arguments that do not fit together; nothing is written then.

    Example:
        >>> w, buffer = torch.ones(2), torch.zeros(2)
        >>> sgd_step_(w, torch.tensor([3.0, 4.0]), buffer, learning_rate=0.1, momentum=0.9, clip=1.0)
        tensor(5., dtype=torch.float64)
        >>> w
        tensor([0.9400, 0.9200])
    """
    check_tensors("sgd_step_", w=w, grad=grad, **({} if buffer is None else {"buffer": buffer}))
    given, rate = number_or_tensor("sgd_step_", "learning_rate", learning_rate)
    momentum = number("sgd_step_", "momentum", momentum)
    weight_decay = number("sgd_step_", "weight_decay", weight_decay)
    largest = math.inf if clip == math.inf else number("sgd_step_", "clip", clip, above=True)
    written = [w] if buffer is None or momentum == 0 else [w, buffer]
    return call("sgd_step_", w, grad, buffer, given, momentum, weight_decay, largest, rate, written=written)


def adam_step_(
    alpha: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    step: Tensor,
    learning_rate: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
) -> Tensor:
    """One step of Adam, in one pass.

        step       <- step + 1
        g          =  grad + weight_decay alpha
        exp_avg    <- beta1 exp_avg    + (1 - beta1) g
        exp_avg_sq <- beta2 exp_avg_sq + (1 - beta2) g^2
        alpha      <- alpha - learning_rate m / (sqrt(v) + eps),
                      m = exp_avg / (1 - beta1^step),  v = exp_avg_sq / (1 - beta2^step)

    (Kingma and Ba 2015, algorithm 1, with the decay in the gradient, as ``torch.optim.Adam`` has it.) Zeros make
    the first step. The kernels compute all of it in float64 and round once.

    Args:
        alpha: shape (H,), float32 or float64, contiguous; written.
        grad: like alpha; left alone.
        exp_avg, exp_avg_sq: running means, like alpha; written.
        step: steps taken so far, shape (), float32, on alpha's device; written.
        learning_rate, eps, weight_decay: >= 0.
        betas: (beta1, beta2), each in [0, 1).

    Returns:
        alpha.

    Raises:
        FastnasError: on arguments that do not fit together; nothing is written then.

    Example:
        >>> alpha, step = torch.ones(2), torch.tensor(0.0)
        >>> adam_step_(alpha, torch.tensor([5.0, -0.1]), torch.zeros(2), torch.zeros(2), step, 0.1)
        tensor([0.9000, 1.1000])
        >>> step
        tensor(1.)
    """
    tensors = {"alpha": alpha, "grad": grad, "exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq, "step": step}
    check_tensors("adam_step_", **tensors)
    beta1, beta2 = betas
    numbers = {
        "learning_rate": learning_rate,
        "beta1": beta1,
        "beta2": beta2,
        "eps": eps,
        "weight_decay": weight_decay,
    }
    settings = [number("adam_step_", name, value) for name, value in numbers.items()]
    if max(beta1, beta2) >= 1:
        raise FastnasError(f"adam_step_: betas must be less than 1, got {betas!r}")
    call("adam_step_", *tensors.values(), *settings, written=[alpha, exp_avg, exp_avg_sq, step])
    return alpha


def _sgd_step_ref(
    w: Tensor,
    grad: Tensor,
    buffer: Tensor | None,
    learning_rate: float,
    momentum: float,
    weight_decay: float,
    clip: float,
    rate: Tensor | None = None,
) -> Tensor:
    """``sgd_step_`` in plain PyTorch."""
    norm = _vector_norm_ref(grad)
    moves = norm.isfinite()
    direction = grad * torch.clamp(clip / (norm + 1e-6), max=1.0)
    if weight_decay:
        direction.add_(w, alpha=weight_decay)
    if momentum and buffer is not None:
        direction = buffer * momentum + direction
        buffer.copy_(torch.where(moves, direction, buffer))
    w.copy_(torch.where(moves, w - direction * (learning_rate if rate is None else rate), w))
    return norm


def _adam_step_ref(
    alpha: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    step: Tensor,
    learning_rate: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
) -> None:
    """``adam_step_`` in plain PyTorch, with the step's count left on its device."""
    count = step.add_(1).double()
    grad = grad.add(alpha, alpha=weight_decay) if weight_decay else grad
    exp_avg.lerp_(grad, 1 - beta1)
    exp_avg_sq.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
    root = exp_avg_sq.sqrt().div_(torch.sqrt(1 - beta2**count)).add_(eps)
    alpha.sub_(exp_avg / root * (learning_rate / (1 - beta1**count)))


@torch.library.register_fake("fastnas::sgd_step_")
def _sgd_step_fake(
    w: Tensor,
    grad: Tensor,
    buffer: Tensor | None,
    learning_rate: float,
    momentum: float,
    weight_decay: float,
    clip: float,
    rate: Tensor | None = None,
) -> Tensor:
    check_vectors("sgd_step_", w=w, grad=grad, **({} if buffer is None else {"buffer": buffer}))
    if rate is not None:
        check_scalar("sgd_step_", "learning_rate", rate, torch.float64, w)
    if buffer is None and momentum:
        raise FastnasError(f"sgd_step_: momentum {momentum:g} needs a buffer, got None")
    return w.new_empty((), dtype=torch.float64)


@torch.library.register_fake("fastnas::adam_step_")
def _adam_step_fake(
    alpha: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    step: Tensor,
    learning_rate: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
) -> None:
    check_vectors("adam_step_", alpha=alpha, grad=grad, exp_avg=exp_avg, exp_avg_sq=exp_avg_sq)
    check_scalar("adam_step_", "step", step, torch.float32, alpha)


run_elsewhere("sgd_step_", _sgd_step_fake, _sgd_step_ref)
run_elsewhere("adam_step_", _adam_step_fake, _adam_step_ref)
