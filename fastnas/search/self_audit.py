"""A search's audit of its own hypergradient: how near it is to a better one, on the same batches."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch

from fastnas.bilevel import (
    Ends,
    InnerSettings,
    Method,
    Products,
    TwiceDifferentiable,
    Watch,
    agreement,
    ends,
    method,
)
from fastnas.bilevel.problem import kept
from fastnas.search.checkpoint import moving_tensors
from fastnas.search.step import SearchStep
from fastnas.supernet import Batch

EXACT = Products("exact", "exact")
STEPS = 50  # of conjugate gradients, where they are the better estimator
LANCZOS = 20
WORST_CONDITION = 100
NO_AUDIT: dict[str, Any] = {
    "audit_against": None,
    "audit_cosine": None,
    "audit_relative_error": None,
    "audit_term_cosine": None,
}


@dataclass(frozen=True)
class Better:
    """An estimator to hold another one against.

    Attributes:
        name: what a row calls it.
        method, settings: what it is.
    """

    name: str
    method: Method
    settings: InnerSettings


def self_audit(step: SearchStep, train: Sequence[Batch], val: Batch, learning_rate: float) -> dict[str, Any]:
    """Cosine and relative error of the search's estimator to a better one, as of a step on these batches.

    The weight steps that the method makes first are made again from the present state, and undone: weights, alpha,
    optimisers, statistics and the random state are left as they were, to the bit.

    Args:
        step: of the search.
        train, val: the batches of a step.
        learning_rate: of the epoch.

    Returns:
        ``audit_against``, the better estimator's name, ``audit_cosine`` and ``audit_relative_error``, and
        ``audit_term_cosine``: that of the second-order terms alone, g - dL2/dalpha. They are the smaller part of g, and
        an estimate of g may look right where that of the term is noise. None where something is 0 or not finite.
    """
    with untouched(step):
        own = step.method
        val = step.placed("val", val)
        audited = step.placed("train", train[0])
        trajectory = step.trajectory(learning_rate, own.recorded_steps(step.settings, len(train)))
        if own.after_inner_steps and not own.moves_weights:
            for batch in train:
                audited = step.placed("train", batch)
                trajectory.record(step.problem(audited, val))
                step.weight_step(audited, learning_rate)
        elif own.after_inner_steps:
            audited = step.placed("train", train[-1])
        problem = step.problem(audited, val)
        settings = step.settings_at(learning_rate, trajectory, Watch())
        better = better_than(own, settings, problem)
        with kept_weights(step):
            estimate = own.hypergradient(problem, settings)
        with kept_weights(step):
            reference = better.method.hypergradient(problem, better.settings)
        direct = problem.val_grad_alpha()
    found, term = agreement(estimate, reference), agreement(estimate - direct, reference - direct)
    return {
        "audit_against": better.name,
        "audit_cosine": finite(found.cosine),
        "audit_relative_error": finite(found.relative_error),
        "audit_term_cosine": finite(term.cosine),
    }


def better_than(own: Method, settings: InnerSettings, problem: TwiceDifferentiable) -> Better:
    """The same method with exact products; where it has these or takes none, conjugate gradients with exact ones.

    These solve with H + damping I (``damping_for``): on a network H is not positive definite.
    """
    products = settings.products
    if own.name != "first-order" and (products.hessian, products.mixed) != ("exact", "exact"):
        return Better(f"{own.name}, exact products", own, replace(settings, products=EXACT))
    damping = settings.damping or damping_for(ends(problem.train_hessian_product, problem.w, steps=LANCZOS))
    steps = max(STEPS, 2 * settings.limit)
    more = replace(settings, products=EXACT, damping=damping, limit=steps, tolerance=settings.tolerance / 10)
    return Better(f"cg, exact products, damping {damping:.2g}", method("cg"), more)


def damping_for(spectrum: Ends) -> float:
    """What makes H + damping I positive definite with a condition number of about 100 at the most; 0 if H is so itself.

    What the most negative eigenvalue asks for, and as much again or a hundredth of the largest, whichever is more. The
    implicit function theorem wants H positive definite; where it is not, the damped solution is that of an inner
    problem with a proximal term, |w - w0|^2 damping / 2 (Rajeswaran et al. 2019).
    """
    least = spectrum.lambda_min - spectrum.lambda_min_error
    if least > 0 and spectrum.lambda_max <= WORST_CONDITION * least:
        return 0.0
    below = max(-spectrum.lambda_min, 0.0)
    return below + max(below, spectrum.spectral_radius / WORST_CONDITION)


def audit_line(row: dict[str, Any]) -> list[str]:
    """What an epoch's line says of its audit, phrase by phrase; empty without one."""
    if row.get("audit_cosine") is None:
        return []
    term = row["audit_term_cosine"]
    alone = "" if term is None else f" (second-order term {term:.3f})"
    return [f"cosine {row['audit_cosine']:.3f}{alone}", f"to {row['audit_against']}"]


def finite(value: float) -> float | None:
    """``value``, or None for what JSON does not know."""
    return value if math.isfinite(value) else None


@contextmanager
def untouched(step: SearchStep) -> Iterator[None]:
    """Let the block make steps, and put everything that moves back to the bit, the random state, too."""
    moving = moving_tensors(step)
    saved = {name: tensor.detach().clone() for name, tensor in moving.items()}
    device = step.net.weights.flat.device
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            yield
    finally:
        with torch.no_grad():
            for name, tensor in moving.items():
                tensor.copy_(saved[name])


def kept_weights(step: SearchStep) -> AbstractContextManager[object]:
    """For an estimator that moves the weights by itself."""
    return kept(step.net.weights.flat) if step.method.moves_weights else nullcontext()
