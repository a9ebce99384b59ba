"""Agreement of vectors in closed form; the sweep over radii on problems whose differences are known."""

import math

import pytest
import torch

from fastnas import FastnasError
from fastnas.bilevel import FunctionProblem, RadiusRow, agreement, radius_sweep, recommended_radius
from fastnas.bilevel.agreement import Agreement
from fastnas.bilevel.radius import doublings
from tests.bilevel.networks import network


def test_agreement_in_closed_form():
    a, b = torch.tensor([3.0, 4.0]), torch.tensor([4.0, 3.0])
    found = agreement(a, b)
    assert found.cosine == pytest.approx(24 / 25)
    assert found.relative_error == pytest.approx(math.sqrt(2) / 5)
    assert agreement(-2 * b, b).cosine == pytest.approx(-1)
    assert agreement(-2 * b, b).relative_error == pytest.approx(3)
    assert agreement(b, b) == Agreement(pytest.approx(1), 0)


def test_agreement_with_nothing():
    zero, one = torch.zeros(2), torch.ones(2)
    assert math.isnan(agreement(zero, one).cosine)
    assert agreement(zero, one).relative_error == 1
    assert math.isnan(agreement(one, zero).cosine)
    assert agreement(one, zero).relative_error == math.inf
    assert math.isnan(agreement(zero, zero).relative_error)
    with pytest.raises(FastnasError, match="agreement: estimate must be a tensor like reference"):
        agreement(one, torch.ones(3))


def test_agreement_is_computed_in_float64():
    """Long vectors, nearly the same: float32's sums would not tell."""
    reference = torch.ones(10**6)
    estimate = reference.clone()
    estimate[0] += 2**-10
    assert agreement(estimate, reference).relative_error == pytest.approx(2**-10 / 1000, rel=1e-12)


def test_a_cubic_has_the_error_of_its_third_derivative():
    """L1 = sum w^3/6 + alpha w^3/6: H u by central differences is exact, by forward ones off by eps u^2/2."""
    w = torch.tensor([1.0, 2.0], dtype=torch.float64)
    problem = FunctionProblem(
        lambda w, a: ((1 + a[0]) * w**3 / 6).sum(),
        lambda w, a: w.sum() + a.sum(),
        w,
        torch.zeros(1).double(),
    )
    u = torch.tensor([0.6, 0.8], dtype=torch.float64)
    exact, central = radius_sweep([problem], u, [0.1])
    assert exact.hessian.relative_error == 0
    # dL1/dw is quadratic and dL1/dalpha cubic in w: of these the central difference is off by eps^2 sum u^3 / 6.
    assert central.hessian.relative_error < 1e-12
    mixed = (u * w**2).sum() / 2
    assert central.mixed.relative_error == pytest.approx(
        ((0.1**2 / 6 * (u**3).sum()) / mixed).item(), rel=1e-6
    )
    _, forward = radius_sweep([problem], u, [0.1], scheme="forward")
    wrong = (0.1 / 2 * u**2).norm() / (w * u).norm()
    assert forward.hessian.relative_error == pytest.approx(wrong.item(), rel=1e-6)


def test_rows_are_those_of_the_first_minibatches():
    """Over all of them the mean; a row a radius and size; exact products over all agree with themselves."""
    problems = [network(smooth=True, seed=seed) for seed in range(3)]
    for problem in problems[1:]:
        problem.w.copy_(problems[0].w)
        problem.alpha.copy_(problems[0].alpha)
    u = torch.randn(len(problems[0].w), dtype=torch.float64)
    rows = radius_sweep(problems, u, [0.1, 1e-3])
    assert [(row.minibatches, row.radius) for row in rows] == [
        (n, radius) for n in (1, 2, 3) for radius in (None, 0.1, 1e-3)
    ]
    mean = torch.stack([problem.train_hessian_product(u) for problem in problems]).mean(0)
    first = agreement(problems[0].train_hessian_product(u), mean)
    assert rows[0].hessian_over_all.cosine == pytest.approx(first.cosine)
    assert rows[0].hessian_over_all.relative_error == pytest.approx(first.relative_error)
    assert rows[6].mixed_over_all.relative_error == 0
    assert rows[8].hessian.relative_error < 1e-5


def test_weights_stay_and_the_best_is_the_argmax():
    problem = network(smooth=False, seed=0)
    before = problem.w.clone()
    rows = radius_sweep([problem], problem.val_grads()[0])
    assert torch.equal(problem.w, before)
    scores = {row.radius: row.hessian.cosine + row.mixed.cosine for row in rows if row.radius is not None}
    assert recommended_radius(rows) == max(scores, key=scores.get)
    assert len(scores) == 8


def test_a_radius_is_recommended_on_one_minibatch_and_never_by_a_nan():
    def row(minibatches, radius, cosine):
        found = Agreement(cosine, 0.0)
        return RadiusRow(minibatches, radius, found, found, found, found)

    rows = [row(1, None, 1.0), row(1, 0.1, 0.5), row(1, 0.01, math.nan), row(2, 0.001, 0.9)]
    assert recommended_radius(rows) == 0.1
    with pytest.raises(FastnasError, match="no difference has a direction"):
        recommended_radius(rows[2:3])


def test_mistakes():
    problem = network(smooth=True, seed=0)
    with pytest.raises(FastnasError, match="at least one problem and one radius"):
        radius_sweep([], problem.w, [0.1])
    with pytest.raises(FastnasError, match="at least one problem and one radius"):
        radius_sweep([problem], problem.w, [])
    with pytest.raises(FastnasError, match="radius must be a finite number > 0"):
        radius_sweep([problem], problem.w, [-1.0])


@pytest.mark.parametrize(("most", "sizes"), [(1, [1]), (2, [1, 2]), (5, [1, 2, 4, 5]), (8, [1, 2, 4, 8])])
def test_doublings(most, sizes):
    assert doublings(most) == sizes
