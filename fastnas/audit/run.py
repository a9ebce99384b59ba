"""The audit from end to end: a configuration in, one plain dictionary out."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import torch

from fastnas._terminal import size_of, wrapped
from fastnas._version import __version__
from fastnas.audit.config import AuditConfig, Plan
from fastnas.audit.cost import Cost, expected_cost
from fastnas.audit.estimators import estimates, named, row, ways
from fastnas.audit.neumann import neumann_curves
from fastnas.audit.problems import Meter
from fastnas.audit.reference import (
    Reference,
    by_differences,
    on_many,
    on_one_minibatch,
    reference_damping,
)
from fastnas.audit.reverse import memory_against_steps
from fastnas.audit.spectra import spectra, spectrum_row
from fastnas.audit.state import TWIN_IMAGES, State, prepare
from fastnas.bilevel import agreement, radius_sweep, recommended_radius
from fastnas.bilevel.radius import RadiusRow
from fastnas.doctor import check_first_use
from fastnas.doctor.environment import environment
from fastnas.runs.progress import Progress, say
from fastnas.search.engine import device_of

FORMAT = "fastnas-audit-1"


def audit(config: AuditConfig, *, progress: bool = False) -> dict[str, Any]:
    """How wrong every hypergradient is on one state of one supernet.

    The numbers depend on the configuration, the device and the number of threads alone; seconds and bytes are measured.

    Args:
        config: what to audit, and how far to go.
        progress: say on the standard error what it will cost, and how far it is.

    Returns:
        What audit.json holds, plain values; None stands for what is not finite. See docs/audit.md.

    Raises:
        FastnasError: a mistake in the configuration, the data or the run's folder.
    """
    begin, audited, meter = time.perf_counter(), config.search(), Meter()
    configured = audited.hypergradient.difference_radius
    plan = Plan.of(config.audit, 0.01 if configured == "auto" else configured)
    check_first_use(device_of(audited))
    state = prepare(config, audited, meter, plan.minibatches)
    plan = Plan.of(config.audit, state.search.step.settings.products.radius)
    cost = expected_cost(state, plan)
    with _bar(cost, meter, progress) as bar:
        found = _measure(config, state, plan, bar)
    return finite_only(
        {
            "format": FORMAT,
            "fastnas": __version__,
            "environment": {**asdict(environment(state.device)), "threads": torch.get_num_threads()},
            "config": audited.to_options(),
            "audit": {k: str(v) if k == "checkpoint" and v else v for k, v in asdict(config.audit).items()},
            "state": _state(state),
            "cost": {
                **asdict(cost),
                "expected_seconds": cost.seconds,
                "seconds": time.perf_counter() - begin,
            },
            **found,
        }
    )


def _measure(config: AuditConfig, state: State, plan: Plan, bar: Progress) -> dict[str, Any]:
    products = state.search.step.settings.products
    bar.set_description("differences")
    v, _ = state.problem.val_grads()
    sweep = radius_sweep(state.problems, v, plan.radii, scheme=products.scheme)
    twin = state.twin()
    smooth = radius_sweep([twin], twin.val_grads()[0], plan.radii, scheme=products.scheme)
    recommended = recommended_radius(sweep)
    bar.set_description("spectra")
    spectrum, alpha_spectrum = spectra(state, plan)
    bar.set_description("references")
    damping = reference_damping(config.audit, spectrum)
    references = [
        on_one_minibatch(state, plan, damping),
        on_many(state, plan, damping),
        by_differences(state, plan, damping, recommended),
    ]
    rows = []
    for found in estimates(state, ways(products, recommended), dense=plan.dense):
        bar.set_description(found.method)
        rows.append(row(found, references))
    bar.set_description("Neumann series")
    gammas = {
        "the search's": float(state.settings(products).step),
        "1/L": 1 / (spectrum.lambda_max + spectrum.lambda_max_error + damping),
    }
    curves = neumann_curves(state.problem, references[0], spectrum, gammas, plan.neumann_terms)
    bar.set_description("reverse modes")
    memory = memory_against_steps(state, plan.horizons, products)
    return {
        "spectra": [
            spectrum_row("d2L1/dw2", spectrum),
            spectrum_row("d2L2/dalpha2", alpha_spectrum),
        ],
        "references": [_reference(one, references) for one in references],
        "estimators": rows,
        "sweep": [_sweep_row(one, "kinked", state) for one in sweep]
        + [_sweep_row(one, "smooth", state) for one in smooth],
        "recommended_radius": recommended,
        "configured_products": named(products),
        "neumann": curves,
        "reverse": memory,
    }


@contextmanager
def _bar(cost: Cost, meter: Meter, progress: bool) -> Iterator[Progress]:
    if progress:
        say(wrapped(f"audit: {cost}", size_of(sys.stderr).columns, "  "), sys.stderr)
    with Progress(cost.calls, cost.calls, unit="calls", shown=progress) as bar:

        def tick() -> None:
            if bar.update():
                bar.refresh()

        meter.tick = tick
        yield bar
        meter.tick = lambda: None


def _state(state: State) -> dict[str, Any]:
    net = state.search.net
    return {
        "epoch": state.epoch,
        "weight_steps": state.warm_up,
        "weights": len(net.weights),
        "alphas": len(net.alphas),
        "learning_rate": state.learning_rate,
        "inner_steps": len(state.trajectory.steps),
        "batch_size": len(state.train[0][1]),
        "minibatches": len(state.train),
        "exact_by": state.search.step.problem(state.train[0], state.val[0]).exact_by,
    }


def _reference(one: Reference, references: list[Reference]) -> dict[str, Any]:
    """A reference, the share of its second-order term, and how near it is to each of them."""
    kept = ("key", "name", "images", "damping", "residual", "noticed")
    norm = one.hypergradient.double().norm().item()
    to = {
        other.key: {
            **asdict(agreement(one.hypergradient, other.hypergradient)),
            "term": asdict(agreement(one.term, other.term)),
        }
        for other in references
    }
    share = one.term.double().norm().item() / norm if norm else math.nan
    return {**{name: getattr(one, name) for name in kept}, "norm": norm, "term_share": share, "to": to}


def _sweep_row(one: RadiusRow, network: str, state: State) -> dict[str, Any]:
    images = sum(len(labels) for _, labels in state.train[: one.minibatches])
    if network == "smooth":
        images = min(images, TWIN_IMAGES)
    return {"network": network, "images": images, **asdict(one)}


def finite_only(value: Any) -> Any:
    """``value`` with None for every float that JSON does not know.

    >>> finite_only({"a": [1.0, float("nan")]})
    {'a': [1.0, None]}
    """
    if isinstance(value, dict):
        return {key: finite_only(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [finite_only(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
