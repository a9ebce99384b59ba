"""The inner problem solved to rounding, which the implicit hypergradients rest on."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from fastnas.bilevel.solvers import conjugate_gradients
from fastnas.errors import FastnasError
from fastnas.hypergradient import ModuleProblem


def minimise(
    loss: Callable[[], Tensor], model: nn.Module, outer: Tensor, *, tolerance: float = 1e-10, limit: int = 50
) -> None:
    """Moves the parameters of ``model`` to the minimum of a convex ``loss()``, by Newton's method.

    Its steps are solved by conjugate gradients, as the hypergradient will be: H is never written out.

    Args:
        loss: of the live model.
        model: whose parameters move.
        outer: parameters that the loss depends on, too.
        tolerance: of the gradient's norm.
        limit: the most steps.

    Raises:
        FastnasError: it is not there after so many steps.
    """
    with ModuleProblem(loss, loss, model, outer, keep_graph=True) as problem:
        for _ in range(limit):
            grad = problem.train_grad_w()
            norm = grad.norm().item()
            if norm <= tolerance:
                problem.commit()
                return
            # The smaller the gradient, the more exact the step: few products at first, fast convergence at last.
            solve = conjugate_gradients(1000, tolerance=min(0.1, norm))
            step, before, value = solve(problem.train_hessian_product, grad), problem.w.clone(), loss().item()
            length = 1.0
            problem.w.sub_(step)
            while loss().item() > value + 1e-12 and length > 1e-6:
                length /= 2
                problem.w.copy_(before - length * step)
    raise FastnasError(
        f"minimise: the gradient's norm is {norm:.1e} after {limit} Newton steps, not {tolerance:g}"
    )
