"""NaN and infinity are found, and the first oracle that returned one is named."""

import math

import pytest
import torch

from fastnas.bilevel import (
    FunctionProblem,
    Inspected,
    NotFiniteError,
    Products,
    TwiceDifferentiable,
    cg,
    idarts,
)
from fastnas.errors import FastnasError
from tests.bilevel.problems import QuadraticProblem

ORACLES = {
    "train_grad_w": "dL1/dw",
    "train_grad_alpha": "dL1/dalpha",
    "val_grads": "dL2/dw and dL2/dalpha",
    "val_grad_alpha": "dL2/dalpha",
    "train_hessian_product": "d2L1/dw2 . u",
    "train_mixed_product": "d2L1/dalpha dw . u",
    "val_alpha_hessian_product": "d2L2/dalpha2 . p",
}


def problem():
    quadratic = QuadraticProblem(torch.tensor([0.5, 1.0, 2.0]), outer=2)
    return FunctionProblem(quadratic.train_loss, quadratic.val_loss, quadratic.w, quadratic.alpha)


def call(inspected, name):
    argument = {"train_hessian_product": inspected.w, "train_mixed_product": inspected.w}
    argument["val_alpha_hessian_product"] = inspected.alpha
    return getattr(inspected, name)(*([argument[name]] if name in argument else []))


@pytest.mark.parametrize("name", ORACLES)
def test_hands_every_oracle_on(name):
    plain, inspected = problem(), Inspected(problem())
    assert isinstance(inspected, TwiceDifferentiable)
    wanted, got = call(plain, name), call(inspected, name)
    for one, other in zip(*((x if isinstance(x, tuple) else (x,)) for x in (got, wanted)), strict=True):
        assert torch.equal(one, other)
    inspected.check(torch.zeros(2))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ORACLES)
def test_names_the_oracle(name, value):
    broken = problem()
    original = getattr(broken, name)

    def spoilt(*arguments):
        result = original(*arguments)
        (result[-1] if isinstance(result, tuple) else result)[-1] = value
        return result

    setattr(broken, name, spoilt)
    inspected = Inspected(broken)
    inspected.train_grad_w() if name != "train_grad_w" else None
    call(inspected, name)
    with pytest.raises(NotFiniteError) as raised:
        inspected.check(torch.zeros(2))
    assert str(raised.value).startswith(f"the oracle {name} ({ORACLES[name]}) returned NaN or infinity")
    inspected.check(torch.zeros(2))  # said once


def test_names_the_first_one():
    """A NaN of dL1/dw makes what comes after it NaN as well."""
    broken = problem()
    original = broken.train_grad_w
    broken.train_grad_w = lambda: original() * math.nan
    inspected = Inspected(broken)
    with pytest.raises(NotFiniteError, match="the oracle train_grad_w"):
        inspected.check(idarts(inspected, gamma=0.1, neumann_terms=2))
    inspected = Inspected(broken)
    with pytest.raises(NotFiniteError, match="the oracle train_grad_w"):
        inspected.check(cg(inspected, steps=3))


def test_a_hypergradient_of_finite_oracles_may_overflow():
    inspected = Inspected(problem())
    inspected.train_grad_w()
    with pytest.raises(NotFiniteError, match="the hypergradient has NaN or infinity"):
        inspected.check(torch.tensor([1.0, math.inf]))


def test_it_is_a_users_mistake_like_others():
    assert issubclass(NotFiniteError, FastnasError)


def test_exact_products_are_watched():
    broken = problem()
    broken.train_mixed_product = lambda u: torch.full((2,), math.nan, dtype=torch.float64)
    inspected = Inspected(broken)
    with pytest.raises(NotFiniteError, match="the oracle train_mixed_product"):
        inspected.check(cg(inspected, steps=3, products=Products("exact", "exact")))


def test_nothing_waits_before_the_check():
    meta = problem()
    meta.w, meta.alpha = meta.w.to("meta"), meta.alpha.to("meta")
    meta.train_grad_w = lambda: torch.empty(3, dtype=torch.float64, device="meta")
    Inspected(meta).train_grad_w()
