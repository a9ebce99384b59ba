"""The native op of a fused cell: activations computed again, and arguments that do not fit."""

import random

import pytest
import torch
import torch.nn.functional as F

from fastnas.supernet import gradients
from fastnas.supernet.primitives import EPS
from tests.supernet.networks import SHAPES, SPACES, batch, named, supernet

OPS = torch.ops.fastnas
MISTAKES = (ValueError, RuntimeError)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [SHAPES[i] for i in (0, 1, 5, 6)], ids=named)
def test_activations_computed_again_give_the_same_bits(shape, dtype):
    images, labels = batch(shape, dtype)
    found = []
    for recompute in (False, True):
        net = supernet(shape, "fused", dtype)
        net.recompute = recompute
        results = []
        for training in (True, False):
            net.train(training)
            logits = net(images)
            loss = F.cross_entropy(logits, labels)
            results += [logits.detach(), *gradients(loss, net.weights, net.alphas)]
        found.append([*results, net.running.flat])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.fixture(params=SPACES)
def call(request):
    """Arguments of the op for the second stage of a small network, by name."""
    net = supernet((request.param, 4, 3, 2, (8, 8)), "fused", torch.float64)
    index = next(i for i in net._fused)
    cell, spec = net._fused[index], net.space.stages[index]
    side = 4 if spec.kind == "reduction" else 8
    channels = [net.space.stages[source.stage].out_channels for source in spec.inputs]
    inputs = [
        torch.randn(2, c, side, side, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
        for c in channels
    ]
    return {
        "plan": cell.plan.numbers,
        "inputs": inputs,
        "mixing": net.alphas[spec.alpha].detach().softmax(-1).reshape(-1),
        "weights": cell.weights.detach(),
        "statistics": torch.zeros_like(cell.running),
    }


def forward(call, keep=True):
    return OPS.cell(*call.values(), EPS, True, keep)


def backward(call, grad, out, kept, weights=True, inputs=True):
    plan, *rest = call.values()
    inputs = [inputs] * len(call["inputs"])
    return OPS.cell_backward(plan, grad.clone(), out, kept, *rest, EPS, True, weights, inputs)


def test_a_pass_works(call):
    out, kept = forward(call)
    mixing, weights, inputs = backward(call, torch.ones_like(out), out, kept)
    assert weights.shape == call["weights"].shape
    assert mixing.shape == call["mixing"].shape
    assert [g.shape for g in inputs] == [x.shape for x in call["inputs"]]


@pytest.mark.parametrize("weights", [True, False])
@pytest.mark.parametrize("inputs", [True, False])
def test_what_is_not_wanted_changes_nothing_else(call, weights, inputs):
    out, kept = forward(call)
    grad = (
        torch.linspace(-1, 1, out.numel(), dtype=out.dtype)
        .view_as(out)
        .contiguous(memory_format=torch.channels_last)
    )
    everything = backward(call, grad, out, kept)
    found = backward(call, grad, out, kept, weights, inputs)
    assert torch.equal(found[0], everything[0])
    assert torch.equal(found[1], everything[1]) if weights else not found[1].numel()
    if inputs:
        assert all(torch.equal(a, b) for a, b in zip(found[2], everything[2], strict=True))
    elif not weights:
        assert not any(g.numel() for g in found[2])


@pytest.mark.parametrize(
    ("name", "change", "sentence"),
    [
        ("plan", lambda t: t[:-1], "ends too early"),
        ("plan", lambda t: torch.cat([t, t[:2]]), "2 numbers too many"),
        ("plan", lambda t: t.int(), "vector of int64"),
        ("inputs", lambda ts: ts[:1] if len(ts) > 1 else [*ts, *ts], "inputs, got"),
        ("inputs", lambda ts: [t.float() for t in ts], "inputs must be float64"),
        ("inputs", lambda ts: [t.contiguous() for t in ts], "channels_last"),
        ("mixing", lambda t: t[1:], "mixing must be contiguous, of shape"),
        ("weights", lambda t: t[1:], "weights must be contiguous, of shape"),
        ("statistics", lambda t: t[1:], "statistics must be contiguous, of shape"),
        (
            "statistics",
            lambda t: t.to(torch.bfloat16),
            "inputs must be bfloat16 on cpu as the statistics are",
        ),
        (
            "inputs",
            lambda ts: [t.half() for t in ts],
            "inputs must be float32 or float64 on the CPU, got float16",
        ),
    ],
)
def test_arguments_that_do_not_fit_are_refused(call, name, change, sentence):
    call[name] = change(call[name])
    with pytest.raises(MISTAKES, match=sentence):
        forward(call)


def test_what_was_kept_must_fit(call):
    out, kept = forward(call)
    grad = torch.ones_like(out)
    for wrong, sentence in (
        (kept[1:], "too few|kept must be"),
        ([*kept, kept[0]], "too many"),
        ([kept[0][:1], *kept[1:]], "kept must be"),
    ):
        with pytest.raises(MISTAKES, match=sentence):
            backward(call, grad, out, wrong)
    with pytest.raises(MISTAKES, match="grad must have shape"):
        backward(call, grad[:1], out, kept)
    with pytest.raises(MISTAKES, match="out must have shape"):
        backward(call, grad, out[:1], kept)


def test_a_wrong_plan_never_leaves_its_tensors(call):
    """Any number of it changed: the op refuses, or it computes something of the same shapes.

    Memory that it should not touch is what ``make sanitize`` watches for here.
    """
    out, kept = forward(call)
    plan, chance = call["plan"], random.Random(0)
    refused = 0
    for _ in range(400):
        call["plan"] = plan.clone()
        at = chance.randrange(len(plan))
        call["plan"][at] += chance.choice([-(2**40), -100, -2, -1, 1, 2, 100, 2**40])
        try:
            result, _ = forward(call, keep=False)
            backward(call, torch.ones_like(out), out, kept)
            assert result.shape == out.shape
        except MISTAKES:
            refused += 1
    assert refused > 200
