"""Each estimator against its closed form, and the theorems about iDARTS."""

from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fastnas.bilevel import amended, darts, first_order, idarts, inner_steps, t1_t2
from fastnas.bilevel.difference import hessian_vector_product, mixed_product
from tests.bilevel.problems import AmendedToy, QuadraticProblem

SPECTRUM = torch.tensor([0.5, 2.0, 2.5, 3.0, 4.0])  # mu = 0.5, L = 4
# What rounding leaves of a central difference of quadratics of this size; measured: below 1e-11.
EXACT = {"rtol": 1e-9, "atol": 1e-10}


def straight():
    """The mixed derivative does not depend on w."""
    return QuadraticProblem(SPECTRUM)


def curved():
    """The mixed derivative depends on w, the Hessian on alpha."""
    return QuadraticProblem(SPECTRUM, curvature=0.2)


def neumann_sum(hessian, v, gamma, neumann_terms):
    """gamma sum over k = 0..K of (I - gamma H)^k v, by dense powers."""
    contraction = torch.eye(len(v), dtype=torch.float64) - gamma * hessian
    return gamma * sum(torch.linalg.matrix_power(contraction, k) @ v for k in range(neumann_terms + 1))


@pytest.mark.parametrize("a", [1.0, -0.7])
class TestAmendedPapersToy:
    """Direct term -2a, implicit term 4a, the whole 2a."""

    def test_direct_implicit_and_whole(self, a):
        toy = AmendedToy(a)
        (v,), (direct,) = toy.val_grads()
        mixed, hessian = -2.0, 2.0
        assert direct.item() == pytest.approx(-2 * a)
        assert (-mixed / hessian * v).item() == pytest.approx(4 * a)
        assert toy.train_grad_w().item() == 0
        # The whole by differentiating L2(w*(alpha), alpha) = (2 alpha - alpha)^2 itself.
        assert (direct - mixed / hessian * v).item() == pytest.approx(2 * a)

    @pytest.mark.parametrize("gamma", [0.05, 0.25, 0.6])
    def test_idarts_tends_to_the_whole(self, a, gamma):
        for neumann_terms in (0, 1, 2, 7):
            got = idarts(AmendedToy(a), gamma=gamma, neumann_terms=neumann_terms).item()
            assert got == pytest.approx(
                -2 * a + 4 * a * (1 - (1 - 2 * gamma) ** (neumann_terms + 1)), rel=1e-9
            )
        assert idarts(AmendedToy(a), gamma=gamma, neumann_terms=300).item() == pytest.approx(2 * a, rel=1e-9)

    def test_idarts_with_gamma_the_inverse_hessian_is_exact_at_once(self, a):
        assert idarts(AmendedToy(a), gamma=0.5, neumann_terms=0).item() == pytest.approx(2 * a, rel=1e-9)

    @pytest.mark.parametrize("eta", [0.1, 0.25])
    def test_amended(self, a, eta):
        assert amended(AmendedToy(a), eta=eta).item() == pytest.approx(-2 * a + 16 * eta * a, rel=1e-9)

    def test_amended_defaults_to_the_papers_eta(self, a):
        assert amended(AmendedToy(a)).item() == pytest.approx(-0.4 * a, rel=1e-9)

    def test_first_order_has_the_wrong_sign(self, a):
        assert first_order(AmendedToy(a)).item() == pytest.approx(-2 * a)

    def test_darts(self, a):
        # The step is zero at w*: -2a - xi (-2) 4a.
        assert darts(AmendedToy(a), learning_rate=0.1).item() == pytest.approx(-1.2 * a, rel=1e-9)

    def test_a_clipped_darts(self, a):
        """Off w*, at w = a + 1: dL1/dw = 2 is clipped to 1/2, so w' = w - xi/2, L2 = (2 w - a)^2 there, c = 1/4."""
        problem, rate = AmendedToy(a), 0.1
        problem.w.add_(1)
        v = 4 * (2 * (problem.w.item() - rate / 2) - a)
        wanted = -v / 2 - rate / 4 * -2 * v
        assert darts(problem, learning_rate=rate, clip=0.5).item() == pytest.approx(wanted, rel=1e-5)
        assert problem.w.item() == a + 1

    def test_t1_t2(self, a):
        assert t1_t2(AmendedToy(a)).item() == pytest.approx(6 * a, rel=1e-9)


def test_first_order_is_the_direct_term():
    problem = curved()
    assert torch.equal(first_order(problem), problem.D.T @ problem.w + problem.alpha)


def test_t1_t2_puts_the_identity_for_the_inverse_hessian():
    problem = curved()
    v, direct = problem.val_grads()
    torch.testing.assert_close(t1_t2(problem), direct - problem.mixed() @ v, **EXACT)


def test_amended_takes_its_last_difference_of_the_training_loss():
    """Equation 6, not appendix A.2: B (training) couples here, D (validation) does not."""
    problem = curved()
    v, direct = problem.val_grads()
    hessian_v = problem.hessian() @ v
    torch.testing.assert_close(amended(problem, eta=0.3), direct - 0.3 * problem.mixed() @ hessian_v, **EXACT)
    as_printed_in_the_appendix = direct - 0.3 * problem.D.T @ hessian_v
    assert (amended(problem, eta=0.3) - as_printed_in_the_appendix).norm() > 1


@pytest.mark.parametrize("neumann_terms", [0, 1, 2, 5])
@pytest.mark.parametrize("gamma", [0.1, 0.25])
def test_idarts_is_the_truncated_series_at_the_present_w(gamma, neumann_terms):
    problem = curved()
    v, direct = problem.val_grads()
    series = neumann_sum(problem.hessian(), v, gamma, neumann_terms)
    got = idarts(problem, gamma=gamma, neumann_terms=neumann_terms)
    torch.testing.assert_close(got, direct - problem.mixed() @ series, **EXACT)


def test_idarts_has_two_terms_by_default():
    assert torch.equal(idarts(curved(), gamma=0.1), idarts(curved(), gamma=0.1, neumann_terms=2))


def test_idarts_with_many_terms_is_the_dense_solve():
    problem = curved()
    problem.w.copy_(problem.solution())
    got = idarts(problem, gamma=0.2, neumann_terms=300)
    torch.testing.assert_close(got, problem.exact_hypergradient(), rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("gamma", [0.1, 0.25])  # 1/L = 0.25
def test_theorem_1_bounds_the_error_and_gives_its_rate(gamma, seed):
    """|error| <= C (1/mu) (1 - gamma mu)^(K+1), C = |d2L1/dalpha dw| |v|; the rate is attained."""
    problem = QuadraticProblem(SPECTRUM, seed=seed)
    problem.w.copy_(problem.solution())
    mu = SPECTRUM[0].item()
    v, _ = problem.val_grads()
    constant = torch.linalg.matrix_norm(problem.mixed(), 2) * v.norm()
    exact = problem.exact_hypergradient()
    errors = []
    for neumann_terms in range(31):
        error = (idarts(problem, gamma=gamma, neumann_terms=neumann_terms) - exact).norm()
        assert error <= constant / mu * (1 - gamma * mu) ** (neumann_terms + 1)
        errors.append(error.item())
    # The other eigenvalues' share has died out by then: ((1 - 2 gamma)/(1 - gamma/2))^30 < 1e-2.
    assert errors[30] / errors[29] == pytest.approx(1 - gamma * mu, rel=2e-3)


def test_darts_closed_form_with_momentum_and_decay():
    problem = curved()
    buffer = torch.linspace(-1, 1, 5, dtype=torch.float64)
    w0 = problem.w.clone()
    mixed_at_w = problem.mixed()
    step = 0.9 * buffer + problem.train_grad_w() + 0.3 * w0
    got = darts(problem, learning_rate=0.2, momentum=0.9, momentum_buffer=buffer, weight_decay=0.3)
    assert torch.equal(buffer, torch.linspace(-1, 1, 5, dtype=torch.float64))
    problem.w.sub_(0.2 * step)
    v, direct = problem.val_grads()
    torch.testing.assert_close(got, direct - 0.2 * mixed_at_w @ v, **EXACT)
    # At w' the product would be another one: the point matters on this problem.
    assert ((problem.mixed() - mixed_at_w) @ v).norm() > 0.1


def test_darts_without_a_buffer_takes_it_as_zero():
    zero = torch.zeros(5, dtype=torch.float64)
    with_zero = darts(curved(), learning_rate=0.2, momentum=0.9, momentum_buffer=zero)
    assert torch.equal(darts(curved(), learning_rate=0.2, momentum=0.9), with_zero)


def test_darts_with_learning_rate_zero_is_first_order():
    torch.testing.assert_close(darts(curved(), learning_rate=0.0), first_order(curved()), rtol=0, atol=0)


def idarts_after_one_step(problem, learning_rate):
    inner_steps(problem, steps=1, learning_rate=learning_rate)
    return idarts(problem, gamma=learning_rate, neumann_terms=0)


def test_one_step_and_no_term_is_darts_where_the_mixed_derivative_is_constant():
    got = idarts_after_one_step(straight(), 0.2)
    torch.testing.assert_close(got, darts(straight(), learning_rate=0.2), **EXACT)


def test_one_step_and_no_term_differs_from_darts_by_the_point_of_the_mixed_product():
    """idarts takes it at w', darts at w: with M_j the difference is -xi (M_j (w' - w)) . v'."""
    before, after = curved(), curved()
    got = idarts_after_one_step(after, 0.2)
    v, _ = after.val_grads()
    by_the_point = -0.2 * (after.M @ (after.w - before.w)) @ v
    assert by_the_point.norm() > 0.02
    torch.testing.assert_close(got - darts(before, learning_rate=0.2), by_the_point, **EXACT)


@pytest.mark.parametrize("steps", [0, 1, 4, 50])
def test_inner_steps_are_gradient_descent(steps):
    """w_T = w* + (I - lr H)^T (w_0 - w*)."""
    problem = curved()
    address = problem.w.data_ptr()
    contraction = torch.eye(5, dtype=torch.float64) - 0.2 * problem.hessian()
    minimum = problem.solution()
    wanted = minimum + torch.linalg.matrix_power(contraction, steps) @ (problem.w - minimum)
    moved = (wanted - problem.w).norm()
    assert inner_steps(problem, steps=steps, learning_rate=0.2) is None
    torch.testing.assert_close(problem.w, wanted, rtol=1e-12, atol=1e-12)
    assert problem.w.data_ptr() == address
    assert (moved > 0.1) == (steps > 0)


@pytest.mark.parametrize("own_buffer", [False, True])
@pytest.mark.parametrize(("momentum", "weight_decay"), [(0.0, 0.0), (0.9, 0.0), (0.0, 0.3), (0.9, 0.3)])
def test_inner_steps_are_pytorchs_sgd(momentum, weight_decay, own_buffer):
    problem, parameter = curved(), torch.nn.Parameter(curved().w)
    optimizer = torch.optim.SGD([parameter], lr=0.05, momentum=momentum, weight_decay=weight_decay)
    buffer = torch.zeros(5, dtype=torch.float64) if own_buffer else None
    for _ in range(5):
        optimizer.zero_grad()
        problem.train_loss(parameter, problem.alpha).backward()
        optimizer.step()
    # With a buffer the steps may be split; without, each call starts from rest.
    for steps in (2, 3) if own_buffer else (5,):
        inner_steps(
            problem,
            steps=steps,
            learning_rate=0.05,
            momentum=momentum,
            momentum_buffer=buffer,
            weight_decay=weight_decay,
        )
    torch.testing.assert_close(problem.w, parameter.detach(), rtol=1e-12, atol=1e-13)
    if own_buffer and momentum:
        wanted = optimizer.state[parameter]["momentum_buffer"]
        torch.testing.assert_close(buffer, wanted, rtol=1e-12, atol=1e-13)


def test_darts_makes_the_step_that_inner_steps_makes():
    """Its direct term is dL2/dalpha where one step with momentum and decay leads."""
    problem, stepped = straight(), straight()
    buffer = torch.ones(5, dtype=torch.float64)
    settings = {"learning_rate": 0.1, "momentum": 0.5, "weight_decay": 0.2}
    inner_steps(stepped, steps=1, momentum_buffer=buffer.clone(), **settings)
    wanted = idarts(stepped, gamma=0.1, neumann_terms=0)
    torch.testing.assert_close(darts(problem, momentum_buffer=buffer, **settings), wanted, **EXACT)


def test_learning_rates_may_lie_on_the_device():
    """The same bits as the number that the tensor holds."""
    rate, buffer = torch.tensor(0.2).double(), torch.linspace(-1, 1, 5, dtype=torch.float64)
    rate.fill_(0.2)
    settings = {"momentum": 0.9, "momentum_buffer": buffer, "weight_decay": 0.3}
    assert torch.equal(
        darts(curved(), learning_rate=rate, **settings), darts(curved(), learning_rate=0.2, **settings)
    )
    assert torch.equal(idarts(curved(), gamma=rate), idarts(curved(), gamma=0.2))


def strided(problem):
    problem.w = torch.stack([problem.w, torch.full_like(problem.w, 9.0)], 1)[:, 0]
    return problem


def test_weights_with_a_stride():
    buffer = torch.stack([torch.linspace(-1, 1, 5, dtype=torch.float64)] * 2, 1)[:, 0]
    for estimator in (
        lambda problem: idarts(problem, gamma=0.2),
        lambda problem: darts(problem, learning_rate=0.2, momentum=0.9, momentum_buffer=buffer),
    ):
        problem = strided(curved())
        before = problem.w.clone()
        torch.testing.assert_close(estimator(problem), estimator(curved()), **EXACT)
        assert torch.equal(problem.w, before)


@pytest.mark.parametrize("neumann_terms", [0, 1, 4])
def test_idarts_is_its_equation_written_with_products(neumann_terms):
    problem = curved()
    v, direct = problem.val_grads()
    series = v.clone()
    for _ in range(neumann_terms):
        v = v - 0.15 * hessian_vector_product(problem, v)
        series += v
    wanted = direct - 0.15 * mixed_product(problem, series)
    torch.testing.assert_close(idarts(problem, gamma=0.15, neumann_terms=neumann_terms), wanted, **EXACT)


class Calls(TorchDispatchMode):
    """Counts the ops of fastnas, and the copies."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        self.counts[function._schema.name] += 1
        return function(*arguments, **(keywords or {}))


def test_a_neumann_term_moves_w_twice_and_makes_one_more_pass():
    """Its norm comes from the step before, and w is saved once for all of them."""
    counted = []
    for neumann_terms in (1, 4):
        problem = curved()
        with Calls() as calls:
            idarts(problem, gamma=0.1, neumann_terms=neumann_terms)
        counted.append({name: n for name, n in calls.counts.items() if "fastnas" in name or "copy" in name})
    assert counted[0] == {
        "fastnas::vector_norm": 3,  # of v, of H v, and of the sum for the mixed product
        "fastnas::perturb_": 4,
        "fastnas::neumann_step_": 1,
        "fastnas::difference_": 1,  # of the mixed product
        "aten::copy_": 2,  # w comes back
    }
    more = {"fastnas::perturb_": 10, "fastnas::neumann_step_": 4, "fastnas::vector_norm": 6}
    assert counted[1] == counted[0] | more


def test_darts_steps_in_one_pass():
    with Calls() as calls:
        darts(curved(), learning_rate=0.1, momentum=0.9, momentum_buffer=torch.ones(5).double())
    assert calls.counts["fastnas::virtual_step_"] == 1
