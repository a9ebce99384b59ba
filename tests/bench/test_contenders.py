"""Both sides of a comparison compute the same: networks, gradients and whole search steps."""

import math
from dataclasses import replace

import pytest
import torch

from bench.contenders import (
    METHODS,
    Agreement,
    Contest,
    agreements,
    batches,
    fastnas_function,
    fastnas_model,
    fastnas_results,
    plain_results,
    relative_error,
    require_agreement,
    vanilla_function,
    vanilla_model,
)
from bench.vanilla import concat
from fastnas.bilevel import watch
from fastnas.errors import FastnasError
from fastnas.supernet import BACKENDS

SMALL = {
    "darts": Contest(space="darts", channels=4, layers=3, batch_size=4, image_size=8, inner_steps=2),
    "nasbench201": Contest(
        space="nasbench201", channels=4, layers=1, batch_size=4, image_size=8, inner_steps=2
    ),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("space", SMALL)
def test_networks_agree_in_float64(space, backend):
    model = vanilla_model(SMALL[space]).double()
    net = fastnas_model(SMALL[space], backend, model)
    ((images, labels),) = batches(SMALL[space], 1, torch.float64)
    expected = plain_results(model, images, labels)
    got = fastnas_results(net, images, labels)
    assert [relative_error(g, e) < 1e-12 for g, e in zip(got, expected, strict=True)] == [True] * 3


@pytest.mark.parametrize("method", METHODS[1:])
@pytest.mark.parametrize("space", SMALL)
def test_search_steps_agree_in_float64(space, method, monkeypatch):
    """Two steps of either side from the same start end at the same weights and alphas."""
    monkeypatch.setattr(watch, "ROUNDING", math.inf)  # as everyone writes it, a series goes on where it grows
    contest = replace(SMALL[space], method=method)
    model = vanilla_model(contest).double()
    net = fastnas_model(contest, "reference", model)
    start = concat([*model.parameters()]).detach().clone(), concat(model.alphas).detach().clone()
    plain, ours = vanilla_function(contest, model), fastnas_function(contest, net)
    for _ in range(2):  # the second one sees a momentum buffer
        plain()
        ours()
    ends = (
        (concat([*model.parameters()]), net.weights.flat, start[0]),
        (concat(model.alphas), net.alphas.flat, start[1]),
    )
    for expected, got, before in ends:
        assert relative_error(got - before, expected - before) < 1e-11  # 4e-14 at most here; eps is 1e-5


def test_agreements_hold_for_equal_networks_and_not_for_others():
    contest = SMALL["darts"]
    model = vanilla_model(contest)
    net = fastnas_model(contest, "reference", model)
    found = agreements(contest, model, net)
    assert [a.quantity for a in found] == ["logits", "weight gradients", "alpha gradients"]
    require_agreement(found)
    net.alphas.flat[3] += 1e-3
    with pytest.raises(FastnasError, match="disagree, so nothing was timed: the logits are off"):
        require_agreement(agreements(contest, model, net))


def test_agreements_leave_both_sides_alone():
    contest = SMALL["nasbench201"]
    model = vanilla_model(contest)
    net = fastnas_model(contest, "reference", model)
    plain = {name: t.clone() for name, t in model.state_dict().items()}
    ours = {name: t.clone() for name, t in net.state_dict().items()}
    agreements(contest, model, net)
    assert all(torch.equal(t, plain[name]) for name, t in model.state_dict().items())
    assert all(torch.equal(t, ours[name]) for name, t in net.state_dict().items())


def test_agreement_is_twice_vanillas_worst_error():
    eps = torch.finfo(torch.float32).eps
    assert Agreement("logits", (1e-6, 3e-6), (5e-6, 1e-6, 6e-6)).holds
    assert not Agreement("logits", (1e-6, 3e-6), (7e-6, 1e-6, 8e-6)).holds
    assert Agreement("logits", (0.0,), (4 * eps,)).holds
    assert not Agreement("logits", (0.0,), (5 * eps,)).holds


@pytest.mark.parametrize(
    ("contest", "steps"),
    [
        (Contest(), None),
        (Contest(method="darts", batch_size=64), 391),
        (Contest(method="idarts", batch_size=64, inner_steps=4), 98),
        (Contest(method="amended", batch_size=250, inner_steps=4), 100),
    ],
)
def test_steps_per_epoch(contest, steps):
    assert contest.steps_per_epoch == steps


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"space": "nasbench101"}, "unknown space 'nasbench101'; known are darts, nasbench201"),
        (
            {"method": "second-order"},
            "unknown method 'second-order'; known are forward-backward, first-order",
        ),
        ({"device": "gpu"}, "unknown device 'gpu'; use cpu, cuda or cuda:N"),
        ({"batch_size": 1}, "batch_size must be at least 2, got 1"),
        ({"inner_steps": 0}, "inner_steps must be at least 1, got 0"),
        ({"layers": 0}, "layers must be at least 1, got 0"),
    ],
)
def test_wrong_contests_are_refused(change, sentence):
    with pytest.raises(FastnasError, match=sentence):
        replace(Contest(), **change).check()
