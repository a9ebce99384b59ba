"""References, Neumann curves and estimates on quadratic problems, where all of them have closed forms."""

import math
from types import SimpleNamespace

import pytest
import torch

from fastnas.audit.config import AuditOptions, Plan
from fastnas.audit.estimators import Estimate, named, row, ways
from fastnas.audit.neumann import neumann_curves
from fastnas.audit.problems import Averaged, Meter, Metered
from fastnas.audit.reference import by_differences, on_many, on_one_minibatch, reference_damping
from fastnas.audit.run import finite_only
from fastnas.audit.spectra import spectra, spectrum_row
from fastnas.bilevel import FunctionProblem, Products, ends

WEIGHTS, ALPHAS = 12, 3


class Quadratic:
    """L1 = w'Hw/2 - w'M'a, L2 = |w - t|^2/2 + |a|^2/2: v = w - t, the direct term a, the mixed product -M u."""

    def __init__(self, seed, lowest=1.0):
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape):
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        turn = torch.linalg.qr(normal(WEIGHTS, WEIGHTS)).Q
        self.hessian = turn @ torch.diag(torch.linspace(lowest, 5, WEIGHTS).double()) @ turn.T
        self.mixed, self.target = normal(ALPHAS, WEIGHTS), normal(WEIGHTS)

    def problem(self, w, alpha):
        return FunctionProblem(
            lambda w, a: w @ self.hessian @ w / 2 - a @ self.mixed @ w,
            lambda w, a: ((w - self.target) ** 2).sum() / 2 + (a**2).sum() / 2,
            w,
            alpha,
        )

    def hypergradient(self, w, alpha, damping):
        system = self.hessian + damping * torch.eye(WEIGHTS).double()
        return alpha + self.mixed @ torch.linalg.solve(system, w - self.target)


def state_of(*quadratics):
    """What the parts of an audit take of a state."""
    w, alpha = torch.linspace(-1, 1, WEIGHTS).double(), torch.tensor([0.5, -1.0, 2.0]).double()
    meter = Meter()
    problems = [Metered(quadratic.problem(w, alpha), meter) for quadratic in quadratics]
    return SimpleNamespace(
        problem=problems[0],
        problems=problems,
        large=Averaged(problems),
        train=[(None, torch.zeros(4))] * len(problems),
        meter=meter,
    )


def plan(*, dense):
    options = AuditOptions(reference_steps=2 * WEIGHTS, quick=not dense)
    return Plan.of(options, 0.05)


@pytest.mark.parametrize("dense", [True, False])
@pytest.mark.parametrize("damping", [0.0, 0.7])
def test_reference_a_is_the_damped_solution(dense, damping):
    quadratic = Quadratic(0)
    state = state_of(quadratic)
    found = on_one_minibatch(state, plan(dense=dense), damping)
    exact = quadratic.hypergradient(state.problem.w, state.problem.alpha, damping)
    torch.testing.assert_close(found.hypergradient, exact, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.direct, state.problem.alpha)
    torch.testing.assert_close(found.term, found.hypergradient - state.problem.alpha)
    assert found.residual < 1e-6
    assert ("H written out" in found.name) == dense
    assert ("conjugate gradients" in found.name) != dense
    assert found.images == 4


def test_references_b_and_c_are_those_of_the_mean_loss():
    """The mean of quadratics is one; a difference of a quadratic is exact."""
    quadratics = [Quadratic(seed) for seed in range(3)]
    state = state_of(*quadratics)
    mean = Quadratic(0)
    for name in ("hessian", "mixed", "target"):
        setattr(mean, name, torch.stack([getattr(quadratic, name) for quadratic in quadratics]).mean(0))
    exact = mean.hypergradient(state.problem.w, state.problem.alpha, 0.5)
    for found in (
        on_many(state, plan(dense=True), 0.5),
        by_differences(state, plan(dense=True), 0.5, 0.1),
    ):
        torch.testing.assert_close(found.hypergradient, exact, rtol=1e-2, atol=1e-3)
        assert found.residual < 1e-3
        assert found.images == 12
        assert "the mean of 3 minibatches" in found.name


def test_negative_curvature_is_said():
    state = state_of(Quadratic(0, lowest=-3.0))
    found = on_one_minibatch(state, plan(dense=False), 0.0)
    assert "negative curvature" in found.noticed[0]
    spectrum = ends(state.problem.train_hessian_product, state.problem.w, steps=WEIGHTS)
    assert spectrum.lambda_min == pytest.approx(-3)
    assert reference_damping(AuditOptions(), spectrum) == pytest.approx(6)
    assert reference_damping(AuditOptions(reference_damping=0.25), spectrum) == 0.25
    damped = on_one_minibatch(state, plan(dense=False), 6.0)
    assert damped.noticed == []
    assert damped.residual < 1e-6


def test_spectra_are_those_of_both_hessians():
    """H has eigenvalues from -3 to 5 in equal steps, d2L2/dalpha2 is the identity."""
    rows = [
        spectrum_row(name, found)
        for name, found in zip(
            "wa", spectra(state_of(Quadratic(0, lowest=-3.0)), plan(dense=True)), strict=True
        )
    ]
    assert [row["size"] for row in rows] == [WEIGHTS, ALPHAS]
    assert (rows[0]["lambda_min"], rows[0]["lambda_max"]) == pytest.approx((-3, 5))
    assert rows[0]["trace"] == pytest.approx(WEIGHTS, abs=4 * rows[0]["trace_error"])
    assert (rows[1]["lambda_min"], rows[1]["lambda_max"], rows[1]["trace"]) == pytest.approx((1, 1, ALPHAS))
    assert rows[1]["trace_error"] == pytest.approx(0, abs=1e-12)
    places, heights = (torch.tensor(rows[0]["density"][key]) for key in ("lambda", "value"))
    assert torch.trapezoid(heights, places) == pytest.approx(1, rel=0.02)
    assert heights[0] < 1e-5 * heights.max()  # five widths away from the last eigenvalue


@pytest.mark.parametrize(("lowest", "damping"), [(1.0, 0.0), (-1.0, 2.0)])
def test_neumann_curves_are_the_truncated_series_within_theorem_1(lowest, damping):
    quadratic = Quadratic(1, lowest)
    state = state_of(quadratic)
    problem = state.problem
    reference = on_one_minibatch(state, plan(dense=True), damping)
    spectrum = ends(problem.train_hessian_product, problem.w, steps=WEIGHTS)
    system = quadratic.hessian + damping * torch.eye(WEIGHTS).double()
    gammas = {"half": 0.5 / (5 + damping), "too large": 1.5 / (5 + damping)}
    found = neumann_curves(problem, reference, spectrum, gammas, 6)
    assert found["strongly_convex"] == (lowest > 0)
    assert found["mu"] == pytest.approx(lowest + damping, rel=1e-6)
    assert found["lambda_max"] == pytest.approx(5 + damping, rel=1e-6)
    norm = torch.linalg.matrix_norm(quadratic.mixed).item()
    assert found["mixed_norm"] == pytest.approx(norm, abs=5 * found["mixed_norm_error"])
    v = problem.w - quadratic.target
    for curve, gamma in zip(found["curves"], gammas.values(), strict=True):
        shrink = torch.eye(WEIGHTS).double() - gamma * system
        term, series = v.clone(), torch.zeros_like(v)
        for k, point in enumerate(curve["points"]):
            series, term = series + term, shrink @ term
            error = (quadratic.mixed @ (gamma * series - torch.linalg.solve(system, v))).norm().item()
            assert point["terms"] == k
            assert point["error"] == pytest.approx(error, rel=1e-6)
            if curve["name"] == "half":
                scale = found["mixed_norm"] * v.norm().item() / found["mu"]
                assert point["bound"] == pytest.approx(scale * (1 - gamma * found["mu"]) ** (k + 1))
                assert error <= point["bound"]
            else:
                assert point["bound"] is None


def test_kinds_of_products_have_names_and_come_once():
    papers = Products()
    assert [named(kind) for kind in ways(papers, 0.1)] == ["exact", "r = 0.01", "r = 0.1"]
    assert [named(kind) for kind in ways(papers, 0.01)] == ["exact", "r = 0.01"]
    assert [named(kind) for kind in ways(Products("exact", "exact"), 0.1)] == ["exact", "r = 0.1"]
    assert named(Products(mixed="exact", scheme="forward")) == "exact mixed, r = 0.01, forward"


def test_nothing_is_measured_where_nothing_can_be():
    """Zero vectors have no direction: a row says so by NaN, which the result turns into None."""

    state = state_of(Quadratic(0))
    reference = on_one_minibatch(state, plan(dense=True), 0.0)
    zero = torch.zeros(ALPHAS, dtype=torch.float64)
    found = row(Estimate("x", "-", zero, zero), [reference])
    assert math.isnan(found["to"]["A"]["cosine"])
    assert finite_only(found)["to"]["A"]["cosine"] is None
    assert finite_only(found)["to"]["A"]["relative_error"] == pytest.approx(1)
