"""What every estimator keeps: w and alpha to the bit, its count of gradients, its memory, the device's pace."""

import dataclasses

import pytest
import torch

from fastnas.bilevel import METHODS, InnerSettings, InnerSgd, Trajectory, Watch, inner_steps
from tests.bilevel.problems import Counted, OracleFailed, QuadraticProblem

CASES = [(name, terms) for name in METHODS for terms in ((0, 1, 2, 5) if name == "idarts" else (2,))]
KEEPING = [case for case in CASES if not METHODS[case[0]].moves_weights]
# Hessian products of a call with ``settings_for`` on P = 7 weights, and mixed ones where they are not one.
PRODUCTS = {
    "first-order": 0,
    "darts": 0,
    "amended": 1,
    "t1-t2": 0,
    "neumann": 4,
    "cg": 3,
    "nystroem": 4,
    "exact": 7,
}
PRODUCTS |= {"reverse": 3, "truncated-reverse": 2, "idarts-release": 2}
MIXED = {"first-order": 0, "reverse": 3, "truncated-reverse": 2}


def problem_with_odd_bits(dtype=torch.float64):
    """Weights over many magnitudes and a negative zero: adding and subtracting a step would show."""
    problem = QuadraticProblem(torch.linspace(0.5, 4, 7), curvature=0.2)
    problem.w.copy_(torch.tensor([1e-9, -0.0, 3.3333, -1e5, 1e-30, 0.1, -7.7]))
    for name, value in vars(problem).items():
        setattr(problem, name, value.to(dtype))
    return problem


def bits(tensor):
    return tensor.view(torch.int64 if tensor.dtype == torch.float64 else torch.int32).clone()


def settings_for(problem, neumann_terms=2):
    return InnerSettings(
        learning_rate=0.1,
        momentum=0.9,
        weight_decay=0.01,
        momentum_buffer=torch.ones_like(problem.w),
        neumann_terms=neumann_terms,
        tolerance=1e-12,
        limit=3,
        rank=4,
        trajectory=trajectory_of(problem),
        reverse_steps=2,
        watch=Watch(),
    )


def trajectory_of(problem):
    """Three steps that would have led to the present w, for those that go back through steps."""
    trajectory = Trajectory(InnerSgd(0.1, 0.9, 0.01))
    for scale in (1.5, 1.25, 1.125):
        trajectory.steps.append((problem, problem.w * scale))
    return trajectory


@pytest.mark.parametrize(("name", "neumann_terms"), CASES)
def test_costs_what_the_registry_says(name, neumann_terms):
    problem = Counted(problem_with_odd_bits())
    settings = settings_for(problem, neumann_terms)
    METHODS[name].hypergradient(problem, settings)
    # The dense Hessian's is said of no P: 2P + 3.
    assert len(problem.calls) == (METHODS[name].gradients(settings) or 2 * 7 + 3)
    hessian_products = PRODUCTS.get(name, neumann_terms)
    # First order leaves the weights' half of the backward pass out.
    assert problem.calls.count("val_grads") == (name != "first-order")
    assert problem.calls.count("val_grad_alpha") == (name == "first-order")
    assert problem.calls.count("train_grad_alpha") == 2 * MIXED.get(name, 1)
    assert problem.calls.count("train_grad_w") == 2 * hessian_products + (name == "darts")


def test_the_costs_are_those_of_the_literature():
    costs = {
        name: METHODS[name].gradients(InnerSettings(0.1))
        for name in ("first-order", "darts", "amended", "t1-t2")
    }
    assert costs == {"first-order": 1, "darts": 4, "amended": 5, "t1-t2": 3}
    idarts = [METHODS["idarts"].gradients(InnerSettings(0.1, neumann_terms=terms)) for terms in (0, 1, 2, 5)]
    assert idarts == [3, 5, 7, 13]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("name", "neumann_terms"), KEEPING)
def test_leaves_w_and_alpha_bit_identical(name, neumann_terms, dtype):
    problem = problem_with_odd_bits(dtype)
    before = {key: bits(value) for key, value in vars(problem).items()}
    addresses = problem.w.data_ptr(), problem.alpha.data_ptr()
    settings = settings_for(problem, neumann_terms)
    result = METHODS[name].hypergradient(problem, settings)
    assert result.shape == problem.alpha.shape
    assert result.dtype == dtype
    assert torch.isfinite(result).all()
    assert all(torch.equal(bits(value), before[key]) for key, value in vars(problem).items())
    assert (problem.w.data_ptr(), problem.alpha.data_ptr()) == addresses
    assert torch.equal(settings.momentum_buffer, torch.ones_like(problem.w))
    # And so the same call gives the same bits again.
    assert torch.equal(METHODS[name].hypergradient(problem, settings), result)


@pytest.mark.parametrize(("name", "neumann_terms"), KEEPING)
def test_leaves_them_so_when_an_oracle_raises(name, neumann_terms):
    problem = Counted(problem_with_odd_bits())
    METHODS[name].hypergradient(problem, settings_for(problem, neumann_terms))
    for fail_at in range(len(problem.calls)):
        problem = Counted(problem_with_odd_bits(), fail_at)
        w, alpha = bits(problem.w), bits(problem.alpha)
        with pytest.raises(OracleFailed):
            METHODS[name].hypergradient(problem, settings_for(problem, neumann_terms))
        assert torch.equal(bits(problem.w), w)
        assert torch.equal(bits(problem.alpha), alpha)


def test_inner_steps_stay_where_an_oracle_raised():
    reference = problem_with_odd_bits()
    inner_steps(reference, steps=2, learning_rate=0.1)
    problem = Counted(problem_with_odd_bits(), fail_at=2)
    with pytest.raises(OracleFailed):
        inner_steps(problem, steps=5, learning_rate=0.1)
    assert torch.equal(problem.w, reference.w)


@pytest.mark.parametrize("steps", [0, 1, 4])
def test_inner_steps_cost_one_gradient_each(steps):
    problem = Counted(problem_with_odd_bits())
    inner_steps(problem, steps=steps, learning_rate=0.1, momentum=0.9)
    assert problem.calls == ["train_grad_w"] * steps


@pytest.mark.parametrize(("name", "neumann_terms"), [case for case in CASES if not METHODS[case[0]].waits])
def test_reads_nothing_back_from_the_device(name, neumann_terms):
    """Meta tensors hold no values: whatever would wait for one (item, a branch on it) raises."""
    problem = problem_with_odd_bits().to("meta")
    with pytest.raises(RuntimeError):
        problem.w.norm().item()
    settings = settings_for(problem, neumann_terms)
    for rate in (0.1, torch.zeros((), dtype=torch.float64, device="meta")):
        result = METHODS[name].hypergradient(problem, dataclasses.replace(settings, learning_rate=rate))
        assert result.is_meta
        assert result.shape == (3,)


def test_inner_steps_read_nothing_back_from_the_device():
    inner_steps(
        problem_with_odd_bits().to("meta"), steps=2, learning_rate=0.1, momentum=0.9, weight_decay=0.1
    )


class LargeDiagonal:
    """L1 = alpha sum w^2/2, L2 = alpha sum w: oracles that allocate nothing of size P but what they return."""

    def __init__(self, size):
        self.w = torch.ones(size)
        self.alpha = torch.ones(1)

    def train_grad_w(self):
        return self.w * self.alpha

    def train_grad_alpha(self):
        return torch.dot(self.w, self.w).view(1) / 2

    def val_grads(self):
        return self.alpha.expand_as(self.w).clone(), self.w.sum().view(1)

    def val_grad_alpha(self):
        return self.w.sum().view(1)


def peak_vectors(size, function):
    """Most memory that the function held at once, in float32 vectors of ``size``."""
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as trace:
        function()
    events = [event for event in trace.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak / (4 * size)


@pytest.mark.parametrize(
    ("name", "neumann_terms", "vectors"),
    [
        ("first-order", 2, 0),
        ("darts", 2, 2),
        ("amended", 2, 4),
        ("idarts", 0, 3),
        ("idarts", 1, 6),
        ("idarts", 6, 6),
        ("t1-t2", 2, 2),
    ],
)
def test_holds_as_many_vectors_as_its_docstring_says(name, neumann_terms, vectors):
    size = 1 << 18
    problem = LargeDiagonal(size)
    settings = settings_for(problem, neumann_terms)
    peak = peak_vectors(size, lambda: METHODS[name].hypergradient(problem, settings))
    assert peak == pytest.approx(vectors, abs=0.01)


@pytest.mark.parametrize(("momentum", "vectors"), [(0.0, 1), (0.9, 2)])
def test_inner_steps_hold_as_many_vectors_as_their_docstring_says(momentum, vectors):
    size = 1 << 18
    problem = LargeDiagonal(size)
    peak = peak_vectors(size, lambda: inner_steps(problem, steps=3, learning_rate=0.1, momentum=momentum))
    assert peak == pytest.approx(vectors, abs=0.01)
