"""Hypergradients through the weight steps themselves: reverse mode over T steps of SGD, or the last K of them.

Exact for the map that the steps are, minimum or not, at the price of the weights of every step (O(T) memory).

- Reverse mode: Maclaurin, Duvenaud, Adams, "Gradient-based Hyperparameter Optimization through Reversible Learning",
  ICML 2015; Franceschi et al., "Forward and Reverse Gradient-Based Hyperparameter Optimization", ICML 2017.
- Truncated: Shaban et al., "Truncated Back-propagation for Bilevel Optimization", AISTATS 2019.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

import torch
from torch import Tensor

from fastnas.bilevel import _arguments as check
from fastnas.bilevel.problem import BilevelProblem, kept
from fastnas.bilevel.products import CENTRAL, Products
from fastnas.errors import FastnasError
from fastnas.ops import vector_norm

CLIP_EPS = 1e-6  # of torch.nn.utils.clip_grad_norm_


@dataclass(frozen=True)
class InnerSgd:
    """The inner optimiser: PyTorch's SGD without dampening, behind its ``clip_grad_norm_``.

        grad <- grad min(1, clip / (|grad| + 1e-6))
        buf  <- mu buf + grad + wd w
        w    <- w - lr buf

    Args:
        learning_rate: lr >= 0.
        momentum: mu in [0, 1).
        weight_decay: wd >= 0.
        clip: > 0, infinity: none.
    """

    learning_rate: float
    momentum: float = 0.0
    weight_decay: float = 0.0
    clip: float = math.inf

    def __post_init__(self) -> None:
        check.not_negative("InnerSgd", "learning_rate", self.learning_rate)
        check.momentum_factor("InnerSgd", self.momentum)
        check.not_negative("InnerSgd", "weight_decay", self.weight_decay)
        if self.clip != math.inf:
            check.positive("InnerSgd", "clip", self.clip)


class Trajectory:
    """The weight steps that were made: for each, the problem whose training loss it took, and w before it.

    Args:
        optimiser: which made all of them.
        last: keep the last so many only; None: all. A vector of P numbers each.

    Attributes:
        steps: (problem, w before the step), in order; w of the problem is the live vector.
    """

    def __init__(self, optimiser: InnerSgd, last: int | None = None) -> None:
        if last is not None:
            check.count("Trajectory", "last", last)
        self.optimiser = optimiser
        self.steps: deque[tuple[BilevelProblem, Tensor]] = deque(maxlen=last)

    def record(self, problem: BilevelProblem) -> None:
        """To be called before each weight step: keeps a copy of w."""
        if self.steps.maxlen != 0:
            self.steps.append((problem, problem.w.clone()))


def unroll(
    problem: BilevelProblem,
    optimiser: InnerSgd,
    steps: int,
    *,
    momentum_buffer: Tensor | None = None,
    last: int | None = None,
) -> Trajectory:
    """Makes T weight steps on the training loss of the current minibatch and records them. T gradients.

    Args:
        problem: the oracles; ``w`` is moved in place.
        optimiser: of the steps.
        steps: T >= 0.
        momentum_buffer: buf, shape (P,), dtype and device of w; moved in place. None: starts at zero and is dropped.
        last: record the last so many only; None: all.

    Returns:
        What ``reverse`` goes back through.

    Raises:
        FastnasError: an argument is out of range, or the buffer is not like w.
    """
    check.count("unroll", "steps", steps)
    check.flat_vector("unroll", "w", problem.w)
    if momentum_buffer is not None:
        check.like_w("unroll", "momentum_buffer", momentum_buffer, problem.w)
    elif optimiser.momentum and steps:
        momentum_buffer = torch.zeros_like(problem.w)
    trajectory = Trajectory(optimiser, last)
    for _ in range(steps):
        trajectory.record(problem)
        _weight_step(problem, optimiser, momentum_buffer)
    return trajectory


def inner_steps(
    problem: BilevelProblem,
    *,
    steps: int,
    learning_rate: float,
    momentum: float = 0.0,
    momentum_buffer: Tensor | None = None,
    weight_decay: float = 0.0,
) -> None:
    """Move w by T steps of SGD on the training loss of the current minibatch.

        buf <- mu buf + dL1/dw + wd w
        w   <- w - lr buf

    PyTorch's SGD without dampening. For problems that have no training loop of their own. T gradients;
    1 vector live without momentum, 2 with (buf among them). If an oracle raises, w stays where the steps
    before had brought it.

    Args:
        problem: the oracles; ``w`` is moved in place.
        steps: T >= 0.
        learning_rate: lr >= 0.
        momentum: mu in [0, 1).
        momentum_buffer: buf, shape (P,), dtype and device of w; moved in place. None: starts at zero and is
            dropped at the end.
        weight_decay: wd >= 0.

    Raises:
        FastnasError: an argument is out of range, or the buffer is not like w.

    Example:
        >>> from fastnas.bilevel import toy_problem
        >>> problem = toy_problem()
        >>> problem.w.fill_(3.0)
        tensor([3.], dtype=torch.float64)
        >>> inner_steps(problem, steps=2, learning_rate=0.25)  # halves w - a = 2 twice
        >>> problem.w
        tensor([1.5000], dtype=torch.float64)
    """
    check.count("inner_steps", "steps", steps)
    check.not_negative("inner_steps", "learning_rate", learning_rate)
    check.weight_step("inner_steps", problem.w, momentum, momentum_buffer, weight_decay)
    optimiser = InnerSgd(learning_rate, momentum, weight_decay)
    unroll(problem, optimiser, steps, momentum_buffer=momentum_buffer, last=0)


def reverse(problem: BilevelProblem, trajectory: Trajectory, *, products: Products = CENTRAL) -> Tensor:
    """Reverse mode: dL2/dalpha at the w that the steps reached, through each of them, last to first.

        g <- dL2/dalpha,  a <- dL2/dw,  m <- 0;    for t = T..1, at w_(t-1):
        c = m - lr a,   d = clip'(grad) c,   g += d2L1/dalpha dw . d,   a += H d + wd c,   m <- mu c

    a and m are the adjoints of w and of the momentum buffer, d that of the gradient before its clipping. (Franceschi
    et al. 2017, algorithm 1 with the map of the steps above; Shaban et al. 2019, eq. 7 where the trajectory keeps the
    last steps only.) The weights before the first recorded step do not depend on alpha. 4T + 1 gradients, one more a
    step with clipping; T + 6 vectors live, one more with momentum and T > 1, one more with clipping.

    Args:
        problem: the oracles, at the w that the steps reached; L2 is its.
        trajectory: of the steps; ``Trajectory(last=K)`` makes it the truncated reverse mode.
        products: how H u and the mixed products are taken.

    Returns:
        g, shape (H,); ``w`` is left bit-identical.

    Raises:
        FastnasError: the steps moved other weights than the problem's.

    Example:
        >>> from fastnas.bilevel import toy_problem
        >>> problem = toy_problem()  # dL1/dw = 0 there: the steps stay, w_T = alpha (1 - 1/2^2) + w_0/2^2
        >>> reverse(problem, unroll(problem, InnerSgd(0.25), 2)).round(decimals=6)
        tensor([1.], dtype=torch.float64)
    """
    optimiser = trajectory.optimiser
    a, g = problem.val_grads()
    with kept(problem.w):
        m: Tensor | None = None
        for before, w in reversed(trajectory.steps):
            if before.w is not problem.w and before.w.data_ptr() != problem.w.data_ptr():
                raise FastnasError("reverse: the trajectory's steps moved other weights than the problem's w")
            with torch.no_grad():
                problem.w.copy_(w)
            c = a * -optimiser.learning_rate if m is None else m - optimiser.learning_rate * a
            d = _through_clipping(before, c, optimiser.clip)
            curvature = products.of(before)
            g += curvature.mixed(d)
            a += curvature.hessian(d)
            a.add_(c, alpha=optimiser.weight_decay)
            m = c.mul_(optimiser.momentum) if optimiser.momentum else None
    return g


def truncated_reverse(
    problem: BilevelProblem, trajectory: Trajectory, *, last: int, products: Products = CENTRAL
) -> Tensor:
    """Reverse mode through the last K steps: those before are taken for independent of alpha.

    (Shaban et al. 2019, eq. 7; their Proposition 3.1: near a minimum of a strongly convex L1 the error falls like
    (1 - lr mu)^K.) 4K + 1 gradients, one more a step with clipping; K + 6 vectors live, and more as
    in ``reverse``.

    Args:
        problem, trajectory, products: as of ``reverse``.
        last: K >= 0.

    Returns:
        g, shape (H,); ``w`` is left bit-identical.

    Raises:
        FastnasError: the steps moved other weights than the problem's.
    """
    shorter = Trajectory(trajectory.optimiser, last)
    shorter.steps.extend(trajectory.steps)
    return reverse(problem, shorter, products=products)


def _weight_step(problem: BilevelProblem, optimiser: InnerSgd, buffer: Tensor | None) -> None:
    direction = problem.train_grad_w()
    with torch.no_grad():
        if optimiser.clip != math.inf:
            direction.mul_((optimiser.clip / (vector_norm(direction) + CLIP_EPS)).clamp(max=1))
        if optimiser.weight_decay:
            direction.add_(problem.w, alpha=optimiser.weight_decay)
        if optimiser.momentum and buffer is not None:
            direction.add_(buffer, alpha=optimiser.momentum)
        problem.w.sub_(direction, alpha=optimiser.learning_rate)
        if buffer is not None:
            buffer.copy_(direction)


def _through_clipping(problem: BilevelProblem, c: Tensor, clip: float) -> Tensor:
    """The adjoint of the gradient from that of its clipped self, at the present w.

    Where s = clip / (|grad| + 1e-6) < 1 it is s (c - n' <n, c>), n = grad / |grad|, n' = grad / (|grad| + 1e-6).
    """
    if clip == math.inf:
        return c
    grad = problem.train_grad_w()
    norm = vector_norm(grad)
    share, along = clip / (norm + CLIP_EPS), torch.dot(grad, c) / norm
    clipped = share * (c - grad * (along / (norm + CLIP_EPS)).to(c.dtype))
    return torch.where(share < 1, clipped.to(c.dtype), c)
