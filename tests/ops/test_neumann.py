import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastnas.errors import FastnasError
from fastnas.ops import difference_, neumann_step_, vector_norm
from tests.ops.accuracy import Exact, assert_as_accurate, wide
from tests.ops.settings import as_elsewhere, runs_with_threads

OPS = torch.ops.fastnas
DTYPES = [torch.float32, torch.float64]
SIZES = [0, 1, 3, 15, 16, 17, 129, 16384 + 2048 + 13]
RADIUS, GAMMA = 0.01, 0.1
EPS = np.finfo(np.float64).eps


def make(size, dtype=torch.float32, seed=0):
    """v, the sum so far, and the two gradients, all of size 1."""
    generator = torch.Generator().manual_seed(seed)
    return list(torch.randn(4, size, generator=generator, dtype=torch.float64).to(dtype))


def run(step, v, series, ahead, behind, norm=None, radius=RADIUS, gamma=GAMMA):
    """``(v, series, norm)`` after one step of copies."""
    v, series = v.clone(), series.clone()
    return v, series, step(v, series, ahead, behind, vector_norm(v) if norm is None else norm, radius, gamma)


def plain_step(v, series, ahead, behind, radius, gamma):
    """As it is commonly written, in the vectors' own dtype."""
    v = v - gamma * ((ahead - behind) / (2 * (radius / torch.linalg.vector_norm(v))))
    return v, series + v


def check(v, series, ahead, behind, radius=RADIUS, gamma=GAMMA, step=neumann_step_):
    moved, total, norm = run(step, v, series, ahead, behind, radius=radius, gamma=gamma)
    exact_norm = np.sqrt((wide(v).astype(np.longdouble) ** 2).sum())
    factor = gamma * exact_norm / (2 * radius)
    terms = np.stack([wide(v), -factor * wide(ahead), factor * wide(behind)])
    plain_moved, plain_total = plain_step(v, series, ahead, behind, radius, gamma)
    assert_as_accurate(moved, plain_moved, Exact(terms, axis=0))
    assert_as_accurate(total, plain_total, Exact(np.concatenate([wide(series)[None], terms]), axis=0))
    exact = np.sqrt((wide(moved).astype(np.longdouble) ** 2).sum())
    assert (norm.shape, norm.dtype) == ((), torch.float64)
    assert abs(wide(norm) - exact) <= 4 * EPS * exact


@pytest.mark.every_cpu_level
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
def test_accuracy(size, dtype):
    check(*make(size, dtype))


@pytest.mark.every_cpu_level
@given(
    size=st.integers(0, 70),
    dtype=st.sampled_from(DTYPES),
    scale=st.sampled_from([1e-12, 1.0, 1e12]),
    radius=st.floats(1e-4, 10),
    gamma=st.floats(0, 1),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=60, deadline=None)
def test_accuracy_random(size, dtype, scale, radius, gamma, seed):
    v, series, ahead, behind = make(size, dtype, seed)
    check(scale * v, scale * series, ahead, behind, radius, gamma)


@pytest.mark.every_cpu_level
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [0, 1, 129, 300_007])
def test_the_norm_is_vector_norms_to_the_bit(size, dtype):
    moved, _, norm = run(neumann_step_, *make(size, dtype))
    assert torch.equal(norm, vector_norm(moved))


@pytest.mark.every_cpu_level
@pytest.mark.parametrize("value", [1e-30, 1e30])
def test_norm_where_float32_squares_underflow_or_overflow(value):
    v = torch.full((37,), value)
    moved, series, norm = run(
        neumann_step_, v, v, 0.25 * v, -0.25 * v, norm=torch.tensor(2 * RADIUS).double()
    )
    torch.testing.assert_close(moved, (1 - 0.5 * GAMMA) * v, rtol=1e-6, atol=0)
    torch.testing.assert_close(series, v + moved, rtol=1e-6, atol=0)
    assert norm.item() == pytest.approx(0.95 * value * 37**0.5, rel=1e-6)


@pytest.mark.every_cpu_level
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1, 17, 2000])
def test_zero_stays_zero(size, dtype):
    _, series, ahead, behind = make(size, dtype)
    moved, total, norm = run(neumann_step_, torch.zeros(size, dtype=dtype), series, ahead, behind)
    assert torch.count_nonzero(moved) == 0
    assert torch.equal(total, series)
    assert norm == 0


@pytest.mark.every_cpu_level
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_not_finite_vectors_are_not_hidden(value, dtype):
    """No step was taken along such a v, so both gradients are the same."""
    v, series, ahead, _ = make(37, dtype)
    v[36] = value
    moved, total, norm = run(neumann_step_, v, series, ahead, ahead)
    assert moved.isnan().all()
    assert total.isnan().all()
    assert norm.isnan()


def check_reference(step):
    for dtype in DTYPES:
        for size in (0, 1, 37, 2000):
            vectors = make(size, dtype)
            torch.testing.assert_close(run(step, *vectors), run(neumann_step_, *vectors))


def test_devices_without_a_kernel_do_the_same():
    check_reference(lambda *arguments: as_elsewhere("neumann_step_", *arguments))


@pytest.mark.parametrize("dtype", DTYPES)
def test_is_difference_and_two_updates(dtype):
    v, series, ahead, behind = make(1001, dtype)
    moved, total, _ = run(neumann_step_, v, series, ahead, behind)
    product = difference_(ahead.clone(), behind, vector_norm(v), RADIUS)
    torch.testing.assert_close(moved, v - GAMMA * product)
    torch.testing.assert_close(total, series + (v - GAMMA * product))


@pytest.mark.parametrize("dtype", DTYPES)
def test_gamma_may_lie_on_the_device(dtype):
    vectors, gamma = make(1001, dtype), torch.zeros((), dtype=torch.float64)
    for value in (0.0, 0.1, 1e-3):
        gamma.fill_(value)
        ours = run(neumann_step_, *vectors, gamma=gamma)
        assert all(
            torch.equal(a, b) for a, b in zip(ours, run(neumann_step_, *vectors, gamma=value), strict=True)
        )


@pytest.mark.parametrize("dtype", DTYPES)
def test_same_bits_for_any_number_of_threads(dtype):
    vectors = make(300_007, dtype)
    first, *others = runs_with_threads(lambda: run(neumann_step_, *vectors))
    assert all(torch.equal(a, b) for run in others for a, b in zip(first, run, strict=True))


def check_slices(step, dtype):
    """Unaligned slices of one buffer, as of an arena; their neighbours and the inputs stay."""
    buffer = torch.cat(make(2039, dtype))
    before, parts = buffer.clone(), [buffer[2039 * k + 1 : 2039 * k + 2038] for k in range(4)]
    copies = [part.clone() for part in parts]
    norm = vector_norm(parts[0])
    norms = [step(*vectors, norm, RADIUS, GAMMA) for vectors in (copies, parts)]
    assert torch.equal(*norms)
    for k in (0, 1):
        before[2039 * k + 1 : 2039 * k + 2038] = copies[k]
    assert torch.equal(buffer, before)


@pytest.mark.parametrize("dtype", DTYPES)
def test_writes_its_slices_alone(dtype):
    check_slices(neumann_step_, dtype)


def test_allocates_the_norm_alone():
    v, series, ahead, behind = make(1 << 16)
    norm = vector_norm(v)
    with torch.profiler.profile(profile_memory=True) as profile:
        neumann_step_(v, series, ahead, behind, norm, RADIUS, GAMMA)
    allocated = sum(max(event.self_cpu_memory_usage, 0) for event in profile.events())
    assert norm.nbytes <= allocated <= 64  # at least one line


@pytest.mark.parametrize("size", [0, 5])
def test_opcheck(size):
    vectors, norm = make(size), torch.tensor(2.0).double()
    torch.library.opcheck(OPS.neumann_step_.default, (*vectors, norm, RADIUS, GAMMA))
    torch.library.opcheck(
        OPS.neumann_step_.default, (*vectors, norm, RADIUS, 0.0, torch.tensor(0.1).double())
    )


X, NORM = torch.ones(3), torch.tensor(1.0).double()
LIKE = "must be like v, (3,) of float32 on cpu; got"
MISTAKES = {
    "v must be float32 or float64, got float16": {"v": X.half()},
    "v must be contiguous; call contiguous() on it": {"v": torch.ones(6)[::2]},
    "series must be contiguous; call contiguous() on it": {"series": torch.ones(6)[::2]},
    f"series {LIKE} (4,) of float32 on cpu": {"series": torch.ones(4)},
    f"ahead {LIKE} (3,) of float64 on cpu": {"ahead": X.double()},
    f"behind {LIKE} (3,) of float32 on meta": {"behind": X.to("meta")},
    "behind must be a tensor, got NoneType": {"behind": None},
    "norm must be () of float64 on cpu; got () of float32 on cpu": {"norm": NORM.float()},
    "radius must be a finite number > 0, got 0": {"radius": 0},
    "gamma must be a finite number >= 0, got -0.1": {"gamma": -0.1},
    "gamma must be () of float64 on cpu; got () of float32 on cpu": {"gamma": torch.tensor(0.1)},
}


@pytest.mark.parametrize("sentence", MISTAKES)
def test_mistakes_are_told_in_one_sentence(sentence):
    arguments = {"v": X.clone(), "series": X.clone(), "ahead": X, "behind": X, "norm": NORM}
    arguments |= {"radius": RADIUS, "gamma": GAMMA} | MISTAKES[sentence]
    with pytest.raises(FastnasError) as caught:
        neumann_step_(**arguments)
    assert str(caught.value) == f"neumann_step_: {sentence}"
    assert all(
        torch.equal(arguments[name].float(), torch.ones(len(arguments[name]))) for name in ("v", "series")
    )


def test_overlaps_are_refused():
    buffer = torch.ones(40)
    with pytest.raises(FastnasError, match="neumann_step_: v and series must not overlap in memory"):
        neumann_step_(buffer[:3], buffer[:3], X, X, NORM, RADIUS, GAMMA)
    with pytest.raises(FastnasError, match="neumann_step_: series and behind must not overlap in memory"):
        neumann_step_(X.clone(), buffer[:3], X, buffer[1:4], NORM, RADIUS, GAMMA)
    assert torch.equal(buffer, torch.ones(40))


def test_devices_without_a_kernel_are_checked_too():
    meta, norm = X.to("meta"), NORM.to("meta")
    assert neumann_step_(meta, meta.clone(), meta, meta, norm, RADIUS, norm).shape == ()
    with pytest.raises(FastnasError, match=r"neumann_step_: ahead must be like v, \(3,\) of float32 on meta"):
        neumann_step_(meta, meta, meta[:1], meta, norm, RADIUS, GAMMA)
    with pytest.raises(FastnasError, match=r"neumann_step_: gamma must be \(\) of float64 on meta; got"):
        neumann_step_(meta, meta, meta, meta, norm, RADIUS, NORM)


def test_autograd_sees_the_writing():
    leaf, (v, series, ahead, behind) = torch.ones(37, requires_grad=True), make(37)
    losses = (leaf * v).sum(), (leaf * series).sum()
    neumann_step_(v, series, ahead, behind, vector_norm(v), RADIUS, GAMMA)
    for loss in losses:
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()
