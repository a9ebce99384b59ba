"""Implicit MAML on linear tasks: against the closed form, against differences, and that the start gets better."""

import pytest
import torch

import fastnas
from examples import few_shot
from tests.examples.command import last_line


def learner_and_task(strength=0.5, seed=0):
    tasks, learner = few_shot.Tasks(5, seed=seed), few_shot.Learner(strength)
    with torch.no_grad():
        learner.theta.weight.copy_(torch.linspace(-1, 1, 10))
    task = tasks.draw()
    learner.adapt(task)
    return learner, task


@pytest.mark.parametrize("strength", [0.1, 0.5, 5.0])
@pytest.mark.parametrize("seed", [0, 1])
def test_against_the_closed_form(strength, seed):
    learner, task = learner_and_task(strength, seed)
    wanted = learner.closed_form(task)
    assert (learner.hypergradient(task) - wanted).norm() <= 1e-11 * wanted.norm()


def test_the_closed_form_against_adapting_again():
    learner, task = learner_and_task()
    wanted, step = learner.closed_form(task), 1e-5
    for i in range(10):
        losses = []
        for sign in (1, -1):
            with torch.no_grad():
                learner.theta.weight[0, i] += sign * step
            losses.append(few_shot.query_loss(learner, [task]))
            with torch.no_grad():
                learner.theta.weight[0, i] -= sign * step
        assert (losses[0] - losses[1]) / (2 * step) == pytest.approx(wanted[0, i].item(), rel=1e-6, abs=1e-7)


@pytest.mark.parametrize("method", ["exact", "neumann", "nystroem"])
def test_other_methods_agree(method):
    learner, task = learner_and_task()
    (got,) = fastnas.hypergradient(
        lambda: learner.train_loss(task),
        lambda: learner.val_loss(task),
        learner.model,
        learner.theta,
        method=method,
        gamma=0.1,
        tolerance=1e-12,
        limit=1000,
        rank=10,
        damping=1e-7 if method == "nystroem" else 0.0,
    )
    wanted = learner.closed_form(task)
    assert (got - wanted).norm() <= (1e-5 if method == "nystroem" else 1e-9) * wanted.norm()


def test_the_start_gets_better():
    tasks, learner = few_shot.Tasks(5), few_shot.Learner(0.5)
    unseen = [tasks.draw() for _ in range(10)]
    before, far = few_shot.query_loss(learner, unseen), (learner.theta.weight - tasks.mean).norm()
    sgd = torch.optim.SGD(learner.theta.parameters(), 0.5)
    for _ in range(10):
        sgd.zero_grad()
        for task in [tasks.draw() for _ in range(8)]:
            learner.adapt(task)
            learner.hypergradient(task, 1 / 8)
        sgd.step()
    assert few_shot.query_loss(learner, unseen) < 0.1 * before  # measured: 0.02
    assert (learner.theta.weight - tasks.mean).norm() < 0.2 * far


def test_command(capsys):
    few_shot.main(["--steps", "2", "--tasks", "2"])
    line = last_line(capsys)
    assert line.startswith("checked: 4 hypergradients against the closed form, largest relative error ")
    assert float(line.split()[-1]) < 1e-10
