"""Which radius a finite difference should have on this problem: differences beside exact products.

On a smooth loss the error of a central difference falls as r^2 until rounding stops it. Where a network has kinks
(ReLU, maxima) it grows as r^-1/2 from some r downwards: the difference counts the switches that its step crosses, and
on one minibatch they are few. The best r lies between the two and is another one for each network and batch size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from fastnas.bilevel import _arguments as check
from fastnas.bilevel.agreement import Agreement, agreement
from fastnas.bilevel.problem import TwiceDifferentiable
from fastnas.bilevel.products import Products
from fastnas.errors import FastnasError

RADII = tuple(round(10 ** (half / 2), 5) for half in range(1, -7, -1))
"""Two a decade, from far above the papers' 0.01 to far below."""


@dataclass(frozen=True)
class RadiusRow:
    """H u and d2L1/dalpha dw . u by one way, over some minibatches.

    Attributes:
        minibatches: n; the product of their mean loss.
        radius: of the differences; None: exact products.
        hessian, mixed: their agreement with the exact products of the same n minibatches.
        hessian_over_all, mixed_over_all: with the exact products of all minibatches there are.
    """

    minibatches: int
    radius: float | None
    hessian: Agreement
    mixed: Agreement
    hessian_over_all: Agreement
    mixed_over_all: Agreement


def radius_sweep(
    problems: Sequence[TwiceDifferentiable],
    u: Tensor,
    radii: Sequence[float] = RADII,
    *,
    scheme: str = "central",
) -> list[RadiusRow]:
    """Differences of every radius beside exact products, over 1, 2, 4, ... of the minibatches.

    A mean over minibatches costs no memory beyond one, and each minibatch keeps its own BatchNorm statistics, as the
    steps of a search do. 4 gradients a radius and minibatch, 2 exact products a minibatch.

    Args:
        problems: one a minibatch, all of the same w and alpha.
        u: shape (P,), the direction of the products, in a search about dL2/dw.
        radii: > 0.
        scheme: "central" or "forward".

    Returns:
        For each number of minibatches a row of exact products, then one a radius, in the order of ``radii``.

    Raises:
        FastnasError: no problem, no radius, or one that is out of range.

    Example:
        >>> from fastnas.bilevel import toy_problem
        >>> problem = toy_problem()  # quadratic: a difference of any radius is exact
        >>> [(row.radius, round(row.mixed.cosine, 6)) for row in radius_sweep([problem], problem.w, [0.1])]
        [(None, 1.0), (0.1, 1.0)]
    """
    if not problems or not radii:
        raise FastnasError("radius_sweep: it needs at least one problem and one radius")
    check.flat_vector("radius_sweep", "u", u)
    sizes = doublings(len(problems))
    exact = _means(problems, u, Products("exact", "exact"), sizes)
    ways = [(radius, Products(scheme=scheme, radius=radius)) for radius in radii]
    rows = [(radius, _means(problems, u, products, sizes)) for radius, products in ways]
    found = []
    for size in sizes:
        for radius, means in [(None, exact), *rows]:
            (hessian, mixed), same, all_ = means[size], exact[size], exact[sizes[-1]]
            found.append(
                RadiusRow(
                    size,
                    radius,
                    agreement(hessian, same[0]),
                    agreement(mixed, same[1]),
                    agreement(hessian, all_[0]),
                    agreement(mixed, all_[1]),
                )
            )
    return found


def recommended_radius(rows: Sequence[RadiusRow]) -> float:
    """The radius whose two products point most nearly where the exact ones of the same minibatch do.

    The largest mean of the two cosines over one minibatch; of equal ones the first.

    Raises:
        FastnasError: no row has a finite cosine.
    """
    one = [
        row
        for row in rows
        if row.minibatches == 1 and row.radius is not None and math.isfinite(mean_cosine(row))
    ]
    if not one:
        raise FastnasError(
            "no difference has a direction that could be compared with the exact product's: both are 0 or not finite"
        )
    best = max(one, key=mean_cosine).radius
    assert best is not None
    return best


def mean_cosine(row: RadiusRow) -> float:
    """Of H u and of the mixed product, over the same minibatches."""
    return (row.hessian.cosine + row.mixed.cosine) / 2


def doublings(most: int) -> list[int]:
    """1, 2, 4, ... and ``most`` itself.

    >>> doublings(6)
    [1, 2, 4, 6]
    """
    sizes = [1 << i for i in range(most.bit_length()) if 1 << i < most]
    return [*sizes, most]


def _means(
    problems: Sequence[TwiceDifferentiable], u: Tensor, products: Products, sizes: Sequence[int]
) -> dict[int, tuple[Tensor, Tensor]]:
    """(H u, mixed product) of the mean loss of the first n minibatches, for each n of ``sizes``."""
    means: dict[int, tuple[Tensor, Tensor]] = {}
    hessian = mixed = None
    for n, problem in enumerate(problems, 1):
        curvature = products.of(problem)
        one, other = curvature.hessian(u), curvature.mixed(u)
        hessian, mixed = (one, other) if hessian is None or mixed is None else (hessian + one, mixed + other)
        if n in sizes:
            means[n] = hessian / n, mixed / n
    return means
