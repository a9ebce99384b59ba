"""Learned example weights: each hypergradient is an influence, and wrong labels end with low weights."""

import pytest
import torch

from examples import data_cleaning
from tests.examples.command import last_line


def test_wrong_labels_are_wrong():
    problem, other = data_cleaning.Cleaning(200, 50), data_cleaning.Cleaning(200, 50, share=0.0)
    assert problem.corrupted.sum() == 80
    assert torch.equal(problem.train.x, other.train.x)
    assert torch.equal(problem.train.y != other.train.y, problem.corrupted)


def test_is_the_influence_of_each_example():
    """-sigmoid'(a_i)/N <grad of loss_i, H^-1 v>: every factor written out, example by example (Koh, Liang 2017)."""
    problem = data_cleaning.Cleaning(60, 40)
    with torch.no_grad():
        problem.scores.copy_(torch.randn(60, generator=torch.Generator().manual_seed(1), dtype=torch.float64))
    problem.solve(tolerance=1e-12)
    flat = torch.cat([p.detach().flatten() for p in problem.model.parameters()])

    def losses(flat):
        logits = problem.train.x @ flat[:640].view(10, 64).T + flat[640:]
        return torch.nn.functional.cross_entropy(logits, problem.train.y, reduction="none")

    weights = problem.scores.detach().sigmoid()
    hessian = torch.autograd.functional.hessian(
        lambda w: (weights * losses(w)).mean() + problem.decay * w.square().sum() / 2, flat, vectorize=True
    )
    slope = torch.autograd.grad(problem.val_loss(), list(problem.model.parameters()))
    solution = torch.linalg.solve(hessian, torch.cat([g.flatten() for g in slope]))
    each = torch.autograd.functional.jacobian(losses, flat, vectorize=True)
    wanted = -weights * (1 - weights) / 60 * (each @ solution)
    got = problem.hypergradient(tolerance=1e-12)
    assert (got - wanted).norm() <= 1e-9 * wanted.norm()


@pytest.mark.parametrize("seed", [0, 1])
def test_wrong_labels_end_with_low_weights_and_accuracy_rises(seed):
    problem = data_cleaning.Cleaning(300, 150, seed=seed)
    problem.solve()
    before = problem.val_loss().item(), problem.accuracy(problem.val), problem.accuracy(problem.test)
    adam = torch.optim.Adam([problem.scores], 0.5)
    for _ in range(8):
        problem.hypergradient()
        adam.step()
        adam.zero_grad()
        problem.solve()
    after = problem.val_loss().item(), problem.accuracy(problem.val), problem.accuracy(problem.test)
    assert problem.auc() > 0.85  # measured: 0.97 and 0.95
    weights = problem.scores.detach().sigmoid()
    assert weights[problem.corrupted].mean() < 0.5 * weights[~problem.corrupted].mean()
    assert after[0] < 0.8 * before[0]
    assert after[1] > before[1]
    assert after[2] > before[2]


def test_auc():
    problem = data_cleaning.Cleaning(10, 10)
    assert problem.auc() == 0.5  # all are equal
    with torch.no_grad():
        problem.scores.copy_((~problem.corrupted).double())
    assert problem.auc() == 1.0
    with torch.no_grad():
        problem.scores[problem.corrupted] += 2
    assert problem.auc() == 0.0


def test_command(capsys):
    data_cleaning.main(["--steps", "2", "--images", "100", "--clean", "50"])
    line = last_line(capsys)
    right, wrong = (float(part.split()[0]) for part in (line.split("weight of ")[1], line.split(" and ")[1]))
    assert right > wrong
