"""Calls of the native ops that would leave their memory, wait for ever or write what they read: each is refused, in a
sentence, before anything is written. ``python -m tests.ops.fuzz`` looks for more of them."""

import contextlib
import math
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest
import torch

from fastnas.ops.separable_stage import Branch
from fastnas.ops.virtual_step import _virtual_step_ref
from tests.ops.fuzz import case
from tests.ops.fuzz.calls import CALLS, Draw
from tests.ops.fuzz.mutations import is_stored
from tests.ops.images import last

OPS = torch.ops.fastnas
ROOT = Path(__file__).parents[2]
VAST = 2**62
MISTAKES = (ValueError, RuntimeError)


def images(*shape):
    return last(torch.ones(shape))


def empty(*shape):
    """Without elements, its sides as long as may be."""
    return torch.empty(0).as_strided(shape, [1] * len(shape))


def assert_refused(sentence, op, *arguments):
    """The op raises, and no argument has changed."""
    tensors = [t for value in arguments for t in (value if isinstance(value, list) else [value])]
    tensors = [t for t in tensors if isinstance(t, torch.Tensor) and is_stored(t)]
    before = [t.clone() for t in tensors]
    with pytest.raises(MISTAKES, match=sentence):
        op(*arguments)
    assert all(torch.equal(a, b) for a, b in zip(tensors, before, strict=True))


# ---------------------------------------------------------------------------- tensors


def freed(tensor):
    tensor.untyped_storage().resize_(0)
    return tensor


@pytest.mark.parametrize("name", CALLS)
def test_a_tensor_whose_memory_was_freed(name):
    call = CALLS[name](Draw(Random(name)))
    for key, value in call.items():
        tensors = value if isinstance(value, list) else [value]
        if not tensors or not isinstance(tensors[0], torch.Tensor):
            continue
        lost = freed(tensors[0].clone(memory_format=torch.preserve_format))
        changed = call | {key: [lost, *tensors[1:]] if isinstance(value, list) else lost}
        assert_refused("must have memory for its elements", getattr(OPS, name), *changed.values())


def test_a_written_tensor_that_is_negative_only_lazily():
    norm, u = torch.ones((), dtype=torch.float64), torch.ones(4)
    sentence = "perturb_: w is written and must not be a lazily conjugate or negative view"
    assert_refused(sentence, OPS.perturb_, torch._neg_view(u), u.clone(), u.clone(), norm, 0.5, 1)
    w = torch.zeros(4)
    OPS.perturb_(w, torch._neg_view(u), u, norm, 0.5, 1)  # it is read as it should be
    assert torch.equal(w, torch.full((4,), -0.5))


def test_meta_tensors_beside_others():
    x, statistics = images(1, 2, 3, 3), torch.ones(1, 2, 2)
    sentence = "all tensors must be on one device, got cpu and meta"
    assert_refused(sentence, OPS.shared_pooling, x, 1, True, False, [0], [], statistics.to("meta"))
    table = [*Branch(0, 0, 1, 1, 0, 0, 0, 2, 0, 0, 0, 0)]
    arguments = [x.to("meta")], [-1], torch.ones(4), statistics, table, 1e-5, True
    assert_refused(sentence, OPS.separable_stage, *arguments)
    with pytest.raises(ValueError, match="at least one branch is needed"):
        OPS.mixed_sum(torch.ones(0, device="meta"), [])


# ---------------------------------------------------------------------------- images


X, STATISTICS, EPS = images(2, 4, 3, 3), torch.ones(3, 2, 4), 1e-5
ROW = Branch(0, 3, 1, 1, 0, 0, 36, 4, 0, 0, -1, 0)
STAGE = "separable_stage: "


def stage(*rows, norms=(-1,), weights=None, statistics=None):
    weights = torch.ones(52) if weights is None else weights
    table = [number for row in rows for number in row]
    statistics = STATISTICS.clone() if statistics is None else statistics
    return [X] * len(norms), [*norms], weights, statistics, table, EPS, True


@pytest.mark.parametrize(
    ("rows", "norms", "sentence"),
    [
        ([ROW._replace(depthwise=2**63 - 5)], [-1], "a branch's weights lie outside of the 52 given"),
        ([ROW._replace(pointwise=2**63 - 5)], [-1], "a branch's weights lie outside of the 52 given"),
        ([ROW._replace(channels=VAST)], [-1], "a branch's weights lie outside of the 52 given"),
        ([ROW._replace(out_channel=2**63 - 2)], [-1], "out and its channel must not be negative nor beyond"),
        ([ROW._replace(out_channel=2**63 - 5, norm=0)], [-1], "a norm has 4 channels, an output more"),
        # Four channels written, but two of them twice
        (
            [ROW._replace(channels=2), ROW._replace(channels=1), ROW._replace(channels=1, out_channel=3)],
            [-1],
            "branches must write each channel of an output once",
        ),
        (
            [ROW._replace(norm=1), ROW._replace(norm=1, out=1)],
            [-1],
            "branches must write each channel of a norm once",
        ),
        ([ROW._replace(norm=0)], [0], "norm 0 is that of a source and of a branch"),
    ],
)
def test_separable_stage(rows, norms, sentence):
    assert_refused(STAGE + sentence, OPS.separable_stage, *stage(*rows, norms=norms))


def test_separable_stage_backward():
    first = ROW._replace(norm=2)
    second = first._replace(out=1, grad=1, depthwise=16)  # its weights begin within the first's
    forward = stage(first, second)
    sources, norms, weights, statistics, table, eps, training = forward

    def arguments(table, norms=norms, sources=sources, weights_grads=1):
        grads, coefficients = [X.clone(), X.clone()], torch.zeros(3, 3, 4)
        written = [torch.zeros(52) for _ in range(weights_grads)], [torch.zeros_like(X) for _ in sources]
        return [
            grads,
            grads,
            sources,
            norms,
            weights,
            statistics,
            coefficients,
            table,
            eps,
            training,
            *written,
        ]

    op = OPS.separable_stage_backward
    sentence = STAGE + "branches whose weights overlap have no gradients of them"
    assert_refused(sentence, op, *arguments(table))
    op(*arguments(table, weights_grads=0))
    assert_refused(STAGE + "weights_grad must be one tensor", op, *arguments([*first], weights_grads=2))
    of_two = [*first, *first._replace(source=1)]
    sentence = STAGE + "norm 0 is that of two sources"
    assert_refused(sentence, op, *arguments(of_two, [0, 0], [X, X], 0))
    alone = arguments([*first])
    alone[-1] = [sources[0]]
    assert_refused(STAGE + "source_grads is written and must not overlap sources in memory", op, *alone)


def test_a_stride_beyond_all_images():
    (average,) = OPS.shared_pooling(X, 2**63 - 1, True, False, [], [], STATISTICS)
    assert average.shape == (2, 4, 1, 1)


def test_pooling_writes_nothing_twice():
    op, statistics = OPS.shared_pooling, STATISTICS.clone()
    assert_refused("shared_pooling: norm 1 is given twice", op, X, 1, True, True, [1], [1], statistics)
    memory = torch.ones(100)
    x = memory[:72].view(2, 3, 3, 4).permute(0, 3, 1, 2)
    sentence = "shared_pooling: statistics is written and must not overlap x in memory"
    assert_refused(sentence, op, x, 1, True, False, [0], [], memory[70:94].view(3, 2, 4))
    backward = OPS.shared_pooling_backward
    arguments = [x], [], [x], [-1, 0, -1, -1, -1], STATISTICS, torch.ones(3, 3, 4), torch.ones(1)
    sentence = "shared_pooling: x_grad is written and must not overlap average in memory"
    assert_refused(sentence, backward, x, 1, *arguments, x)


def sum_of(branches, out, statistics=STATISTICS, channels=None):
    each = range(len(branches))
    return branches, [-1 for _ in each], torch.ones(len(branches)), [*each], statistics, EPS, out


def test_normalised_mixed_sum():
    op, x = OPS.normalised_mixed_sum, X.clone(memory_format=torch.channels_last)
    sentence = "normalised_mixed_sum: out is written and must not overlap branches in memory"
    assert_refused(sentence, op, *sum_of([X, x], x))
    sentence = "normalised_mixed_sum: rectified branches need affine, got None"
    assert_refused(sentence, op, *sum_of([X], x), False, None, [0])
    wider = images(2, 9, 3, 3)  # slices of it that interleave do not overlap
    op(*sum_of([wider[:, :4]], wider[:, 5:]))
    assert (wider == 1).all()


@pytest.mark.parametrize(
    "shape", [(0, VAST, 1, 1), (VAST, 0, 1, 1), (VAST, 1, 1, 0), (VAST, 0, VAST, VAST), (0, VAST, VAST, VAST)]
)
def test_vast_images_without_elements(shape):
    """Products of their sides are no numbers, and loops over them would not end."""
    none = torch.ones(0, 2, 0)
    OPS.normalised_mixed_sum(*sum_of([empty(*shape)], empty(*shape), none))
    weights_grad = torch.full((1,), 7.0)
    arguments = sum_of([empty(*shape)], empty(*shape), none)
    OPS.normalised_mixed_sum_backward(arguments[-1], *arguments[:-1], True, torch.ones(0, 3, 0), weights_grad)
    assert weights_grad == 0
    table = [*Branch(0, 0, 1, 1, 0, 0, 0, 2, 0, 0, -1, 0)]
    with contextlib.suppress(*MISTAKES):  # or there is nothing to do
        OPS.separable_stage([empty(*shape)], [-1], torch.ones(4), torch.ones(0, 2, 2), table, EPS, True)
    OPS.shared_pooling_backward(
        empty(*shape),
        1,
        [],
        [],
        [],
        [],
        torch.ones(0, 2, 0),
        torch.ones(0, 3, 0),
        torch.ones(0),
        empty(*shape),
    )


# ---------------------------------------------------------------------------- other tensors and vectors


def test_vast_tensors_without_elements():
    shape = (0, VAST, VAST)
    branch = torch.empty(0).as_strided(shape, (VAST, 1, VAST))
    assert OPS.mixed_sum(torch.ones(2), [branch, branch]).shape == shape
    states = empty(2, 2**50, 0)
    mixing, *_ = OPS.highway_sum_backward(empty(2**50, 0), torch.ones(2, 4), states, states)
    assert torch.equal(mixing, torch.zeros(2, 4))
    with pytest.raises(MISTAKES, match="raw must have shape"):
        OPS.highway_sum(torch.ones(1, 4), empty(1, 0, VAST), empty(1, 0, 1))


def test_numbers_that_lie_in_what_is_written():
    w, u = torch.ones(4, dtype=torch.float64), torch.ones(4, dtype=torch.float64)
    apart = "must not overlap in memory"
    assert_refused(f"perturb_: w and norm {apart}", OPS.perturb_, w, u, u, w[2], 0.5, 1)
    assert_refused(f"difference_: ahead and norm {apart}", OPS.difference_, w, u, w[0], 0.5)
    one = torch.ones((), dtype=torch.float64)
    steps = w, torch.ones_like(w), u, u, one, 0.5, 0.1
    assert_refused(f"neumann_step_: series and gamma {apart}", OPS.neumann_step_, *steps, steps[1][3])
    arguments = w, u, None, 0.1, 0.0, 0.0
    assert_refused(f"virtual_step_: w and learning_rate {apart}", OPS.virtual_step_, *arguments, w[1])
    assert_refused(f"sgd_step_: w and learning_rate {apart}", OPS.sgd_step_, *arguments, 1.0, w[1])
    alpha, *rest = (torch.ones(4) for _ in range(4))
    arguments = alpha, *rest, alpha[1], 0.1, 0.5, 0.9, 1e-8, 0.0
    assert_refused(f"adam_step_: alpha and step {apart}", OPS.adam_step_, *arguments)


def test_a_momentum_that_float32_rounds_to_zero():
    w, grad, buffer = torch.ones(9), torch.full((9,), 3.0), torch.ones(9)
    OPS.sgd_step_(w, grad, buffer, 0.5, 1e-300, 0.0, math.inf)
    assert torch.equal(buffer, grad)
    assert torch.equal(w, torch.full((9,), -0.5))


def test_an_infinite_momentum_without_a_buffer():
    w, expected = torch.ones(9), torch.ones(9)
    OPS.virtual_step_(w, torch.ones(9), None, 0.5, math.inf, 0.0)
    _virtual_step_ref(expected, torch.ones(9), None, 0.5, math.inf, 0.0)
    assert torch.equal(w, expected)


# ---------------------------------------------------------------------------- the fuzzer


def test_random_calls():
    command = [sys.executable, "-m", "tests.ops.fuzz", "--cases", "8"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    compared = int(done.stdout.split(" compared")[0].split()[-1])
    assert compared >= 8 * len(CALLS) // 5


@pytest.mark.parametrize("wrong", [lambda vector: 0.01, lambda vector: vector.view(-1)[-1:].zero_().sum()])
def test_the_fuzzer_finds_a_fault(monkeypatch, wrong):
    """An operator that is a little wrong in one number, or writes one that it may not."""
    monkeypatch.setattr(case, "called", lambda _, vector: OPS.vector_norm(vector) + wrong(vector))
    found = 0
    for k in range(20):
        try:
            case.run(f"0:vector_norm:{k}")
        except case.FaultError:
            found += 1
    assert found >= 3
