"""The Neumann series: its error against K, beside the bound of iDARTS' Theorem 1."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from fastnas.audit.reference import Reference
from fastnas.bilevel import Agreement, Ends, TwiceDifferentiable, agreement
from fastnas.ops import vector_norm

PROBES = 8


@dataclass(frozen=True)
class Point:
    """The hypergradient of K terms beyond the first.

    Attributes:
        terms: K.
        error: |g_K - g|, g the reference.
        agreement: cosine and relative error of the second-order term.
        bound: Theorem 1's on ``error``; None where it does not hold.
    """

    terms: int
    error: float
    agreement: Agreement
    bound: float | None


def neumann_curves(
    problem: TwiceDifferentiable,
    reference: Reference,
    spectrum: Ends,
    gammas: dict[str, float],
    terms: int,
) -> dict[str, Any]:
    """Error against K for each gamma, exact products throughout.

        g_K = dL2/dalpha - gamma M sum over k = 0..K of (I - gamma H')^k v,    H' = H + delta I,    M = d2L1/dalpha dw
        |g_K - g| <= C (1/mu) (1 - gamma mu)^(K+1),    C = |M| |v|,    for gamma <= 1/L

    (Zhang et al. 2021, eq. 9 and Theorem 1, for H'.) mu and L are the ends of H's spectrum, moved by delta: without it
    the theorem wants a strongly convex L1, which a network's is not. |M| is the Frobenius norm, which is no less than
    the spectral one, estimated as the mean of |M z|^2 over random signs z. K + 1 products of either kind a gamma.

    Args:
        problem: on the reference's minibatch.
        reference: with its damping delta.
        spectrum: the ends of H's.
        gammas: by name, > 0.
        terms: the largest K.

    Returns:
        ``mu``, ``lambda_max`` (both of H'), ``mixed_norm`` and its standard error, ``strongly_convex`` (of H itself),
        ``curves``: for each gamma ``name``, ``gamma``, ``bounded`` and ``points``.
    """
    norm, norm_error = _mixed_norm(problem)
    v, direct = problem.val_grads()
    mu = spectrum.lambda_min - spectrum.lambda_min_error + reference.damping
    largest = spectrum.lambda_max + spectrum.lambda_max_error + reference.damping
    scale = norm * vector_norm(v).item()
    curves = []
    for name, gamma in gammas.items():
        bounded = mu > 0 and gamma <= 1 / largest
        points = []
        for k, hypergradient in enumerate(_series(problem, v, direct, gamma, reference.damping, terms)):
            points.append(
                Point(
                    k,
                    vector_norm(hypergradient - reference.hypergradient).item(),
                    agreement(hypergradient - direct, reference.term),
                    scale / mu * (1 - gamma * mu) ** (k + 1) if bounded else None,
                )
            )
        curves.append(
            {"name": name, "gamma": gamma, "bounded": bounded, "points": [asdict(point) for point in points]}
        )
    return {
        "damping": reference.damping,
        "strongly_convex": spectrum.lambda_min - spectrum.lambda_min_error > 0,
        "mu": mu,
        "lambda_max": largest,
        "mixed_norm": norm,
        "mixed_norm_error": norm_error,
        "curves": curves,
    }


def _series(
    problem: TwiceDifferentiable, v: Tensor, direct: Tensor, gamma: float, damping: float, terms: int
) -> list[Tensor]:
    """g_0, ..., g_K."""
    found, term, total = [], v.clone(), torch.zeros_like(direct)
    for k in range(terms + 1):
        total = total + problem.train_mixed_product(term)
        found.append(direct - gamma * total)
        if k < terms:
            term = term - gamma * (problem.train_hessian_product(term) + damping * term)
    return found


def _mixed_norm(problem: TwiceDifferentiable) -> tuple[float, float]:
    """The Frobenius norm of d2L1/dalpha dw, and its standard error."""
    generator = torch.Generator().manual_seed(0)
    w, squares = problem.w, []
    for _ in range(PROBES):
        signs = torch.randint(0, 2, (len(w),), generator=generator, dtype=w.dtype).mul_(2).sub_(1)
        squares.append(vector_norm(problem.train_mixed_product(signs.to(w.device))).item() ** 2)
    mean = sum(squares) / PROBES
    variance = sum((square - mean) ** 2 for square in squares) / (PROBES - 1)
    norm = math.sqrt(mean)
    return norm, math.sqrt(variance / PROBES) / (2 * norm) if norm else 0.0
