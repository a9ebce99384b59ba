"""The spectrum of a symmetric operator that is known by its products A u alone, by the Lanczos method.

A Hessian of P weights has P^2 numbers and is never formed; what it does to a vector costs a gradient or two. m such
products give a tridiagonal matrix T of m rows whose eigenvalues (the Ritz values) meet the ends of A's spectrum
first, and whose eigenvectors are the weights of a Gaussian quadrature of its density.

- Lanczos: Golub & Meurant, "Matrices, Moments and Quadrature with Applications", 2010, chapters 4 and 6.
- Stochastic Lanczos quadrature: Ubaru, Chen, Saad, "Fast Estimation of tr(f(A)) via Stochastic Lanczos Quadrature",
  2017; for Hessians of networks Ghorbani, Krishnan, Xiao, "An Investigation into Neural Net Optimization via
  Hessian Eigenvalue Density", ICML 2019.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fastnas.bilevel import _arguments as check
from fastnas.bilevel.solvers import MatVec
from fastnas.errors import FastnasError


@dataclass(frozen=True)
class Tridiagonal:
    """T = Q' A Q for the orthonormal Lanczos vectors Q = (q_1, ..., q_m), in float64 on the CPU.

    Attributes:
        diagonal: (m,), the q_j' A q_j.
        off_diagonal: (m - 1,), >= 0.
        residual: beta_m, the norm of what A q_m has outside of the m vectors; about 0 if they span an invariant
            subspace.
        skew: the largest |q_i' A q_j - q_j' A q_i| that was met; rounding if A is symmetric.
    """

    diagonal: Tensor
    off_diagonal: Tensor
    residual: float
    skew: float

    def ritz(self) -> tuple[Tensor, Tensor, Tensor]:
        """The Ritz values, ascending, and for each its weight and its error bound.

        With T s = theta s and |s| = 1, the weight is s_1^2, and some eigenvalue of A lies within |beta_m s_m| of theta
        (Golub & Meurant 2010, section 4.1).

        Returns:
            Three tensors, each (m,), float64.

        Example:
            >>> values, weights, errors = Tridiagonal(torch.tensor([1.0, 1.0]).double(),
            ...                                       torch.tensor([2.0]).double(), 0.0, 0.0).ritz()
            >>> values.round(decimals=6), weights.round(decimals=6)
            (tensor([-1.,  3.], dtype=torch.float64), tensor([0.5000, 0.5000], dtype=torch.float64))
        """
        matrix = (
            torch.diag(self.diagonal) + torch.diag(self.off_diagonal, 1) + torch.diag(self.off_diagonal, -1)
        )
        values, vectors = torch.linalg.eigh(matrix)
        return values, vectors[0] ** 2, self.residual * vectors[-1].abs()


def lanczos(matvec: MatVec, start: Tensor, steps: int, *, window: int | None = None) -> Tridiagonal:
    """``steps`` steps of the Lanczos method from ``start``.

        beta_j q_{j+1} = A q_j - alpha_j q_j - beta_{j-1} q_{j-1},    alpha_j = q_j' A q_j

    (Golub & Meurant 2010, section 4.1.) Every new vector is made orthogonal to the last ``window`` ones, twice. It ends
    early at an invariant subspace, where beta_j is no more than rounding, and after P steps. One product a step; the
    host waits for the device once a step. Memory: min(steps, window) + 3 vectors of P numbers, and what ``matvec``
    needs; in float32 two more for the length of a scalar product.

    Against all vectors (None) the Ritz values are distinct and stay within rounding of those of exact arithmetic.
    With a window that is shorter than the run, rounding brings back directions whose Ritz value has converged, and
    copies of it appear ("ghosts"): the number of Ritz values in a place says nothing then. The two ends stay right, and
    so do the weights, for the copies share the one's weight (Greenbaum 1989).

    Args:
        matvec: u -> A u, both of ``start``'s shape, dtype and device; it must not write to u.
        start: shape (P,), float32 or float64, finite and not 0; not written.
        steps: > 0.
        window: at least 2 (the bare recurrence), None: all vectors.

    Returns:
        T of at most ``steps`` rows.

    Raises:
        FastnasError: an argument is out of range, or a product is not like ``start`` or not finite.

    Example:
        >>> tridiagonal = lanczos(lambda u: torch.tensor([1.0, 2.0, 4.0]) * u, torch.ones(3), 3)
        >>> tridiagonal.ritz()[0].round(decimals=4)
        tensor([1., 2., 4.], dtype=torch.float64)
    """
    check.flat_vector("lanczos", "start", start)
    _check_at_least("lanczos", "steps", steps, 1)
    if window is not None:
        _check_at_least("lanczos", "window", window, 2)
    start = start.detach().contiguous()
    norm = _norm(start)
    if not (math.isfinite(norm) and norm > 0):
        raise FastnasError(f"lanczos: start must be finite and not 0, got a vector of norm {norm}")
    steps = min(steps, len(start))
    kept = start.new_empty(min(steps, window or steps), len(start))  # the last vectors, in turn
    torch.div(start, norm, out=kept[0])
    diagonal: list[float] = []
    off_diagonal: list[float] = []
    skews, scale = [], 0.0
    for j in range(steps):
        q = kept[j % len(kept)]
        rest = _product(matvec, q)
        alpha = _dot(q, rest)
        rest = rest - alpha * q
        if j:
            rest.sub_(kept[(j - 1) % len(kept)], alpha=off_diagonal[-1])
        skews.append(_orthogonalise(rest, kept[: j + 1]))
        beta = _norm(rest)
        if not math.isfinite(beta):
            raise FastnasError(
                f"lanczos: the operator's product number {j + 1} holds NaN or infinity; "
                "look at the weights and the loss that it is made of"
            )
        diagonal.append(alpha.item())
        scale = max(scale, abs(diagonal[-1]), beta)
        if j + 1 == steps or beta <= 10 * torch.finfo(start.dtype).eps * scale:
            break
        off_diagonal.append(beta)
        torch.div(rest, beta, out=kept[(j + 1) % len(kept)])
    return Tridiagonal(
        torch.tensor(diagonal, dtype=torch.float64),
        torch.tensor(off_diagonal, dtype=torch.float64),
        beta,
        torch.stack(skews).max().item(),
    )


@dataclass(frozen=True)
class Ends:
    """The two ends of a spectrum.

    Attributes:
        lambda_max, lambda_min: the largest and the smallest Ritz value; inside the spectrum, so never too far out.
        lambda_max_error, lambda_min_error: an eigenvalue lies so close, |beta_m s_m|, if the operator is symmetric.
            That none lies further out is not certain, but for a random start likely.
        asymmetry: the largest |<a, A b> - <b, A a>| over the Lanczos vectors a, b, divided by the spectral radius;
            rounding if A is symmetric. Of products by differences on networks with switches it is more, and then the
            ends are off by about this share of the radius or more, whatever the two errors above say.
        products: how many the whole result took.
    """

    lambda_max: float
    lambda_max_error: float
    lambda_min: float
    lambda_min_error: float
    asymmetry: float
    products: int

    @property
    def spectral_radius(self) -> float:
        """The largest |lambda|."""
        return max(abs(self.lambda_max), abs(self.lambda_min))


def ends(
    matvec: MatVec, like: Tensor | int, *, steps: int = 20, seed: int = 0, window: int | None = None
) -> Ends:
    """The largest and the smallest eigenvalue, by one Lanczos run from a Gaussian vector.

    A Gaussian vector has a part along every eigenvector; a vector of signs may be orthogonal to one, as (1, 1) is to
    (1, -1). ``steps`` products; memory as ``lanczos``.

    Args:
        matvec: u -> A u; it must not write to u.
        like: a vector of A's size P, dtype (float32 or float64) and device; or P, for float64 on the CPU.
        steps: of Lanczos, > 0.
        seed: of the vector, which is drawn on the CPU: the same on every device. The global random state stays.
        window: see ``lanczos``.

    Returns:
        Both ends with their error bounds.

    Raises:
        FastnasError: an argument is out of range, or a product is not like ``like`` or not finite.

    Example:
        >>> found = ends(lambda u: torch.linspace(-1, 3, 50).double() * u, 50, steps=50)
        >>> round(found.lambda_min, 8), round(found.lambda_max, 8)
        (-1.0, 3.0)
    """
    like = _like("ends", like)
    generator = torch.Generator().manual_seed(_seed("ends", seed))
    return _ends([lanczos(matvec, _gaussian(like, generator), steps, window=window)])


@dataclass(frozen=True)
class Spectrum(Ends):
    """The ends of a spectrum, its trace, and its density as nodes and weights.

    Attributes:
        size: P, the number of eigenvalues.
        trace: of A, by Hutchinson's estimator: the mean of z' A z over vectors z of random signs.
        trace_error: its standard error; NaN with one probe. Both are exact, and 0, for a diagonal A.
        nodes, weights: (n,), float64: the share of eigenvalues in an interval is about the sum of the weights of the
            nodes in it. The weights add up to 1.
    """

    size: int
    trace: float
    trace_error: float
    nodes: Tensor
    weights: Tensor

    def density(self, at: Tensor, width: float | None = None) -> Tensor:
        """The share of eigenvalues per unit of lambda, smoothed by a Gaussian kernel.

            phi(t) = sum_i weight_i exp(-(t - node_i)^2 / (2 width^2)) / (width sqrt(2 pi))

        (Ghorbani et al. 2019, section 2.)

        Args:
            at: (k,), where to take it.
            width: standard deviation of the kernel, in the units of lambda, > 0; None: a hundredth of the distance
                from lambda_min to lambda_max.

        Returns:
            phi, (k,), float64.

        Raises:
            FastnasError: the width is no number > 0, or missing where the spectrum is one point.
        """
        if width is None:
            width = (self.lambda_max - self.lambda_min) / 100
            if not width > 0:
                raise FastnasError(
                    f"density: all eigenvalues are {self.lambda_max:g}, which gives no width; name one"
                )
        check.positive("density", "width", width)
        distance = (at.detach().cpu().double()[:, None] - self.nodes) / width
        return (distance.square().mul(-0.5).exp() @ self.weights) / (width * math.sqrt(2 * math.pi))


def spectrum(
    matvec: MatVec,
    like: Tensor | int,
    *,
    steps: int = 40,
    probes: int = 4,
    seed: int = 0,
    window: int | None = None,
) -> Spectrum:
    """The ends, the trace and the density of A's spectrum, by stochastic Lanczos quadrature.

        tr f(A) ~ P/n sum_l sum_k s_{lk1}^2 f(theta_lk),    T_l s_lk = theta_lk s_lk,    T_l of n vectors of signs

    (Ubaru et al. 2017, algorithm 1.) For one vector it is exact for polynomials up to degree 2 steps - 1, and over the
    vectors a mean whose standard error falls as n^-1/2. The ends come from one run more, as in ``ends``, and from
    these. (probes + 1) steps products; memory as ``lanczos``.

    Args:
        matvec: u -> A u; it must not write to u.
        like: a vector of A's size P, dtype (float32 or float64) and device; or P, for float64 on the CPU.
        steps: of every Lanczos run, > 0.
        probes: n, vectors of random signs (Rademacher), > 0.
        seed: of all vectors, which are drawn on the CPU: the same on every device. The global random state stays.
        window: see ``lanczos``.

    Returns:
        The spectrum.

    Raises:
        FastnasError: an argument is out of range, or a product is not like ``like`` or not finite.

    Example:
        >>> found = spectrum(lambda u: torch.arange(1.0, 101).double() * u, 100, steps=60)
        >>> found.trace, round(found.lambda_max, 6), found.products
        (5050.0, 100.0, 300)
    """
    like = _like("spectrum", like)
    _check_at_least("spectrum", "probes", probes, 1)
    generator = torch.Generator().manual_seed(_seed("spectrum", seed))
    run = lanczos(matvec, _gaussian(like, generator), steps, window=window)
    runs = [lanczos(matvec, _signs(like, generator), steps, window=window) for _ in range(probes)]
    values, weights, _ = zip(*(tridiagonal.ritz() for tridiagonal in runs), strict=True)
    # |z|^2 = P, and the first Lanczos vector is z / |z|.
    traces = len(like) * torch.stack([tridiagonal.diagonal[0] for tridiagonal in runs])
    return Spectrum(
        **vars(_ends([run, *runs])),
        size=len(like),
        trace=traces.mean().item(),
        trace_error=traces.std().item() / math.sqrt(probes) if probes > 1 else math.nan,
        nodes=torch.cat(values),
        weights=torch.cat(weights) / probes,
    )


def _ends(runs: list[Tridiagonal]) -> Ends:
    found = [tridiagonal.ritz() for tridiagonal in runs]
    lowest, lowest_error = min((values[0].item(), errors[0].item()) for values, _, errors in found)
    highest, highest_error = max((values[-1].item(), errors[-1].item()) for values, _, errors in found)
    radius = max(abs(lowest), abs(highest))
    skew = max(tridiagonal.skew for tridiagonal in runs)
    products = sum(len(tridiagonal.diagonal) for tridiagonal in runs)
    return Ends(highest, highest_error, lowest, lowest_error, skew / radius if radius else 0.0, products)


def _product(matvec: MatVec, q: Tensor) -> Tensor:
    product = matvec(q)
    check.like_w("lanczos", "the operator's product", product, q)
    return product.detach()


def _norm(vector: Tensor) -> float:
    return torch.linalg.vector_norm(vector, dtype=torch.float64).item()


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return torch.dot(a.double(), b.double())


def _orthogonalise(vector: Tensor, basis: Tensor) -> Tensor:
    """Takes out of ``vector`` what lies along the orthonormal rows of ``basis``; the largest of the parts, ().

    Twice: after once, what rounding leaves of a long vector may be most of a short one.
    """
    parts = basis @ vector
    vector.sub_(basis.mT @ parts)
    vector.sub_(basis.mT @ (basis @ vector))
    return parts.abs().max()


def _gaussian(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(len(like), generator=generator, dtype=like.dtype).to(like.device)


def _signs(like: Tensor, generator: torch.Generator) -> Tensor:
    signs = torch.randint(0, 2, (len(like),), generator=generator, dtype=like.dtype)
    return signs.mul_(2).sub_(1).to(like.device)


def _like(where: str, like: Tensor | int) -> Tensor:
    if not isinstance(like, Tensor):
        _check_at_least(where, "like", like, 1)
        return torch.empty(like, dtype=torch.float64)
    check.flat_vector(where, "like", like)
    _check_at_least(where, "the length of like", len(like), 1)
    return like


def _seed(where: str, seed: int) -> int:
    _check_at_least(where, "seed", seed, 0)
    return seed


def _check_at_least(where: str, name: str, value: object, low: int) -> None:
    check.count(where, name, value)
    if value < low:  # type: ignore[operator]
        raise FastnasError(f"{where}: {name} must be an integer >= {low}, got {value!r}")
