"""Second-order products by differences of the first-order oracles.

A product moves w (or alpha) along u by eps = radius/|u|, the rule of Liu et al. 2019 (section 2.3), so it costs
two gradients, or one beside a base gradient that several products share, and no graph of second order. On a smooth
loss the error is O(radius^2), or O(radius) from a base. ReLU and max-pooling are not smooth: there the difference also
measures the switches that the step crosses, and a smaller radius does not bring it closer to the exact second
derivative.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fastnas.bilevel import _arguments as check
from fastnas.bilevel.problem import BilevelProblem, kept
from fastnas.errors import FastnasError
from fastnas.ops import difference_, perturb_, vector_norm

Gradient = Callable[[], Tensor]


def hessian_vector_product(problem: BilevelProblem, u: Tensor, radius: float = 0.01) -> Tensor:
    """H u, the Hessian of the training loss times a vector, by central differences.

        H u ~ [dL1/dw(w + eps u) - dL1/dw(w - eps u)] / (2 eps),    eps = radius/|u|

    The difference of Liu et al. 2019, eq. 8, taken of dL1/dw, as Bi et al. 2019 and Zhang et al. 2021 do.
    Two gradients. Vectors of P numbers live at most, beside w: 4 (u, the saved w, two gradients).
    Nothing waits for the device: eps stays on it.

    Args:
        problem: the oracles; ``w`` is left bit-identical, also if an oracle raises.
        u: shape (P,), dtype and device of w; not written. u = 0 gives exactly 0.
        radius: length of the step, |eps u|, in the units of w; > 0.

    Returns:
        H u, shape (P,), the caller's own.

    Raises:
        FastnasError: u is not like w, w is not float32 or float64, radius is not a number > 0, or
            an oracle hands out one buffer twice.

    Example:
        >>> from fastnas.bilevel import FunctionProblem
        >>> problem = FunctionProblem(lambda w, a: (w**3).sum(), lambda w, a: w.sum() + a.sum(),
        ...                           torch.tensor([1.0, 2.0]).double(), torch.tensor([0.0]).double())
        >>> hessian_vector_product(problem, torch.tensor([1.0, 1.0]).double()).round(decimals=6)
        tensor([ 6., 12.], dtype=torch.float64)
    """
    return _along_w("hessian_vector_product", problem.w, problem.train_grad_w, u, radius)


def mixed_product(problem: BilevelProblem, u: Tensor, radius: float = 0.01) -> Tensor:
    """d2L1/dalpha dw . u, the mixed second derivative of the training loss times a vector.

        d2L1/dalpha dw . u ~ [dL1/dalpha(w + eps u) - dL1/dalpha(w - eps u)] / (2 eps),    eps = radius/|u|

    (Liu et al. 2019, eq. 8.) Two gradients. Vectors of P numbers live at most, beside w and what the
    oracle needs inside: 2 (u, the saved w). Nothing waits for the device: eps stays on it.

    Args:
        problem: the oracles; ``w`` is left bit-identical, also if an oracle raises.
        u: shape (P,), dtype and device of w; not written. u = 0 gives exactly 0.
        radius: length of the step, |eps u|, in the units of w; > 0.

    Returns:
        The product, shape (H,), the caller's own.

    Raises:
        FastnasError: u is not like w, w is not float32 or float64, radius is not a number > 0, or
            an oracle hands out one buffer twice.

    Example:
        >>> from fastnas.bilevel import FunctionProblem
        >>> problem = FunctionProblem(lambda w, a: a[0] * (w**2).sum(), lambda w, a: w.sum() + a.sum(),
        ...                           torch.tensor([1.0, 2.0]).double(), torch.tensor([0.0]).double())
        >>> mixed_product(problem, torch.tensor([1.0, 1.0]).double()).round(decimals=6)
        tensor([6.], dtype=torch.float64)
    """
    return _along_w("mixed_product", problem.w, problem.train_grad_alpha, u, radius)


def _along_w(where: str, w: Tensor, gradient: Gradient, u: Tensor, radius: float) -> Tensor:
    check.flat_vector(where, "w", w)
    check.like_w(where, "u", u, w)
    return difference(where, w, gradient, u, radius)


def difference(
    where: str, at: Tensor, gradient: Gradient, u: Tensor, radius: float, base: Tensor | None = None
) -> Tensor:
    """The derivative of ``gradient()`` along u by a difference; the live vector ``at`` comes back to the bit.

    Args:
        where: the function to name in an error.
        at: w or alpha, flat.
        gradient: an oracle.
        u: like ``at``; not written.
        radius: length of the step, > 0.
        base: the gradient at ``at`` itself: the difference is a forward one from it. None: central.

    Returns:
        As long as the gradient, the caller's own.

    Raises:
        FastnasError: radius is not a number > 0, or the oracle hands out one buffer twice.
    """
    check.positive(where, "radius", radius)
    direction = u.contiguous()
    norm = vector_norm(direction)
    with kept(at) as saved:
        if _same_memory(direction, at):
            direction = u.clone()  # the caller asks for the product with w itself, which is about to move
        ahead, behind = gradients_along(where, at, gradient, saved, direction, norm, radius, base)
    return difference_(ahead, behind, norm, step_of(radius, base))


def step_of(radius: float, base: Tensor | None) -> float:
    """The radius for ops that divide by twice the step: from a base the sides are one step apart."""
    return radius if base is None else radius / 2


def gradients_along(
    where: str,
    at: Tensor,
    gradient: Gradient,
    saved: Tensor,
    u: Tensor,
    norm: Tensor,
    radius: float,
    base: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """(gradient at saved + eps u, gradient at saved - eps u or ``base``), eps = radius/|u|: the sides of a difference.

    ``at`` is left where the last was taken; ``kept`` gives ``saved`` and puts it back.
    """
    _displace(at, saved, u, norm, radius, 1)
    ahead = gradient()
    if base is None:
        _displace(at, saved, u, norm, radius, -1)
        behind = gradient()
    else:
        behind = base
    if _same_memory(ahead, behind):
        raise FastnasError(
            f"{where}: the oracle returned the same memory twice, so the difference would be 0; "
            "a gradient must be the caller's own, never written by a later call"
        )
    return ahead.contiguous(), behind.contiguous()


@torch.no_grad()
def _displace(w: Tensor, saved: Tensor, u: Tensor, norm: Tensor, radius: float, sign: int) -> None:
    """w <- saved + sign eps u."""
    if w.is_contiguous():
        perturb_(w, saved, u, norm, radius, sign)
    else:
        w.copy_(perturb_(torch.empty_like(u), saved, u, norm, radius, sign))


def _same_memory(a: Tensor, b: Tensor) -> bool:
    # Compared by address, on the host; tensors without memory (empty, meta) have address 0.
    return a.data_ptr() == b.data_ptr() != 0
