"""Products by name: exact ones against autograd, the schemes' errors and costs, what they leave as it was."""

import pytest
import torch

from fastnas.bilevel import FunctionProblem, Products, TwiceDifferentiable, cg, idarts, t1_t2
from fastnas.errors import FastnasError
from tests.bilevel.networks import network
from tests.bilevel.problems import Counted, Cube, OracleFailed, QuadraticProblem

EXACT = Products("exact", "exact")
FORWARD = Products(scheme="forward")


def smooth():
    return network(smooth=True, seed=0, samples=64)


def curved():
    return QuadraticProblem(torch.tensor([0.5, 2.0, 2.5, 3.0, 4.0]), curvature=0.2)


def as_functions(problem):
    """The same losses by autograd: the exact products of a quadratic written by hand."""
    return FunctionProblem(problem.train_loss, problem.val_loss, problem.w, problem.alpha)


def direction(problem, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(problem.w.shape, generator=generator, dtype=torch.float64)


def hessian_and_mixed(problem):
    """d2L1/dw2 (P, P) and d2L1/dalpha dw (H, P), written out by autograd."""
    joint = torch.cat([problem.w, problem.alpha])
    size = len(problem.w)
    full = torch.autograd.functional.hessian(lambda x: problem._train_loss(x[:size], x[size:]), joint)
    return full[:size, :size], full[size:, :size]


def small_smooth_problem():
    """Not quadratic, in w or in alpha, and small enough to be written out."""
    quadratic = curved()

    def train_loss(w, alpha):
        return (
            quadratic.train_loss(w, alpha)
            + (w * alpha.sum()).sin().sum()
            + (w @ quadratic.B).cosh() @ alpha.exp()
        )

    def val_loss(w, alpha):
        return quadratic.val_loss(w, alpha) + (w.sum() * alpha).sin().sum() + alpha.exp().sum()

    return FunctionProblem(train_loss, val_loss, quadratic.w / 3, quadratic.alpha / 3)


class TestExact:
    def test_is_autograds_hessian(self):
        problem = small_smooth_problem()
        curvature, u = EXACT.of(problem), direction(problem)
        hessian, mixed = hessian_and_mixed(problem)
        torch.testing.assert_close(curvature.hessian(u), hessian @ u, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(curvature.mixed(u), mixed @ u, rtol=1e-12, atol=1e-12)
        p = torch.tensor([0.3, -1.0, 2.0], dtype=torch.float64)
        val = torch.autograd.functional.hessian(lambda a: problem._val_loss(problem.w, a), problem.alpha)
        torch.testing.assert_close(curvature.val_alpha_hessian(p), val @ p, rtol=1e-12, atol=1e-12)

    def test_is_the_closed_form_of_a_quadratic(self):
        problem = curved()
        curvature, u = EXACT.of(as_functions(problem)), direction(problem)
        torch.testing.assert_close(curvature.hessian(u), problem.hessian() @ u, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(curvature.mixed(u), problem.mixed() @ u, rtol=1e-12, atol=1e-12)

    def test_takes_no_radius(self):
        problem = small_smooth_problem()
        for u in (direction(problem), 1e-30 * direction(problem)):
            one, other = (Products("exact", "exact", radius=radius).of(problem) for radius in (0.01, 100.0))
            assert torch.equal(one.hessian(u), other.hessian(u))
            assert torch.equal(one.mixed(u), other.mixed(u))

    def test_of_a_loss_that_is_linear_is_zero(self):
        w, alpha = torch.ones(3).double(), torch.ones(2).double()
        problem = FunctionProblem(
            lambda w, a: 3 * w.sum() + a.sum(), lambda w, a: w.sum() * a.sum(), w, alpha
        )
        curvature, u = EXACT.of(problem), torch.ones(3).double()
        assert torch.equal(curvature.hessian(u), torch.zeros(3).double())
        assert torch.equal(curvature.mixed(u), torch.zeros(2).double())
        assert torch.equal(curvature.val_alpha_hessian(alpha), torch.zeros(2).double())

    def test_results_are_the_callers_own(self):
        """A product that autograd expands from one number can be written to, and w and alpha know nothing of it."""
        problem = FunctionProblem(
            lambda w, a: (w.sum() + a.sum()) ** 2, lambda w, a: w.sum(), torch.ones(3), torch.ones(2)
        )
        curvature = EXACT.of(problem)
        for product, wanted in ((curvature.hessian, [6.0] * 3), (curvature.mixed, [6.0] * 2)):
            result = product(torch.ones(3))
            result[0] = 9.0
            assert result.tolist()[1:] == wanted[1:]
            assert product(torch.ones(3)).tolist() == wanted

    def test_refuses_a_loss_whose_gradient_has_no_graph(self):
        """Autograd takes its second derivative for zero, without a word."""

        problem = FunctionProblem(
            lambda w, a: Cube.apply(w).sum() + w @ a, lambda w, a: w.sum(), torch.ones(2), torch.ones(2)
        )
        for product in (EXACT.of(problem).hessian, EXACT.of(problem).mixed):
            with pytest.raises(FastnasError, match="train_loss cannot be differentiated twice"):
                product(torch.ones(2))
        assert Products().of(problem).hessian(torch.ones(2)).tolist() == pytest.approx([6, 6], rel=1e-2)

    def test_needs_a_problem_that_has_them(self):
        assert not isinstance(curved(), TwiceDifferentiable)
        for products in (Products(hessian="exact"), Products(mixed="exact")):
            with pytest.raises(FastnasError, match="QuadraticProblem has no exact second-order products"):
                t1_t2(curved(), products=products)


class TestSchemes:
    @pytest.mark.parametrize(("scheme", "order"), [("central", 2), ("forward", 1)])
    def test_error_falls_with_the_radius_to_the_order_of_the_scheme(self, scheme, order):
        problem = smooth()
        u, exact = direction(problem), EXACT.of(problem)

        def error(radius, product):
            got = getattr(Products(scheme=scheme, radius=radius).of(problem), product)(u)
            wanted = getattr(exact, product)(u)
            return ((got - wanted).norm() / wanted.norm()).item()

        for product in ("hessian", "mixed"):
            assert error(0.04, product) / error(0.02, product) == pytest.approx(2**order, rel=0.05)
            assert error(1e-3, product) < 0.02**order

    def test_val_alpha_hessian_by_both_schemes(self):
        problem = small_smooth_problem()
        p = torch.tensor([0.3, -1.0, 2.0], dtype=torch.float64)
        wanted = EXACT.of(problem).val_alpha_hessian(p)
        for scheme, bound in (("central", 1e-7), ("forward", 1e-3)):
            got = Products(scheme=scheme, radius=1e-4).of(problem).val_alpha_hessian(p)
            error = (got - wanted).norm() / wanted.norm()
            assert error < bound
        assert error > 1e-7  # the forward one's is of the first order

    def test_forward_products_share_their_base(self):
        problem = Counted(curved())
        curvature = FORWARD.of(problem)
        for seed in range(3):
            curvature.hessian(direction(problem, seed))
            curvature.mixed(direction(problem, seed))
        assert problem.calls.count("train_grad_w") == 3 + 1
        assert problem.calls.count("train_grad_alpha") == 3 + 1

    @pytest.mark.parametrize("terms", [0, 1, 4])
    def test_forward_idarts_takes_one_gradient_a_term_and_two_bases(self, terms):
        problem = Counted(curved())
        idarts(problem, gamma=0.1, neumann_terms=terms, products=FORWARD)
        assert problem.calls.count("val_grads") == 1
        assert problem.calls.count("train_grad_w") == (terms + 1 if terms else 0)
        assert problem.calls.count("train_grad_alpha") == 2

    @pytest.mark.parametrize("steps", [1, 3])
    def test_forward_cg_takes_one_gradient_a_step(self, steps):
        problem = Counted(curved())
        cg(problem, steps=steps, products=FORWARD)
        assert problem.calls.count("train_grad_w") == steps + 1

    def test_a_new_base_at_a_new_point(self):
        """Curvature belongs to one point; ``of`` makes another."""
        problem, u = small_smooth_problem(), torch.ones(5, dtype=torch.float64)
        products = Products(scheme="forward", radius=1e-6)
        at_first = products.of(problem).hessian(u)
        problem.w.add_(0.5)
        wanted = EXACT.of(problem).hessian(u)
        torch.testing.assert_close(products.of(problem).hessian(u), wanted, rtol=1e-4, atol=0)
        assert (at_first - wanted).norm() > 0.1

    @pytest.mark.parametrize("neumann_terms", [0, 1, 3])
    def test_idarts_forward_is_its_equation_with_forward_products(self, neumann_terms):
        problem = smooth()
        curvature = FORWARD.of(problem)
        v, direct = problem.val_grads()
        series = v.clone()
        for _ in range(neumann_terms):
            v = v - 0.1 * curvature.hessian(v)
            series += v
        wanted = direct - 0.1 * curvature.mixed(series)
        got = idarts(problem, gamma=0.1, neumann_terms=neumann_terms, products=FORWARD)
        torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-12)


class TestMixtures:
    def test_each_product_is_taken_as_it_says(self):
        problem, u = smooth(), direction(smooth())
        exact, central = EXACT.of(problem), Products(radius=0.3).of(problem)
        papers = Products(hessian="exact", radius=0.3).of(problem)
        assert torch.equal(papers.hessian(u), exact.hessian(u))
        assert torch.equal(papers.mixed(u), central.mixed(u))
        other = Products(mixed="exact", radius=0.3).of(problem)
        assert torch.equal(other.hessian(u), central.hessian(u))
        assert torch.equal(other.mixed(u), exact.mixed(u))

    @pytest.mark.parametrize("neumann_terms", [0, 2])
    def test_idarts_with_exact_products(self, neumann_terms):
        problem = as_functions(curved())
        hessian, mixed = hessian_and_mixed(problem)
        v, direct = problem.val_grads()
        contraction = torch.eye(5).double() - 0.2 * hessian
        series = sum(torch.linalg.matrix_power(contraction, k) @ v for k in range(neumann_terms + 1))
        got = idarts(problem, gamma=0.2, neumann_terms=neumann_terms, products=EXACT)
        torch.testing.assert_close(got, direct - 0.2 * mixed @ series, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("products", [Products(), FORWARD, EXACT])
@pytest.mark.parametrize("name", ["hessian", "mixed", "val_alpha_hessian"])
def test_products_leave_w_and_alpha_bit_identical(products, name):
    problem = small_smooth_problem()
    problem.w[0], problem.w[1] = 1e-30, -0.0
    w, alpha = problem.w.view(torch.int64).clone(), problem.alpha.view(torch.int64).clone()
    curvature = products.of(problem)
    u = problem.alpha.clone() if name == "val_alpha_hessian" else direction(problem)
    kept = u.clone()
    first = getattr(curvature, name)(u)
    assert torch.equal(u, kept)
    assert torch.equal(problem.w.view(torch.int64), w)
    assert torch.equal(problem.alpha.view(torch.int64), alpha)
    assert torch.equal(getattr(curvature, name)(u), first)


@pytest.mark.parametrize("scheme", ["central", "forward"])
def test_and_when_an_oracle_raises(scheme):
    for fail_at in (0, 1):
        problem = Counted(curved(), fail_at)
        w, alpha = problem.w.clone(), problem.alpha.clone()
        with pytest.raises(OracleFailed):
            Products(scheme=scheme).of(problem).val_alpha_hessian(torch.ones(3).double())
        assert torch.equal(problem.w, w)
        assert torch.equal(problem.alpha, alpha)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"hessian": "eaxct"}, "Products: hessian must be one of difference, exact, got 'eaxct'"),
        ({"mixed": None}, "Products: mixed must be one of difference, exact, got None"),
        ({"scheme": "backward"}, "Products: scheme must be one of central, forward, got 'backward'"),
        ({"radius": 0.0}, "Products: radius must be a finite number > 0, got 0.0"),
        ({"radius": float("nan")}, "Products: radius must be a finite number > 0, got nan"),
    ],
)
def test_wrong_products(arguments, message):
    with pytest.raises(FastnasError) as raised:
        Products(**arguments)
    assert str(raised.value) == message


def test_a_direction_that_is_not_like_w():
    with pytest.raises(FastnasError, match=r"train_hessian_product: u must be a tensor like w: shape \(5,\)"):
        EXACT.of(as_functions(curved())).hessian(torch.ones(4).double())
