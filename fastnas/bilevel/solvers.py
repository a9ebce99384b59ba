"""Solvers of H x = v for a Hessian that is known by its products alone: the ``solve`` of ``implicit``.

A solver is any function ``solve(matvec, b) -> x``, with ``matvec(u)`` = H u for vectors u like b. The functions here
make one out of its constants. All but ``neumann`` with a number of terms read numbers back from the device.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from fastnas.bilevel import _arguments as check
from fastnas.bilevel.watch import Growth, Watch
from fastnas.errors import FastnasError

MatVec: TypeAlias = Callable[[Tensor], Tensor]
Solver: TypeAlias = Callable[[MatVec, Tensor], Tensor]

DENSE_LIMIT = 5000


def dense(*, damping: float = 0.0, limit: int = DENSE_LIMIT) -> Solver:
    """(H + damping I) x = b with H written out, column by column, and solved: the yardstick for small problems.

    P products and P^2 numbers, in float64. The columns of differences are no symmetric matrix: its symmetric part is
    taken. A singular H gets the solution of least norm.

    Args:
        damping: >= 0.
        limit: the largest P.

    Returns:
        The solver; it raises ``FastnasError`` for P > limit.

    Example:
        >>> H = torch.tensor([[2.0, 1.0], [1.0, 3.0]])
        >>> dense()(lambda u: H @ u, torch.tensor([3.0, 4.0]))
        tensor([1., 1.])
    """
    check.not_negative("dense", "damping", damping)

    def solve(matvec: MatVec, b: Tensor) -> Tensor:
        if len(b) > limit:
            raise FastnasError(
                f"the exact inverse writes the Hessian of all P weights out, so P is at most {limit}, got {len(b)}; "
                "take conjugate gradients or a Neumann series"
            )
        hessian = hessian_matrix(matvec, b)
        hessian.diagonal().add_(damping)
        if not hessian.isfinite().all():  # which no decomposition takes
            return torch.full_like(b, math.nan)
        return (torch.linalg.pinv(hessian, hermitian=True) @ b.double()).to(b.dtype)

    return solve


def hessian_matrix(matvec: MatVec, like: Tensor) -> Tensor:
    """H written out, (P, P), float64, its symmetric part; P products."""
    columns = torch.empty(len(like), len(like), dtype=torch.float64, device=like.device)
    unit = torch.zeros_like(like)
    for i in range(len(like)):
        unit[i] = 1
        columns[i] = matvec(unit)
        unit[i] = 0
    return (columns + columns.T) / 2


def neumann(
    gamma: float,
    *,
    terms: int | None = None,
    tolerance: float | None = None,
    damping: float = 0.0,
    limit: int = 1000,
    watch: Watch | None = None,
) -> Solver:
    """x = gamma sum over k = 0..K of V_k, V_0 = b, V_k+1 = V_k - gamma (H + damping I) V_k.

    (Zhang et al. 2021, eq. 9; Lorraine et al. 2020, algorithm 3.) With ``terms`` K is given. With ``tolerance`` the
    series ends when the residual |b - (H + damping I) x| = |V_K+1| is at most tolerance |b|. Where |V_k| grows, gamma
    is more than 2/lambda_max or H has negative curvature: that is said, and the terms before the growth are the
    answer.

    Args:
        gamma: > 0.
        terms: K >= 0; None: by the tolerance.
        tolerance: > 0; None: by the number of terms.
        damping: >= 0.
        limit: with a tolerance, the largest K, >= 0; reaching it is said.
        watch: gets what was seen; None: a warning says it at once.

    Returns:
        The solver; K products, with a tolerance one more.

    Example:
        >>> H = torch.tensor([[2.0, 1.0], [1.0, 3.0]]).double()
        >>> neumann(0.25, tolerance=1e-6)(lambda u: H @ u, torch.tensor([3.0, 4.0]).double()).round(decimals=5)
        tensor([1., 1.], dtype=torch.float64)
    """
    check.positive("neumann", "gamma", gamma)
    if (terms is None) == (tolerance is None):
        raise FastnasError("neumann: give either terms or tolerance")
    if terms is not None:
        check.count("neumann", "terms", terms)
    else:
        check.positive("neumann", "tolerance", tolerance)
        check.count("neumann", "limit", limit)
    check.not_negative("neumann", "damping", damping)

    def solve(matvec: MatVec, b: Tensor) -> Tensor:
        seen = Watch() if watch is None else watch
        v, series, norm = b.clone(), b.clone(), _norm(b)
        growth = Growth("neumann", gamma, norm, damping)
        target = norm.item() * tolerance if tolerance is not None else 0.0
        for k in itertools.count() if terms is None else range(terms):
            product = matvec(v).add_(v, alpha=damping)
            v.sub_(product, alpha=gamma)
            norm = _norm(v)
            grew = growth.step(norm, _norm(product))
            if tolerance is not None:
                residual = norm.item()
                if residual <= target or grew.item():
                    break
                if k == limit:
                    seen.say(_unfinished(residual, target, limit, tolerance))
                    break
            series = torch.where(grew, series, series + v)
            if tolerance is not None and not math.isfinite(residual):
                break
        growth.report(seen)
        if watch is None:
            seen.warn()
        return series.mul_(gamma)

    return solve


def conjugate_gradients(
    steps: int,
    *,
    tolerance: float = 1e-10,
    damping: float = 0.0,
    watch: Watch | None = None,
) -> Solver:
    """(H + damping I) x = b by conjugate gradients.

    (Hestenes, Stiefel 1952; for hypergradients Pedregosa 2016, Rajeswaran et al. 2019.) Exact after P steps on a
    positive definite H, but for rounding. Where a direction p with p'(H + damping I)p <= 0 turns up, H has negative
    curvature, the quadratic no minimum, and the method no meaning: that is said with the curvature found, and the
    iterate before it is the answer (b itself if it is the first direction, as in Newton-CG; Nocedal, Wright, algorithm
    7.1).

    Args:
        steps: the most steps, >= 1; a product each.
        tolerance: of the residual, relative to |b|, >= 0.
        damping: >= 0.
        watch: gets what was seen; None: a warning says it at once.

    Returns:
        The solver; 4 vectors of P numbers live beside b, and in float32 as many again while a dot product is taken,
        in float64.

    Example:
        >>> H = torch.tensor([[2.0, 1.0], [1.0, 3.0]])
        >>> conjugate_gradients(2)(lambda u: H @ u, torch.tensor([3.0, 4.0])).round(decimals=5)
        tensor([1., 1.])
    """
    check.count("conjugate_gradients", "steps", steps, least=1)
    check.not_negative("conjugate_gradients", "tolerance", tolerance)
    check.not_negative("conjugate_gradients", "damping", damping)

    def solve(matvec: MatVec, b: Tensor) -> Tensor:
        seen = Watch() if watch is None else watch
        x, residual, direction = torch.zeros_like(b), b.clone(), b.clone()
        square, enough = _dot(b, b), (tolerance * _norm(b).item()) ** 2
        for step in range(steps):
            if not math.isfinite(square) or square <= enough:
                break
            product = matvec(direction).add_(direction, alpha=damping)
            curvature, length = _dot(direction, product), _dot(direction, direction)
            if curvature <= 0:
                seen.say(_negative(step, curvature / length, damping))
                x = b.clone() if step == 0 else x
                break
            x.add_(direction, alpha=square / curvature)
            residual.sub_(product, alpha=square / curvature)
            del product  # before the next one is taken
            before, square = square, _dot(residual, residual)
            direction.mul_(square / before).add_(residual)
        if not math.isfinite(square):
            x = x.fill_(math.nan)
        if watch is None:
            seen.warn()
        return x

    return solve


def nystroem(rank: int, *, damping: float = 0.01, seed: int = 0) -> Solver:
    """(H_k + damping I) x = b with H_k = C W^+ C', the Nystroem approximation of rank k, by Woodbury's identity.

        x = b/rho - C (W + C'C/rho)^+ C'b / rho^2,    C = H[:, K], W = H[K, K], K random columns, rho = damping

    (Hataya, Yamada 2023, "Nystroem Method for Accurate and Scalable Implicit Differentiation", section 3.) Neither
    steps nor a convergence to worry about, but rho must be right: along what H_k does not see, x = b/rho.

    Args:
        rank: k >= 1, columns of H: k products, and k vectors of P numbers in float64. At most P are taken.
        damping: rho > 0.
        seed: of the choice of columns, which leaves the global random state alone.

    Returns:
        The solver.

    Example:
        >>> H = torch.tensor([[2.0, 1.0], [1.0, 3.0]]).double()
        >>> nystroem(2, damping=1e-8)(lambda u: H @ u, torch.tensor([3.0, 4.0]).double()).round(decimals=5)
        tensor([1., 1.], dtype=torch.float64)
    """
    check.count("nystroem", "rank", rank, least=1)
    check.positive("nystroem", "damping", damping)

    def solve(matvec: MatVec, b: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        chosen = torch.randperm(len(b), generator=generator)[:rank].to(b.device)
        columns = torch.empty(len(chosen), len(b), dtype=torch.float64, device=b.device)
        unit = torch.zeros_like(b)
        for row, i in enumerate(chosen):
            unit[i] = 1
            columns[row] = matvec(unit)
            unit[i] = 0
        core = columns[:, chosen]
        core = (core + core.T) / 2 + columns @ columns.T / damping
        if not core.isfinite().all():
            return torch.full_like(b, math.nan)
        inner = torch.linalg.pinv(core, hermitian=True) @ (columns @ b.double())
        return (b.double() / damping - columns.T @ inner / damping**2).to(b.dtype)

    return solve


def _norm(u: Tensor) -> Tensor:
    """|u|, accumulated in float64, shape (), on u's device."""
    return torch.linalg.vector_norm(u, dtype=torch.float64)


def _dot(a: Tensor, b: Tensor) -> float:
    return torch.dot(a.double(), b.double()).item()


def _negative(step: int, curvature: float, damping: float) -> str:
    where = "the first direction" if step == 0 else f"step {step + 1}"
    answer = "v itself stands for the solution" if step == 0 else f"the solution is that of {step} steps"
    return (
        f"conjugate gradients: negative curvature {curvature:.3g} along {where}, so H is not positive definite; "
        f"{answer}; take a damping above {damping - curvature:.2g}, or fewer steps"
    )


def _unfinished(residual: float, target: float, limit: int, tolerance: float) -> str:
    return (
        f"neumann: the residual is {residual:.3g} after {limit} terms, and the tolerance {tolerance:g} asks for "
        f"{target:.3g}; take more terms, a larger gamma, below 2/lambda_max, or a larger tolerance"
    )
