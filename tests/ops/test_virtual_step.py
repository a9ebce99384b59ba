import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastnas.errors import FastnasError
from fastnas.ops import sgd_step_, virtual_step_
from tests.ops.accuracy import Exact, assert_as_accurate, wide
from tests.ops.settings import as_elsewhere, runs_with_threads

OPS = torch.ops.fastnas
DTYPES = [torch.float32, torch.float64]
SIZES = [0, 1, 3, 15, 16, 17, 129, 16384 + 2048 + 13]
STEP = {"learning_rate": 0.1, "momentum": 0.9, "weight_decay": 3e-4}


def make(size, dtype=torch.float32, seed=0):
    """w, its gradient and the momentum."""
    generator = torch.Generator().manual_seed(seed)
    return list(torch.randn(3, size, generator=generator, dtype=torch.float64).to(dtype))


def run(step, w, grad, buffer, **options):
    """w after one step of a copy."""
    w = w.clone()
    step(w, grad, buffer, **options)
    return w


def arguments(*tensors, learning_rate, momentum, weight_decay):
    """What ``virtual_step_`` hands to torch.ops."""
    rate = learning_rate if isinstance(learning_rate, torch.Tensor) else None
    return *tensors, 0.0 if rate is not None else learning_rate, momentum, weight_decay, rate


def elsewhere(*tensors, **options):
    as_elsewhere("virtual_step_", *arguments(*tensors, **options))


def check(w, grad, buffer, step=virtual_step_, **options):
    rate, momentum, decay = (options[name] for name in STEP)
    terms = [wide(w), -rate * wide(grad), -rate * decay * wide(w)]
    plain = w - rate * (momentum * (torch.zeros_like(w) if buffer is None else buffer) + grad + decay * w)
    if buffer is not None:
        terms.append(-rate * momentum * wide(buffer))
    assert_as_accurate(run(step, w, grad, buffer, **options), plain, Exact(np.stack(terms), axis=0))


CHANGES = [{}, {"momentum": 0.0}, {"weight_decay": 0.0}, {"learning_rate": 0.0}]


@pytest.mark.every_cpu_level
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("changes", CHANGES, ids=str)
def test_accuracy(size, changes, dtype):
    w, grad, buffer = make(size, dtype)
    check(w, grad, buffer, **(STEP | changes))
    check(w, grad, None, **(STEP | changes))


@pytest.mark.every_cpu_level
@given(
    size=st.integers(0, 70),
    dtype=st.sampled_from(DTYPES),
    rate=st.floats(0, 1),
    factor=st.sampled_from([0.0, 0.3, 0.9]),
    decay=st.sampled_from([0.0, 3e-4, 0.1]),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=60, deadline=None)
def test_accuracy_random(size, dtype, rate, factor, decay, seed):
    check(*make(size, dtype, seed), learning_rate=rate, momentum=factor, weight_decay=decay)


def test_is_sgds_step_of_w():
    w, grad, buffer = make(1001)
    expected, moved = w.clone(), buffer.clone()
    sgd_step_(expected, grad, moved, **STEP)
    before = grad.clone(), buffer.clone()
    torch.testing.assert_close(run(virtual_step_, w, grad, buffer, **STEP), expected)
    assert torch.equal(grad, before[0])
    assert torch.equal(buffer, before[1])


def check_infinite_weights(step):
    """Without decay they do not enter the step; without momentum neither does the buffer."""
    w, grad, buffer = make(37)
    w[[3, 36]] = torch.inf
    moved = run(
        step, w, grad, torch.full_like(w, torch.nan), **(STEP | {"momentum": 0.0, "weight_decay": 0.0})
    )
    torch.testing.assert_close(moved, w - 0.1 * grad)
    moved = run(step, w, grad, buffer, **(STEP | {"weight_decay": 0.0}))
    torch.testing.assert_close(moved, w - 0.1 * (grad + 0.9 * buffer))


@pytest.mark.every_cpu_level
def test_infinite_weights():
    check_infinite_weights(virtual_step_)
    check_infinite_weights(elsewhere)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [0, 1, 37, 2000])
def test_devices_without_a_kernel_do_the_same(size, dtype):
    w, grad, buffer = make(size, dtype)
    for changes in CHANGES:
        for momentum in (None, buffer):
            options = STEP | changes
            theirs = run(elsewhere, w, grad, momentum, **options)
            torch.testing.assert_close(run(virtual_step_, w, grad, momentum, **options), theirs)


def check_rate_on_device(step, dtype):
    vectors, rate = make(1001, dtype), torch.zeros((), dtype=torch.float64)
    for value in (0.0, 0.1, 1e-3):
        rate.fill_(value)
        ours = run(step, *vectors, **(STEP | {"learning_rate": rate}))
        assert torch.equal(ours, run(step, *vectors, **(STEP | {"learning_rate": value})))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_learning_rate_may_lie_on_the_device(dtype):
    check_rate_on_device(virtual_step_, dtype)
    check_rate_on_device(elsewhere, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_same_bits_for_any_number_of_threads(dtype):
    vectors = make(300_007, dtype)
    first, *others = runs_with_threads(lambda: run(virtual_step_, *vectors, **STEP))
    assert all(torch.equal(first, other) for other in others)


def check_slices(step, dtype):
    """Unaligned slices of one buffer; their neighbours stay."""
    buffer = torch.cat(make(2039, dtype))
    before, parts = buffer.clone(), [buffer[2039 * k + 1 : 2039 * k + 2038] for k in range(3)]
    before[1:2038] = run(step, *(part.clone() for part in parts), **STEP)
    step(*parts, **STEP)
    assert torch.equal(buffer, before)


@pytest.mark.parametrize("dtype", DTYPES)
def test_writes_its_slice_alone(dtype):
    check_slices(virtual_step_, dtype)


def test_allocates_nothing():
    vectors = make(1 << 16)
    with torch.profiler.profile(profile_memory=True) as profile:
        virtual_step_(*vectors, **STEP)
    assert sum(max(event.self_cpu_memory_usage, 0) for event in profile.events()) == 0


@pytest.mark.parametrize("size", [0, 5])
def test_opcheck(size):
    w, grad, buffer = make(size)
    torch.library.opcheck(OPS.virtual_step_.default, (w, grad, buffer, 0.1, 0.9, 0.1))
    torch.library.opcheck(
        OPS.virtual_step_.default, (w, grad, None, 0.0, 0.0, 0.1, torch.tensor(0.1).double())
    )


X = torch.ones(3)
LIKE = "must be like w, (3,) of float32 on cpu; got"
MISTAKES = {
    "w must be float32 or float64, got bfloat16": {"w": X.bfloat16()},
    "w must be contiguous; call contiguous() on it": {"w": torch.ones(6)[::2]},
    f"grad {LIKE} (4,) of float32 on cpu": {"grad": torch.ones(4)},
    f"buffer {LIKE} (3,) of float64 on cpu": {"buffer": X.double()},
    "buffer must be a tensor, got int": {"buffer": 0},
    "learning_rate must be a finite number >= 0, got nan": {"learning_rate": float("nan")},
    "learning_rate must be () of float64 on cpu; got (3,) of float32 on cpu": {"learning_rate": X},
    "momentum must be a finite number >= 0, got -1": {"momentum": -1},
    "weight_decay must be a finite number >= 0, got None": {"weight_decay": None},
}


@pytest.mark.parametrize("sentence", MISTAKES)
def test_mistakes_are_told_in_one_sentence(sentence):
    given = {"w": X.clone(), "grad": X, "buffer": X} | STEP | MISTAKES[sentence]
    with pytest.raises(FastnasError) as caught:
        virtual_step_(**given)
    assert str(caught.value) == f"virtual_step_: {sentence}"
    assert torch.equal(given["w"].float(), X)


def test_overlaps_are_refused():
    buffer = torch.ones(40)
    with pytest.raises(FastnasError, match="virtual_step_: w and buffer must not overlap in memory"):
        virtual_step_(buffer[:3], X, buffer[1:4], **STEP)
    assert torch.equal(buffer, torch.ones(40))


def test_devices_without_a_kernel_are_checked_too():
    meta = X.to("meta")
    assert virtual_step_(meta, meta, meta, **STEP) is meta
    with pytest.raises(FastnasError, match=r"virtual_step_: grad must be like w, \(3,\) of float32 on meta"):
        virtual_step_(meta, meta[:1], meta, **STEP)
