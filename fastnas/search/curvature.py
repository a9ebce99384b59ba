"""The curvature of both losses, measured at the end of an epoch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from fastnas.bilevel import BilevelProblem, Products, ends
from fastnas.bilevel.solvers import MatVec
from fastnas.search.early_stop import EarlyStop, Stop

OPERATORS = ("hessian", "alpha_hessian")
FIGURES = ("lambda_max", "lambda_min", "asymmetry")
CURVATURE = tuple(f"{operator}_{figure}" for operator in OPERATORS for figure in FIGURES)
STEPS = 20
# Of differences in alpha, for each of them, root mean square. The switches of ReLU and max-pooling that a step crosses
# are noise, and only a long step drowns it: docs/decisions.md, 52.
ALPHA_STEP = 1 / 15


def measured_curvature(
    problem: BilevelProblem, products: Products, check: Callable[[], None]
) -> dict[str, float]:
    """The two ends of the spectra of d2L1/dw2 and d2L2/dalpha2, by at most 20 Lanczos steps each.

    By exact products if ``products.hessian`` says so; else by central differences, in w of its radius, in alpha of
    sqrt(H)/15.

    Args:
        problem: the oracles; w and alpha are left bit-identical.
        products: how H u is taken.
        check: is called before every product; may raise.

    Returns:
        A row's entries, ``CURVATURE``: lambda_max, lambda_min and asymmetry (``fastnas.bilevel.Ends``) of both.
    """
    central = replace(products, scheme="central")
    hessian = central.of(problem).hessian
    alpha_hessian = (
        replace(central, radius=ALPHA_STEP * len(problem.alpha) ** 0.5).of(problem).val_alpha_hessian
    )

    def checked(matvec: MatVec) -> MatVec:
        def product(u: Tensor) -> Tensor:
            check()
            return matvec(u)

        return product

    row = {}
    for operator, matvec, like in zip(
        OPERATORS, (hessian, alpha_hessian), (problem.w, problem.alpha), strict=True
    ):
        found = ends(checked(matvec), like, steps=STEPS)
        row.update({f"{operator}_{figure}": getattr(found, figure) for figure in FIGURES})
    return row


def observed(rule: EarlyStop | None, row: Mapping[str, Any]) -> Stop | None:
    """What ``rule`` says to a row of metrics; None without a rule or where nothing was measured."""
    eigenvalue = row.get("alpha_hessian_lambda_max")
    return None if rule is None or eigenvalue is None else rule.observe(row["epoch"], eigenvalue)


def ends_shown(row: Mapping[str, Any]) -> list[str]:
    """A row's figures for the line of its epoch, phrase by phrase; empty where nothing was measured."""
    if row.get(CURVATURE[0]) is None:
        return []
    w, alpha = (f"{row[f'{name}_lambda_min']:.2g} to {row[f'{name}_lambda_max']:.2g}" for name in OPERATORS)
    return [f"Hessian of w {w}", f"of alpha {alpha}"]
