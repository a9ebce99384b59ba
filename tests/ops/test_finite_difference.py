import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastnas.errors import FastnasError
from fastnas.ops import difference_, perturb_, vector_norm
from tests.ops.accuracy import Exact, assert_as_accurate, wide
from tests.ops.settings import as_elsewhere, runs_with_threads

OPS = torch.ops.fastnas
DTYPES = [torch.float32, torch.float64]
SIZES = [0, 1, 3, 15, 16, 17, 129, 16384 + 2048 + 13]
RADIUS = 0.01


def make(size, dtype=torch.float32, seed=0):
    """Three vectors of normal random numbers."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(size, generator=generator, dtype=torch.float64).to(dtype) for _ in range(3)]


def perturbed(saved, u, radius=RADIUS, sign=1, perturb=perturb_):
    """A fresh vector, full of NaN before."""
    w = torch.full_like(saved, torch.nan)
    perturb(w, saved, u, vector_norm(u), radius, sign)
    return w


def plain_perturbed(saved, u, radius, sign):
    """As it is commonly written: the norm, and the step, in the vectors' own dtype."""
    return saved + sign * (radius / torch.linalg.vector_norm(u)) * u


def exact_norm(u):
    return np.sqrt((wide(u).astype(np.longdouble) ** 2).sum())


def check_accuracy(saved, u, behind, radius, sign, perturb=perturb_, difference=difference_):
    eps = wide(torch.tensor(radius, dtype=torch.float64)) / exact_norm(u) if len(u) else 0
    terms = np.stack([wide(saved), sign * eps * wide(u)])
    plain = plain_perturbed(saved, u, radius, sign)
    assert_as_accurate(perturbed(saved, u, radius, sign, perturb), plain, Exact(terms, axis=0))

    ahead, norm = saved.clone(), vector_norm(u)
    scale = exact_norm(u) / (2 * wide(torch.tensor(radius, dtype=torch.float64)))
    plain = (ahead - behind) * (torch.linalg.vector_norm(u) / (2 * radius))
    exact = Exact(scale * np.stack([wide(ahead), -wide(behind)]), axis=0)
    difference(ahead, behind, norm, radius)
    assert_as_accurate(ahead, plain, exact)


@pytest.mark.every_cpu_level
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("size", SIZES)
def test_accuracy_odd_sizes(size, sign, dtype):
    check_accuracy(*make(size, dtype), RADIUS, sign)


@pytest.mark.every_cpu_level
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("offset", [0, 1])
def test_accuracy_of_large_vectors(offset, dtype):
    """More than 4 MiB, which are written past the caches where they are aligned."""
    saved, u, _ = make((1 << 20) + 13, dtype)
    w = torch.full((len(saved) + offset,), torch.nan, dtype=dtype)
    perturb_(w[offset:], saved, u, vector_norm(u), RADIUS, 1)
    terms = np.stack([wide(saved), wide(u) * (wide(torch.tensor(RADIUS).double()) / exact_norm(u))])
    assert_as_accurate(w[offset:], plain_perturbed(saved, u, RADIUS, 1), Exact(terms, axis=0))
    assert w[:offset].isnan().all()


@pytest.mark.every_cpu_level
@given(
    size=st.integers(0, 70),
    dtype=st.sampled_from(DTYPES),
    scale=st.sampled_from([1e-12, 1.0, 1e12]),
    radius=st.floats(1e-4, 10),
    sign=st.sampled_from([1, -1]),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=60, deadline=None)
def test_accuracy_random(size, dtype, scale, radius, sign, seed):
    saved, u, behind = make(size, dtype, seed)
    check_accuracy(saved, scale * u, behind, radius, sign)


@pytest.mark.every_cpu_level
@pytest.mark.parametrize("size", [1, 37, 2000])
@pytest.mark.parametrize("value", [1e-30, 1e30])
def test_accuracy_where_float32_squares_underflow_or_overflow(value, size):
    """The step has the length of the radius, whatever the scale of u."""
    saved, u = torch.zeros(size), torch.full((size,), value)
    step = perturbed(saved, u)
    np.testing.assert_allclose(wide(step), RADIUS / np.sqrt(size), rtol=4 * torch.finfo(torch.float32).eps)
    ahead = difference_(torch.ones(size), torch.zeros(size), vector_norm(u), RADIUS)
    exact = wide(u)[0] * np.sqrt(size) / (2 * RADIUS)
    np.testing.assert_allclose(wide(ahead), exact, rtol=4 * torch.finfo(torch.float32).eps)


@pytest.mark.every_cpu_level
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [0, 1, 17, 20_013])
def test_zero_vector_takes_no_step_and_gives_exactly_zero(size, dtype):
    saved, _, behind = make(size, dtype)
    u = torch.zeros(size, dtype=dtype)
    assert torch.equal(perturbed(saved, u), saved)
    assert torch.count_nonzero(difference_(saved, behind, vector_norm(u), RADIUS)) == 0


@pytest.mark.every_cpu_level
def test_zero_eps_where_it_overflows():
    saved, u = torch.ones(5), torch.full((5,), 1e-43)
    assert torch.equal(perturbed(saved, u), saved)
    assert perturbed(saved.double(), u.double())[0] != 1


@pytest.mark.every_cpu_level
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("place", [0, 16, 36])  # in the vectors and behind them
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_not_finite_vectors_are_not_hidden(value, place, dtype):
    """No step where u is finite, NaN where it is not; the difference is NaN."""
    saved, u, _ = make(37, dtype)
    u[place] = value
    others = torch.arange(37) != place
    ours, norm = perturbed(saved, u), vector_norm(u)
    assert torch.equal(ours[others], saved[others])
    assert ours[place].isnan()
    assert difference_(saved.clone(), saved.clone(), norm, RADIUS).isnan().all()


@pytest.mark.every_cpu_level
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_not_finite_gradients_pass_through(value):
    ahead, behind, u = make(37)
    ahead[3] = behind[20] = value
    result = difference_(ahead.clone(), behind, vector_norm(u), RADIUS)
    expected = (ahead - behind) * (u.norm() / (2 * RADIUS))
    torch.testing.assert_close(result, expected, equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [0, 1, 37, 2000])
def test_devices_without_a_kernel_do_the_same(size, dtype):
    saved, u, behind = make(size, dtype)
    norm, theirs = vector_norm(u), torch.full_like(saved, torch.nan)
    for sign in (1, -1):
        as_elsewhere("perturb_", theirs, saved, u, norm, RADIUS, sign)
        torch.testing.assert_close(perturbed(saved, u, RADIUS, sign), theirs)
    theirs = saved.clone()
    as_elsewhere("difference_", theirs, behind, norm, RADIUS)
    torch.testing.assert_close(difference_(saved, behind, norm, RADIUS), theirs)


@pytest.mark.parametrize("bad", [0.0, torch.nan, torch.inf])
def test_devices_without_a_kernel_do_the_same_in_special_cases(bad):
    saved, u, behind = make(37)
    u = torch.zeros(37) if bad == 0 else u.index_fill(0, torch.tensor([5]), bad)
    norm, theirs = vector_norm(u), torch.empty(37)
    as_elsewhere("perturb_", theirs, saved, u, norm, RADIUS, 1)
    torch.testing.assert_close(perturbed(saved, u), theirs, rtol=0, atol=0, equal_nan=True)
    theirs = saved.clone()
    as_elsewhere("difference_", theirs, behind, norm, RADIUS)
    torch.testing.assert_close(difference_(saved, behind, norm, RADIUS), theirs, equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES)
def test_same_bits_for_any_number_of_threads(dtype):
    saved, u, behind = make(300_007, dtype)

    def run():
        norm = vector_norm(u)
        return [perturbed(saved, u), difference_(saved.clone(), behind, norm, RADIUS)]

    first, *others = runs_with_threads(run)
    assert all(torch.equal(a, b) for run in others for a, b in zip(first, run, strict=True))


@pytest.mark.parametrize("dtype", DTYPES)
def test_writes_its_slice_alone(dtype):
    """Unaligned slices of one buffer, as of an arena; their neighbours and the inputs stay."""
    buffer = torch.cat(make(39, dtype))
    before = buffer.clone()
    w, saved, u = buffer[1:38], buffer[40:77], buffer[79:116]
    perturb_(w, saved, u, vector_norm(u), RADIUS, 1)
    assert torch.equal(w, perturbed(saved.clone(), u.clone()))
    before[1:38] = w
    assert torch.equal(buffer, before)
    expected = difference_(w.clone(), u.clone(), vector_norm(u), RADIUS)
    before[1:38] = difference_(w, u, vector_norm(u), RADIUS)
    assert torch.equal(w, expected)
    assert torch.equal(buffer, before)


def test_a_vector_may_be_read_where_it_is_written():
    saved, u, _ = make(37)
    expected = perturbed(saved, u)
    assert perturb_(saved, saved, u, vector_norm(u), RADIUS, 1) is saved
    assert torch.equal(saved, expected)
    assert difference_(saved, saved, vector_norm(u), RADIUS) is saved
    assert torch.count_nonzero(saved) == 0


def test_allocate_nothing():
    saved, u, w = make(1 << 16)
    norm = vector_norm(u)
    with torch.profiler.profile(profile_memory=True) as profile:
        perturb_(w, saved, u, norm, RADIUS, 1)
        difference_(w, saved, norm, RADIUS)
    assert sum(max(event.self_cpu_memory_usage, 0) for event in profile.events()) == 0


def test_autograd_sees_the_writing():
    leaf, (saved, u, _) = torch.ones(37, requires_grad=True), make(37)
    w = saved.clone()
    loss = (leaf * w).sum()
    perturb_(w, saved, u, vector_norm(u), RADIUS, 1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("size", [0, 5])
def test_opcheck(size):
    w, saved, u = make(size)
    norm = vector_norm(u)
    torch.library.opcheck(OPS.perturb_.default, (w, saved, u, norm, RADIUS, -1))
    torch.library.opcheck(OPS.difference_.default, (w, saved, norm, RADIUS))


X, NORM = torch.ones(3), torch.tensor(1.0).double()
MISTAKES = {
    "w must be float32 or float64, got bfloat16": {"w": X.bfloat16()},
    "w must be contiguous; call contiguous() on it": {"w": torch.ones(6)[::2]},
    "saved must be contiguous; call contiguous() on it": {"saved": torch.ones(6)[::2]},
    "saved must be like w, (3,) of float32 on cpu; got (1,) of float32 on cpu": {"saved": X[:1]},
    "u must be like w, (3,) of float32 on cpu; got (3, 1) of float32 on cpu": {"u": X[:, None]},
    "u must be like w, (3,) of float32 on cpu; got (3,) of float64 on cpu": {"u": X.double()},
    "u must be like w, (3,) of float32 on cpu; got (3,) of float32 on meta": {"u": X.to("meta")},
    "u must be a tensor, got list": {"u": [1.0, 1.0, 1.0]},
    "norm must be () of float64 on cpu; got () of float32 on cpu": {"norm": NORM.float()},
    "norm must be () of float64 on cpu; got (1,) of float64 on cpu": {"norm": NORM[None]},
    "radius must be a finite number > 0, got 0": {"radius": 0},
    "radius must be a finite number > 0, got nan": {"radius": float("nan")},
    "sign must be 1 or -1, got 0": {"sign": 0},
}


@pytest.mark.parametrize("sentence", MISTAKES)
def test_mistakes_are_told_in_one_sentence(sentence):
    arguments = {"w": X.clone(), "saved": X, "u": X, "norm": NORM, "radius": RADIUS, "sign": 1}
    arguments |= MISTAKES[sentence]
    with pytest.raises(FastnasError) as caught:
        perturb_(**arguments)
    assert str(caught.value) == f"perturb_: {sentence}"
    assert torch.equal(arguments["w"], torch.ones_like(arguments["w"]))


def test_mistakes_of_the_difference():
    with pytest.raises(
        FastnasError, match=r"difference_: behind must be like ahead, \(3,\) of float32 on cpu; got"
    ):
        difference_(X, X.double(), NORM, RADIUS)
    with pytest.raises(FastnasError, match=r"difference_: norm must be \(\) of float64 on cpu; got"):
        difference_(X, X, NORM.float(), RADIUS)
    with pytest.raises(FastnasError, match="difference_: radius must be a finite number > 0, got -1"):
        difference_(X, X, NORM, -1)


def test_overlaps_are_refused():
    buffer = torch.ones(40)
    with pytest.raises(FastnasError, match="perturb_: w and u must not overlap in memory"):
        perturb_(buffer[1:38], torch.ones(37), buffer[:37], NORM, RADIUS, 1)
    with pytest.raises(FastnasError, match="difference_: ahead and behind must not overlap in memory"):
        difference_(buffer[:37], buffer[1:38], NORM, RADIUS)
    assert torch.equal(buffer, torch.ones(40))


def test_devices_without_a_kernel_are_checked_too():
    meta = X.to("meta")
    assert perturb_(meta, meta, meta, NORM.to("meta"), RADIUS, 1) is meta
    with pytest.raises(
        FastnasError, match=r"perturb_: u must be like w, \(3,\) of float32 on meta; got \(1,\)"
    ):
        perturb_(meta, meta, meta[:1], NORM.to("meta"), RADIUS, 1)
