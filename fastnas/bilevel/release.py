"""iDARTS as its authors released it, which is not as they published it: for comparison."""

from __future__ import annotations

import torch
from torch import Tensor

from fastnas.bilevel import _arguments as check
from fastnas.bilevel.problem import BilevelProblem
from fastnas.bilevel.products import CENTRAL, Products
from fastnas.ops import vector_norm


def idarts_release(
    problem: BilevelProblem,
    *,
    gamma: float | Tensor,
    neumann_terms: int = 2,
    products: Products = CENTRAL,
) -> Tensor:
    """The hypergradient of the authors' released NAS-Bench-201 search, with what it does to the weights.

        V_0 = v = dL2/dw,    V_k+1 = V_k - gamma H V_k,    s = sum over k = 0..K of V_k,    R = radius/|v|
        g = dL2/dalpha - gamma [dL1/dalpha(w + R s) - dL1/dalpha(w - R s)] / (2 R)
        w <- w - R s + R v

    The estimate is that of iDARTS (Zhang et al. 2021, eq. 8-9), but for the difference's step, which is R |s| long in
    place of ``radius``. The weights are another matter: the T inner steps step a copy of the optimiser, and with it
    copies of the weights, so the network's stay where they are; and the difference puts back R v where it took R s.
    What moves the weights of that search is this remainder alone, - R (V_1 + .. + V_K), once a step. ("We empirically
    found that adding noise into supernet could improve the performance", says a comment there.) So nothing there
    descends the training loss, and it is no method to search with; it is here to compare the paper with.

    The only estimator that moves ``w``. 2K + 3 gradients.

    Args:
        problem: the oracles.
        gamma: > 0, the learning rate there. A number, or shape (), float64, on w's device.
        neumann_terms: K >= 0; 2 there.
        products: how H V_k are taken (exactly, there), and the radius (0.01 there). The mixed product is the
            difference above.

    Returns:
        g, shape (H,).

    Raises:
        FastnasError: an argument is out of range.

    Example:
        >>> from fastnas.bilevel import toy_problem
        >>> problem = toy_problem()  # v = 4, H = 2, s = 4 + 2: the estimate is that of idarts
        >>> idarts_release(problem, gamma=0.25, neumann_terms=1).round(decimals=6)
        tensor([1.], dtype=torch.float64)
        >>> problem.w  # 1 - R s + R v, R = 0.01/4
        tensor([0.9950], dtype=torch.float64)
    """
    check.flat_vector("idarts-release", "w", problem.w)
    check.rate("idarts-release", "gamma", gamma, problem.w, above=True)
    check.count("idarts-release", "neumann_terms", neumann_terms)
    v, direct = problem.val_grads()
    curvature = products.of(problem)
    term, series = v, v.clone()
    for _ in range(neumann_terms):
        term = term - gamma * curvature.hessian(term)
        series += term
    step = products.radius / vector_norm(v)
    with torch.no_grad():
        problem.w.add_(step * series)
        ahead = problem.train_grad_alpha()
        problem.w.sub_(2 * step * series)
        behind = problem.train_grad_alpha()
        problem.w.add_(step * v)
    return direct.sub_(gamma * (ahead - behind) / (2 * step))
