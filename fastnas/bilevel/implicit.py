"""Hypergradients by the implicit function theorem: those that solve with the Hessian of the training loss.

    g = dL2/dalpha - d2L1/dalpha dw . x,    H x = v = dL2/dw,    H = d2L1/dw2

exact at a minimum w* of the training loss where H is positive definite. They differ in how x is found; ``implicit``
takes any solver, the others name one. All return (H,) and leave w and alpha bit-identical. Gradients are counted for
central differences; vectors live as in ``estimators.py``.

- iDARTS: Zhang et al., "iDARTS: Differentiable Architecture Search with Stochastic Implicit Gradients", ICML 2021.
- The theorem for hypergradients: Bengio, "Gradient-Based Optimization of Hyperparameters", Neural Computation 2000.
- Neumann series: Lorraine, Vicol, Duvenaud, "Optimizing Millions of Hyperparameters by Implicit Differentiation",
  AISTATS 2020.
- Conjugate gradients: Pedregosa, "Hyperparameter Optimization with Approximate Gradient", ICML 2016; Rajeswaran et al.,
  "Meta-Learning with Implicit Gradients", NeurIPS 2019.
- Nystroem: Hataya, Yamada, "Nystroem Method for Accurate and Scalable Implicit Differentiation", AISTATS 2023.
"""

from __future__ import annotations

from torch import Tensor, where

from fastnas.bilevel import _arguments as check
from fastnas.bilevel import solvers
from fastnas.bilevel.difference import gradients_along, step_of
from fastnas.bilevel.problem import BilevelProblem, restored
from fastnas.bilevel.products import CENTRAL, Curvature, Products
from fastnas.bilevel.solvers import DENSE_LIMIT, Solver
from fastnas.bilevel.watch import Growth, Watch
from fastnas.ops import neumann_step_, vector_norm


def implicit(problem: BilevelProblem, *, solve: Solver, products: Products = CENTRAL) -> Tensor:
    """The implicit hypergradient with any linear solver.

        g = dL2/dalpha - d2L1/dalpha dw . solve(H, v),    v = dL2/dw

    (Bengio 2000, eq. 6; Lorraine et al. 2020, eq. 3.) Three gradients and what ``solve`` takes: two a product.

    Args:
        problem: the oracles, at the w where the theorem is to hold.
        solve: ``solve(matvec, b) -> x`` with H x = b, where ``matvec(u)`` = H u; ``fastnas.bilevel.solvers`` has some.
            b is the solver's own.
        products: how H u and the mixed product are taken.

    Returns:
        g, shape (H,).

    Raises:
        FastnasError: the solver returned no vector like w.

    Example:
        >>> from fastnas.bilevel import toy_problem
        >>> implicit(toy_problem(), solve=lambda matvec, b: b / 2).round(decimals=6)  # H = 2 there: the whole 2a
        tensor([2.], dtype=torch.float64)
    """
    v, direct = problem.val_grads()
    curvature = products.of(problem)
    x = solve(curvature.hessian, v)
    check.like_w("implicit", "the solution of solve(matvec, b)", x, problem.w)
    return direct.sub_(curvature.mixed(x))


def exact(problem: BilevelProblem, *, products: Products = CENTRAL, limit: int = DENSE_LIMIT) -> Tensor:
    """The implicit hypergradient with the Hessian written out and solved: the yardstick of small problems.

        g = dL2/dalpha - d2L1/dalpha dw . H^-1 . v

    (Bengio 2000, eq. 6.) 2P + 3 gradients, P^2 numbers in float64. A singular H: the solution of least norm. With
    ``Products("exact", "exact")`` nothing is left to be approximated.

    Args:
        problem: the oracles.
        products: how H u and the mixed product are taken.
        limit: the largest P.

    Returns:
        g, shape (H,).

    Raises:
        FastnasError: P > limit.

    Example:
        >>> from fastnas.bilevel import toy_problem
        >>> exact(toy_problem(), products=Products("exact", "exact"))
        tensor([2.], dtype=torch.float64)
    """
    return implicit(problem, solve=solvers.dense(limit=limit), products=products)


def cg(
    problem: BilevelProblem,
    *,
    steps: int = 10,
    tolerance: float = 1e-10,
    damping: float = 0.0,
    products: Products = CENTRAL,
    watch: Watch | None = None,
) -> Tensor:
    """The implicit hypergradient by conjugate gradients.

        g = dL2/dalpha - d2L1/dalpha dw . x,    (H + damping I) x = v in S steps

    (Pedregosa 2016, algorithm 1; Rajeswaran et al. 2019, algorithm 2.) 2S + 3 gradients; it reads numbers back from
    the device. Negative curvature ends it and is said (``solvers.conjugate_gradients``).

    Args:
        problem: the oracles.
        steps: S >= 1.
        tolerance: >= 0, of the residual relative to |v|: fewer steps, if they do.
        damping: >= 0.
        products: how H u and the mixed product are taken.
        watch: gets what was seen; None: a warning says it.

    Returns:
        g, shape (H,).

    Raises:
        FastnasError: an argument is out of range.

    Example:
        >>> from fastnas.bilevel import toy_problem
        >>> cg(toy_problem(), steps=1).round(decimals=6)
        tensor([2.], dtype=torch.float64)
    """
    solve = solvers.conjugate_gradients(steps, tolerance=tolerance, damping=damping, watch=watch)
    return implicit(problem, solve=solve, products=products)


def neumann(
    problem: BilevelProblem,
    *,
    gamma: float,
    tolerance: float = 1e-3,
    damping: float = 0.0,
    limit: int = 1000,
    products: Products = CENTRAL,
    watch: Watch | None = None,
) -> Tensor:
    """The implicit hypergradient by a Neumann series that goes on until it is good enough.

        g = dL2/dalpha - gamma d2L1/dalpha dw . sum over k = 0..K of V_k,
        V_0 = v,    V_k+1 = V_k - gamma (H + damping I) V_k,    until |V_K+1| <= tolerance |v|

    (Lorraine et al. 2020, algorithm 3; Zhang et al. 2021, eq. 9 with K by the residual, which |V_K+1| is.) 2K + 5
    gradients; it reads numbers back from the device. Growth ends it and is said (``solvers.neumann``).

    Args:
        problem: the oracles.
        gamma: > 0, less than 2/lambda_max.
        tolerance: > 0, of the residual relative to |v|.
        damping: >= 0.
        limit: the largest K.
        products: how H u and the mixed product are taken.
        watch: gets what was seen; None: a warning says it.

    Returns:
        g, shape (H,).

    Raises:
        FastnasError: an argument is out of range.

    Example:
        >>> from fastnas.bilevel import toy_problem
        >>> neumann(toy_problem(), gamma=0.25, tolerance=1e-9).round(decimals=6)
        tensor([2.], dtype=torch.float64)
    """
    solve = solvers.neumann(gamma, tolerance=tolerance, damping=damping, limit=limit, watch=watch)
    return implicit(problem, solve=solve, products=products)


def nystroem(
    problem: BilevelProblem,
    *,
    rank: int = 10,
    damping: float = 0.01,
    seed: int = 0,
    products: Products = CENTRAL,
) -> Tensor:
    """The implicit hypergradient with the Nystroem approximation of the Hessian, of rank k.

        g = dL2/dalpha - d2L1/dalpha dw . (H_k + damping I)^-1 . v

    (Hataya, Yamada 2023, section 3; ``solvers.nystroem``.) 2k + 3 gradients, k vectors live, in float64; it reads
    numbers back from the device.

    Args:
        problem: the oracles.
        rank: k >= 1.
        damping: > 0.
        seed: of the k columns.
        products: how H u and the mixed product are taken.

    Returns:
        g, shape (H,).

    Raises:
        FastnasError: an argument is out of range.

    Example:
        >>> from fastnas.bilevel import toy_problem
        >>> nystroem(toy_problem(), rank=1, damping=1e-6).round(decimals=4)
        tensor([2.], dtype=torch.float64)
    """
    solve = solvers.nystroem(rank, damping=damping, seed=seed)
    return implicit(problem, solve=solve, products=products)


def idarts(
    problem: BilevelProblem,
    *,
    gamma: float | Tensor,
    neumann_terms: int = 2,
    products: Products = CENTRAL,
    watch: Watch | None = None,
) -> Tensor:
    """iDARTS: the inverse Hessian by a truncated Neumann series, after T inner steps.

        g = dL2/dalpha - gamma d2L1/dalpha dw . sum over k = 0..K of V_k,
        V_0 = v = dL2/dw,    V_k+1 = V_k - gamma H V_k

    (Zhang et al. 2021, eq. 8 and 9.) Taken at the present w: make the T inner steps first (``inner_steps``,
    or a search's own weight steps). The series converges for 0 < gamma < 2/L, L the largest eigenvalue of
    H; for gamma <= 1/L the error at w* is at most C (1/mu) (1 - gamma mu)^(K+1), C = |d2L1/dalpha dw| |v|
    (Theorem 1). Where |V_k| grows it diverges: that is said with an estimate of L, and the terms from there on are left
    out. 2K + 3 gradients; 6 vectors live, whatever K (3 for K = 0).

    Args:
        problem: the oracles, at the w reached by the inner steps.
        gamma: > 0, the inner steps' learning rate in the paper. A number, or shape (), float64, on w's device: then
            nothing reads it on the host.
        neumann_terms: K >= 0, terms after the identity; 2 in the paper.
        products: how H u and the mixed product are taken. The paper's are ``Products(hessian="exact")``.
        watch: gets what was seen, and nothing waits for the device; None: a warning says it.

    Returns:
        g, shape (H,).

    Raises:
        FastnasError: an argument is out of range.

    Example:
        >>> from fastnas.bilevel import toy_problem
        >>> idarts(toy_problem(), gamma=0.25, neumann_terms=1).round(decimals=6)  # -2a + 4a (1 - 1/2^2)
        tensor([1.], dtype=torch.float64)
        >>> idarts(toy_problem(), gamma=0.25, neumann_terms=30).round(decimals=6)  # tends to the exact 2a
        tensor([2.], dtype=torch.float64)
    """
    check.flat_vector("idarts", "w", problem.w)
    check.rate("idarts", "gamma", gamma, problem.w, above=True)
    check.count("idarts", "neumann_terms", neumann_terms)
    v, direct = problem.val_grads()
    curvature = products.of(problem)
    seen = Watch() if watch is None else watch
    series = _neumann_series(curvature, v.contiguous(), gamma, neumann_terms, seen)
    if watch is None:
        seen.warn()
    return direct.sub_(gamma * curvature.mixed(series))


def _neumann_series(
    curvature: Curvature, v: Tensor, gamma: float | Tensor, terms: int, watch: Watch
) -> Tensor:
    """The sum of V_k over k = 0..K, up to the first growth; v becomes V_K. By differences a term costs gradients and
    some passes over P numbers: w is saved once for all terms, and the step leaves the norm that the next eps needs.
    """
    problem, products = curvature.problem, curvature.products
    series, norm = v.clone(), vector_norm(v)
    growth = Growth("idarts", gamma, norm)
    base = curvature.base() if terms and products.hessian == "difference" else None
    step = step_of(products.radius, base)
    with restored(problem) as saved:
        for _ in range(terms):
            before = series
            if products.hessian == "exact":
                product = curvature.hessian(v)
                v = v.sub_(gamma * product)
                series, norm, slope = series + v, vector_norm(v), vector_norm(product)
                del product
            else:
                sides = gradients_along(
                    "idarts", problem.w, problem.train_grad_w, saved, v, norm, products.radius, base
                )
                series = before.clone()
                slope = norm / (2 * step)
                norm = neumann_step_(v, series, *sides, norm, step, gamma)
                slope = vector_norm(sides[0].sub_(sides[1])) * slope
                del sides  # before the next gradient is taken
            series = where(growth.step(norm, slope), before, series)
            del before
    growth.report(watch)
    return series
