"""What an audit will cost, told before it begins."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fastnas._measure import synchronize
from fastnas.audit.config import Plan
from fastnas.audit.neumann import PROBES
from fastnas.audit.state import State
from fastnas.bilevel import METHODS, InnerSettings
from fastnas.bilevel.solvers import DENSE_LIMIT
from fastnas.search.self_audit import LANCZOS


@dataclass(frozen=True)
class Cost:
    """Calls of the oracles, at the most, and what one takes on this device.

    Attributes:
        gradients, exact_products: how many.
        gradient_seconds, product_seconds: of one, on one minibatch.
    """

    gradients: int
    exact_products: int
    gradient_seconds: float
    product_seconds: float

    @property
    def calls(self) -> int:
        """Of either kind."""
        return self.gradients + self.exact_products

    @property
    def seconds(self) -> float:
        """Of the whole audit, about: conjugate gradients may be done earlier."""
        return self.gradients * self.gradient_seconds + self.exact_products * self.product_seconds

    def __str__(self) -> str:
        return (
            f"at most {self.gradients:,} gradients of {self.gradient_seconds:.2g} s and {self.exact_products:,} exact "
            f"products of {self.product_seconds:.2g} s: about {_duration(self.seconds)}"
        )


def expected_cost(state: State, plan: Plan) -> Cost:
    """Counts what the plan asks for, and times a gradient and an exact product (the second of two)."""
    problem = state.problem
    v, _ = problem.val_grads()
    gradient = _seconds(problem.train_grad_w, state)
    product = _seconds(lambda: problem.train_hessian_product(v), state)
    gradients, products = (
        sum(counts)
        for counts in zip(
            _references(state, plan),
            _sweep(state, plan),
            _table(state, plan),
            _series(state, plan),
            strict=True,
        )
    )
    return Cost(gradients, products, gradient, product)


def _references(state: State, plan: Plan) -> tuple[int, int]:
    n, steps, weights = len(state.train), plan.reference_steps + 2, len(state.search.net.weights)
    one = weights + 2 if plan.dense and weights <= DENSE_LIMIT else steps
    return 2 + 2 * n + 2 * n * steps + 2 * n, 2 * LANCZOS * (plan.probes + 1) + one + n * steps


def _sweep(state: State, plan: Plan) -> tuple[int, int]:
    n = len(state.train)
    return 4 * len(plan.radii) * (n + 1) + 1, 2 * (n + 1)


def _table(state: State, plan: Plan) -> tuple[int, int]:
    settings, weights = state.settings(state.search.step.settings.products), len(state.search.net.weights)
    gradients = products = 0
    for method in METHODS.values():
        calls = method.gradients(settings)
        if calls is None:
            products += weights + 1 if plan.dense and weights <= DENSE_LIMIT else 0
            continue
        gradients += 2 * calls + 6
        products += calls // 2
    return gradients, products


def _series(state: State, plan: Plan) -> tuple[int, int]:
    settings: InnerSettings = state.search.step.settings
    reverse = sum(7 * steps + 2 for steps in plan.horizons)
    idarts = sum(steps + 2 * settings.neumann_terms + 3 for steps in plan.horizons)
    truncated = sum(steps + 6 * settings.reverse_steps + 2 for steps in plan.horizons)
    return reverse + idarts + truncated + 1, 2 * (2 * plan.neumann_terms + 1) + PROBES


def _seconds(call: Callable[[], Any], state: State) -> float:
    call()
    synchronize(state.device)
    begin = time.perf_counter()
    call()
    synchronize(state.device)
    return time.perf_counter() - begin


def _duration(seconds: float) -> str:
    """
    >>> _duration(7), _duration(300), _duration(9000)
    ('7 s', '5 min', '2.5 h')
    """
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
