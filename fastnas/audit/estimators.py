"""Every estimator, by every kind of products, at one state: how near, how long, how much."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from torch import Tensor

from fastnas._measure import peak_bytes, synchronize
from fastnas.audit.reference import Reference
from fastnas.audit.state import State
from fastnas.bilevel import METHODS, Method, Products, Watch, agreement
from fastnas.bilevel.solvers import DENSE_LIMIT
from fastnas.search.self_audit import EXACT


@dataclass(frozen=True)
class Estimate:
    """One estimator by one kind of products.

    Attributes:
        method: its name.
        products: of which kind: "exact", "r = 0.01", "-" where it takes none.
        hypergradient: (H,), None if it was left out.
        term: (H,), g - dL2/dalpha.
        seconds: of one call.
        gradients: first-order oracles that it called.
        exact_products: exact second-order products that it took.
        peak_bytes: the most that torch's allocator held above what it held before; None: not measured.
        noticed: what it met that its theory excludes.
        left_out: why it was not run, "" if it was.
    """

    method: str
    products: str
    hypergradient: Tensor | None = None
    term: Tensor | None = None
    seconds: float | None = None
    gradients: int | None = None
    exact_products: int | None = None
    peak_bytes: int | None = None
    noticed: tuple[str, ...] = ()
    left_out: str = ""


def ways(configured: Products, recommended: float) -> list[Products]:
    """The kinds of products to compare: exact, as configured, differences of the recommended radius."""
    kinds = [EXACT, configured, Products(scheme=configured.scheme, radius=recommended)]
    return list(dict.fromkeys(kinds))


def named(products: Products) -> str:
    """ "exact", "r = 0.01", "r = 0.01, forward", "exact H, r = 0.01".

    >>> named(Products("exact", "exact")), named(Products(hessian="exact", scheme="forward"))
    ('exact', 'exact H, r = 0.01, forward')
    """
    if products.hessian == products.mixed == "exact":
        return "exact"
    parts = (
        ["exact H"] if products.hessian == "exact" else ["exact mixed"] if products.mixed == "exact" else []
    )
    parts.append(f"r = {products.radius:.3g}")
    return ", ".join([*parts, *(["forward"] if products.scheme == "forward" else [])])


def estimates(state: State, kinds: Sequence[Products], *, dense: bool) -> Iterator[Estimate]:
    """Every method of ``METHODS`` by every kind of products, the first kind first.

    Args:
        state: where.
        kinds: of products; the first are exact ones.
        dense: whether the Hessian may be written out, where P is at most 5,000.
    """
    for method in METHODS.values():
        if method.name == "exact" and (reason := _too_large(state, dense)):
            yield Estimate(method.name, "-", left_out=reason)
            continue
        # A Hessian by differences is 2P gradients, and shows no more than the other methods do.
        for products in kinds[:1] if method.name == "exact" else kinds:
            found = estimate(state, method, products)
            takes_none = products == kinds[0] and not found.exact_products
            yield replace(found, products="-") if takes_none else found
            if takes_none:
                break


def estimate(state: State, method: Method, products: Products) -> Estimate:
    """One hypergradient, measured as it is computed. On a CPU the time has PyTorch's profiler in it, which the memory
    is read from: a few per cent.
    """
    watch, meter, results, seconds = Watch(), state.meter, [], []
    settings = state.settings(products, watch)
    before = meter.gradients, meter.products

    def run() -> None:
        synchronize(state.device)
        begin = time.perf_counter()
        results.append(method.hypergradient(state.problem, settings))
        synchronize(state.device)
        seconds.append(time.perf_counter() - begin)

    peak = None
    with state.kept():
        if method.name == "exact":  # so many calls are more than a profiler can hold
            run()
        else:
            peak = peak_bytes(run, state.device)
    called = meter.gradients - before[0], meter.products - before[1]
    direct = state.problem.val_grad_alpha()
    return Estimate(
        method.name,
        named(products),
        results[0],
        results[0] - direct,
        seconds[0],
        *called,
        peak_bytes=peak,
        noticed=tuple(watch.sentences()),
    )


def row(found: Estimate, references: Sequence[Reference]) -> dict[str, Any]:
    """What JSON says of an estimate: the figures, and its agreement with each reference, by key.

    ``cosine`` and ``relative_error`` are the hypergradient's; ``term`` has the same of the second-order term alone.
    """
    skipped = ("hypergradient", "term")
    figures = {name: value for name, value in vars(found).items() if name not in skipped}
    to: dict[str, Any] = {}
    if found.hypergradient is not None and found.term is not None:
        for reference in references:
            whole = agreement(found.hypergradient, reference.hypergradient)
            to[reference.key] = {**asdict(whole), "term": asdict(agreement(found.term, reference.term))}
    norm = None if found.hypergradient is None else found.hypergradient.double().norm().item()
    return {**figures, "noticed": list(found.noticed), "norm": norm, "to": to}


def _too_large(state: State, dense: bool) -> str:
    weights = len(state.search.net.weights)
    if weights > DENSE_LIMIT:
        return f"it writes the Hessian out, for at most {DENSE_LIMIT:,} weights; here are {weights:,}"
    return "" if dense else "left out by --quick"
