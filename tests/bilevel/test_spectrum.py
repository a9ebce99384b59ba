"""The spectrum by Lanczos: against eigenvalues that are known, and where a matrix makes it hard."""

import math
from functools import partial

import pytest
import torch

from fastnas.bilevel import ends, hessian_vector_product, lanczos, spectrum
from fastnas.errors import FastnasError
from tests.bilevel.networks import dense_hessians, network, small_network
from tests.bilevel.problems import QuadraticProblem


def symmetric(eigenvalues, seed=0, dtype=torch.float64):
    """A matrix with these eigenvalues and random eigenvectors."""
    eigenvalues = torch.as_tensor(eigenvalues, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    size = len(eigenvalues)
    basis = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64)).Q
    matrix = basis @ torch.diag(eigenvalues) @ basis.T
    return ((matrix + matrix.T) / 2).to(dtype)


class Operator:
    """A matrix as an operator that counts its products."""

    def __init__(self, matrix):
        self.matrix, self.products = matrix, 0

    def __call__(self, u):
        self.products += 1
        return self.matrix @ u


def normal(size, seed=0, dtype=torch.float64):
    return torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("size", [2, 3, 17, 60])
@pytest.mark.parametrize("seed", [0, 1])
def test_all_eigenvalues_after_as_many_steps_as_there_are(size, seed):
    eigenvalues = torch.sort(3 * normal(size, seed)).values
    matrix = symmetric(eigenvalues, seed)
    values, weights, errors = lanczos(matrix.mv, normal(size, 7), size).ritz()
    torch.testing.assert_close(values, eigenvalues, rtol=0, atol=1e-8)
    assert weights.sum().item() == pytest.approx(1, abs=1e-12)
    assert errors.max() <= 1e-8
    found = ends(matrix.mv, size, steps=size)
    assert found.lambda_max == pytest.approx(eigenvalues[-1].item(), abs=1e-8)
    assert found.lambda_min == pytest.approx(eigenvalues[0].item(), abs=1e-8)
    assert found.spectral_radius == pytest.approx(eigenvalues.abs().max().item(), abs=1e-8)
    assert found.asymmetry <= 1e-13


def test_the_tridiagonal_matrix_is_the_projection_of_the_operator():
    """T = Q' A Q, and A Q - Q T has the residual in its last column alone, with Q as the operator met it."""
    matrix, met = symmetric(torch.linspace(-1, 5, 40)), []
    start = normal(40)
    tridiagonal = lanczos(lambda u: (met.append(u.clone()), matrix @ u)[1], start, 12)
    basis = torch.stack(met, 1)
    torch.testing.assert_close(basis[:, 0], start / start.norm(), rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(basis.T @ basis, torch.eye(12).double(), rtol=0, atol=1e-14)
    t = torch.diag(tridiagonal.diagonal)
    t += torch.diag(tridiagonal.off_diagonal, 1) + torch.diag(tridiagonal.off_diagonal, -1)
    torch.testing.assert_close(basis.T @ matrix @ basis, t, rtol=0, atol=1e-13)
    rest = matrix @ basis - basis @ t
    assert rest[:, :-1].abs().max() <= 1e-13
    assert tridiagonal.residual == pytest.approx(rest[:, -1].norm().item(), rel=1e-12)
    assert tridiagonal.residual > 0.1


@pytest.mark.parametrize("steps", [1, 3, 8, 20])
def test_an_eigenvalue_lies_within_the_error_of_each_ritz_value(steps):
    eigenvalues = normal(50, 3) ** 3
    values, _, errors = lanczos(symmetric(eigenvalues).mv, normal(50, 1), steps).ritz()
    distance = (values[:, None] - eigenvalues).abs().min(1).values
    assert (distance <= errors + 1e-12).all()
    assert eigenvalues.min() - 1e-12 <= values[0]
    assert values[-1] <= eigenvalues.max() + 1e-12


def test_the_ends_converge_long_before_all_steps():
    eigenvalues = torch.cat([torch.linspace(-1, 1, 998).double(), torch.tensor([-3.0, 7.0]).double()])
    found = ends(lambda u: eigenvalues * u, 1000, steps=30)
    assert found.products == 30
    assert found.lambda_max == pytest.approx(7, abs=1e-10)
    assert found.lambda_min == pytest.approx(-3, abs=1e-10)
    assert max(found.lambda_max_error, found.lambda_min_error) <= 1e-5
    assert min(found.lambda_max_error, found.lambda_min_error) >= 0


def test_the_trace_of_a_diagonal_matrix_is_exact():
    """z' A z = sum of a_ii z_i^2, and signs squared are 1: each probe gives the trace."""
    diagonal = normal(300, 2)
    found = spectrum(lambda u: diagonal * u, 300, steps=5, probes=3)
    assert found.trace == pytest.approx(diagonal.sum().item(), rel=1e-12)
    assert found.trace_error <= 1e-12
    assert found.size == 300


def test_the_trace_of_a_full_matrix_lies_within_its_standard_error():
    """The variance of z' A z for signs is 2 (|A|_F^2 - sum a_ii^2) (Hutchinson 1989): error and its estimate agree."""
    matrix = symmetric(normal(80, 4).abs() + 1)
    true, probes = matrix.trace().item(), 400
    variance = 2 * (matrix.square().sum() - matrix.diagonal().square().sum()).item()
    found = spectrum(matrix.mv, 80, steps=2, probes=probes)
    assert found.trace_error == pytest.approx(math.sqrt(variance / probes), rel=0.15)
    assert abs(found.trace - true) <= 3.5 * found.trace_error
    assert math.isnan(spectrum(matrix.mv, 80, steps=2, probes=1).trace_error)


def test_moments_of_a_diagonal_matrix_are_exact_up_to_degree_2m_minus_1():
    """z' A^k z = tr A^k for signs z, and a quadrature of m nodes is exact up to 2m - 1, and no further."""
    eigenvalues, steps = torch.linspace(-1, 2, 90).double() ** 3, 4
    found = spectrum(lambda u: eigenvalues * u, 90, steps=steps, probes=2)
    assert found.nodes.shape == found.weights.shape == (2 * steps,)
    assert found.weights.sum().item() == pytest.approx(1, abs=1e-12)
    for k in range(2 * steps):
        moment = (found.weights * found.nodes**k).sum().item()
        assert moment == pytest.approx((eigenvalues**k).mean().item(), rel=1e-10)
    k = 2 * steps
    assert (found.weights * found.nodes**k).sum().item() != pytest.approx(
        (eigenvalues**k).mean().item(), rel=1e-6
    )


def test_moments_of_a_full_matrix_are_those_of_its_probes():
    """Whatever the matrix, one probe's quadrature gives z' A^k z / P."""
    matrix, met = symmetric(normal(60, 5)), []
    found = spectrum(lambda u: (met.append(u.clone()), matrix @ u)[1], 60, steps=6, probes=1)
    z = met[6]  # behind the run for the ends
    torch.testing.assert_close(z.abs(), torch.full((60,), 60**-0.5, dtype=torch.float64))
    power = z
    for k in range(12):
        assert (found.weights * found.nodes**k).sum().item() == pytest.approx((z @ power).item(), abs=1e-11)
        power = matrix @ power


def test_the_density_is_the_smoothed_histogram():
    """Of a diagonal matrix with as many steps as distinct eigenvalues: each node has its multiplicity's share."""
    eigenvalues = torch.tensor([0.0] * 70 + [1.0] * 20 + [4.0] * 10).double()
    found = spectrum(lambda u: eigenvalues * u, 100, steps=30, probes=2)
    at = torch.linspace(-3, 7, 4001).double()
    width = 0.05
    kernel = torch.exp(-((at[:, None] - eigenvalues) ** 2) / (2 * width**2)) / (
        width * math.sqrt(2 * math.pi)
    )
    torch.testing.assert_close(found.density(at, width), kernel.mean(1), rtol=1e-9, atol=1e-9)
    assert torch.trapezoid(found.density(at), at).item() == pytest.approx(1, abs=1e-6)
    # The width by default: a hundredth of the spectrum.
    torch.testing.assert_close(found.density(at), found.density(at, 0.04), rtol=1e-6, atol=1e-9)
    assert found.density(at.float()).dtype == torch.float64


def test_a_degenerate_spectrum_ends_early_and_keeps_its_shares():
    eigenvalues = torch.tensor([2.0] * 30 + [-1.0] * 10).double()
    operator = Operator(symmetric(eigenvalues))
    tridiagonal = lanczos(operator, normal(40), 40)
    assert operator.products == len(tridiagonal.diagonal) == 2
    torch.testing.assert_close(tridiagonal.ritz()[0], torch.tensor([-1.0, 2.0]).double(), rtol=0, atol=1e-12)
    assert tridiagonal.residual <= 1e-13
    found = spectrum(lambda u: eigenvalues * u, 40)
    assert found.products == 2 * 5
    torch.testing.assert_close(found.weights.view(4, 2).sum(0), torch.tensor([0.25, 0.75]).double())


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_the_identity_takes_one_product(scale):
    operator = Operator(scale * torch.eye(30).double())
    found = spectrum(operator, 30, probes=2)
    assert operator.products == found.products == 3
    assert found.lambda_max == pytest.approx(scale, rel=1e-14)
    assert found.lambda_min == pytest.approx(scale, rel=1e-14)
    assert found.lambda_max_error <= 1e-13 * scale
    assert found.trace == pytest.approx(30 * scale, rel=1e-13)


def test_signs_alone_would_miss_an_end_and_the_gaussian_run_does_not():
    """[[0, 1], [1, 0]]: every vector of signs is an eigenvector, of +1 or of -1."""
    matrix = torch.tensor([[0.0, 1.0], [1.0, 0.0]]).double()
    for seed in range(4):
        found = spectrum(matrix.mv, 2, probes=1, seed=seed)
        assert found.nodes.shape == (1,)
        assert (found.lambda_min, found.lambda_max) == pytest.approx((-1, 1), abs=1e-14)


def test_one_dimension():
    found = spectrum(lambda u: -3 * u, 1)
    assert found.lambda_max == found.lambda_min == found.trace / 1 == pytest.approx(-3, abs=1e-15)
    assert found.spectral_radius == pytest.approx(3, abs=1e-15)
    assert found.asymmetry <= 1e-15
    assert found.products == 5
    with pytest.raises(FastnasError, match="density: all eigenvalues are -3, which gives no width; name one"):
        found.density(torch.zeros(1))
    assert found.density(torch.tensor([-3.0]), width=0.5).item() == pytest.approx(
        1 / (0.5 * math.sqrt(2 * math.pi))
    )


def test_the_zero_operator():
    operator = Operator(torch.zeros(20, 20).double())
    found = spectrum(operator, 20)
    assert operator.products == 5
    assert (found.lambda_max, found.lambda_min, found.trace, found.trace_error) == (0, 0, 0, 0)
    assert (found.lambda_max_error, found.lambda_min_error, found.asymmetry) == (0, 0, 0)
    assert torch.equal(found.nodes, torch.zeros(4).double())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rank_one(dtype):
    u = normal(500, 6, dtype)
    square = u.double().square().sum().item()
    found = ends(lambda x: u * torch.dot(u, x), u, steps=40)
    rounding = 20 * torch.finfo(dtype).eps * square
    assert found.lambda_max == pytest.approx(square, abs=rounding)
    assert found.lambda_min == pytest.approx(0, abs=rounding)
    if dtype == torch.float64:
        assert found.products <= 4


@pytest.mark.parametrize("size", [40, 2000])
def test_float32(size):
    eigenvalues = torch.linspace(-1, 4, size, dtype=torch.float32)
    eigenvalues[-1] = 6
    found = spectrum(lambda u: eigenvalues * u, eigenvalues, steps=60, probes=2)
    true = eigenvalues.double()
    assert found.lambda_max == pytest.approx(6, abs=1e-6)
    # The lower end has no gap: it lies within the error bound, which is small.
    assert 0 <= found.lambda_min - true[0].item() + 1e-6 <= found.lambda_min_error + 2e-6
    assert found.lambda_min_error <= 0.05
    assert found.trace == pytest.approx(true.sum().item(), rel=1e-6)
    assert found.asymmetry <= 1e-5
    assert found.nodes.dtype == torch.float64


def test_ghosts_leave_the_ends_and_the_weights_as_they_are():
    """With the bare recurrence an eigenvalue that has converged comes back; its copies share its weight."""
    eigenvalues = torch.cat([torch.linspace(0, 1, 299).double(), torch.tensor([10.0]).double()])

    def run(window):
        return lanczos(lambda u: eigenvalues * u, normal(300, 8), 150, window=window).ritz()

    (all_values, all_weights, _), (values, weights, errors) = run(None), run(2)
    at_the_top = values > 9.5
    assert (all_values > 9.5).sum() == 1
    assert at_the_top.sum() > 1
    assert values[-1].item() == pytest.approx(10, abs=1e-10)
    assert values[0].item() == pytest.approx(all_values[0].item(), abs=1e-4)
    assert errors[-1] <= 1e-8
    assert weights[at_the_top].sum().item() == pytest.approx(all_weights[-1].item(), rel=1e-8)
    assert weights.sum().item() == pytest.approx(1, abs=1e-12)


def test_a_window_as_long_as_the_run_is_full_reorthogonalisation():
    matrix = symmetric(normal(30, 9))
    a, b = (lanczos(matrix.mv, normal(30), 12, window=window) for window in (None, 12))
    assert torch.equal(a.diagonal, b.diagonal)
    assert torch.equal(a.off_diagonal, b.off_diagonal)


def test_asymmetry_is_measured():
    """A = S + K with K antisymmetric; of the rotation K alone every pair of Lanczos vectors shows all of it."""
    matrix = symmetric(torch.linspace(-1, 3, 40))
    noise = normal(1600, 11).view(40, 40)
    skewed = matrix + 0.01 * (noise - noise.T) / 2
    assert ends(matrix.mv, 40, steps=20).asymmetry <= 1e-13
    found, met = [], []
    tridiagonal = lanczos(lambda u: (met.append(u.clone()), skewed @ u)[1], normal(40), 12)
    basis = torch.stack(met, 1)
    found = basis.T @ skewed @ basis
    # Below the diagonal T comes from one half of the matrix, q_{j+1}' A q_j; the pairs differ by twice the rest.
    pairs = torch.triu(found - found.T, 1).abs().max().item()
    assert tridiagonal.skew == pytest.approx(pairs, rel=1e-6)
    assert ends(skewed.mv, 40, steps=12).asymmetry == pytest.approx(
        lanczos(skewed.mv, normal(40, 0), 12).skew / ends(skewed.mv, 40, steps=12).spectral_radius, rel=1e-6
    )


def test_the_hessian_of_a_smooth_network_by_differences():
    """Against the dense Hessian: the ends agree to the error of a central difference, O(radius^2)."""
    problem = small_network()
    w = problem.w.clone()
    exact = torch.linalg.eigvalsh(dense_hessians(problem)[0])
    before = torch.get_rng_state()
    found = ends(lambda u: hessian_vector_product(problem, u, 1e-3), problem.w, steps=40)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(problem.w, w)
    assert found.lambda_max == pytest.approx(exact[-1].item(), rel=1e-4)
    assert found.lambda_min == pytest.approx(exact[0].item(), abs=1e-4 * exact[-1].item())
    assert found.asymmetry <= 1e-5


def test_a_network_of_switches_shows_its_asymmetry():
    """Differences across switches are no linear operator; what is reported says so."""
    smooth, switched = (
        ends(partial(hessian_vector_product, problem), problem.w)
        for problem in (network(smooth=True, seed=0), network(smooth=False, seed=0))
    )
    assert smooth.asymmetry <= 1e-3
    assert switched.asymmetry > 0.05


def test_the_quadratic_problem():
    problem = QuadraticProblem(torch.linspace(0.5, 4, 25), curvature=0.4)
    exact = torch.linalg.eigvalsh(problem.hessian())
    found = spectrum(lambda u: hessian_vector_product(problem, u), problem.w, steps=25, probes=64)
    assert (found.lambda_min, found.lambda_max) == pytest.approx(
        (exact[0].item(), exact[-1].item()), abs=1e-8
    )
    assert abs(found.trace - exact.sum().item()) <= 3.5 * found.trace_error


def test_seeds_repeat_and_the_global_random_state_stays():
    matrix = symmetric(normal(70, 12))
    torch.manual_seed(3)
    before = torch.get_rng_state()
    a, b, c = (spectrum(matrix.mv, 70, steps=5, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(a.nodes, b.nodes)
    assert a.lambda_max == b.lambda_max
    assert not torch.equal(a.nodes, c.nodes)


def test_start_and_products_are_not_written_and_may_be_views():
    """The identity hands its argument back; a product may be strided, expanded, or carry a graph."""
    start = torch.stack([normal(6), normal(6)], 1)[:, 0]
    before = start.clone()
    assert lanczos(lambda u: u, start, 6).diagonal.tolist() == pytest.approx([1])
    assert torch.equal(start, before)
    diagonal = torch.arange(1.0, 7).double().requires_grad_()
    strided = lanczos(lambda u: torch.stack([diagonal * u, u], 1)[:, 0], start, 6)
    torch.testing.assert_close(strided.ritz()[0], diagonal.detach(), rtol=0, atol=1e-10)
    ones = lanczos(lambda u: u.sum().expand(6), start, 6)
    torch.testing.assert_close(ones.ritz()[0], torch.tensor([0.0, 6.0]).double(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("at", [0, 2])
def test_a_product_that_is_not_finite_is_one_sentence(bad, at):
    operator = Operator(symmetric(torch.linspace(1, 2, 9)))

    def spoilt(u):
        product = operator(u)
        product[3] = bad if operator.products == at + 1 else product[3]
        return product

    with pytest.raises(FastnasError, match=rf"product number {at + 1} holds NaN or infinity") as caught:
        ends(spoilt, 9)
    assert "\n" not in str(caught.value)
    assert operator.products == at + 1


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (
            lambda: lanczos(torch.neg, torch.zeros(3), 2),
            "start must be finite and not 0, got a vector of norm 0",
        ),
        (lambda: lanczos(torch.neg, torch.tensor([math.nan]), 2), "start must be finite .* norm nan"),
        (lambda: lanczos(torch.neg, torch.ones(2, 2), 2), r"one flat vector, got shape \(2, 2\)"),
        (lambda: lanczos(torch.neg, torch.ones(2).half(), 2), "must be float32 or float64"),
        (lambda: lanczos(torch.neg, torch.ones(2), 0), "lanczos: steps must be an integer >= 1, got 0"),
        (lambda: lanczos(torch.neg, torch.ones(2), 2, window=1), "window must be an integer >= 2, got 1"),
        (
            lambda: lanczos(lambda u: u[:1], torch.ones(2), 2),
            r"product must be a tensor like w: shape \(2,\)",
        ),
        (lambda: lanczos(lambda u: u.double(), torch.ones(2), 2), "torch.float32, on cpu; got .*float64"),
        (lambda: ends(torch.neg, 0), "ends: like must be an integer >= 1, got 0"),
        (lambda: ends(torch.neg, torch.ones(0)), "the length of like must be an integer >= 1, got 0"),
        (lambda: ends(torch.neg, 3, seed=-1), "ends: seed must be an integer >= 0, got -1"),
        (lambda: spectrum(torch.neg, 3, probes=0), "spectrum: probes must be an integer >= 1, got 0"),
        (lambda: spectrum(torch.neg, 3, steps=2.0), "steps must be an integer >= 0, got 2.0"),
        (
            lambda: spectrum(torch.neg, 3).density(torch.zeros(1), -1),
            "density: width must be a finite number > 0",
        ),
    ],
)
def test_a_mistake_is_one_sentence(call, sentence):
    with pytest.raises(FastnasError, match=sentence) as caught:
        call()
    assert "\n" not in str(caught.value)
