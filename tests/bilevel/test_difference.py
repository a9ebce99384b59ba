"""The two second-order products: against closed forms, against autograd, and where switches are crossed."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastnas.bilevel import FunctionProblem, hessian_vector_product, mixed_product
from fastnas.errors import FastnasError
from tests.bilevel.networks import exact_products, network
from tests.bilevel.problems import AmendedToy, Counted, QuadraticProblem

PRODUCTS = [hessian_vector_product, mixed_product]


def curved():
    return QuadraticProblem(torch.tensor([0.5, 1.0, 2.0, 4.0]), outer=3, curvature=0.4)


def relative_errors(problem, u, radius):
    got = hessian_vector_product(problem, u, radius), mixed_product(problem, u, radius)
    return [
        ((value - wanted).norm() / wanted.norm()).item()
        for value, wanted in zip(got, exact_products(problem, u), strict=True)
    ]


@settings(max_examples=40, deadline=None)
@given(
    inner=st.integers(1, 40),
    outer=st.integers(1, 5),
    seed=st.integers(0, 9),
    scale=st.sampled_from([1e-9, 1, 1e9]),
)
def test_exact_on_quadratics_up_to_rounding(inner, outer, seed, scale):
    problem = QuadraticProblem(torch.linspace(0.5, 4, inner), outer, curvature=0.4, seed=seed)
    u = scale * torch.randn(inner, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    for product, matrix, gradient in (
        (hessian_vector_product, problem.hessian(), problem.train_grad_w()),
        (mixed_product, problem.mixed(), problem.train_grad_alpha()),
    ):
        # Each gradient carries rounding of a few ulp of its terms; the difference divides it by 2 eps.
        terms = 1 + gradient.norm() + matrix.norm() * problem.w.norm() + problem.b.norm()
        rounding = 20 * torch.finfo(torch.float64).eps * terms * u.norm() / 0.01
        assert (product(problem, u) - matrix @ u).norm() <= rounding


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_agree_with_autograd_on_a_smooth_network(seed):
    problem = network(smooth=True, seed=seed)
    u = torch.randn(problem.w.shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    at_default = relative_errors(problem, u, 0.01)
    assert max(at_default) <= 1e-3
    # Second order: halving the radius divides the error by four.
    for coarse, fine in zip(relative_errors(problem, u, 0.2), relative_errors(problem, u, 0.1), strict=True):
        assert coarse / fine == pytest.approx(4, rel=0.05)


def test_relu_and_max_network_has_no_small_radius_that_is_exact():
    """With switches the difference is another estimator: its error grows like radius^-1/2, in float64.

    A step of length radius crosses switches in number proportional to radius; each adds a jump over
    2 eps, so their random sum over 2 eps grows. It is the fact that makes the radius a choice, not a detail.
    """
    hessian_error, mixed_error = {}, {}
    for radius in (1.0, 0.1, 0.01):
        squares = torch.zeros(2, dtype=torch.float64)
        for seed in range(3):
            problem = network(smooth=False, seed=seed)
            generator = torch.Generator().manual_seed(100 + seed)
            u = torch.randn(problem.w.shape, generator=generator, dtype=torch.float64)
            squares += torch.tensor(relative_errors(problem, u, radius)).double() ** 2
        hessian_error[radius], mixed_error[radius] = (squares / 3).sqrt().tolist()
    assert hessian_error[1.0] > 0.2
    assert hessian_error[0.1] > 1.5 * hessian_error[1.0]
    assert hessian_error[0.01] > 1.5 * hessian_error[0.1]
    assert mixed_error[0.1] > 0.2
    assert mixed_error[0.01] > 0.2


@pytest.mark.parametrize("product", PRODUCTS)
def test_step_is_central_of_length_radius_along_u(product):
    problem = curved()
    w, u = problem.w.clone(), torch.tensor([3.0, 0.0, -4.0, 0.0]).double()
    visited = []
    for name in ("train_grad_w", "train_grad_alpha"):
        oracle = getattr(problem, name)
        setattr(problem, name, lambda oracle=oracle: (visited.append(problem.w.clone()), oracle())[1])
    product(problem, u, radius=0.5)
    step = 0.5 * u / 5
    assert len(visited) == 2
    torch.testing.assert_close(visited[0], w + step, rtol=1e-15, atol=1e-15)
    torch.testing.assert_close(visited[1], w - step, rtol=1e-15, atol=1e-15)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("inner", [1, 4])
@pytest.mark.parametrize("product", PRODUCTS)
def test_zero_vector_gives_exactly_zero(product, inner, dtype):
    problem = QuadraticProblem(torch.ones(inner), curvature=0.4)
    for name, value in vars(problem).items():
        setattr(problem, name, value.to(dtype))
    result = product(problem, torch.zeros(inner, dtype=dtype))
    assert result.dtype == dtype
    assert torch.count_nonzero(result) == 0
    smallest = torch.full((inner,), torch.finfo(dtype).smallest_normal / 4, dtype=dtype)
    assert torch.isfinite(product(problem, smallest)).all()


def exponential():
    """L1 = alpha sum exp(w), in float32, at w = 1 and alpha = 1: H = e I, and the mixed product e sum u."""
    return FunctionProblem(
        lambda w, a: a[0] * w.exp().sum(), lambda w, a: w.sum(), torch.ones(4), torch.ones(1)
    )


def test_a_vector_whose_square_underflows_has_a_norm():
    """In float32 |u|^2 = 0 for u = 1e-30; the norm is taken in float64, so the products are as good as any."""
    u = torch.full((4,), 1e-30)
    assert u.norm() == 0
    torch.testing.assert_close(hessian_vector_product(exponential(), u), math.e * u, rtol=1e-3, atol=0)
    torch.testing.assert_close(
        mixed_product(exponential(), u), torch.tensor([4e-30 * math.e]), rtol=1e-3, atol=0
    )


def test_a_vector_whose_square_overflows_has_a_norm():
    u = torch.full((4,), 1e25)
    assert u.norm() == torch.inf
    torch.testing.assert_close(hessian_vector_product(exponential(), u), math.e * u, rtol=1e-3, atol=0)


def test_a_vector_so_short_that_eps_overflows_takes_no_step():
    """eps = 5e40 is no float32: the product is 0, not NaN."""
    problem = exponential()
    u = torch.full((4,), 1e-43)
    assert torch.count_nonzero(u) == 4
    assert torch.count_nonzero(hessian_vector_product(problem, u)) == 0
    assert torch.count_nonzero(mixed_product(problem, u)) == 0


def test_weights_with_a_stride():
    problem = curved()
    wanted = [product(problem, torch.arange(4).double()) for product in PRODUCTS]
    problem.w = torch.stack([problem.w, torch.full((4,), 9.0).double()], 1)[:, 0]
    before = problem.w.clone()
    for product, value in zip(PRODUCTS, wanted, strict=True):
        torch.testing.assert_close(product(problem, torch.arange(4).double()), value, rtol=1e-12, atol=1e-12)
    assert torch.equal(problem.w, before)


def test_radius_is_the_papers_by_default():
    problem = network(smooth=True, seed=0, samples=64)
    u = torch.ones_like(problem.w)
    for product in PRODUCTS:
        assert torch.equal(product(problem, u), product(problem, u, radius=0.01))
        assert not torch.equal(product(problem, u), product(problem, u, radius=0.011))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("product", PRODUCTS)
def test_a_vector_that_is_not_finite_is_not_hidden(product, bad):
    problem = curved()
    before = problem.w.clone()
    assert torch.isnan(product(problem, torch.tensor([1.0, bad, 0.0, 0.0]).double())).all()
    assert torch.equal(problem.w, before)


def test_u_may_be_w_itself():
    problem = curved()
    wanted = problem.hessian() @ problem.w
    torch.testing.assert_close(hessian_vector_product(problem, problem.w), wanted, rtol=1e-10, atol=0)
    torch.testing.assert_close(
        hessian_vector_product(problem, problem.w.detach()), wanted, rtol=1e-10, atol=0
    )


@pytest.mark.parametrize("product", PRODUCTS)
def test_u_is_not_written(product):
    problem, u = curved(), torch.arange(4).double()
    product(problem, u)
    assert torch.equal(u, torch.arange(4).double())


def test_views_into_one_arena():
    """w and u as neighbouring slices of one buffer, and u with a stride."""
    problem = curved()
    arena = torch.cat([problem.w, torch.arange(4).double(), torch.full((4,), 9.0).double()])
    problem.w, u = arena[:4], arena[4:8]
    before = arena.clone()
    wanted = problem.hessian() @ u
    torch.testing.assert_close(hessian_vector_product(problem, u), wanted, rtol=1e-10, atol=1e-12)
    strided = torch.stack([u, u], 1)[:, 0]
    assert not strided.is_contiguous()
    torch.testing.assert_close(hessian_vector_product(problem, strided), wanted, rtol=1e-10, atol=1e-12)
    assert torch.equal(arena, before)


@pytest.mark.parametrize(
    "radius", [0, -0.01, float("nan"), float("inf"), "0.01", None, True, torch.tensor(0.1)]
)
@pytest.mark.parametrize("product", PRODUCTS)
def test_wrong_radius(product, radius):
    problem = Counted(curved())
    with pytest.raises(FastnasError) as raised:
        product(problem, torch.ones(4).double(), radius=radius)
    assert str(raised.value) == f"{product.__name__}: radius must be a finite number > 0, got {radius!r}"
    assert problem.calls == []


@pytest.mark.parametrize(
    ("u", "got"),
    [
        (torch.ones(1).double(), "shape (1,), torch.float64, on cpu"),
        (torch.ones(4, 1).double(), "shape (4, 1), torch.float64, on cpu"),
        (torch.ones(4), "shape (4,), torch.float32, on cpu"),
        (torch.ones(4, device="meta").double(), "shape (4,), torch.float64, on meta"),
        ([1.0] * 4, "list"),
    ],
)
@pytest.mark.parametrize("product", PRODUCTS)
def test_wrong_vector(product, u, got):
    problem = Counted(curved())
    with pytest.raises(FastnasError) as raised:
        product(problem, u)
    wanted = "u must be a tensor like w: shape (4,), torch.float64, on cpu"
    assert str(raised.value) == f"{product.__name__}: {wanted}; got {got}"
    assert problem.calls == []


def test_low_precision_weights_are_refused():
    problem = AmendedToy(1.0)
    problem.w = problem.w.bfloat16()
    with pytest.raises(FastnasError, match=r"w must be float32 or float64, got torch\.bfloat16"):
        hessian_vector_product(problem, problem.w)


@pytest.mark.parametrize("product", PRODUCTS)
def test_an_oracle_that_hands_out_one_buffer_twice_is_refused(product):
    problem = curved()
    buffers = {"train_grad_w": torch.empty(4).double(), "train_grad_alpha": torch.empty(3).double()}
    for name, buffer in buffers.items():
        oracle = getattr(problem, name)
        setattr(problem, name, lambda oracle=oracle, buffer=buffer: buffer.copy_(oracle()))
    before = problem.w.clone()
    with pytest.raises(FastnasError, match=f"{product.__name__}: the oracle returned the same memory twice"):
        product(problem, torch.ones(4).double())
    assert torch.equal(problem.w, before)
