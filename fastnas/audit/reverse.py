"""The reverse modes: memory against T, the weight steps that they go back through."""

from __future__ import annotations

import time
from typing import Any

from fastnas._measure import peak_bytes, synchronize
from fastnas.audit.state import State
from fastnas.bilevel import METHODS, Method, Products, idarts, reverse, unroll


def memory_against_steps(state: State, horizons: tuple[int, ...], products: Products) -> list[dict[str, Any]]:
    """Peak memory and time of T weight steps and the hypergradient behind them.

    The reverse modes keep w before every step that they go back through, T or K vectors of P numbers, and the implicit
    ones nothing: iDARTS stands for these. All steps are on one minibatch, and undone.

    Args:
        state: where they begin.
        horizons: T.
        products: of all three.

    Returns:
        A row for each method and T: ``method``, ``steps``, ``kept`` (weight vectors), ``peak_bytes``, ``seconds``.
    """
    last = state.settings(products).reverse_steps
    kept = {
        "reverse": lambda steps: steps,
        "truncated-reverse": lambda steps: min(steps, last),
        "idarts": lambda _: 0,
    }
    return [
        {
            "method": name,
            "steps": steps,
            "kept": count(steps),
            **_measured(state, METHODS[name], steps, count(steps), products),
        }
        for name, count in kept.items()
        for steps in horizons
    ]


def _measured(state: State, method: Method, steps: int, kept: int, products: Products) -> dict[str, Any]:
    problem, settings, seconds = state.problem, state.settings(products), []
    buffer = settings.momentum_buffer

    def run() -> None:
        synchronize(state.device)
        begin = time.perf_counter()
        momentum = None if buffer is None else buffer.clone()
        trajectory = unroll(problem, state.trajectory.optimiser, steps, momentum_buffer=momentum, last=kept)
        if method.name == "idarts":
            idarts(
                problem,
                gamma=settings.step,
                neumann_terms=settings.neumann_terms,
                products=products,
                watch=settings.watch,
            )
        else:
            reverse(problem, trajectory, products=products)
        synchronize(state.device)
        seconds.append(time.perf_counter() - begin)

    with state.kept():
        peak = peak_bytes(run, state.device)
    return {"peak_bytes": peak, "seconds": seconds[0]}
