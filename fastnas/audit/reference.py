"""The yardsticks: what the estimators are held against, and by which name."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from fastnas.audit.config import AuditOptions, Plan
from fastnas.audit.state import State
from fastnas.bilevel import Ends, Products, TwiceDifferentiable, Watch, implicit
from fastnas.bilevel.solvers import DENSE_LIMIT, MatVec, Solver, conjugate_gradients, dense
from fastnas.ops import vector_norm
from fastnas.search.self_audit import EXACT, damping_for

# Of the residual. Beside what a handful of minibatches leave open, a thousandth is nothing.
TOLERANCE, TOLERANCE_OF_MANY = 1e-6, 1e-3


@dataclass(frozen=True)
class Reference:
    """An implicit hypergradient that is as good as can be had.

    Attributes:
        key: "A", "B" or "C".
        name: how it was made.
        images: of either split that it has seen.
        hypergradient: (H,).
        direct: (H,), its direct term, dL2/dalpha.
        damping: delta; it solves with H + delta I.
        residual: |v - (H + delta I) x| / |v| that its solver left.
        noticed: what the solver met that its theory excludes.
    """

    key: str
    name: str
    images: int
    hypergradient: Tensor
    direct: Tensor
    damping: float
    residual: float
    noticed: list[str]

    @property
    def term(self) -> Tensor:
        """The second-order term alone, g - dL2/dalpha."""
        return self.hypergradient - self.direct


def reference_damping(options: AuditOptions, spectrum: Ends) -> float:
    """delta: what is asked for, or what makes H + delta I well conditioned (``damping_for``)."""
    asked = options.reference_damping
    return damping_for(spectrum) if asked is None else asked


def on_one_minibatch(state: State, plan: Plan, damping: float) -> Reference:
    """A: exact products on the minibatch that the estimators see: what they would be without an error of their own."""
    images = len(state.train[0][1])
    return _reference(
        "A", state.problem, plan, damping, EXACT, images, dense_too=plan.dense, what="the same minibatch"
    )


def on_many(state: State, plan: Plan, damping: float) -> Reference:
    """B: exact products over all minibatches: what a step of the search wants to know."""
    return _reference("B", state.large, plan, damping, EXACT, _images(state), what=_many(state))


def by_differences(state: State, plan: Plan, damping: float, radius: float) -> Reference:
    """C: differences over all minibatches. They see the curvature of the switches, which exact products do not."""
    products = Products(radius=radius)
    return _reference("C", state.large, plan, damping, products, _images(state), what=_many(state))


def _reference(
    key: str,
    problem: TwiceDifferentiable,
    plan: Plan,
    damping: float,
    products: Products,
    images: int,
    *,
    what: str,
    dense_too: bool = False,
) -> Reference:
    watch, residuals = Watch(), [0.0]
    tolerance = TOLERANCE if key == "A" else TOLERANCE_OF_MANY
    exactly = dense_too and len(problem.w) <= DENSE_LIMIT
    solver = (
        dense(damping=damping)
        if exactly
        else conjugate_gradients(plan.reference_steps, tolerance=tolerance, damping=damping, watch=watch)
    )
    hypergradient = implicit(problem, solve=_checked(solver, damping, residuals), products=products)
    how = "H written out" if exactly else f"at most {plan.reference_steps} steps of conjugate gradients"
    ways = "exact products" if products == EXACT else f"differences of r = {products.radius:.3g}"
    return Reference(
        key,
        f"implicit, {what}, {ways}, {how}",
        images,
        hypergradient,
        problem.val_grad_alpha(),
        damping,
        residuals[0],
        watch.sentences(),
    )


def _checked(solver: Solver, damping: float, residuals: list[float]) -> Solver:
    """``solver``, whose relative residual is left in ``residuals``; one product more."""

    def solve(matvec: MatVec, b: Tensor) -> Tensor:
        v = b.clone()
        x = solver(matvec, b)
        rest = v - matvec(x) - damping * x
        residuals[0] = (vector_norm(rest) / vector_norm(v)).item()
        return x

    return solve


def _images(state: State) -> int:
    return sum(len(labels) for _, labels in state.train)


def _many(state: State) -> str:
    count = len(state.train)
    return f"the mean of {count} minibatches" if count > 1 else "one minibatch"
