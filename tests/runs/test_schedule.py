"""Schedules against torch's and against PC-DARTS' numbers written out."""

import math
from itertools import pairwise

import pytest
import torch

from fastnas.runs.schedule import drop_path, learning_rate


@pytest.mark.parametrize(("schedule", "steps"), [("cosine", 1), ("cosine-steps", 3)])
def test_cosine_is_torchs(schedule, steps):
    """Per epoch as DARTS steps it, per step as NAS-Bench-201 does."""
    optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 7 * steps)
    for epoch in range(1, 8):
        for step in range(steps):
            rate = learning_rate(schedule, 0.1, 7, epoch, step / steps)
            assert rate == pytest.approx(scheduler.get_last_lr()[0])
            optimiser.step()
            scheduler.step()
    assert learning_rate(schedule, 0.1, 7, 8) == pytest.approx(0)


def test_within_an_epoch_only_cosine_steps_moves():
    assert learning_rate("cosine", 1.0, 10, 3, 0.5) == learning_rate("cosine", 1.0, 10, 3)
    assert learning_rate("cosine-steps", 1.0, 10, 3, 0.5) == (1 + math.cos(0.25 * math.pi)) / 2


def test_linear_falls_evenly_and_ends_in_five_flat_epochs():
    rates = [learning_rate("linear", 0.5, 250, epoch) for epoch in range(1, 251)]
    assert rates[0] == 0.5
    falls = [a - b for a, b in pairwise(rates)]
    assert falls[:244] == pytest.approx([0.5 / 245] * 244)
    assert falls[244] == pytest.approx(0)
    assert rates[245:] == pytest.approx([0.5 / 245 * k / 5 for k in (5, 4, 3, 2, 1)])


@pytest.mark.parametrize("epochs", [1, 2, 3, 5, 6])
def test_linear_of_few_epochs_never_rises_and_never_ends_early(epochs):
    rates = [learning_rate("linear", 1.0, epochs, epoch) for epoch in range(1, epochs + 1)]
    assert rates[0] == 1
    assert sorted(rates, reverse=True) == rates
    assert rates[-1] > 0


def test_the_warm_up_multiplies_the_schedule():
    rates = [learning_rate("linear", 0.5, 250, epoch, warm_up=5) for epoch in range(1, 8)]
    plain = [learning_rate("linear", 0.5, 250, epoch) for epoch in range(1, 8)]
    assert rates == pytest.approx(
        [*(p * k / 5 for p, k in zip(plain, (1, 2, 3, 4), strict=False)), *plain[4:]]
    )


def test_drop_path_rises_linearly_from_zero():
    assert [drop_path(0.2, 4, epoch) for epoch in (1, 2, 3, 4)] == pytest.approx([0, 0.05, 0.1, 0.15])
