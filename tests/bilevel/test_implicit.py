"""Implicit hypergradients: against the derivative of L2(w*(alpha), alpha) itself, and the theorems about them."""

import warnings

import pytest
import torch

from fastnas.bilevel import (
    FunctionProblem,
    HypergradientWarning,
    Products,
    Watch,
    amended,
    cg,
    exact,
    idarts,
    implicit,
    neumann,
    nystroem,
)
from fastnas.bilevel.solvers import conjugate_gradients, dense
from fastnas.bilevel.solvers import neumann as neumann_solver
from fastnas.errors import FastnasError
from tests.bilevel.problems import QuadraticProblem

SPECTRUM = torch.tensor([0.5, 2.0, 2.5, 3.0, 4.0])  # mu = 0.5, L = 4
EXACT = Products("exact", "exact")
ALL_PRODUCTS = [Products(), Products(scheme="forward", radius=1e-5), EXACT, Products(hessian="exact")]


def quadratic(seed=0, **arguments):
    """Its closed forms, and the same losses by autograd on the same w and alpha."""
    by_hand = QuadraticProblem(SPECTRUM, seed=seed, **{"curvature": 0.2, **arguments})
    by_hand.w.copy_(by_hand.solution())
    return by_hand, FunctionProblem(by_hand.train_loss, by_hand.val_loss, by_hand.w, by_hand.alpha)


def total_derivative(by_hand):
    """d L2(w*(alpha), alpha) / d alpha, by autograd through the solution of the normal equations."""
    alpha = by_hand.alpha.clone().requires_grad_()
    hessian = by_hand.A + torch.einsum("j,jpq->pq", alpha, by_hand.M)
    w = torch.linalg.solve(hessian, -(by_hand.B @ alpha + by_hand.b))
    return torch.autograd.grad(by_hand.val_loss(w, alpha), alpha)[0]


ESTIMATORS = {
    "exact": exact,
    "cg": lambda problem, **products: cg(problem, steps=5, **products),
    "neumann": lambda problem, **products: neumann(problem, gamma=0.3, tolerance=1e-12, **products),
    "idarts": lambda problem, **products: idarts(problem, gamma=0.3, neumann_terms=1000, **products),
    "any solver": lambda problem, **products: implicit(problem, solve=conjugate_gradients(9), **products),
}


@pytest.mark.parametrize("products", ALL_PRODUCTS, ids=str)
@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize("seed", [0, 1])
def test_is_the_derivative_of_the_validation_loss_at_the_solution(name, products, seed):
    by_hand, problem = quadratic(seed)
    wanted = total_derivative(by_hand)
    assert (wanted - problem.val_grad_alpha()).norm() > 0.1 * wanted.norm()  # the implicit term matters
    error = (ESTIMATORS[name](problem, products=products) - wanted).norm() / wanted.norm()
    # The forward scheme's error is O(radius); central differences of quadratics are exact but for rounding.
    assert error < (1e-4 if products.scheme == "forward" else 1e-8)


def test_on_a_problem_that_is_not_quadratic_against_minima_found_again():
    """Differences of L2(w*(alpha + h), alpha + h), each w* found by Newton's method to rounding."""
    by_hand = QuadraticProblem(SPECTRUM, outer=2)

    def train_loss(w, alpha):
        return by_hand.train_loss(w, alpha) + (w - by_hand.B @ alpha).cosh().log().sum() * alpha[0].exp()

    def at_minimum(alpha):
        w = torch.zeros(5, dtype=torch.float64)
        for _ in range(30):
            (grad,) = torch.autograd.grad(train_loss(w.requires_grad_(), alpha), w)
            hessian = torch.autograd.functional.hessian(lambda w: train_loss(w, alpha), w)
            w = (w - torch.linalg.solve(hessian, grad)).detach()
        return w

    alpha = by_hand.alpha / 2
    problem = FunctionProblem(train_loss, by_hand.val_loss, at_minimum(alpha), alpha)
    assert problem.train_grad_w().norm() < 1e-13
    step, wanted = 1e-5, torch.zeros(2).double()
    for j in range(2):
        moved = torch.eye(2).double()[j] * step
        sides = [by_hand.val_loss(at_minimum(alpha + s * moved), alpha + s * moved) for s in (1, -1)]
        wanted[j] = (sides[0] - sides[1]) / (2 * step)
    for name in ESTIMATORS:
        torch.testing.assert_close(ESTIMATORS[name](problem, products=EXACT), wanted, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("terms", [0, 1, 5])
def test_idarts_is_implicit_with_a_neumann_series(terms):
    _, problem = quadratic()
    wanted = implicit(problem, solve=neumann_solver(0.2, terms=terms), products=EXACT)
    got = idarts(problem, gamma=0.2, neumann_terms=terms, products=EXACT)
    torch.testing.assert_close(got, wanted, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("products", [Products(), EXACT], ids=["difference", "exact"])
def test_damping_is_a_quadratic_penalty(products):
    """(H + damping I) is the Hessian of L1 + damping |w - w_0|^2 / 2: that of implicit MAML's inner problem."""
    by_hand, problem = quadratic()
    anchor = problem.w.clone()
    damped = FunctionProblem(
        lambda w, a: by_hand.train_loss(w, a) + 0.7 * (w - anchor).square().sum() / 2,
        by_hand.val_loss,
        problem.w,
        problem.alpha,
    )
    wanted = exact(damped, products=EXACT)
    assert (wanted - exact(problem, products=EXACT)).norm() > 0.01
    for got in (
        cg(problem, steps=5, damping=0.7, products=products),
        neumann(problem, gamma=0.2, tolerance=1e-12, damping=0.7, products=products),
        nystroem(problem, rank=5, damping=0.7, products=products),
        implicit(problem, solve=dense(damping=0.7), products=products),
    ):
        torch.testing.assert_close(got, wanted, rtol=1e-8, atol=1e-9)


def test_what_the_solver_sees():
    by_hand, problem = quadratic()
    seen = []

    def solve(matvec, b):
        seen.append((matvec(torch.ones_like(b)), b.clone()))
        return b.mul_(0)  # b is the solver's own

    got = implicit(problem, solve=solve, products=EXACT)
    v, direct = problem.val_grads()
    assert torch.equal(got, direct)
    torch.testing.assert_close(seen[0][0], by_hand.hessian() @ torch.ones(5).double())
    assert torch.equal(seen[0][1], v)


@pytest.mark.parametrize(
    ("solution", "got"),
    [(torch.zeros(4).double(), "shape (4,), torch.float64, on cpu"), (None, "NoneType")],
)
def test_a_solver_that_returns_something_else(solution, got):
    _, problem = quadratic()
    with pytest.raises(FastnasError) as raised:
        implicit(problem, solve=lambda matvec, b: solution)
    wanted = "a tensor like w: shape (5,), torch.float64, on cpu"
    assert str(raised.value) == f"implicit: the solution of solve(matvec, b) must be {wanted}; got {got}"


def test_exact_has_a_limit():
    _, problem = quadratic()
    with pytest.raises(FastnasError, match="P is at most 4, got 5"):
        exact(problem, limit=4)


class TestDivergence:
    """gamma = 0.52 is more than 2/lambda_max = 0.5."""

    @pytest.mark.parametrize(
        "products", [Products(), Products(scheme="forward", radius=1e-4), EXACT], ids=str
    )
    def test_idarts_cuts_the_series_before_it_grows_and_says_so(self, products):
        _, problem = quadratic(curvature=0.0)
        with pytest.warns(HypergradientWarning, match="idarts: .* is more than 2/lambda_max") as said:
            got = idarts(problem, gamma=0.52, neumann_terms=150, products=products)
        (sentence,) = [str(entry.message) for entry in said]
        estimate = float(sentence.split("lambda_max being at least ")[1].split(";")[0])
        assert 0.9 * 4 <= estimate <= 4 * (1 + 5e-3)
        kept = int(sentence.split("the series was cut behind V_")[1].split(";")[0])
        assert kept > 0
        with warnings.catch_warnings():
            warnings.simplefilter("error", HypergradientWarning)
            shorter = idarts(problem, gamma=0.52, neumann_terms=kept, products=products)
        assert torch.equal(got, shorter)

    def test_a_watch_keeps_it_in_place_of_a_warning(self):
        _, problem = quadratic(curvature=0.0)
        watch = Watch()
        with warnings.catch_warnings():
            warnings.simplefilter("error", HypergradientWarning)
            for estimator in (
                lambda: idarts(problem, gamma=0.6, neumann_terms=50, watch=watch),
                lambda: neumann(problem, gamma=0.6, watch=watch),
            ):
                estimator()
        assert [sentence.split(":")[0] for sentence in watch.sentences()] == ["idarts", "neumann"]
        assert watch.sentences() == []  # said once

    def test_cg_says_negative_curvature(self):
        by_hand = QuadraticProblem(torch.tensor([-1.0, 1.0, 2.0]))
        with pytest.warns(HypergradientWarning, match="conjugate gradients: negative curvature"):
            cg(by_hand, steps=3)


class TestDescent:
    """Theorem 1 turned into a direction: a truncated hypergradient with an error below |g| points downhill.

    <g_K, g> >= |g| (|g| - e_K) with e_K = C (1/mu) (1 - gamma mu)^(K+1): the sufficient descent that the convergence
    proofs of Shaban et al. 2019 (section 3) and Zhang et al. 2021 (section 4) rest on.
    """

    @pytest.mark.parametrize("seed", range(6))
    @pytest.mark.parametrize("gamma", [0.1, 0.25])  # 1/L = 0.25
    def test_inner_product_with_the_exact_hypergradient(self, gamma, seed):
        by_hand, problem = quadratic(seed, curvature=0.0)
        mu = SPECTRUM[0].item()
        v, _ = problem.val_grads()
        constant = torch.linalg.matrix_norm(by_hand.mixed(), 2) * v.norm()
        g = by_hand.exact_hypergradient()
        descends = 0
        for terms in range(60):
            bound = constant / mu * (1 - gamma * mu) ** (terms + 1)
            got = idarts(problem, gamma=gamma, neumann_terms=terms, products=EXACT)
            assert got @ g >= g.norm() * (g.norm() - bound) - 1e-12
            if bound < g.norm():
                descends += 1
                assert got @ g > 0
        assert descends > 0

    @pytest.mark.parametrize("seed", range(6))
    def test_a_step_along_it_lowers_the_validation_loss_at_the_new_solution(self, seed):
        by_hand, problem = quadratic(seed, curvature=0.0)

        def outer_loss(alpha):
            w = torch.linalg.solve(by_hand.A, -(by_hand.B @ alpha + by_hand.b))
            return by_hand.val_loss(w, alpha)

        got, g = idarts(problem, gamma=0.25, neumann_terms=10, products=EXACT), by_hand.exact_hypergradient()
        assert got @ g > 0
        step = 1e-4 / got.norm()
        fall = outer_loss(by_hand.alpha) - outer_loss(by_hand.alpha - step * got)
        assert fall.item() == pytest.approx((step * (got @ g)).item(), rel=1e-2)

    @pytest.mark.parametrize("gamma", [0.1, 0.25])
    def test_the_truncated_inverse_is_positive_definite_and_grows_with_the_terms(self, gamma):
        """gamma sum over k <= K of (I - gamma H)^k lies between 0 and H^-1: <x_K, v> rises to <H^-1 v, v>."""
        by_hand, problem = quadratic()
        v, _ = problem.val_grads()
        products = [
            (neumann_solver(gamma, terms=terms)(lambda u: by_hand.hessian() @ u, v.clone()) @ v).item()
            for terms in range(20)
        ]
        limit = (torch.linalg.solve(by_hand.hessian(), v) @ v).item()
        assert products[0] > 0
        assert all(low < high for low, high in zip(products, [*products[1:], limit], strict=True))


class TestAmendedTerm:
    """Bi et al. 2019 argue that g2' = eta d2L1/dalpha dw H v, which they take, and g2 = d2L1/dalpha dw H^-1 v, which
    the theorem asks for, make an angle of less than 90 degrees where H is positive definite. So it is if the mixed
    derivative M keeps angles: <M H v, M H^-1 v> = v' H (M'M) H^-1 v, and M'M = c I makes it c |v|^2. For any M it is
    not: what holds instead is below.
    """

    @staticmethod
    def problem(hessian, mixed, v):
        """A quadratic with this H (P, P), mixed derivative (H, P) and dL2/dw."""
        problem = QuadraticProblem(torch.ones(len(v)), outer=len(mixed))
        problem.A, problem.B, problem.Q = hessian, mixed.T.contiguous(), torch.eye(len(v)).double()
        problem.D.zero_()
        problem.t = problem.w - v
        return problem

    @classmethod
    def inner_product(cls, hessian, mixed, v):
        """<g2', g2> and |g2'| |g2| as the estimators compute them, eta = 1."""
        problem = cls.problem(hessian, mixed, v)
        direct = problem.val_grad_alpha()
        taken, wanted = direct - amended(problem, eta=1.0), direct - exact(problem)
        return (taken @ wanted).item(), (taken.norm() * wanted.norm()).item()

    @staticmethod
    def draw(generator, condition, size=4):
        """A symmetric positive definite matrix with eigenvalues between 1 and ``condition``, both among them."""
        basis = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64)).Q
        spread = torch.rand(size, generator=generator, dtype=torch.float64)
        spread[0], spread[1] = 0, 1
        return basis @ torch.diag(condition**spread) @ basis.T, basis

    @pytest.mark.parametrize("seed", range(20))
    @pytest.mark.parametrize("condition", [2.0, 100.0])
    def test_holds_where_the_mixed_derivative_keeps_angles(self, condition, seed):
        generator = torch.Generator().manual_seed(seed)
        hessian, _ = self.draw(generator, condition)
        _, rotation = self.draw(generator, 1.0, size=6)
        mixed, v = 3 * rotation[:, :4], torch.randn(4, generator=generator, dtype=torch.float64)
        product, _ = self.inner_product(hessian, mixed, v)
        assert product == pytest.approx(9 * (v @ v).item(), rel=1e-6)

    @pytest.mark.parametrize("seed", range(20))
    def test_holds_where_the_mixed_derivative_shares_the_hessians_eigenvectors(self, seed):
        """M'M commutes with H: <g2', g2> = |M v|^2, whatever the conditions."""
        generator = torch.Generator().manual_seed(seed)
        hessian, basis = self.draw(generator, 50.0)
        mixed = torch.diag(torch.rand(4, generator=generator, dtype=torch.float64) * 10) @ basis.T
        v = torch.randn(4, generator=generator, dtype=torch.float64)
        product, _ = self.inner_product(hessian, mixed, v)
        assert product == pytest.approx((mixed @ v).square().sum().item(), rel=1e-6)

    @pytest.mark.parametrize("seed", range(50))
    @pytest.mark.parametrize("condition", [1.5, 3.0, 10.0])
    def test_holds_where_neither_is_ill_conditioned(self, condition, seed):
        """With c and s the condition numbers of H and of M: if (s^2 - 1)/(s^2 + 1) <= 2 c/(c^2 + 1).

        cos(H v, H^-1 v) >= 2 c/(c^2 + 1) by Kantorovich's inequality for H^2, and <M x, M y> >= 0 for
        cos(x, y) >= (s^2 - 1)/(s^2 + 1). Both are attained, so nothing weaker would do.
        """
        generator = torch.Generator().manual_seed(seed)
        hessian, _ = self.draw(generator, condition)
        cosine = 2 * condition / (condition**2 + 1)
        squared, _ = self.draw(generator, (1 + cosine) / (1 - cosine))  # M'M, of condition s^2
        mixed = torch.linalg.cholesky(squared).T
        v = torch.randn(4, generator=generator, dtype=torch.float64)
        product, norms = self.inner_product(hessian, mixed, v)
        assert product >= -1e-9 * norms

    def test_fails_for_some_mixed_derivatives(self):
        """H = diag(1, 4), M = (1, 1), v = (-1, 1): M H v = 3 and M H^-1 v = -3/4. The signs differ."""
        hessian, mixed = torch.diag(torch.tensor([1.0, 4.0])).double(), torch.ones(1, 2).double()
        product, _ = self.inner_product(hessian, mixed, torch.tensor([-1.0, 1.0]).double())
        assert product == pytest.approx(-9 / 4, rel=1e-6)

    def test_how_often_it_fails_for_random_ones(self):
        """One outer parameter, random M and v: the more often, the worse H is conditioned."""
        generator, shares = torch.Generator().manual_seed(0), []
        for condition in (1.5, 10.0, 1000.0):
            failures = 0
            for _ in range(300):
                hessian, _ = self.draw(generator, condition)
                mixed, v = torch.randn(2, 4, generator=generator, dtype=torch.float64)
                failures += ((mixed @ hessian @ v) * (mixed @ torch.linalg.solve(hessian, v))).item() < 0
            shares.append(failures / 300)
        assert 0 < shares[0] < shares[1] < shares[2] < 0.5
