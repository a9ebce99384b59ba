"""The coefficients of a logistic regression: against training again, and that they help."""

import pytest
import torch

import fastnas
from examples import weight_decay
from fastnas.bilevel import InnerSgd
from fastnas.errors import FastnasError
from tests.examples.command import last_line


@pytest.fixture(scope="module")
def solved():
    problem = weight_decay.Regression(100)
    problem.solve()
    return problem


def test_against_training_again(solved):
    """The six largest entries and two others, by central differences of trainings to convergence."""
    grad = solved.hypergradient(tolerance=1e-12)
    for entry in [*weight_decay.largest(grad, 6), (0, 20), (7, 33)]:
        again = solved.by_training_again(entry)
        assert grad[entry].item() == pytest.approx(again, rel=1e-5, abs=1e-8)


def test_against_the_closed_form(solved):
    """-exp(a_i) w_i (H^-1 v)_i: the mixed derivative is diagonal. H is written out by autograd."""

    def loss(flat):
        weight, bias = flat[:640].view(10, 64), flat[640:]
        logits = solved.train.x @ weight.T + bias
        penalty = (solved.log_decay.detach().exp() * weight.square()).sum() / 2 + 5e-3 * bias.square().sum()
        return torch.nn.functional.cross_entropy(logits, solved.train.y) + penalty

    flat = torch.cat([p.detach().flatten() for p in solved.model.parameters()])
    hessian = torch.autograd.functional.hessian(loss, flat, vectorize=True)
    slope = torch.cat(
        [g.flatten() for g in torch.autograd.grad(solved.val_loss(), list(solved.model.parameters()))]
    )
    solution = torch.linalg.solve(hessian, slope)[:640].view(10, 64)
    wanted = -solved.log_decay.detach().exp() * solved.model.weight.detach() * solution
    got = solved.hypergradient(tolerance=1e-12)
    assert (got - wanted).norm() <= 1e-9 * wanted.norm()


def test_reverse_mode_agrees_where_the_steps_are_enough(solved):
    """At the minimum, through ever more steps of gradient descent."""
    wanted = solved.hypergradient(tolerance=1e-12)
    errors = []
    for steps in (20, 80, 320):
        (got,) = fastnas.hypergradient(
            solved.train_loss,
            solved.val_loss,
            solved.model,
            solved.log_decay,
            method="reverse",
            inner_optimiser=InnerSgd(0.5),
            steps=steps,
        )
        errors.append(((got - wanted).norm() / wanted.norm()).item())
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 0.5


def test_the_coefficients_lower_the_validation_loss():
    problem = weight_decay.Regression(100)
    problem.solve()
    before = problem.val_loss().item()
    adam = torch.optim.Adam([problem.log_decay], 0.2)
    for _ in range(5):
        problem.hypergradient(tolerance=1e-3)
        adam.step()
        adam.zero_grad()
        problem.solve(tolerance=1e-5)
    assert problem.val_loss().item() < 0.7 * before  # measured: 0.5


def test_command(capsys):
    weight_decay.main(["--steps", "1", "--images", "60"])
    line = last_line(capsys)
    assert line.startswith("checked: 4 of 640 hypergradients against training again, largest relative error ")
    assert float(line.split()[-1]) < 1e-5


def test_too_many_images():
    with pytest.raises(FastnasError, match="parts of 900 and 900 digits cannot be had"):
        weight_decay.main(["--images", "900"])
