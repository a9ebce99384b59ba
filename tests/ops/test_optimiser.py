import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastnas.errors import FastnasError
from fastnas.ops import adam_step_, sgd_step_, vector_norm
from fastnas.ops._vectors import number_or_tensor
from tests.ops.accuracy import ULPS, wide
from tests.ops.settings import as_elsewhere, runs_with_threads

OPS = torch.ops.fastnas
DTYPES = [torch.float32, torch.float64]
SIZES = [0, 1, 3, 15, 16, 17, 129, 16384 + 2048 + 13]
STEPS = 4
SGD = {"learning_rate": 0.1, "momentum": 0.9, "weight_decay": 3e-4, "clip": 0.5}
ADAM = {"learning_rate": 3e-4, "betas": (0.5, 0.999), "eps": 1e-8, "weight_decay": 1e-3}


def make(size, dtype=torch.float32, seed=0, steps=STEPS):
    """A vector of normal random numbers and as many gradients as there are steps."""
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.randn(1 + steps, size, generator=generator, dtype=torch.float64)
    return numbers[0].to(dtype), list(numbers[1:].to(dtype))


def run_sgd(step, w, grads, *, momentum, **options):
    """``(w, buffer)`` after one step a gradient; the buffer is None without momentum."""
    w, buffer = w.clone(), torch.zeros_like(w) if momentum else None
    for grad in grads:
        step(w, grad, buffer, momentum=momentum, **options)
    return w, buffer


def torch_sgd(w, grads, *, learning_rate, momentum, weight_decay, clip):
    w = torch.nn.Parameter(w.clone())
    optimiser = torch.optim.SGD([w], lr=learning_rate, momentum=momentum, weight_decay=weight_decay)
    for grad in grads:
        w.grad = grad.clone()
        torch.nn.utils.clip_grad_norm_([w], clip)
        optimiser.step()
    return w.detach(), optimiser.state[w].get("momentum_buffer")


def exact_sgd(w, grads, *, learning_rate, momentum, weight_decay, clip):
    """In longdouble, with the constants as the doubles that they are."""
    w, buffer = wide(w).astype(np.longdouble), np.longdouble(0)
    rate, factor, decay, clip = map(np.longdouble, (learning_rate, momentum, weight_decay, clip))
    for grad in grads:
        g = wide(grad).astype(np.longdouble)
        norm = np.sqrt((g**2).sum())
        buffer = factor * buffer + g * min(clip / (norm + np.longdouble(1e-6)), 1) + decay * w
        w = w - rate * buffer
    return w, buffer


def run_adam(step, alpha, grads, *, betas, **options):
    """``(alpha, exp_avg, exp_avg_sq, step)`` after one step a gradient."""
    alpha, exp_avg, exp_avg_sq = alpha.clone(), torch.zeros_like(alpha), torch.zeros_like(alpha)
    count = torch.zeros(())
    for grad in grads:
        step(alpha, grad, exp_avg, exp_avg_sq, count, betas=betas, **options)
    return alpha, exp_avg, exp_avg_sq, count


def torch_adam(alpha, grads, *, learning_rate, **options):
    alpha = torch.nn.Parameter(alpha.clone())
    optimiser = torch.optim.Adam([alpha], lr=learning_rate, **options)
    for grad in grads:
        alpha.grad = grad.clone()
        optimiser.step()
    state = optimiser.state[alpha]
    return alpha.detach(), state["exp_avg"], state["exp_avg_sq"], state["step"]


def exact_adam(alpha, grads, *, learning_rate, betas, eps, weight_decay):
    alpha = wide(alpha).astype(np.longdouble)
    mean = square = np.longdouble(0)
    rate, beta1, beta2, eps, decay = map(np.longdouble, (learning_rate, *betas, eps, weight_decay))
    for step, grad in enumerate(grads, start=1):
        g = wide(grad).astype(np.longdouble) + decay * alpha
        mean = beta1 * mean + (1 - beta1) * g
        square = beta2 * square + (1 - beta2) * g**2
        root = np.sqrt(square / (1 - beta2**step)) + eps
        alpha = alpha - rate * mean / (1 - beta1**step) / root
    return alpha, mean, square


def assert_as_good(ours, plain, exact, magnitudes):
    """The error against ``exact`` is at most twice torch.optim's, plus a few ulp of what each step adds up."""
    for mine, theirs, truth, magnitude in zip(ours, plain, exact, magnitudes, strict=True):
        assert (mine.dtype, mine.shape) == (theirs.dtype, theirs.shape)
        if mine.numel():
            allowed = 2 * np.abs(wide(theirs) - truth).max() + ULPS * torch.finfo(mine.dtype).eps * magnitude
            assert np.abs(wide(mine) - truth).max() <= allowed


def largest(*arrays):
    return max((np.abs(wide(array)).max() for array in arrays if len(array)), default=0)


def check_sgd(w, grads, step=sgd_step_, **options):
    ours, plain = run_sgd(step, w, grads, **options), torch_sgd(w, grads, **options)
    exact = exact_sgd(w, grads, **options)
    if not options["momentum"]:
        assert ours[1] is plain[1] is None
        ours, plain, exact = ours[:1], plain[:1], exact[:1]
    assert_as_good(ours, plain, exact, [largest(w, *grads)] * len(ours))


def check_adam(alpha, grads, step=adam_step_, **options):
    *ours, count = run_adam(step, alpha, grads, **options)
    *plain, their_count = torch_adam(alpha, grads, **options)
    magnitude = largest(alpha, *grads)
    magnitudes = [magnitude, magnitude, magnitude**2]
    assert_as_good(ours, plain, exact_adam(alpha, grads, **options), magnitudes)
    assert torch.equal(count, their_count)


@pytest.mark.every_cpu_level
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    "changes", [{}, {"momentum": 0.0}, {"weight_decay": 0.0}, {"clip": float("inf")}], ids=str
)
def test_accuracy_of_sgd(size, changes, dtype):
    check_sgd(*make(size, dtype), **(SGD | changes))


@pytest.mark.every_cpu_level
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    "changes", [{}, {"betas": (0.9, 0.999)}, {"weight_decay": 0.0}, {"eps": 1.0}], ids=str
)
def test_accuracy_of_adam(size, changes, dtype):
    check_adam(*make(size, dtype), **(ADAM | changes))


@pytest.mark.every_cpu_level
@given(
    size=st.integers(0, 70),
    dtype=st.sampled_from(DTYPES),
    rate=st.floats(0, 1),
    factor=st.sampled_from([0.0, 0.3, 0.9]),
    decay=st.sampled_from([0.0, 3e-4, 0.1]),
    clip=st.floats(1e-3, 20),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=60, deadline=None)
def test_accuracy_random(size, dtype, rate, factor, decay, clip, seed):
    w, grads = make(size, dtype, seed)
    check_sgd(w, grads, learning_rate=rate, momentum=factor, weight_decay=decay, clip=clip)
    check_adam(w, grads, learning_rate=rate, betas=(factor, 0.99), eps=1e-6, weight_decay=decay)


@pytest.mark.every_cpu_level
@pytest.mark.parametrize(("scale", "clip"), [(1e-30, 1e-9), (1e30, 0.5)])
def test_accuracy_where_float32_squares_underflow_or_overflow(scale, clip):
    grad = make(1001, steps=0)[0] * scale
    w, buffer = torch.zeros(1001), torch.zeros(1001)
    norm = sgd_step_(w, grad, buffer, **(SGD | {"clip": clip}))
    exact = np.sqrt((wide(grad) ** 2).sum())
    assert abs(norm.item() - exact) <= 1e-14 * exact
    factor = clip / (exact + 1e-6)
    assert factor < 1
    np.testing.assert_allclose(wide(buffer), factor * wide(grad), rtol=1e-6, atol=0)
    np.testing.assert_allclose(wide(w), -0.1 * factor * wide(grad), rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_norm_is_returned_and_the_gradient_left_alone(dtype):
    w, (grad,) = make(129, dtype, steps=1)
    before = grad.clone()
    assert torch.equal(sgd_step_(w, grad, None, 0.1, clip=0.5), vector_norm(before))
    assert torch.equal(grad, before)


@pytest.mark.every_cpu_level
@pytest.mark.parametrize("place", [0, 16, 36])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("clip", [0.5, torch.inf])
def test_no_sgd_step_is_made_along_a_gradient_that_is_not_finite(clip, value, place):
    w, (first, grad) = make(37, steps=2)
    grad[place] = value
    for step in (sgd_step_, sgd_elsewhere):
        for momentum in (0.0, 0.9):
            options = SGD | {"clip": clip, "momentum": momentum}
            after_one = run_sgd(step, w, [first], **options)
            torch.testing.assert_close(run_sgd(step, w, [first, grad], **options), after_one, rtol=0, atol=0)
            assert not torch.equal(after_one[0], w)


@pytest.mark.every_cpu_level
@pytest.mark.parametrize("place", [0, 16, 36])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_not_finite_gradients_do_to_adam_what_they_do_in_torch(value, place):
    w, (grad,) = make(37, steps=1)
    grad[place] = value
    options = ADAM | {
        "betas": (0.9, 0.999)
    }  # for beta1 <= 0.5 torch interpolates from g, and has inf - inf there
    ours, plain = run_adam(adam_step_, w, [grad], **options), torch_adam(w, [grad], **options)
    torch.testing.assert_close(ours, plain, equal_nan=True)
    ours, plain = run_adam(adam_step_, w, [grad], **ADAM), torch_adam(w, [grad], **ADAM)
    torch.testing.assert_close(ours[0], plain[0], equal_nan=True)


@pytest.mark.every_cpu_level
def test_an_infinite_weight_without_decay_spoils_no_buffer():
    w, (grad,) = make(37, steps=1)
    w[[3, 36]] = torch.inf
    options = SGD | {"weight_decay": 0.0}
    torch.testing.assert_close(run_sgd(sgd_step_, w, [grad], **options), torch_sgd(w, [grad], **options))
    options = ADAM | {"weight_decay": 0.0}
    torch.testing.assert_close(run_adam(adam_step_, w, [grad], **options), torch_adam(w, [grad], **options))


def test_without_momentum_a_buffer_is_left_alone():
    w, (grad,) = make(37, steps=1)
    expected, _ = run_sgd(sgd_step_, w, [grad], **(SGD | {"momentum": 0.0}))
    buffer = torch.full((37,), torch.nan)
    sgd_step_(w, grad, buffer, **(SGD | {"momentum": 0.0}))
    assert torch.equal(w, expected)
    assert buffer.isnan().all()


def sgd_arguments(*tensors, learning_rate, momentum, weight_decay, clip):
    """What ``sgd_step_`` hands to torch.ops."""
    given, rate = number_or_tensor("", "", learning_rate)
    return *tensors, given, momentum, weight_decay, clip, rate


def sgd_elsewhere(*tensors, **options):
    return as_elsewhere("sgd_step_", *sgd_arguments(*tensors, **options))


def adam_elsewhere(*tensors, learning_rate, betas, eps, weight_decay):
    as_elsewhere("adam_step_", *tensors, learning_rate, *betas, eps, weight_decay)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [0, 1, 37, 2000])
def test_devices_without_a_kernel_do_the_same(size, dtype):
    w, grads = make(size, dtype)
    for changes in ({}, {"momentum": 0.0}, {"weight_decay": 0.0}, {"clip": float("inf")}):
        options = SGD | changes
        torch.testing.assert_close(
            run_sgd(sgd_elsewhere, w, grads, **options), torch_sgd(w, grads, **options)
        )
    for changes in ({}, {"betas": (0.9, 0.99)}, {"weight_decay": 0.0}):
        options = ADAM | changes
        torch.testing.assert_close(
            run_adam(adam_elsewhere, w, grads, **options), torch_adam(w, grads, **options)
        )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("step", [sgd_step_, sgd_elsewhere])
def test_a_learning_rate_may_lie_on_the_device(step, dtype):
    """A tensor is the number that it holds, read at every step; more digits than float32 has, too."""
    w, grads = make(129, dtype)
    rates, rate = [0.1, 0.3, 0.0, 1e-3], torch.zeros((), dtype=torch.float64)
    ours, theirs = ([w.clone(), torch.zeros_like(w)] for _ in range(2))
    options = SGD | {"learning_rate": rate}
    for grad, value in zip(grads, rates, strict=True):
        rate.fill_(value)
        step(ours[0], grad, ours[1], **options)
        step(theirs[0], grad, theirs[1], **(SGD | {"learning_rate": value}))
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("dtype", DTYPES)
def test_same_bits_for_any_number_of_threads(dtype):
    w, grads = make(300_007, dtype)

    def run():
        return [*run_sgd(sgd_step_, w, grads, **SGD), *run_adam(adam_step_, w, grads, **ADAM)]

    first, *others = runs_with_threads(run)
    assert all(torch.equal(a, b) for run in others for a, b in zip(first, run, strict=True))


@pytest.mark.parametrize("dtype", DTYPES)
def test_write_their_slices_alone(dtype):
    """Unaligned slices of one buffer; their neighbours stay."""
    whole = torch.cat(make(39, dtype)[1]).abs()  # Adam's mean of squares is not negative
    before, parts = whole.clone(), [whole[39 * k + 1 : 39 * k + 38] for k in range(4)]
    copies = [part.clone() for part in parts]
    w, grad, buffer, _ = copies
    sgd_step_(w, grad, buffer, **SGD)
    sgd_step_(*parts[:3], **SGD)
    adam_step_(*copies, torch.zeros(()), **ADAM)
    adam_step_(*parts, torch.zeros(()), **ADAM)
    for k, copy in enumerate(copies):
        assert torch.equal(parts[k], copy)
        before[39 * k + 1 : 39 * k + 38] = copy
    assert torch.equal(whole, before)


def test_sgd_allocates_the_norm_alone():
    w, (grad, buffer) = make(1 << 16, steps=2)
    with torch.profiler.profile(profile_memory=True) as profile:
        norm = sgd_step_(w, grad, buffer, **SGD)
    allocated = sum(max(event.self_cpu_memory_usage, 0) for event in profile.events())
    assert norm.nbytes <= allocated <= 64  # at least one line


@pytest.mark.parametrize("size", [0, 5])
def test_opcheck(size):
    w, (grad, buffer, square, _) = make(size)
    torch.library.opcheck(OPS.sgd_step_.default, (w, grad, buffer, 0.1, 0.9, 0.1, 0.5))
    torch.library.opcheck(OPS.sgd_step_.default, (w, grad, None, 0.1, 0.0, 0.1, 0.5))
    rate = torch.tensor(0.1).double()
    torch.library.opcheck(OPS.sgd_step_.default, (w, grad, buffer, 0.0, 0.9, 0.1, 0.5, rate))
    arguments = (w, grad, buffer, square.abs(), torch.tensor(3.0), 0.1, 0.9, 0.999, 1e-8, 0.1)
    torch.library.opcheck(OPS.adam_step_.default, arguments)


X = torch.ones(3)
LIKE = "must be like w, (3,) of float32 on cpu; got"
SGD_MISTAKES = {
    "w must be float32 or float64, got float16": {"w": X.half()},
    "w must be contiguous; call contiguous() on it": {"w": torch.ones(6)[::2]},
    "grad must be contiguous; call contiguous() on it": {"grad": torch.ones(6)[::2]},
    f"grad {LIKE} (4,) of float32 on cpu": {"grad": torch.ones(4)},
    f"grad {LIKE} (3,) of float64 on cpu": {"grad": X.double()},
    f"grad {LIKE} (3,) of float32 on meta": {"grad": X.to("meta")},
    f"buffer {LIKE} () of float32 on cpu": {"buffer": torch.ones(())},
    "buffer must be a tensor, got int": {"buffer": 0},
    "momentum 0.9 needs a buffer, got None": {"buffer": None},
    "learning_rate must be a finite number >= 0, got -1": {"learning_rate": -1},
    "learning_rate must be () of float64 on cpu; got () of float32 on cpu": {
        "learning_rate": torch.tensor(0.1)
    },
    "learning_rate must be () of float64 on cpu; got (1,) of float64 on cpu": {
        "learning_rate": torch.tensor([0.1]).double()
    },
    "momentum must be a finite number >= 0, got nan": {"momentum": float("nan")},
    "weight_decay must be a finite number >= 0, got None": {"weight_decay": None},
    "clip must be a finite number > 0, got 0.0": {"clip": 0.0},
    "clip must be a finite number > 0, got nan": {"clip": float("nan")},
}
ADAM_MISTAKES = {
    "alpha must be float32 or float64, got int64": {"alpha": X.long()},
    "exp_avg must be contiguous; call contiguous() on it": {"exp_avg": torch.ones(6)[::2]},
    f"grad {LIKE} (1,) of float32 on cpu".replace("w,", "alpha,"): {"grad": X[:1]},
    f"exp_avg_sq {LIKE} (3,) of float64 on cpu".replace("w,", "alpha,"): {"exp_avg_sq": X.double()},
    "step must be () of float32 on cpu; got () of int64 on cpu": {"step": torch.tensor(0)},
    "step must be a tensor, got int": {"step": 0},
    "beta2 must be a finite number >= 0, got -0.5": {"betas": (0.5, -0.5)},
    "betas must be less than 1, got (0.5, 1)": {"betas": (0.5, 1)},
    "eps must be a finite number >= 0, got inf": {"eps": float("inf")},
}


@pytest.mark.parametrize("sentence", SGD_MISTAKES)
def test_mistakes_of_sgd_are_told_in_one_sentence(sentence):
    w, buffer = X.clone(), X.clone()
    with pytest.raises(FastnasError) as caught:
        sgd_step_(**({"w": w, "grad": X, "buffer": buffer} | SGD | SGD_MISTAKES[sentence]))
    assert str(caught.value) == f"sgd_step_: {sentence}"
    assert torch.equal(torch.stack([w, buffer]), torch.ones(2, 3))


@pytest.mark.parametrize("sentence", ADAM_MISTAKES)
def test_mistakes_of_adam_are_told_in_one_sentence(sentence):
    tensors = {name: X.clone() for name in ("alpha", "grad", "exp_avg", "exp_avg_sq")}
    tensors["step"] = torch.ones(())
    with pytest.raises(FastnasError) as caught:
        adam_step_(**(tensors | ADAM | ADAM_MISTAKES[sentence]))
    assert str(caught.value) == f"adam_step_: {sentence}"
    assert all(torch.equal(tensor, torch.ones_like(tensor)) for tensor in tensors.values())


def test_overlaps_are_refused():
    buffer = torch.ones(40)
    with pytest.raises(FastnasError, match="sgd_step_: w and grad must not overlap in memory"):
        sgd_step_(buffer[:3], buffer[1:4], torch.ones(3), **SGD)
    with pytest.raises(FastnasError, match="sgd_step_: buffer and w must not overlap in memory"):
        sgd_step_(buffer[:3], torch.ones(3), buffer[:3], **SGD)
    with pytest.raises(FastnasError, match="adam_step_: exp_avg_sq and exp_avg must not overlap in memory"):
        adam_step_(torch.ones(3), torch.ones(3), buffer[:3], buffer[:3], torch.zeros(()), **ADAM)
    assert torch.equal(buffer, torch.ones(40))


def test_devices_without_a_kernel_are_checked_too():
    meta = X.to("meta")
    assert sgd_step_(meta, meta, meta, **SGD).shape == ()
    assert adam_step_(meta, meta, meta, meta, torch.zeros((), device="meta"), **ADAM) is meta
    with pytest.raises(FastnasError, match=r"sgd_step_: grad must be like w, \(3,\) of float32 on meta; got"):
        sgd_step_(meta, meta[:1], meta, **SGD)
    with pytest.raises(FastnasError, match=r"sgd_step_: momentum 0\.9 needs a buffer, got None"):
        sgd_step_(meta, meta, None, **SGD)
    with pytest.raises(FastnasError, match=r"adam_step_: step must be \(\) of float32 on meta; got"):
        adam_step_(meta, meta, meta, meta, torch.zeros((1,), device="meta"), **ADAM)
