"""Reverse mode against autograd and differences of the very map that the weight steps are, and the steps themselves."""

import math

import pytest
import torch

from fastnas.bilevel import (
    FunctionProblem,
    InnerSgd,
    Products,
    Trajectory,
    exact,
    first_order,
    inner_steps,
    reverse,
    truncated_reverse,
    unroll,
)
from fastnas.errors import FastnasError
from tests.bilevel.problems import Counted, OracleFailed, QuadraticProblem
from tests.bilevel.test_invariants import LargeDiagonal, peak_vectors

SPECTRUM = torch.tensor([0.5, 2.0, 2.5, 4.0])
EXACT = Products("exact", "exact")
STEPS = 6
OPTIMISERS = [
    InnerSgd(0.1),
    InnerSgd(0.1, momentum=0.8),
    InnerSgd(0.1, weight_decay=0.3),
    InnerSgd(0.1, clip=0.5),  # at work in every step
    InnerSgd(0.1, clip=3.0),  # in some of them
    InnerSgd(0.1, momentum=0.8, weight_decay=0.3, clip=3.0),
]


def minibatches(count, seed=0):
    """Problems that share w and alpha and differ in their training loss, which is quadratic in neither."""
    first = QuadraticProblem(SPECTRUM, curvature=0.2, seed=seed)
    problems = []
    for i in range(count):
        batch = QuadraticProblem(SPECTRUM, curvature=0.2, seed=seed + i)

        def train_loss(w, alpha, batch=batch):
            return batch.train_loss(w, alpha) + ((w - batch.t).cosh().log() * alpha[0].exp()).sum()

        problems.append(FunctionProblem(train_loss, first.val_loss, first.w, first.alpha))
    return problems


def steps_of(problems, optimiser, last=None):
    """One step on each of the problems, recorded."""
    trajectory = Trajectory(optimiser, last)
    buffer = torch.zeros_like(problems[0].w)
    for problem in problems:
        trajectory.record(problem)
        unroll(problem, optimiser, 1, momentum_buffer=buffer, last=0)
    return trajectory


def unrolled(problems, optimiser, w, alpha, dependent_from=0):
    """w_T as a differentiable function of alpha; what was before step ``dependent_from`` is held fixed.

    The steps are written with torch's operations; ``test_steps_are_pytorchs`` holds them to torch.optim.
    """
    buffer = torch.zeros_like(w)
    for t, problem in enumerate(problems):
        if t == dependent_from:
            w, buffer = w.detach(), buffer.detach()
        w = w if w.requires_grad else w.clone().requires_grad_()
        (grad,) = torch.autograd.grad(problem._train_loss(w, alpha), w, create_graph=True)
        if optimiser.clip < math.inf:
            grad = grad * (optimiser.clip / (grad.norm() + 1e-6)).clamp(max=1.0)
        buffer = optimiser.momentum * buffer + grad + optimiser.weight_decay * w
        w = w - optimiser.learning_rate * buffer
    return w.detach() if dependent_from == len(problems) else w


def by_autograd(problems, optimiser, w, dependent_from=0):
    alpha = problems[0].alpha.clone().requires_grad_()
    end = unrolled(problems, optimiser, w, alpha, dependent_from)
    return torch.autograd.grad(problems[-1]._val_loss(end, alpha), alpha)[0]


@pytest.mark.parametrize("optimiser", OPTIMISERS, ids=str)
def test_steps_are_pytorchs(optimiser):
    problems = minibatches(STEPS)
    parameter = torch.nn.Parameter(problems[0].w.clone())
    sgd = torch.optim.SGD(
        [parameter], optimiser.learning_rate, optimiser.momentum, weight_decay=optimiser.weight_decay
    )
    clipped = 0
    for problem in problems:
        sgd.zero_grad()
        problem._train_loss(parameter, problem.alpha).backward()
        norm = torch.nn.utils.clip_grad_norm_([parameter], optimiser.clip)
        clipped += norm.item() > optimiser.clip
        sgd.step()
    if math.isfinite(optimiser.clip):
        assert clipped == STEPS if optimiser.clip == 0.5 else 0 < clipped < STEPS
    trajectory = steps_of(problems, optimiser)
    torch.testing.assert_close(problems[0].w, parameter.detach(), rtol=1e-12, atol=1e-13)
    assert [problem for problem, _ in trajectory.steps] == problems


@pytest.mark.parametrize(
    ("products", "tolerance"), [(EXACT, 1e-11), (Products(radius=1e-4), 1e-7), (Products(), 1e-3)], ids=str
)
@pytest.mark.parametrize("optimiser", OPTIMISERS, ids=str)
def test_is_autograd_through_the_steps(optimiser, products, tolerance):
    problems = minibatches(STEPS)
    wanted = by_autograd(problems, optimiser, problems[0].w.clone())
    trajectory = steps_of(problems, optimiser)
    got = reverse(problems[-1], trajectory, products=products)
    assert (got - wanted).norm() <= tolerance * wanted.norm()
    assert (got - first_order(problems[-1])).norm() > 0.05 * wanted.norm()


@pytest.mark.parametrize("optimiser", OPTIMISERS, ids=str)
def test_is_the_difference_of_steps_made_again(optimiser):
    """Nothing of autograd's second order in the reference: whole trajectories at alpha + h and alpha - h."""
    problems = minibatches(STEPS)
    start, alpha = problems[0].w.clone(), problems[0].alpha.clone()
    got = reverse(problems[-1], steps_of(problems, optimiser), products=EXACT)
    step = 1e-5
    for j in range(len(alpha)):
        ends = []
        for sign in (1, -1):
            problems[0].w.copy_(start)
            problems[0].alpha.copy_(alpha)
            problems[0].alpha[j] += sign * step
            steps_of(problems, optimiser, last=0)
            ends.append(problems[-1]._val_loss(problems[-1].w, problems[-1].alpha).item())
        assert got[j].item() == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-6, abs=1e-8)


@pytest.mark.parametrize("last", [0, 1, 3, STEPS, STEPS + 5])
@pytest.mark.parametrize("optimiser", [OPTIMISERS[0], OPTIMISERS[-1]], ids=str)
def test_truncated_holds_the_steps_before_fixed(optimiser, last):
    problems = minibatches(STEPS)
    start = problems[0].w.clone()
    wanted = by_autograd(problems, optimiser, start, dependent_from=max(0, STEPS - last))
    trajectory = steps_of(problems, optimiser)
    got = truncated_reverse(problems[-1], trajectory, last=last, products=EXACT)
    torch.testing.assert_close(got, wanted, rtol=1e-11, atol=1e-12)
    # Recording no more than that is the same, to the bit.
    problems[0].w.copy_(start)
    shorter = steps_of(problems, optimiser, last=last)
    assert len(shorter.steps) == min(last, STEPS)
    assert torch.equal(reverse(problems[-1], shorter, products=EXACT), got)
    if last >= STEPS:
        assert torch.equal(got, reverse(problems[-1], trajectory, products=EXACT))
    if last == 0:
        assert torch.equal(got, first_order(problems[-1]))


def test_truncated_error_falls_as_the_steps_contract():
    """Shaban et al. 2019, Proposition 3.1: like (1 - lr mu)^K at a minimum; with T large reverse is the exact one."""
    problem = QuadraticProblem(SPECTRUM)
    problem.w.copy_(problem.solution())
    functions = FunctionProblem(problem.train_loss, problem.val_loss, problem.w, problem.alpha)
    trajectory = unroll(functions, InnerSgd(0.2), 300)
    wanted = exact(functions, products=EXACT)
    errors = [
        (truncated_reverse(functions, trajectory, last=last, products=EXACT) - wanted).norm().item()
        for last in (40, 41, 300)
    ]
    assert errors[1] / errors[0] == pytest.approx(1 - 0.2 * 0.5, rel=1e-3)
    assert errors[2] < 1e-11 * wanted.norm()


@pytest.mark.parametrize("products", [Products(), EXACT], ids=["difference", "exact"])
@pytest.mark.parametrize("optimiser", OPTIMISERS, ids=str)
def test_leaves_w_alpha_and_the_trajectory_bit_identical(optimiser, products):
    problems = minibatches(STEPS)
    trajectory = steps_of(problems, optimiser)
    problems[0].w[0] = -0.0
    kept = [problems[0].w.clone(), problems[0].alpha.clone(), *(w.clone() for _, w in trajectory.steps)]
    first = reverse(problems[-1], trajectory, products=products)
    now = [problems[0].w, problems[0].alpha, *(w for _, w in trajectory.steps)]
    for before, after in zip(kept, now, strict=True):
        assert torch.equal(before.view(torch.int64), after.view(torch.int64))
    assert torch.equal(reverse(problems[-1], trajectory, products=products), first)


def test_also_when_an_oracle_raises():
    quadratic = QuadraticProblem(SPECTRUM, curvature=0.2)
    total = 4 * 3 + 1
    for fail_at in range(total):
        trajectory = unroll(quadratic, InnerSgd(0.1), 3)
        counted, before = Counted(quadratic, fail_at), quadratic.w.clone()
        trajectory.steps = type(trajectory.steps)((counted, w) for _, w in trajectory.steps)
        with pytest.raises(OracleFailed):
            reverse(counted, trajectory)
        assert torch.equal(quadratic.w, before)


@pytest.mark.parametrize(("clip", "gradients"), [(math.inf, 4), (0.5, 5)])
@pytest.mark.parametrize("steps", [0, 1, 5])
def test_costs_what_its_docstring_says(steps, clip, gradients):
    problem = Counted(QuadraticProblem(SPECTRUM, curvature=0.2))
    trajectory = unroll(problem, InnerSgd(0.1, 0.8, 0.1, clip), steps)
    assert problem.calls == ["train_grad_w"] * steps
    problem.calls.clear()
    reverse(problem, trajectory)
    assert len(problem.calls) == gradients * steps + 1


@pytest.mark.parametrize("last", [0, 2, 3])
def test_steps_that_reverse_leaves_out_cost_nothing(last):
    problem = Counted(QuadraticProblem(SPECTRUM, curvature=0.2))
    trajectory = unroll(problem, InnerSgd(0.1), 5)
    problem.calls.clear()
    truncated_reverse(problem, trajectory, last=last)
    assert len(problem.calls) == 4 * last + 1


@pytest.mark.parametrize("steps", [1, 4, 9])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("clip", [math.inf, 0.1])
def test_holds_as_many_vectors_as_its_docstring_says(steps, momentum, clip):
    size = 1 << 18
    problem, optimiser = LargeDiagonal(size), InnerSgd(0.1, momentum, 0.01, clip)
    trajectory = unroll(problem, optimiser, steps)
    beside = 6 + (momentum > 0 and steps > 1) + (clip < math.inf)
    peak = peak_vectors(size, lambda: reverse(problem, trajectory))
    assert peak == pytest.approx(beside, abs=0.01)  # beside the T of the trajectory
    held = peak_vectors(size, lambda: Trajectory(optimiser, 2).record(problem))
    assert held == pytest.approx(1, abs=0.01)


def test_unroll_with_a_buffer_is_inner_steps():
    one, other = QuadraticProblem(SPECTRUM), QuadraticProblem(SPECTRUM)
    buffers = torch.ones(4).double(), torch.ones(4).double()
    trajectory = unroll(one, InnerSgd(0.1, 0.9, 0.2), 4, momentum_buffer=buffers[0])
    inner_steps(other, steps=4, learning_rate=0.1, momentum=0.9, weight_decay=0.2, momentum_buffer=buffers[1])
    assert torch.equal(one.w, other.w)
    assert torch.equal(*buffers)
    assert len(trajectory.steps) == 4
    assert torch.equal(trajectory.steps[0][1], QuadraticProblem(SPECTRUM).w)


def test_steps_that_moved_other_weights():
    one, other = QuadraticProblem(SPECTRUM), QuadraticProblem(SPECTRUM)
    trajectory = unroll(one, InnerSgd(0.1), 2)
    with pytest.raises(
        FastnasError, match="reverse: the trajectory's steps moved other weights than the problem's w"
    ):
        reverse(other, trajectory)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: InnerSgd(-0.1), "InnerSgd: learning_rate must be a finite number >= 0, got -0.1"),
        (lambda: InnerSgd(0.1, momentum=1.0), "InnerSgd: momentum must be a number in [0, 1), got 1.0"),
        (
            lambda: InnerSgd(0.1, weight_decay=-1),
            "InnerSgd: weight_decay must be a finite number >= 0, got -1",
        ),
        (lambda: InnerSgd(0.1, clip=0.0), "InnerSgd: clip must be a finite number > 0, got 0.0"),
        (lambda: Trajectory(InnerSgd(0.1), -1), "Trajectory: last must be an integer >= 0, got -1"),
        (
            lambda: unroll(QuadraticProblem(SPECTRUM), InnerSgd(0.1), 1.5),
            "unroll: steps must be an integer >= 0, got 1.5",
        ),
    ],
)
def test_wrong_arguments(make, message):
    with pytest.raises(FastnasError) as raised:
        make()
    assert str(raised.value) == message
