"""What is noticed, where it is kept, and when it is said."""

import math
import warnings

import pytest
import torch

from fastnas.bilevel import HypergradientWarning, Watch, idarts
from fastnas.bilevel.watch import ROUNDING, Growth
from tests.bilevel.problems import QuadraticProblem


def growth_of(hessian, v, gamma, terms):
    """The series V_k+1 = V_k - gamma H V_k, followed."""
    growth = Growth("here", gamma, v.norm())
    flags = []
    for _ in range(terms):
        product = hessian @ v
        v = v - gamma * product
        flags.append(growth.step(v.norm(), product.norm()).item())
    return growth, flags


def said(growth):
    watch = Watch()
    growth.report(watch)
    return watch.sentences()


def diagonal(*values):
    return torch.diag(torch.tensor(values, dtype=torch.float64))


def test_sentences_are_made_when_they_are_read_and_said_once():
    watch, made = Watch(), []

    def sentence(numbers):
        made.append(numbers)
        return f"saw {numbers}" if numbers[0] > 0 else None

    watch.add(torch.tensor([1.0, 2.0]), sentence)
    watch.add(torch.tensor([-1.0]), sentence)
    watch.say("known at once")
    assert made == []
    assert sorted(watch.sentences()) == ["known at once", "saw [1.0, 2.0]"]
    assert made == [[1.0, 2.0], [-1.0]]
    assert watch.sentences() == []


def test_warnings_point_at_the_caller_of_the_estimator():
    problem = QuadraticProblem(torch.tensor([1.0, 4.0]))
    with pytest.warns(HypergradientWarning) as caught:
        idarts(problem, gamma=1.0, neumann_terms=3)
    assert [entry.filename for entry in caught] == [__file__]


def test_no_growth_says_nothing():
    growth, flags = growth_of(diagonal(1.0, 4.0), torch.ones(2).double(), 0.4, 30)
    assert not any(flags)
    assert said(growth) == []
    assert said(Growth("here", 0.4, torch.ones(()).double())) == []


def test_a_flag_once_up_stays_up():
    """V falls, grows when lambda_max's part dominates, and a flag is for that term and all behind it."""
    growth, flags = growth_of(diagonal(1.0, 4.0), torch.tensor([1.0, 1e-3]).double(), 0.6, 30)
    first = flags.index(True)
    assert 0 < first < 29
    assert all(flags[first:])
    (sentence,) = said(growth)
    assert sentence.startswith("here: |V_k| grew ")
    cause = "unless H has negative eigenvalues, gamma = 0.6 is more than 2/lambda_max"
    assert f"from V_{first} to V_{first + 1}: {cause}" in sentence
    assert f"the series was cut behind V_{first}; take a gamma below 0.5," in sentence


@pytest.mark.parametrize(
    ("hessian", "gamma", "part"),
    [
        (diagonal(4.0, 4.0), 0.6, "gamma = 0.6 is more than 2/lambda_max, lambda_max being at least 4;"),
        (diagonal(-2.0, -2.0), 0.1, "the curvature along V_4 is negative, -2;"),
    ],
)
def test_the_two_causes(hessian, gamma, part):
    (sentence,) = said(growth_of(hessian, torch.ones(2).double(), gamma, 5)[0])
    assert part in sentence


def test_an_estimator_without_damping_names_one_that_has_it():
    (sentence,) = said(growth_of(diagonal(-2.0, -2.0), torch.ones(2).double(), 0.1, 5)[0])
    assert "take neumann with damping above 2," in sentence


@pytest.mark.parametrize(("ratio", "said_as"), [(1 + 3.64e-4, "1.00036"), (1.004, "1.0040"), (1.08, "1.08")])
def test_growth_is_told_from_none(ratio, said_as):
    one = torch.ones(()).double()
    growth = Growth("here", 0.1, one)
    growth.step(one * ratio, one)
    assert said(growth)[0].startswith(f"here: |V_k| grew {said_as} times ")


@pytest.mark.parametrize("seed", range(20))
def test_lambda_max_is_a_lower_bound_above_2_over_gamma(seed):
    """Of a positive semidefinite H, for any V that grows."""
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(6, 6, generator=generator, dtype=torch.float64)
    hessian, v = root @ root.T, torch.randn(6, generator=generator, dtype=torch.float64)
    largest = torch.linalg.eigvalsh(hessian)[-1].item()
    gamma = 2 / largest * 1.5
    (sentence,) = said(growth_of(hessian, v, gamma, 40)[0])
    estimate = float(sentence.split("lambda_max being at least ")[1].split(";")[0])
    assert 2 / gamma * (1 - 5e-3) <= estimate <= largest * (1 + 5e-3)


def test_rounding_is_no_growth():
    one = torch.ones(()).double()
    for factor, grew in ((1 + ROUNDING / 2, False), (1 + 2 * ROUNDING, True)):
        growth = Growth("here", 0.1, one)
        assert growth.step(one * factor, one * 0).item() is grew
        assert len(said(growth)) == grew


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_is_no_growth(value):
    """It stays in the sum, where it is seen."""
    growth = Growth("here", 0.1, torch.ones(()).double())
    assert not growth.step(torch.tensor(value).double(), torch.ones(()).double()).item()
    assert said(growth) == []


def test_growth_waits_for_nothing():
    """Meta tensors hold no values: whatever reads one raises."""
    norm = torch.ones((), dtype=torch.float64, device="meta")
    growth = Growth("here", torch.ones((), dtype=torch.float64, device="meta"), norm)
    assert growth.step(norm, norm).is_meta
    growth.report(Watch())


def test_the_rate_may_be_a_tensor():
    rate = torch.tensor(0.6).double()
    (one,) = said(growth_of(diagonal(4.0, 4.0), torch.ones(2).double(), rate, 2)[0])
    (other,) = said(growth_of(diagonal(4.0, 4.0), torch.ones(2).double(), 0.6, 2)[0])
    assert one == other


def test_an_estimator_that_converges_is_silent():
    problem = QuadraticProblem(torch.tensor([1.0, 4.0]))
    with warnings.catch_warnings():
        warnings.simplefilter("error", HypergradientWarning)
        idarts(problem, gamma=0.4, neumann_terms=200)
