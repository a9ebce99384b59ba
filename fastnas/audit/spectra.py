"""The spectra of both Hessians: their ends, trace and density."""

from __future__ import annotations

from typing import Any

import torch

from fastnas.audit.config import Plan
from fastnas.audit.state import State
from fastnas.bilevel import Spectrum, spectrum
from fastnas.search.self_audit import LANCZOS

POINTS = 200  # of a density


def spectra(state: State, plan: Plan) -> tuple[Spectrum, Spectrum]:
    """Those of d2L1/dw2 and of d2L2/dalpha2 on the first minibatches, by exact products."""
    problem = state.problem
    return (
        spectrum(problem.train_hessian_product, problem.w, steps=LANCZOS, probes=plan.probes),
        spectrum(problem.val_alpha_hessian_product, problem.alpha, steps=LANCZOS, probes=plan.probes),
    )


def spectrum_row(name: str, found: Spectrum) -> dict[str, Any]:
    """A spectrum as plain values; its density, per unit of lambda, at ``POINTS`` places from end to end."""
    kept = (
        *("size", "lambda_min", "lambda_min_error", "lambda_max", "lambda_max_error"),
        *("trace", "trace_error", "asymmetry", "products"),
    )
    margin = (found.lambda_max - found.lambda_min) / 20
    at = torch.linspace(found.lambda_min - margin, found.lambda_max + margin, POINTS, dtype=torch.float64)
    density = found.density(at) if margin > 0 else torch.zeros(POINTS)
    return {
        "name": name,
        **{field: getattr(found, field) for field in kept},
        "density": {"lambda": at.tolist(), "value": density.tolist()},
    }
