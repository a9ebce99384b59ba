"""The estimators by the names that a command line and a results table use.

Example:
    >>> for name, entry in METHODS.items():
    ...     print(f"{name:12} {entry.gradients(neumann_terms=2)} gradients")
    first-order  1 gradients
    darts        4 gradients
    amended      5 gradients
    idarts       7 gradients
    t1-t2        3 gradients
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

from fastnas.bilevel.estimators import amended, darts, first_order, idarts, t1_t2
from fastnas.bilevel.problem import BilevelProblem
from fastnas.errors import FastnasError


@dataclass(frozen=True)
class InnerSettings:
    """What an estimator may need to know of the inner problem's optimiser, and its own constants.

    Every estimator takes what its equation names and ignores the rest; each checks what it takes.

    Args:
        learning_rate: xi, of the weight step (darts); a number, or shape (), float64, on w's device.
        momentum: mu, of the weight step (darts).
        weight_decay: wd, of the weight step (darts).
        momentum_buffer: buf, shape (P,), the weight step's; None is zero (darts).
        eta: amplitude of the amended term (amended).
        gamma: step of the Neumann series, likewise; None takes ``learning_rate`` (idarts).
        neumann_terms: K (idarts).
        radius: of the central differences, in the units of w (all but first-order).
    """

    learning_rate: float | Tensor
    momentum: float = 0.0
    weight_decay: float = 0.0
    # A tensor has no truth value to compare by, and is too long to print.
    momentum_buffer: Tensor | None = field(default=None, compare=False, repr=False)
    eta: float = 0.1
    gamma: float | Tensor | None = None
    neumann_terms: int = 2
    radius: float = 0.01


@dataclass(frozen=True)
class Method:
    """One estimator and what a search loop must know of it.

    Args:
        name: the public name.
        summary: one line, with the source.
        after_inner_steps: the authors' loop makes its T weight steps first and then moves alpha (idarts,
            t1-t2); False: alpha first, then the weights.
        gradients: neumann_terms -> gradients that one hypergradient costs, without the T inner steps.
        hypergradient: (problem, settings) -> shape (H,); leaves w and alpha bit-identical.
    """

    name: str
    summary: str
    after_inner_steps: bool
    gradients: Callable[[int], int]
    hypergradient: Callable[[BilevelProblem, InnerSettings], Tensor]


def method(name: str) -> Method:
    """Look an estimator up by its public name.

    Args:
        name: a key of ``METHODS``.

    Returns:
        The estimator.

    Raises:
        FastnasError: no estimator has that name; the message lists those there are.

    Example:
        >>> method("idarts").after_inner_steps
        True
    """
    if name not in METHODS:
        raise FastnasError(f"unknown hypergradient method {name!r}: choose one of {', '.join(METHODS)}")
    return METHODS[name]


def _first_order(problem: BilevelProblem, settings: InnerSettings) -> Tensor:
    return first_order(problem)


def _darts(problem: BilevelProblem, settings: InnerSettings) -> Tensor:
    return darts(
        problem,
        learning_rate=settings.learning_rate,
        momentum=settings.momentum,
        momentum_buffer=settings.momentum_buffer,
        weight_decay=settings.weight_decay,
        radius=settings.radius,
    )


def _amended(problem: BilevelProblem, settings: InnerSettings) -> Tensor:
    return amended(problem, eta=settings.eta, radius=settings.radius)


def _idarts(problem: BilevelProblem, settings: InnerSettings) -> Tensor:
    gamma = settings.learning_rate if settings.gamma is None else settings.gamma
    return idarts(problem, gamma=gamma, neumann_terms=settings.neumann_terms, radius=settings.radius)


def _t1_t2(problem: BilevelProblem, settings: InnerSettings) -> Tensor:
    return t1_t2(problem, radius=settings.radius)


METHODS: dict[str, Method] = {
    entry.name: entry
    for entry in (
        Method(
            "first-order",
            "the direct term alone (Liu et al. 2019, xi = 0)",
            after_inner_steps=False,
            gradients=lambda neumann_terms: 1,
            hypergradient=_first_order,
        ),
        Method(
            "darts",
            "through one virtual weight step (Liu et al. 2019, eq. 7-8)",
            after_inner_steps=False,
            gradients=lambda neumann_terms: 4,
            hypergradient=_darts,
        ),
        Method(
            "amended",
            "the Hessian in place of its inverse (Bi et al. 2019, eq. 6)",
            after_inner_steps=False,
            gradients=lambda neumann_terms: 5,
            hypergradient=_amended,
        ),
        Method(
            "idarts",
            "the inverse Hessian by a truncated Neumann series (Zhang et al. 2021, eq. 8-9)",
            after_inner_steps=True,
            gradients=lambda neumann_terms: 2 * neumann_terms + 3,
            hypergradient=_idarts,
        ),
        Method(
            "t1-t2",
            "the identity in place of the inverse Hessian (Luketina et al. 2016)",
            after_inner_steps=True,
            gradients=lambda neumann_terms: 3,
            hypergradient=_t1_t2,
        ),
    )
}
