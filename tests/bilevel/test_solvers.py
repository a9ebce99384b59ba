"""The solvers on matrices: exact where theory says so, their rates, and what they say where it does not hold."""

import math
import warnings

import pytest
import torch

from fastnas.bilevel import HypergradientWarning, Watch
from fastnas.bilevel.solvers import conjugate_gradients, dense, hessian_matrix, neumann, nystroem
from fastnas.errors import FastnasError
from tests.bilevel.test_invariants import peak_vectors

SPECTRUM = (0.5, 1.0, 2.0, 3.5, 4.0)


def matrix(*eigenvalues, seed=0):
    """Symmetric, with these eigenvalues and random eigenvectors."""
    return _decomposed(eigenvalues, seed)[0]


def _decomposed(eigenvalues, seed=0):
    generator = torch.Generator().manual_seed(seed)
    size = len(eigenvalues)
    basis = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64)).Q
    return basis @ torch.diag(torch.tensor(eigenvalues, dtype=torch.float64)) @ basis.T, basis


def vector(size, seed=1):
    return torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Product:
    """u -> H u, counted."""

    def __init__(self, hessian):
        self.hessian, self.count = hessian, 0

    def __call__(self, u):
        self.count += 1
        return self.hessian @ u


def relative(got, wanted):
    return ((got - wanted).norm() / wanted.norm()).item()


class TestDense:
    def test_solves(self):
        hessian, b = matrix(*SPECTRUM), vector(5)
        product = Product(hessian)
        assert relative(dense()(product, b), torch.linalg.solve(hessian, b)) < 1e-13
        assert product.count == 5

    def test_an_indefinite_hessian_has_an_inverse_too(self):
        hessian, b = matrix(-2.0, -0.5, 0.5, 3.0), vector(4)
        assert relative(hessian @ dense()(Product(hessian), b), b) < 1e-13

    def test_a_singular_hessian_gets_the_solution_of_least_norm(self):
        hessian, basis = _decomposed((0.0, 0.0, 1.0, 2.0))
        b = vector(4)
        x = dense()(Product(hessian), b)
        in_range = basis[:, 2:] @ (basis[:, 2:].T @ b)
        assert relative(hessian @ x, in_range) < 1e-13
        assert (basis[:, :2].T @ x).norm() < 1e-13  # nothing along what H does not see

    def test_damping(self):
        hessian, b = matrix(*SPECTRUM), vector(5)
        wanted = torch.linalg.solve(hessian + 0.7 * torch.eye(5).double(), b)
        assert relative(dense(damping=0.7)(Product(hessian), b), wanted) < 1e-13

    def test_takes_the_symmetric_part_of_noisy_columns(self):
        hessian, noise = matrix(*SPECTRUM), torch.triu(torch.full((5, 5), 0.01, dtype=torch.float64), 1)
        wanted = hessian + (noise + noise.T) / 2
        assert relative(hessian_matrix(Product(hessian + noise), vector(5)), wanted) < 1e-15
        b = vector(5)
        assert relative(dense()(Product(hessian + noise), b), torch.linalg.solve(wanted, b)) < 1e-13

    def test_float32_is_solved_in_float64(self):
        hessian, b = matrix(1e-3, 1.0, 1e3).float(), vector(3).float()
        wanted = torch.linalg.solve(hessian.double(), b.double())
        got = dense()(Product(hessian), b)
        assert got.dtype == torch.float32
        assert (
            relative(got.double(), wanted) < 1e-6
        )  # a solve in float32 would be off by 1e-7 times a condition of 1e6

    def test_limit(self):
        with pytest.raises(FastnasError, match="P is at most 3, got 4; take conjugate gradients"):
            dense(limit=3)(Product(torch.eye(4).double()), vector(4))

    def test_nan_comes_through(self):
        hessian = matrix(*SPECTRUM)
        hessian[1, 2] = math.nan
        assert dense()(Product(hessian), vector(5)).isnan().all()


class TestConjugateGradients:
    @pytest.mark.parametrize("seed", range(3))
    def test_exact_after_as_many_steps_as_there_are_weights(self, seed):
        hessian, b = matrix(*SPECTRUM, seed=seed), vector(5, seed)
        exact = torch.linalg.solve(hessian, b)
        product = Product(hessian)
        assert relative(conjugate_gradients(5)(product, b), exact) < 1e-12
        assert product.count <= 5
        assert relative(conjugate_gradients(4)(Product(hessian), b), exact) > 1e-3

    def test_exact_after_as_many_steps_as_there_are_distinct_eigenvalues(self):
        hessian, b = matrix(1.0, 1.0, 1.0, 4.0, 4.0, 4.0, 4.0), vector(7)
        exact = torch.linalg.solve(hessian, b)
        assert relative(conjugate_gradients(2)(Product(hessian), b), exact) < 1e-13
        assert relative(conjugate_gradients(1)(Product(hessian), b), exact) > 1e-3

    def test_converges_as_fast_as_the_condition_number_says(self):
        """|x_k - x|_H <= 2 ((sqrt(c) - 1)/(sqrt(c) + 1))^k |x|_H, c = lambda_max/lambda_min."""
        hessian, b = matrix(*torch.linspace(0.1, 10, 40).tolist()), vector(40)
        exact = torch.linalg.solve(hessian, b)
        rate = (math.sqrt(100) - 1) / (math.sqrt(100) + 1)

        def energy(x):
            return (x @ hessian @ x).sqrt()

        for steps in range(1, 40):
            x = conjugate_gradients(steps, tolerance=0.0)(Product(hessian), b)
            assert energy(x - exact) <= 2 * rate**steps * energy(exact)

    @pytest.mark.parametrize("tolerance", [1e-1, 1e-4, 1e-8])
    def test_ends_at_the_tolerance(self, tolerance):
        hessian, b = matrix(*torch.linspace(0.1, 10, 40).tolist()), vector(40)
        product = Product(hessian)
        x = conjugate_gradients(100, tolerance=tolerance)(product, b)
        assert (b - hessian @ x).norm() <= tolerance * b.norm()
        before = conjugate_gradients(product.count - 1, tolerance=0.0)(Product(hessian), b)
        assert (b - hessian @ before).norm() > tolerance * b.norm()

    def test_damping(self):
        hessian, b = matrix(*SPECTRUM), vector(5)
        wanted = torch.linalg.solve(hessian + 0.3 * torch.eye(5).double(), b)
        assert relative(conjugate_gradients(5, damping=0.3)(Product(hessian), b), wanted) < 1e-12

    def test_of_zero_is_zero_without_a_product(self):
        product = Product(matrix(*SPECTRUM))
        assert torch.equal(conjugate_gradients(5)(product, torch.zeros(5).double()), torch.zeros(5).double())
        assert product.count == 0

    def test_negative_curvature_in_the_first_direction(self):
        b = torch.tensor([1.0, 2.0], dtype=torch.float64)
        with pytest.warns(HypergradientWarning) as said:
            x = conjugate_gradients(5)(Product(torch.diag(torch.tensor([-3.0, -3.0]).double())), b)
        assert torch.equal(x, b)
        assert [str(entry.message) for entry in said] == [
            "conjugate gradients: negative curvature -3 along the first direction, so H is not positive definite; "
            "v itself stands for the solution; take a damping above 3, or fewer steps"
        ]

    def test_negative_curvature_later_keeps_the_iterate_before_it(self):
        hessian, watch = matrix(-1.0, 1.0, 2.0, 3.0, 4.0), Watch()
        b = vector(5, seed=3)
        assert b @ hessian @ b > 0  # not in the first direction
        product = Product(hessian)
        x = conjugate_gradients(5, watch=watch)(product, b)
        (sentence,) = watch.sentences()
        step = product.count  # the one that found it
        assert f"along step {step}" in sentence
        assert f"the solution is that of {step - 1} steps" in sentence
        assert torch.equal(x, conjugate_gradients(step - 1)(Product(hessian), b))
        curvature = float(sentence.split("curvature ")[1].split()[0])
        assert -1.0 <= curvature < 0  # a Rayleigh quotient

    def test_the_damping_that_it_names_is_enough_along_that_direction(self):
        hessian = torch.diag(torch.tensor([-3.0, -3.0]).double())
        b = torch.tensor([1.0, 2.0], dtype=torch.float64)
        with warnings.catch_warnings():
            warnings.simplefilter("error", HypergradientWarning)
            x = conjugate_gradients(5, damping=3.1)(Product(hessian), b)
        assert relative(x, b / 0.1) < 1e-9

    def test_the_named_damping_counts_the_present_one(self):
        watch = Watch()
        conjugate_gradients(1, damping=1.0, watch=watch)(Product(-3 * torch.eye(2).double()), vector(2))
        (sentence,) = watch.sentences()
        # (H + 1) has curvature -2, so 1 + 2 = 3 is what it takes.
        assert "negative curvature -2 " in sentence
        assert "take a damping above 3," in sentence

    def test_nan_comes_through(self):
        hessian = matrix(*SPECTRUM)
        hessian[1, 2] = math.nan
        assert conjugate_gradients(5)(Product(hessian), vector(5)).isnan().all()


class TestNeumann:
    @pytest.mark.parametrize("terms", [0, 1, 2, 6])
    def test_is_the_truncated_series(self, terms):
        hessian, b = matrix(*SPECTRUM), vector(5)
        contraction = torch.eye(5).double() - 0.2 * hessian
        wanted = 0.2 * sum(torch.linalg.matrix_power(contraction, k) @ b for k in range(terms + 1))
        product = Product(hessian)
        assert relative(neumann(0.2, terms=terms)(product, b), wanted) < 1e-14
        assert product.count == terms

    @pytest.mark.parametrize("gamma", [0.1, 0.25, 0.49])  # up to 2/lambda_max = 0.5
    def test_tends_to_the_inverse(self, gamma):
        hessian, b = matrix(*SPECTRUM), vector(5)
        exact = torch.linalg.solve(hessian, b)
        assert relative(neumann(gamma, terms=2000)(Product(hessian), b), exact) < 1e-12
        rate = max(abs(1 - gamma * eigenvalue) for eigenvalue in SPECTRUM)
        errors = [relative(neumann(gamma, terms=terms)(Product(hessian), b), exact) for terms in (200, 201)]
        if errors[1] > 1e-13:
            assert errors[1] / errors[0] == pytest.approx(rate, rel=1e-3)

    @pytest.mark.parametrize("tolerance", [1e-1, 1e-5])
    def test_ends_at_the_tolerance(self, tolerance):
        hessian, b = matrix(*SPECTRUM), vector(5)
        product = Product(hessian)
        x = neumann(0.2, tolerance=tolerance)(product, b)
        residual = (b - hessian @ x).norm()
        assert residual <= tolerance * b.norm() * (1 + 1e-9)
        terms = product.count - 1  # one product more than terms
        assert torch.equal(x, neumann(0.2, terms=terms)(Product(hessian), b))
        assert (
            b - hessian @ neumann(0.2, terms=terms - 1)(Product(hessian), b)
        ).norm() > tolerance * b.norm()

    def test_damping(self):
        hessian, b = matrix(*SPECTRUM), vector(5)
        wanted = torch.linalg.solve(hessian + 0.3 * torch.eye(5).double(), b)
        assert relative(neumann(0.2, tolerance=1e-12, damping=0.3)(Product(hessian), b), wanted) < 1e-11

    @pytest.mark.parametrize("arguments", [{"terms": 200}, {"tolerance": 1e-6}])
    @pytest.mark.parametrize("seed", range(4))
    def test_divergence_is_said_with_lambda_max(self, arguments, seed):
        """gamma is just above 2/lambda_max: |V_k| falls at first and grows when lambda_max's part dominates."""
        hessian, b, watch = matrix(*SPECTRUM, seed=seed), vector(5, seed), Watch()
        product = Product(hessian)
        x = neumann(0.52, **arguments, watch=watch)(product, b)
        (sentence,) = watch.sentences()
        assert "gamma = 0.52 is more than 2/lambda_max" in sentence
        estimate = float(sentence.split("lambda_max being at least ")[1].split(";")[0])
        assert 0.9 * 4.0 <= estimate <= 4.0 * (1 + 5e-3)  # three digits are printed
        # To the bit the series that ends before the growth.
        kept = int(sentence.split("the series was cut behind V_")[1].split(";")[0])
        assert kept > 0
        assert torch.equal(x, neumann(0.52, terms=kept)(Product(hessian), b))
        with warnings.catch_warnings():
            warnings.simplefilter("error", HypergradientWarning)
            neumann(0.52, terms=kept)(Product(hessian), b)

    def test_the_gamma_that_it_names_is_lower_each_time_and_tends_to_one_that_converges(self):
        hessian, b, gamma = matrix(*SPECTRUM), vector(5), 3.0
        for _ in range(20):
            watch = Watch()
            neumann(gamma, tolerance=1e-9, limit=5000, watch=watch)(Product(hessian), b)
            said = watch.sentences()
            if not said:
                break
            named = float(said[0].split("take a gamma below ")[1].split(",")[0])
            assert named <= gamma
            gamma = 0.99 * named
        else:
            pytest.fail("no gamma converged")
        assert gamma == pytest.approx(2 / 4.0, rel=0.05)

    def test_more_terms_after_the_growth_name_lambda_max_itself(self):
        """V_k turns to the eigenvector: one term knows that it is more than 2/gamma, fifty know all."""
        hessian, b = matrix(*SPECTRUM), vector(5)
        for terms, least in ((1, 2 / 3.0), (50, 4.0 * (1 - 5e-3))):
            watch = Watch()
            neumann(3.0, terms=terms, watch=watch)(Product(hessian), b)
            (sentence,) = watch.sentences()
            estimate = float(sentence.split("lambda_max being at least ")[1].split(";")[0])
            assert least <= estimate <= 4.0 * (1 + 5e-3)

    def test_negative_curvature_is_told_from_a_large_gamma(self):
        hessian, watch = torch.diag(torch.tensor([-0.5, 1.0, 2.0]).double()), Watch()
        x = neumann(0.3, terms=300, watch=watch)(Product(hessian), torch.ones(3).double())
        (sentence,) = watch.sentences()
        assert "is negative, -0.5;" in sentence
        assert "damping above 0.5" in sentence
        kept = int(sentence.split("the series was cut behind V_")[1].split(";")[0])
        assert torch.equal(x, neumann(0.3, terms=kept)(Product(hessian), torch.ones(3).double()))

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize("seed", range(5))
    def test_what_the_hessian_does_not_see_is_no_growth(self, dtype, seed):
        """A singular H leaves a part of b in V_k for ever, and rounding moves its norm up and down."""
        hessian = matrix(0.0, 0.0, 1.0, 2.0, 4.0, seed=seed).to(dtype)
        watch = Watch()
        neumann(0.3, terms=1000, watch=watch)(Product(hessian), vector(5, seed).to(dtype))
        assert not watch.sentences()

    def test_the_damping_that_it_names_converges(self):
        hessian = torch.diag(torch.tensor([-0.5, 1.0, 2.0]).double())
        watch = Watch()
        x = neumann(0.3, tolerance=1e-9, damping=0.6, watch=watch)(Product(hessian), torch.ones(3).double())
        assert not watch.sentences()
        assert relative(x, 1 / (torch.tensor([-0.5, 1.0, 2.0]).double() + 0.6)) < 1e-7

    def test_the_damping_that_it_names_is_more_than_what_there_is(self):
        """H + 0.2 I still bends down by 0.3 along the first direction."""
        hessian = torch.diag(torch.tensor([-0.5, 1.0, 2.0]).double())
        b, watch = torch.tensor([1.0, 0.0, 0.0]).double(), Watch()
        neumann(0.3, tolerance=1e-9, damping=0.2, watch=watch)(Product(hessian), b)
        (sentence,) = watch.sentences()
        assert "negative, -0.3;" in sentence
        assert "take damping above 0.5," in sentence

    def test_growth_at_once_leaves_the_identity(self):
        hessian, watch = 4 * torch.eye(3).double(), Watch()
        b = vector(3)
        assert relative(neumann(0.6, terms=9, watch=watch)(Product(hessian), b), 0.6 * b) < 1e-15
        (sentence,) = watch.sentences()
        assert "|V_k| grew 1.4 times from V_0 to V_1" in sentence
        assert "lambda_max being at least 4;" in sentence

    def test_the_limit_is_said(self):
        hessian, b, watch = matrix(*SPECTRUM), vector(5), Watch()
        product = Product(hessian)
        x = neumann(0.2, tolerance=1e-9, limit=5, watch=watch)(product, b)
        (sentence,) = watch.sentences()
        assert sentence.startswith("neumann: the residual is ")
        assert "after 5 terms, and the tolerance 1e-09 asks for" in sentence
        assert float(sentence.split("residual is ")[1].split()[0]) == pytest.approx(
            (b - hessian @ x).norm().item(), rel=5e-3
        )
        assert torch.equal(x, neumann(0.2, terms=5)(Product(hessian), b))

    def test_nan_comes_through_and_ends_it(self):
        hessian = matrix(*SPECTRUM)
        hessian[1, 2] = math.nan
        product = Product(hessian)
        assert neumann(0.2, tolerance=1e-3)(product, vector(5)).isnan().any()
        assert product.count < 5


class TestNystroem:
    @pytest.mark.parametrize("seed", [0, 1])
    @pytest.mark.parametrize("damping", [1e-4, 0.1])
    def test_with_all_columns_it_is_the_damped_solve(self, seed, damping):
        hessian, b = matrix(*SPECTRUM), vector(5)
        wanted = torch.linalg.solve(hessian + damping * torch.eye(5).double(), b)
        product = Product(hessian)
        assert relative(nystroem(5, damping=damping, seed=seed)(product, b), wanted) < 1e-9
        assert product.count == 5

    def test_exact_on_a_hessian_of_its_rank(self):
        """H of rank k is its own Nystroem approximation from k columns in general position."""
        hessian, b = matrix(0.0, 0.0, 0.0, 0.0, 1.0, 2.0, 3.0), vector(7)
        wanted = torch.linalg.solve(hessian + 0.1 * torch.eye(7).double(), b)
        assert relative(nystroem(3, damping=0.1)(Product(hessian), b), wanted) < 1e-9
        assert relative(nystroem(2, damping=0.1)(Product(hessian), b), wanted) > 1e-2

    def test_along_what_it_does_not_see_it_divides_by_the_damping(self):
        """A diagonal H: the chosen entries are inverted, the others are 1/damping."""
        diagonal, b = torch.tensor([1.0, 2.0, 3.0, 4.0]).double(), vector(4)
        for seed in range(4):
            share = nystroem(2, damping=0.5, seed=seed)(Product(torch.diag(diagonal)), b) / b
            seen = (share - 1 / (diagonal + 0.5)).abs() < 1e-12
            unseen = (share - 2.0).abs() < 1e-12
            assert seen.sum() == unseen.sum() == 2
            assert not (seen & unseen).any()

    def test_the_seed_chooses_and_the_random_state_stays(self):
        hessian, b = matrix(*SPECTRUM), vector(5)
        state = torch.get_rng_state()
        one, again = (nystroem(2, seed=4)(Product(hessian), b) for _ in range(2))
        assert torch.equal(one, again)
        assert torch.equal(torch.get_rng_state(), state)
        assert not all(torch.equal(one, nystroem(2, seed=seed)(Product(hessian), b)) for seed in range(4))

    def test_takes_no_more_columns_than_there_are(self):
        hessian, b = matrix(*SPECTRUM), vector(5)
        assert torch.equal(nystroem(99)(Product(hessian), b), nystroem(5)(Product(hessian), b))

    def test_nan_comes_through(self):
        hessian = matrix(*SPECTRUM)
        hessian[1, 2] = math.nan
        assert nystroem(5)(Product(hessian), vector(5)).isnan().all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: dense(damping=-1.0), "dense: damping must be a finite number >= 0, got -1.0"),
        (lambda: conjugate_gradients(0), "conjugate_gradients: steps must be an integer >= 1, got 0"),
        (lambda: conjugate_gradients(1.5), "conjugate_gradients: steps must be an integer >= 1, got 1.5"),
        (
            lambda: conjugate_gradients(1, tolerance=-1),
            "conjugate_gradients: tolerance must be a finite number >= 0",
        ),
        (
            lambda: conjugate_gradients(1, damping=math.inf),
            "conjugate_gradients: damping must be a finite number",
        ),
        (lambda: neumann(0.0, terms=1), "neumann: gamma must be a finite number > 0, got 0.0"),
        (lambda: neumann(0.1), "neumann: give either terms or tolerance"),
        (lambda: neumann(0.1, terms=1, tolerance=0.1), "neumann: give either terms or tolerance"),
        (lambda: neumann(0.1, terms=-1), "neumann: terms must be an integer >= 0, got -1"),
        (lambda: neumann(0.1, tolerance=0.0), "neumann: tolerance must be a finite number > 0, got 0.0"),
        (
            lambda: neumann(0.1, tolerance=0.1, limit=2.5),
            "neumann: limit must be an integer >= 0, got 2.5",
        ),
        (
            lambda: neumann(0.1, terms=1, damping=-1.0),
            "neumann: damping must be a finite number >= 0, got -1.0",
        ),
        (lambda: nystroem(0), "nystroem: rank must be an integer >= 1, got 0"),
        (lambda: nystroem(1, damping=0.0), "nystroem: damping must be a finite number > 0, got 0.0"),
    ],
)
def test_wrong_constants(make, message):
    with pytest.raises(FastnasError) as raised:
        make()
    assert str(raised.value).startswith(message)


@pytest.mark.parametrize(
    ("make", "vectors", "in_float32"),
    [
        (lambda: conjugate_gradients(3, tolerance=0.0), 4, 8),  # the dot products' copies
        (lambda: nystroem(1), 6, None),
        (lambda: nystroem(6), 11, None),  # one more a column
    ],
)
def test_holds_as_many_vectors_as_its_docstring_says(make, vectors, in_float32):
    size = 1 << 18
    for dtype, wanted, width in ((torch.float64, vectors, 2), (torch.float32, in_float32, 1)):
        if wanted is None:
            continue
        diagonal, b = torch.linspace(1, 2, size, dtype=dtype), torch.ones(size, dtype=dtype)
        solve = make()
        peak = peak_vectors(size, lambda: solve(lambda u, diagonal=diagonal: diagonal * u, b)) / width  # noqa: B023
        assert peak == pytest.approx(wanted, abs=0.01)
