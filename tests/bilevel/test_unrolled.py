"""Estimators against autograd through unrolled weight steps: DARTS's one step, and iDARTS's Corollary 2."""

import pytest
import torch

from fastnas.bilevel import (
    FunctionProblem,
    Products,
    amended,
    darts,
    hessian_vector_product,
    idarts,
    mixed_product,
    t1_t2,
)
from tests.bilevel.networks import exact_products, network
from tests.bilevel.problems import QuadraticProblem


def truncated_reverse(train_loss, val_loss, w, alpha, *, steps, learning_rate):
    """Shaban et al. 2019: dL2/dalpha through the last ``steps`` SGD steps, starting from w held fixed."""
    alpha = alpha.clone().requires_grad_()
    w = w.clone().requires_grad_()
    for _ in range(steps):
        (grad,) = torch.autograd.grad(train_loss(w, alpha), w, create_graph=True)
        w = w - learning_rate * grad
    return torch.autograd.grad(val_loss(w, alpha), alpha)[0]


def smooth_problem():
    """Not quadratic: sum log cosh(w - B alpha) exp(alpha_0/4) + w'Aw/2, with a minimum to be found."""
    quadratic = QuadraticProblem(torch.tensor([0.5, 1.0, 1.5, 2.0]), outer=2)

    def train_loss(w, alpha):
        return (w - quadratic.B @ alpha).cosh().log().sum() * (alpha[0] / 4).exp() + w @ quadratic.A @ w / 2

    problem = FunctionProblem(train_loss, quadratic.val_loss, quadratic.w, quadratic.alpha)
    for _ in range(20):  # Newton's method, to rounding
        hessian = torch.autograd.functional.hessian(lambda w: train_loss(w, problem.alpha), problem.w)
        problem.w.sub_(torch.linalg.solve(hessian, problem.train_grad_w()))
    assert problem.train_grad_w().norm() < 1e-13
    return problem, train_loss, quadratic.val_loss


@pytest.mark.parametrize("neumann_terms", [0, 1, 3, 8])
@pytest.mark.parametrize("gamma", [0.1, 0.25])
def test_corollary_2_on_a_quadratic(gamma, neumann_terms):
    """At a stationary point K terms are K + 1 unrolled steps; elsewhere they are not."""
    problem = QuadraticProblem(torch.tensor([0.5, 2.0, 3.0, 4.0]), curvature=0.2)
    away = problem.w.clone()
    for point, agree in ((problem.solution(), True), (away, False)):
        problem.w.copy_(point)
        wanted = truncated_reverse(
            problem.train_loss,
            problem.val_loss,
            point,
            problem.alpha,
            steps=neumann_terms + 1,
            learning_rate=gamma,
        )
        difference = (
            idarts(problem, gamma=gamma, neumann_terms=neumann_terms) - wanted
        ).norm() / wanted.norm()
        assert difference < 1e-10 if agree else difference > 1e-3


@pytest.mark.parametrize("neumann_terms", [0, 2, 6])
def test_corollary_2_on_a_smooth_problem(neumann_terms):
    problem, train_loss, val_loss = smooth_problem()
    unrolled = {"steps": neumann_terms + 1, "learning_rate": 0.2}
    wanted = truncated_reverse(train_loss, val_loss, problem.w, problem.alpha, **unrolled)
    for radius, bound in ((0.1, 1e-2), (0.01, 1e-4), (0.001, 1e-6)):  # O(radius^2)
        got = idarts(problem, gamma=0.2, neumann_terms=neumann_terms, products=Products(radius=radius))
        assert (got - wanted).norm() <= bound * wanted.norm()


def unrolled_darts(problem, *, learning_rate, momentum, momentum_buffer, weight_decay):
    """d/dalpha of L2(w - xi (mu buf + dL1/dw + wd w), alpha), by differentiating twice."""
    w, alpha = problem.w.clone().requires_grad_(), problem.alpha.clone().requires_grad_()
    (grad,) = torch.autograd.grad(problem._train_loss(w, alpha), w, create_graph=True)
    stepped = w - learning_rate * (momentum * momentum_buffer + grad + weight_decay * w)
    return torch.autograd.grad(problem._val_loss(stepped, alpha), alpha)[0]


@pytest.mark.parametrize("seed", [0, 1])
def test_darts_is_the_derivative_of_the_unrolled_step(seed):
    problem = network(smooth=True, seed=seed, samples=64)
    generator = torch.Generator().manual_seed(50 + seed)
    buffer = 0.05 * torch.randn(problem.w.shape, generator=generator, dtype=torch.float64)
    step = {"learning_rate": 0.3, "momentum": 0.9, "momentum_buffer": buffer, "weight_decay": 0.05}
    wanted = unrolled_darts(problem, **step)

    def error(radius, **changed):
        return (
            (darts(problem, products=Products(radius=radius), **(step | changed)) - wanted).norm()
            / wanted.norm()
        ).item()

    assert error(0.01) <= 1e-3
    assert error(0.04) / error(0.02) == pytest.approx(4, rel=0.05)  # nothing but the difference's O(radius^2)
    # The test sees each part of the step.
    for changed in ({"momentum": 0.0}, {"weight_decay": 0.0}, {"learning_rate": 0.29}):
        assert error(0.01, **changed) > 1e-3


@pytest.mark.parametrize("seed", [0, 1])
def test_estimators_on_a_smooth_network_against_exact_products(seed):
    problem = network(smooth=True, seed=seed, samples=64)
    v, direct = problem.val_grads()
    hessian_v, mixed_v = exact_products(problem, v)
    series = v + (v - 0.1 * hessian_v)
    for got, wanted in (
        (t1_t2(problem), direct - mixed_v),
        (amended(problem, eta=0.1), direct - 0.1 * exact_products(problem, hessian_v)[1]),
        (idarts(problem, gamma=0.1, neumann_terms=1), direct - 0.1 * exact_products(problem, series)[1]),
    ):
        assert (got - wanted).norm() <= 1e-3 * (wanted - direct).norm()  # of the implicit term alone


@pytest.mark.parametrize(
    "estimator",
    [
        lambda problem, **products: darts(problem, learning_rate=0.1, **products),
        amended,
        lambda problem, **products: idarts(problem, gamma=0.1, **products),
        t1_t2,
    ],
)
def test_radius_is_the_papers_by_default_and_is_used(estimator):
    problem = network(smooth=True, seed=0, samples=64)
    assert torch.equal(estimator(problem), estimator(problem, products=Products(radius=0.01)))
    assert not torch.equal(estimator(problem), estimator(problem, products=Products(radius=0.011)))


def test_radius_is_that_of_every_product():
    problem = network(smooth=True, seed=0, samples=64)
    v, direct = problem.val_grads()
    hessian_v = hessian_vector_product(problem, v, 0.3)
    by_hand = direct - 0.2 * mixed_product(problem, hessian_v, 0.3)
    torch.testing.assert_close(
        amended(problem, eta=0.2, products=Products(radius=0.3)), by_hand, rtol=1e-12, atol=0
    )
    by_hand = direct - 0.2 * mixed_product(problem, v + (v - 0.2 * hessian_v), 0.3)
    got = idarts(problem, gamma=0.2, neumann_terms=1, products=Products(radius=0.3))
    torch.testing.assert_close(got, by_hand, rtol=1e-12, atol=0)
