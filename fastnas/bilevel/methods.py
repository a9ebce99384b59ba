"""The estimators by the names that a command line and a results table use.

Example:
    >>> settings = InnerSettings(learning_rate=0.1, neumann_terms=2)
    >>> for name in ("first-order", "darts", "amended", "idarts", "t1-t2"):
    ...     print(f"{name:12} {METHODS[name].gradients(settings)} gradients")
    first-order  1 gradients
    darts        4 gradients
    amended      5 gradients
    idarts       7 gradients
    t1-t2        3 gradients
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

from fastnas.bilevel.estimators import amended, darts, first_order, t1_t2
from fastnas.bilevel.implicit import cg, exact, idarts, neumann, nystroem
from fastnas.bilevel.problem import BilevelProblem
from fastnas.bilevel.products import CENTRAL, Products
from fastnas.bilevel.release import idarts_release
from fastnas.bilevel.unrolled import Trajectory, reverse, truncated_reverse
from fastnas.bilevel.watch import Watch
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
        clip: of the weight step's gradient; infinity: none, as in DARTS' search for convolutional cells (darts).
        eta: amplitude of the amended term (amended).
        gamma: step of the Neumann series, likewise; None takes ``learning_rate`` (idarts, idarts-release, neumann).
        neumann_terms: K (idarts, idarts-release).
        products: how second-order products are taken (all but first-order).
        tolerance: of the residual, relative (neumann, cg).
        limit: the most terms or steps (neumann, cg).
        damping: of H (neumann, cg; nystroem, where 0 means 0.01).
        rank: k (nystroem).
        trajectory: the weight steps made so far (reverse, truncated-reverse).
        reverse_steps: K (truncated-reverse).
        watch: gets what an estimator noticed; None: a warning says it (idarts, neumann, cg).
    """

    learning_rate: float | Tensor
    momentum: float = 0.0
    weight_decay: float = 0.0
    # A tensor has no truth value to compare by, and is too long to print.
    momentum_buffer: Tensor | None = field(default=None, compare=False, repr=False)
    clip: float = math.inf
    eta: float = 0.1
    gamma: float | Tensor | None = None
    neumann_terms: int = 2
    products: Products = CENTRAL
    tolerance: float = 1e-3
    limit: int = 20
    damping: float = 0.0
    rank: int = 10
    trajectory: Trajectory | None = field(default=None, compare=False, repr=False)
    reverse_steps: int = 1
    watch: Watch | None = field(default=None, compare=False, repr=False)

    @property
    def step(self) -> float | Tensor:
        """gamma, or the learning rate in its place."""
        return self.learning_rate if self.gamma is None else self.gamma


@dataclass(frozen=True)
class Method:
    """One estimator and what a search loop must know of it.

    Args:
        name: the public name.
        summary: one line, with the source.
        after_inner_steps: the loop makes its T weight steps first and then moves alpha (idarts, t1-t2, and all
            that rest on an inner problem solved); False: alpha first, then the weights.
        gradients: settings -> gradients that one hypergradient costs with central differences, at the most, without the
            T inner steps; None: it depends on P.
        hypergradient: (problem, settings) -> shape (H,); leaves w and alpha bit-identical.
        inner_steps: T of a search where it is not said.
        recorded_steps: (settings, T) -> how many weight steps before the hypergradient it must be given as
            ``settings.trajectory``.
        waits: it reads numbers back from the device, so nothing runs ahead of it.
        moves_weights: it moves w by itself, and the search makes no weight steps (idarts-release).
    """

    name: str
    summary: str
    after_inner_steps: bool
    gradients: Callable[[InnerSettings], int | None]
    hypergradient: Callable[[BilevelProblem, InnerSettings], Tensor]
    inner_steps: int = 1
    recorded_steps: Callable[[InnerSettings, int], int] = lambda settings, inner_steps: 0
    waits: bool = False
    moves_weights: bool = False


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
        clip=settings.clip,
        products=settings.products,
    )


def _amended(problem: BilevelProblem, settings: InnerSettings) -> Tensor:
    return amended(problem, eta=settings.eta, products=settings.products)


def _idarts(problem: BilevelProblem, settings: InnerSettings) -> Tensor:
    return idarts(
        problem,
        gamma=settings.step,
        neumann_terms=settings.neumann_terms,
        products=settings.products,
        watch=settings.watch,
    )


def _t1_t2(problem: BilevelProblem, settings: InnerSettings) -> Tensor:
    return t1_t2(problem, products=settings.products)


def _exact(problem: BilevelProblem, settings: InnerSettings) -> Tensor:
    return exact(problem, products=settings.products)


def _cg(problem: BilevelProblem, settings: InnerSettings) -> Tensor:
    return cg(
        problem,
        steps=settings.limit,
        tolerance=settings.tolerance,
        damping=settings.damping,
        products=settings.products,
        watch=settings.watch,
    )


def _neumann(problem: BilevelProblem, settings: InnerSettings) -> Tensor:
    return neumann(
        problem,
        gamma=settings.step.item() if isinstance(settings.step, Tensor) else settings.step,
        tolerance=settings.tolerance,
        damping=settings.damping,
        limit=settings.limit,
        products=settings.products,
        watch=settings.watch,
    )


def _nystroem(problem: BilevelProblem, settings: InnerSettings) -> Tensor:
    return nystroem(problem, rank=settings.rank, damping=settings.damping or 0.01, products=settings.products)


def _reverse(problem: BilevelProblem, settings: InnerSettings) -> Tensor:
    return reverse(problem, _trajectory("reverse", settings), products=settings.products)


def _truncated_reverse(problem: BilevelProblem, settings: InnerSettings) -> Tensor:
    return truncated_reverse(
        problem,
        _trajectory("truncated-reverse", settings),
        last=settings.reverse_steps,
        products=settings.products,
    )


def _trajectory(name: str, settings: InnerSettings) -> Trajectory:
    if settings.trajectory is None:
        raise FastnasError(
            f"{name} goes back through weight steps: give InnerSettings their trajectory (unroll)"
        )
    return settings.trajectory


def _through_steps(settings: InnerSettings, steps: int) -> int:
    """Gradients of a reverse pass through so many steps."""
    clips = settings.trajectory is not None and settings.trajectory.optimiser.clip != float("inf")
    return 1 + (5 if clips else 4) * steps


def _recorded(settings: InnerSettings) -> int:
    return 0 if settings.trajectory is None else len(settings.trajectory.steps)


def _idarts_release(problem: BilevelProblem, settings: InnerSettings) -> Tensor:
    return idarts_release(
        problem,
        gamma=settings.step,
        neumann_terms=settings.neumann_terms,
        products=settings.products,
    )


METHODS: dict[str, Method] = {
    entry.name: entry
    for entry in (
        Method(
            "first-order",
            "the direct term alone (Liu et al. 2019, xi = 0)",
            after_inner_steps=False,
            gradients=lambda settings: 1,
            hypergradient=_first_order,
        ),
        Method(
            "darts",
            "through one virtual weight step (Liu et al. 2019, eq. 7-8)",
            after_inner_steps=False,
            gradients=lambda settings: 4,
            hypergradient=_darts,
        ),
        Method(
            "amended",
            "the Hessian in place of its inverse (Bi et al. 2019, eq. 6)",
            after_inner_steps=False,
            gradients=lambda settings: 5,
            hypergradient=_amended,
        ),
        Method(
            "idarts",
            "the inverse Hessian by a truncated Neumann series (Zhang et al. 2021, eq. 8-9)",
            after_inner_steps=True,
            inner_steps=4,
            gradients=lambda settings: 2 * settings.neumann_terms + 3,
            hypergradient=_idarts,
        ),
        Method(
            "t1-t2",
            "the identity in place of the inverse Hessian (Luketina et al. 2016)",
            after_inner_steps=True,
            gradients=lambda settings: 3,
            hypergradient=_t1_t2,
        ),
        Method(
            "neumann",
            "a Neumann series until its residual is small (Lorraine et al. 2020, algorithm 3)",
            after_inner_steps=True,
            inner_steps=4,
            gradients=lambda settings: 2 * settings.limit + 5,
            hypergradient=_neumann,
            waits=True,
        ),
        Method(
            "cg",
            "the inverse Hessian by conjugate gradients (Pedregosa 2016; Rajeswaran et al. 2019)",
            after_inner_steps=True,
            inner_steps=4,
            gradients=lambda settings: 2 * settings.limit + 3,
            hypergradient=_cg,
            waits=True,
        ),
        Method(
            "nystroem",
            "the inverse of a low-rank Hessian (Hataya, Yamada 2023)",
            after_inner_steps=True,
            inner_steps=4,
            gradients=lambda settings: 2 * settings.rank + 3,
            hypergradient=_nystroem,
            waits=True,
        ),
        Method(
            "exact",
            "the Hessian written out and solved, for up to 5,000 weights (Bengio 2000)",
            after_inner_steps=True,
            inner_steps=4,
            gradients=lambda settings: None,
            hypergradient=_exact,
            waits=True,
        ),
        Method(
            "reverse",
            "through all T weight steps (Franceschi et al. 2017)",
            after_inner_steps=True,
            inner_steps=4,
            gradients=lambda settings: _through_steps(settings, _recorded(settings)),
            hypergradient=_reverse,
            recorded_steps=lambda settings, inner_steps: inner_steps,
        ),
        Method(
            "truncated-reverse",
            "through the last K weight steps (Shaban et al. 2019)",
            after_inner_steps=True,
            inner_steps=4,
            gradients=lambda settings: _through_steps(
                settings, min(settings.reverse_steps, _recorded(settings))
            ),
            hypergradient=_truncated_reverse,
            recorded_steps=lambda settings, inner_steps: min(settings.reverse_steps, inner_steps),
        ),
        Method(
            "idarts-release",
            "iDARTS as its authors' code does it, for comparison: the weights move by a remainder only",
            after_inner_steps=True,
            inner_steps=4,
            gradients=lambda settings: 2 * settings.neumann_terms + 3,
            hypergradient=_idarts_release,
            moves_weights=True,
        ),
    )
}
"""Every method by its name."""
