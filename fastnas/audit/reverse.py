"""The reverse modes: memory against T, the weight steps that they go back through."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

from fastnas._measure import peak_bytes, synchronize
from fastnas.audit.state import State
from fastnas.bilevel import METHODS, Method, Products, unroll


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
    rows = []
    for name in ("reverse", "truncated-reverse", "idarts"):
        for steps in horizons:
            kept = {"reverse": steps, "truncated-reverse": min(steps, last)}.get(name, 0)
            measured = _measured(state, METHODS[name], steps, kept, products)
            rows.append({"method": name, "steps": steps, "kept": kept, **measured})
    return rows


def _measured(state: State, method: Method, steps: int, kept: int, products: Products) -> dict[str, Any]:
    problem, settings, seconds = state.problem, state.settings(products), []
    sgd, buffer = state.trajectory.optimiser, settings.momentum_buffer

    def run() -> None:
        synchronize(state.device)
        begin = time.perf_counter()
        momentum = None if buffer is None else buffer.clone()
        trajectory = unroll(problem, sgd, steps, momentum_buffer=momentum, last=kept)
        method.hypergradient(problem, replace(settings, trajectory=trajectory))
        synchronize(state.device)
        seconds.append(time.perf_counter() - begin)

    with state.kept():
        peak = peak_bytes(run, state.device)
    return {"peak_bytes": peak, "seconds": seconds[0]}
