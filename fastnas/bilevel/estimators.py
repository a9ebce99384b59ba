"""Hypergradient estimators: each a function that reads like its equation, on the three oracles.

With v = dL2/dw and H = d2L1/dw2, the hypergradient at a minimum w* of the training loss is, by the implicit
function theorem,

    dL2/dalpha - d2L1/dalpha dw . H^-1 . v

and the estimators differ in what they put for H^-1. All return (H,) and leave w and alpha bit-identical.
"Vectors live" counts vectors of P numbers beside w itself; what an oracle needs inside comes on top.

- DARTS: Liu, Simonyan, Yang, "DARTS: Differentiable Architecture Search", ICLR 2019.
- Amended: Bi et al., "Stabilizing DARTS with Amended Gradient Estimation on Architectural Parameters", 2019.
- iDARTS: Zhang et al., "iDARTS: Differentiable Architecture Search with Stochastic Implicit Gradients",
  ICML 2021.
- T1-T2: Luketina et al., "Scalable Gradient-Based Tuning of Continuous Regularization Hyperparameters",
  ICML 2016.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastnas.bilevel import _arguments as check
from fastnas.bilevel.difference import gradients_along, hessian_vector_product, mixed_product
from fastnas.bilevel.problem import BilevelProblem, restored
from fastnas.ops import neumann_step_, vector_norm, virtual_step_


def first_order(problem: BilevelProblem) -> Tensor:
    """dL2/dalpha at the present w: the first-order DARTS.

        g = dL2/dalpha(w, alpha)

    (Liu et al. 2019, eq. 7 with xi = 0.) One gradient; no vector live.

    Args:
        problem: the oracles.

    Returns:
        g, shape (H,).

    Example:
        >>> from fastnas.bilevel import toy_problem
        >>> first_order(toy_problem())  # L = (w x - a)^2, x = 1 and 2, at w = a = 1: -2a
        tensor([-2.], dtype=torch.float64)
    """
    return problem.val_grad_alpha()


def darts(
    problem: BilevelProblem,
    *,
    learning_rate: float | Tensor,
    momentum: float = 0.0,
    momentum_buffer: Tensor | None = None,
    weight_decay: float = 0.0,
    radius: float = 0.01,
) -> Tensor:
    """The second-order DARTS: differentiate through one virtual weight step.

        w' = w - xi (mu buf + dL1/dw + wd w)
        g  = dL2/dalpha(w', alpha) - xi d2L1/dalpha dw(w, alpha) . v',    v' = dL2/dw(w', alpha)

    (Liu et al. 2019, eq. 7 and 8; momentum and decay as in their code.) The mixed product is taken at w,
    not at w'. Four gradients; 2 vectors live.

    Args:
        problem: the oracles.
        learning_rate: xi >= 0, the weight step's; with 0 this is ``first_order`` at four times the cost. A number, or
            shape (), float64, on w's device: then nothing reads it on the host.
        momentum: mu in [0, 1).
        momentum_buffer: buf, shape (P,), dtype and device of w; not written. None: zero.
        weight_decay: wd >= 0.
        radius: of the central difference, in the units of w; > 0.

    Returns:
        g, shape (H,).

    Raises:
        FastnasError: an argument is out of range, or the buffer is not like w.

    Example:
        >>> from fastnas.bilevel import toy_problem
        >>> g = darts(toy_problem(), learning_rate=0.125)  # dL1/dw = 0 at w = a, so w' = w: -2a + 8a/8
        >>> g.round(decimals=6)
        tensor([-1.], dtype=torch.float64)
    """
    _check_weight_step("darts", problem, momentum, momentum_buffer, weight_decay)
    check.rate("darts", "learning_rate", learning_rate, problem.w)
    check.positive("darts", "radius", radius)
    with restored(problem):
        _virtual_step(problem, learning_rate, momentum, momentum_buffer, weight_decay)
        v, direct = problem.val_grads()
    return direct.sub_(learning_rate * mixed_product(problem, v, radius))


def amended(problem: BilevelProblem, *, eta: float = 0.1, radius: float = 0.01) -> Tensor:
    """The amended estimator: H stands where the theorem has H^-1.

        g = dL2/dalpha - eta d2L1/dalpha dw . H . v,    v = dL2/dw

    (Bi et al. 2019, eq. 6. Their appendix A.2 prints the validation loss in the last difference; equation 6
    needs the training loss, and so it is here.) Five gradients; 4 vectors live.

    Args:
        problem: the oracles.
        eta: the amplitude, >= 0, 0.1 in the paper; with 0 this is ``first_order`` at five times the cost.
        radius: of both central differences, in the units of w; > 0.

    Returns:
        g, shape (H,).

    Raises:
        FastnasError: eta or radius is out of range.

    Example:
        >>> from fastnas.bilevel import toy_problem
        >>> amended(toy_problem(), eta=0.1).round(decimals=6)  # -2a + 16a/10
        tensor([-0.4000], dtype=torch.float64)
    """
    check.not_negative("amended", "eta", eta)
    check.positive("amended", "radius", radius)
    u, direct = problem.val_grads()
    u = hessian_vector_product(problem, u, radius)
    return direct.sub_(mixed_product(problem, u, radius), alpha=eta)


def idarts(
    problem: BilevelProblem, *, gamma: float | Tensor, neumann_terms: int = 2, radius: float = 0.01
) -> Tensor:
    """iDARTS: the inverse Hessian by a truncated Neumann series, after T inner steps.

        g = dL2/dalpha - gamma d2L1/dalpha dw . sum over k = 0..K of V_k,
        V_0 = v = dL2/dw,    V_k+1 = V_k - gamma H V_k

    (Zhang et al. 2021, eq. 8 and 9.) Taken at the present w: make the T inner steps first (``inner_steps``,
    or a search's own weight steps). The series converges for 0 < gamma < 2/L, L the largest eigenvalue of
    H; for gamma <= 1/L the error at w* is at most C (1/mu) (1 - gamma mu)^(K+1), C = |d2L1/dalpha dw| |v|
    (Theorem 1). 2K + 3 gradients; 5 vectors live, whatever K (3 for K = 0).

    Args:
        problem: the oracles, at the w reached by the inner steps.
        gamma: > 0, the inner steps' learning rate in the paper. A number, or shape (), float64, on w's device: then
            nothing reads it on the host.
        neumann_terms: K >= 0, terms after the identity; 2 in the paper.
        radius: of each central difference, in the units of w; > 0.

    Returns:
        g, shape (H,).

    Raises:
        FastnasError: an argument is out of range.

    Example:
        >>> from fastnas.bilevel import toy_problem
        >>> idarts(toy_problem(), gamma=0.25, neumann_terms=1).round(decimals=6)  # -2a + 4a (1 - 1/2^2)
        tensor([1.], dtype=torch.float64)
        >>> idarts(toy_problem(), gamma=0.25, neumann_terms=30).round(decimals=6)  # tends to the exact 2a
        tensor([2.], dtype=torch.float64)
    """
    check.flat_vector("idarts", "w", problem.w)
    check.rate("idarts", "gamma", gamma, problem.w, above=True)
    check.count("idarts", "neumann_terms", neumann_terms)
    check.positive("idarts", "radius", radius)
    v, direct = problem.val_grads()
    series = _neumann_series(problem, v.contiguous(), gamma, neumann_terms, radius)
    return direct.sub_(gamma * mixed_product(problem, series, radius))


def _neumann_series(
    problem: BilevelProblem, v: Tensor, gamma: float | Tensor, terms: int, radius: float
) -> Tensor:
    """The sum of V_k over k = 0..K; v becomes V_K. A term costs two gradients and three passes over P numbers: w is
    moved twice and saved once for all terms, and the step leaves the norm that the next one's eps needs.
    """
    series, norm = v.clone(), vector_norm(v)
    with restored(problem) as saved:
        for _ in range(terms):
            sides = gradients_along("idarts", problem, problem.train_grad_w, saved, v, norm, radius)
            norm = neumann_step_(v, series, *sides, norm, radius, gamma)
            del sides  # before the next gradient is taken
    return series


def t1_t2(problem: BilevelProblem, *, radius: float = 0.01) -> Tensor:
    """T1-T2: the identity stands where the theorem has H^-1.

        g = dL2/dalpha - d2L1/dalpha dw . v,    v = dL2/dw

    (Luketina et al. 2016, whose weight step scales the second term; the scale is 1 here.) Taken at the
    present w, after the weight step. Three gradients; 2 vectors live.

    Args:
        problem: the oracles.
        radius: of the central difference, in the units of w; > 0.

    Returns:
        g, shape (H,).

    Raises:
        FastnasError: radius is out of range.

    Example:
        >>> from fastnas.bilevel import toy_problem
        >>> t1_t2(toy_problem()).round(decimals=6)  # -2a + 8a
        tensor([6.], dtype=torch.float64)
    """
    check.positive("t1-t2", "radius", radius)
    v, direct = problem.val_grads()
    return direct.sub_(mixed_product(problem, v, radius))


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
    _check_weight_step("inner_steps", problem, momentum, momentum_buffer, weight_decay)
    buffer = momentum_buffer
    if buffer is None and momentum and steps:
        buffer = torch.zeros_like(problem.w)
    for _ in range(steps):
        _weight_step(problem, learning_rate, momentum, buffer, weight_decay)


def _weight_step(
    problem: BilevelProblem, learning_rate: float, momentum: float, buffer: Tensor | None, weight_decay: float
) -> None:
    direction = problem.train_grad_w()
    with torch.no_grad():
        if weight_decay:
            direction.add_(problem.w, alpha=weight_decay)
        if momentum and buffer is not None:
            direction.add_(buffer, alpha=momentum)
        problem.w.sub_(direction, alpha=learning_rate)
        if buffer is not None:
            buffer.copy_(direction)


def _virtual_step(
    problem: BilevelProblem,
    learning_rate: float | Tensor,
    momentum: float,
    buffer: Tensor | None,
    weight_decay: float,
) -> None:
    """w <- w - xi (mu buf + dL1/dw + wd w)."""
    w, grad = problem.w, problem.train_grad_w().contiguous()
    buffer = None if buffer is None else buffer.contiguous()
    moved = w.contiguous()
    virtual_step_(moved, grad, buffer, learning_rate, momentum, weight_decay)
    if moved is not w:  # weights with a stride
        with torch.no_grad():
            w.copy_(moved)


def _check_weight_step(
    where: str, problem: BilevelProblem, momentum: float, buffer: Tensor | None, weight_decay: float
) -> None:
    check.flat_vector(where, "w", problem.w)
    check.momentum_factor(where, momentum)
    if buffer is not None:
        check.like_w(where, "momentum_buffer", buffer, problem.w)
    check.not_negative(where, "weight_decay", weight_decay)
