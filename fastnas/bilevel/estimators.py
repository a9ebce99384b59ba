"""Hypergradients of a fixed form: each a function that reads like its equation, on the three oracles.

With v = dL2/dw and H = d2L1/dw2, the hypergradient at a minimum w* of the training loss is, by the implicit
function theorem,

    dL2/dalpha - d2L1/dalpha dw . H^-1 . v

and these put something fixed for H^-1; ``implicit.py`` has those that solve with H, ``unrolled.py`` those that go back
through the weight steps. All return (H,) and leave w and alpha bit-identical. Gradients are counted for central
differences. "Vectors live" counts vectors of P numbers beside w itself; what an oracle needs inside comes on top.

- DARTS: Liu, Simonyan, Yang, "DARTS: Differentiable Architecture Search", ICLR 2019.
- Amended: Bi et al., "Stabilizing DARTS with Amended Gradient Estimation on Architectural Parameters", 2019.
- T1-T2: Luketina et al., "Scalable Gradient-Based Tuning of Continuous Regularization Hyperparameters",
  ICML 2016.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastnas.bilevel import _arguments as check
from fastnas.bilevel.problem import BilevelProblem, restored
from fastnas.bilevel.products import CENTRAL, Products
from fastnas.bilevel.unrolled import CLIP_EPS
from fastnas.ops import vector_norm, virtual_step_


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
    clip: float = math.inf,
    products: Products = CENTRAL,
) -> Tensor:
    """The second-order DARTS: differentiate through one virtual weight step.

        w' = w - xi (mu buf + c dL1/dw + wd w)
        g  = dL2/dalpha(w', alpha) - xi c d2L1/dalpha dw(w, alpha) . v',    v' = dL2/dw(w', alpha)
        c  = min(1, clip / (|dL1/dw| + 1e-6)), a constant

    (Liu et al. 2019, eq. 7 and 8; momentum and decay as in their code.) The mixed product is taken at w,
    not at w'. Four gradients; 2 vectors live.

    Args:
        problem: the oracles.
        learning_rate: xi >= 0, the weight step's; with 0 this is ``first_order`` at four times the cost. A number, or
            shape (), float64, on w's device: then nothing reads it on the host.
        momentum: mu in [0, 1).
        momentum_buffer: buf, shape (P,), dtype and device of w; not written. None: zero.
        weight_decay: wd >= 0.
        clip: of dL1/dw's norm, > 0, as the weight step has it; infinity: none, c = 1.
        products: how the mixed product is taken.

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
    check.weight_step("darts", problem.w, momentum, momentum_buffer, weight_decay)
    check.rate("darts", "learning_rate", learning_rate, problem.w)
    if clip != math.inf:
        check.positive("darts", "clip", clip)
    with restored(problem):
        kept = _virtual_step(problem, learning_rate, momentum, momentum_buffer, weight_decay, clip)
        v, direct = problem.val_grads()
    step = learning_rate if kept is None else learning_rate * kept
    return direct.sub_(step * products.of(problem).mixed(v))


def amended(problem: BilevelProblem, *, eta: float = 0.1, products: Products = CENTRAL) -> Tensor:
    """The amended estimator: H stands where the theorem has H^-1.

        g = dL2/dalpha - eta d2L1/dalpha dw . H . v,    v = dL2/dw

    (Bi et al. 2019, eq. 6. Their appendix A.2 prints the validation loss in the last difference; equation 6
    needs the training loss, and so it is here.) Five gradients; 4 vectors live.

    Args:
        problem: the oracles.
        eta: the amplitude, >= 0, 0.1 in the paper; with 0 this is ``first_order`` at five times the cost.
        products: how H v and the mixed product are taken.

    Returns:
        g, shape (H,).

    Raises:
        FastnasError: eta is out of range.

    Example:
        >>> from fastnas.bilevel import toy_problem
        >>> amended(toy_problem(), eta=0.1).round(decimals=6)  # -2a + 16a/10
        tensor([-0.4000], dtype=torch.float64)
    """
    check.not_negative("amended", "eta", eta)
    u, direct = problem.val_grads()
    curvature = products.of(problem)
    u = curvature.hessian(u)
    return direct.sub_(curvature.mixed(u), alpha=eta)


def t1_t2(problem: BilevelProblem, *, products: Products = CENTRAL) -> Tensor:
    """T1-T2: the identity stands where the theorem has H^-1.

        g = dL2/dalpha - d2L1/dalpha dw . v,    v = dL2/dw

    (Luketina et al. 2016, whose weight step scales the second term; the scale is 1 here.) Taken at the
    present w, after the weight step. Three gradients; 2 vectors live.

    Args:
        problem: the oracles.
        products: how the mixed product is taken.

    Returns:
        g, shape (H,).

    Example:
        >>> from fastnas.bilevel import toy_problem
        >>> t1_t2(toy_problem()).round(decimals=6)  # -2a + 8a
        tensor([6.], dtype=torch.float64)
    """
    v, direct = problem.val_grads()
    return direct.sub_(products.of(problem).mixed(v))


def _virtual_step(
    problem: BilevelProblem,
    learning_rate: float | Tensor,
    momentum: float,
    buffer: Tensor | None,
    weight_decay: float,
    clip: float,
) -> Tensor | None:
    """w <- w - xi (mu buf + c dL1/dw + wd w); c, None without clipping."""
    w, grad = problem.w, problem.train_grad_w().contiguous()
    kept = None if clip == math.inf else (clip / (vector_norm(grad) + CLIP_EPS)).clamp(max=1)
    if kept is not None:
        grad = grad * kept
    buffer = None if buffer is None else buffer.contiguous()
    moved = w.contiguous()
    virtual_step_(moved, grad, buffer, learning_rate, momentum, weight_decay)
    if moved is not w:  # weights with a stride
        with torch.no_grad():
            w.copy_(moved)
    return kept
