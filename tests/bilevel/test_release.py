"""The authors' released code for iDARTS, beside an independent transcription of what it does."""

import pytest
import torch

from fastnas.bilevel import FunctionProblem, Products, idarts, idarts_release
from fastnas.errors import FastnasError
from tests.bilevel.problems import Counted, QuadraticProblem

SPECTRUM = torch.tensor([0.5, 2.0, 2.5, 3.0])


def transcribed(problem, gamma, terms, radius=0.01):
    """Their loop over the closed forms of a quadratic: the hypergradient, and where it leaves the weights."""
    v, direct = problem.val_grads()
    series, term = v.clone(), v.clone()
    for _ in range(terms):
        term = term - gamma * problem.hessian() @ term
        series = series + term
    scale = radius / v.norm()
    w = problem.w.clone()

    def grad_alpha(w):
        return problem.B.T @ w + problem.M @ w @ w / 2

    ahead = w + scale * series
    behind = ahead - 2 * scale * series
    hypergradient = direct - gamma * (grad_alpha(ahead) - grad_alpha(behind)) / (2 * scale)
    return hypergradient, behind + scale * v


@pytest.mark.parametrize("terms", [0, 1, 2, 5])
@pytest.mark.parametrize("gamma", [0.05, 0.25])
def test_is_what_the_released_code_does(gamma, terms):
    problem = QuadraticProblem(SPECTRUM, curvature=0.2)
    wanted, moved = transcribed(problem, gamma, terms)
    got = idarts_release(problem, gamma=gamma, neumann_terms=terms)
    torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(problem.w, moved, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("terms", [0, 1, 3])
def test_the_weights_move_by_the_remainder_alone(terms):
    """-R (V_1 + .. + V_K): nothing at all for K = 0, and never along the training loss's gradient as such."""
    problem = QuadraticProblem(SPECTRUM)
    before, (v, _) = problem.w.clone(), problem.val_grads()
    contraction = torch.eye(4).double() - 0.2 * problem.hessian()
    remainder = sum((torch.linalg.matrix_power(contraction, k) @ v for k in range(1, terms + 1)), 0 * v)
    idarts_release(problem, gamma=0.2, neumann_terms=terms)
    torch.testing.assert_close(problem.w - before, -0.01 / v.norm() * remainder, rtol=1e-9, atol=1e-13)
    assert ((problem.w - before).norm() > 1e-3) == (terms > 0)


def test_the_estimate_is_idarts_where_the_radius_does_not_matter():
    """A quadratic coupled linearly: any step of the mixed difference gives the same product."""
    one, other = QuadraticProblem(SPECTRUM), QuadraticProblem(SPECTRUM)
    torch.testing.assert_close(
        idarts_release(one, gamma=0.2, neumann_terms=3),
        idarts(other, gamma=0.2, neumann_terms=3),
        rtol=1e-9,
        atol=1e-10,
    )


def test_exact_products_and_the_radius():
    quadratic = QuadraticProblem(SPECTRUM, curvature=0.2)
    wanted, moved = transcribed(quadratic, 0.2, 2, radius=0.5)
    problem = FunctionProblem(quadratic.train_loss, quadratic.val_loss, quadratic.w, quadratic.alpha)
    got = idarts_release(problem, gamma=0.2, products=Products(hessian="exact", radius=0.5))
    torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(problem.w, moved, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("terms", [0, 2, 4])
def test_costs_as_much_as_idarts(terms):
    problem = Counted(QuadraticProblem(SPECTRUM))
    idarts_release(problem, gamma=0.1, neumann_terms=terms)
    assert len(problem.calls) == 2 * terms + 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"gamma": 0.0}, "idarts-release: gamma must be a finite number > 0, got 0.0"),
        (
            {"gamma": 0.1, "neumann_terms": -1},
            "idarts-release: neumann_terms must be an integer >= 0, got -1",
        ),
    ],
)
def test_wrong_arguments(arguments, message):
    problem = QuadraticProblem(SPECTRUM)
    before = problem.w.clone()
    with pytest.raises(FastnasError) as raised:
        idarts_release(problem, **arguments)
    assert str(raised.value) == message
    assert torch.equal(problem.w, before)
