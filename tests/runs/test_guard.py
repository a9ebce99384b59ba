"""Steps that are not finite are taken back, and nothing moves until that has been read."""

import pytest
import torch

from fastnas.bilevel import NotFiniteError, Watch
from fastnas.runs.guard import QUANTITIES, Guard
from fastnas.runs.notices import Notices
from fastnas.runs.optimiser import Sgd

CPU = torch.device("cpu")


class Run:
    """Weights, momentum and statistics that steps move by known amounts."""

    def __init__(self, *, momentum=0.9, nesterov=False):
        self.w, self.running = torch.ones(5), torch.zeros(3)
        self.sgd = Sgd(self.w, momentum=momentum, weight_decay=0.1, clip=5.0, nesterov=nesterov)
        self.guard = Guard(self.sgd, self.running)

    def step(self, watch=None, *, loss=1.0, grad=1.0, statistic=1.0, rate=0.1):
        self.sgd.set_rate(rate)
        self.guard.begin()
        self.running += statistic
        vector = torch.ones(5)
        vector[3] = grad
        seen = self.guard.move(torch.tensor(loss), vector)
        self.guard.report(watch, seen, lambda quantity: f"the {quantity} of it")

    def state(self):
        return [t.clone() for t in (self.w, self.running, *self.sgd.state().values())]


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("quantity", ["loss", "grad", "statistic"])
@pytest.mark.parametrize(
    "options", [{}, {"momentum": 0.0}, {"nesterov": True}], ids=["momentum", "plain", "nesterov"]
)
def test_a_step_that_is_not_finite_is_taken_back(options, quantity, value):
    run = Run(**options)
    run.step()
    before = run.state()
    name = {"loss": "loss", "grad": "gradient", "statistic": "statistics"}[quantity]
    with pytest.raises(
        NotFiniteError, match=rf"^NaN or infinity in the {name} of it, so the step was not made$"
    ):
        run.step(**{quantity: value})
    assert all(map(torch.equal, before, run.state()))
    run.step()  # it has been read
    assert not any(map(torch.equal, before, run.state()))


def test_nothing_moves_until_it_has_been_read():
    run, watches = Run(), [Watch() for _ in range(3)]
    run.step(watches[0])
    before = run.state()
    run.step(watches[1], grad=torch.nan)
    run.step(watches[2])
    assert all(map(torch.equal, before, run.state()))
    notices = Notices(7, CPU, steps=40)
    notices.add(watches[0])
    with pytest.raises(
        NotFiniteError, match=r"^epoch 7, step 42: NaN or infinity in the gradient of it, so the step"
    ):
        notices.add(watches[1])


def test_a_step_that_is_too_long_is_noticed():
    run = Run()
    with pytest.raises(
        NotFiniteError, match=r"NaN or infinity in the weights of it, after the step, which was too long"
    ):
        run.step(rate=1e39)


def test_a_pass_that_is_no_step_is_looked_at_too():
    run = Run()
    run.guard.begin()
    run.running += torch.nan
    seen = run.guard.look(torch.tensor(1.0))
    assert len(seen) == 2
    assert torch.equal(run.running, torch.zeros(3))
    with pytest.raises(NotFiniteError, match=QUANTITIES[1]):
        run.guard.report(None, seen, lambda quantity: quantity)


@pytest.mark.parametrize("nesterov", [False, True])
def test_a_finite_step_is_the_optimisers_to_the_bit(nesterov):
    guarded, plain = Run(nesterov=nesterov), Run(nesterov=nesterov)
    for grad in (1.0, -0.0, 3e38):
        guarded.step(grad=grad)
        vector = torch.ones(5)
        vector[3] = grad
        plain.sgd.step(vector, 0.1)
        plain.running += 1.0
    assert all(map(torch.equal, guarded.state(), plain.state()))


def test_an_error_at_once_says_its_step_too():
    notices = Notices(2, CPU)
    notices.add(Watch())
    with pytest.raises(NotFiniteError, match=r"^epoch 2, step 2: it is$"), notices.naming():
        raise NotFiniteError("it is")
