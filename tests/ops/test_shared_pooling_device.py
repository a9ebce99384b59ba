"""Shared pooling's CUDA kernels and binding, run on the CPU through tests/cuda_on_host."""

import sys

import numpy as np
import pytest
import torch

from fastnas.ops import normalised_mixed_sum, shared_pooling
from fastnas.ops.shared_pooling import _shared_pooling_ref
from tests.cuda_on_host.library import on_host
from tests.ops.images import Random, assert_statistics_are_exact, in_slice, last
from tests.ops.test_shared_pooling import Edges

OPS = torch.ops.fastnas
DTYPES = [torch.float32, torch.bfloat16]
NONE = -1
# (B, C, H, W): packs of 4 and 8 channels and none, one pixel, tiles that do and do not divide the image
SHAPES = [
    (1, 1, 1, 1),
    (2, 4, 1, 1),
    (1, 3, 5, 7),
    (2, 16, 8, 8),
    (2, 20, 9, 5),
    (1, 8, 1, 9),
    (1, 4, 9, 1),
    (1, 40, 17, 35),
    (1, 8, 3, 70),
    (1, 520, 2, 2),
]


def make(shape, dtype, sliced=False, seed=0):
    x = last(Random(seed).images(*shape).to(dtype))
    return in_slice(x) if sliced else x


def forward(ops, x, stride, average=(0,), maximum=(1,)):
    """``[average, maximum]``, each in memory that was poisoned, and the statistics."""
    statistics = torch.full((3, 2, x.shape[1]), torch.nan)
    pooled = ops.shared_pooling(
        x, stride, average is not None, maximum is not None, average or [], maximum or [], statistics
    )
    return pooled, statistics


def assert_rounded(ours, exact, scale):
    """``exact`` rounded once to the dtype of ``ours``, but for a few ulp of float32 of ``scale``."""
    allowed = torch.finfo(ours.dtype).eps / 2 * exact.abs() + 8 * torch.finfo(torch.float32).eps * scale
    assert ((ours.double() - exact).abs() <= allowed).all()


def check_forward(x, stride):
    (average, maximum), statistics = forward(on_host(), x, stride)
    (exact, most), _ = _shared_pooling_ref(x.double(), stride)
    spread = _shared_pooling_ref(x.double().abs(), stride)[0][0]
    assert_rounded(average, exact, spread)
    assert torch.equal(maximum.double(), most)  # a maximum is one of the numbers
    # Of the numbers that are stored, to the digits of float32.
    assert_statistics_are_exact(statistics[:2], [average.float(), maximum.float()])
    assert statistics[2].isnan().all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("stride", [1, 2, 3, 50])
@pytest.mark.parametrize("sliced", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_forward(poisoned, shape, sliced, stride, dtype):
    check_forward(make(shape, dtype, sliced), stride)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "stride"), [((270, 8, 5, 3), 1), ((265, 3, 7, 2), 1), ((265, 4, 9, 1), 2)])
def test_strips(poisoned, shape, stride, dtype):
    """So many images that a thread takes several outputs, of which an image's last strip has fewer."""
    check_forward(make(shape, dtype), stride)


@pytest.mark.parametrize("mean", [-1e4, 3e6])
@pytest.mark.parametrize("channels", [3, 8])
def test_statistics_far_from_zero(mean, channels):
    x = last(make((270, channels, 5, 5), torch.float32) + mean)
    pooled, statistics = forward(on_host(), x, 1)
    assert_statistics_are_exact(statistics[:2], pooled)


def test_statistics_beside_an_outlier():
    """The number that the others' distances are taken to is far from them all."""
    x = make((2, 4, 16, 16), torch.float32)
    x[0, :, 0, 0] = 1e3
    pooled, statistics = forward(on_host(), x, 1)
    for (mean, variance), out in zip(statistics[:2], pooled, strict=True):
        exact = out.double().numpy()
        np.testing.assert_allclose(mean, exact.mean((0, 2, 3)), rtol=1e-5)
        np.testing.assert_allclose(variance, exact.var((0, 2, 3)), rtol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", [5, 16])
def test_what_is_not_wanted_is_not_written(poisoned, dtype, channels):
    x = make((2, channels, 9, 6), dtype)
    both, known = forward(on_host(), x, 1)
    (average,), statistics = forward(on_host(), x, 1, average=(2, 0), maximum=None)
    assert torch.equal(average, both[0])
    assert torch.equal(statistics[[0, 2]], known[[0, 0]])
    assert statistics[1].isnan().all()
    (maximum,), statistics = forward(on_host(), x, 1, average=None, maximum=())
    assert torch.equal(maximum, both[1])
    assert statistics.isnan().all()
    _, statistics = forward(on_host(), x, 1, average=(), maximum=(1,))
    assert torch.equal(statistics[1], known[1])
    assert statistics[[0, 2]].isnan().all()
    assert forward(on_host(), x, 1, average=None, maximum=None)[0] == []


@pytest.mark.parametrize("count", [250, 450])
def test_more_norms_than_one_launch_takes(count):
    """200 of both poolings together."""
    x = make((1, 4, 3, 3), torch.float32)
    statistics = torch.full((2 * count, 2, 4), torch.nan)
    on_host().shared_pooling(x, 1, True, True, list(range(count)), list(range(count, 2 * count)), statistics)
    _, known = forward(on_host(), x, 1)
    assert torch.equal(statistics[:count], known[:1].expand(count, 2, 4))
    assert torch.equal(statistics[count:], known[1:2].expand(count, 2, 4))


@pytest.mark.parametrize("dtype", DTYPES)
def test_infinite_and_not_a_number(dtype):
    for value in (torch.nan, torch.inf, -torch.inf):
        x = make((1, 8, 6, 7), dtype)
        x[0, 2, 2, 3] = x[0, 3, 0, 0] = value
        x[0, 5] = -torch.inf
        for ours, plain in zip(forward(on_host(), x, 1)[0], forward(OPS, x.float(), 1)[0], strict=True):
            assert torch.equal(ours.isnan(), plain.isnan())
            assert torch.equal(ours.isposinf(), plain.isposinf())
            assert torch.equal(ours.isneginf(), plain.isneginf())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(0, 8, 3, 3), (2, 5, 0, 4)])
def test_empty(shape, dtype):
    pooled, statistics = forward(on_host(), make(shape, dtype), 1)
    assert [tuple(out.shape) for out in pooled] == [shape, shape]
    assert statistics.isnan().all()


# ---------------------------------------------------------------------------- backward


def backward(ops, x, stride, edges, before, statistics, coefficients, weights, wanted=(True, True)):
    """``before`` and what it gets; ``edges`` are pairs of a gradient and a row of the table."""
    pooled, _ = forward(ops, x, stride, (), ())
    given = [[out] if wish else [] for out, wish in zip(pooled, wanted, strict=True)]
    x_grad = before.clone() if before.stride() == last(before).stride() else in_slice(before)
    table = [number for _, row in edges for number in row]
    grads = [grad for grad, _ in edges]
    ops.shared_pooling_backward(x, stride, *given, grads, table, statistics, coefficients, weights, x_grad)
    return x_grad


ROWS = [
    (0, NONE, 1, NONE, 0),
    (NONE, 0, NONE, 1, NONE),
    (2, 1, NONE, NONE, 2),
    (NONE, NONE, 3, 2, NONE),
    (NONE, NONE, NONE, NONE, 1),
]


def make_backward(shape, stride, dtype, sliced=False, rows=ROWS, seed=1):
    random, (count, channels, *size) = Random(seed), shape
    place = in_slice if sliced else last
    out = (count, channels, *(-(-side // stride) for side in size))
    edges = [
        (
            place(random.images(*out).to(dtype)),
            (*row[:4], row[4] if stride == 1 else NONE),
        )
        for row in rows
    ]
    norms = max((norm for row in rows for norm in (row[0], row[2])), default=0) + 1
    before = place(random.images(*shape).to(dtype))
    return edges, before, random(norms, 2, channels), random(norms, 3, channels), random(8)


def expected(x, stride, edges, before, statistics, coefficients, weights, pooled):
    """The gradient in float64 from the same numbers, and the sum of its terms' sizes."""
    x = x.double().requires_grad_()
    total, sizes = before.double(), before.double().abs()
    outs, _ = _shared_pooling_ref(x, stride)
    grads, grad_sizes = ([torch.zeros_like(out) for out in outs] for _ in range(2))
    for grad, row in edges:
        grad = grad.double()
        for kind in (0, 1):
            norm, weight = row[2 * kind : 2 * kind + 2]
            if norm != NONE:
                a, b, c = coefficients[norm].double().view(3, 1, -1, 1, 1)
                mean = statistics[norm, 0].double().view(-1, 1, 1)
                terms = [a * grad, a * b * (pooled[kind].double() - mean), a * c]
            elif weight != NONE:
                terms = [weights[weight].double() * grad]
            else:
                continue
            grads[kind] += sum(terms)
            grad_sizes[kind] += sum(term.abs() for term in terms)
        if row[4] != NONE:
            total = total + weights[row[4]].double() * grad
            sizes = sizes + (weights[row[4]].double() * grad).abs()
    exact = total + torch.autograd.grad(outs, x, grads, retain_graph=True)[0]
    return exact, sizes + torch.autograd.grad(outs, x, grad_sizes)[0]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("stride", [1, 2, 3, 50])
@pytest.mark.parametrize("sliced", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_backward(shape, sliced, stride, dtype):
    x, terms = make(shape, dtype, sliced), make_backward(shape, stride, dtype, sliced)
    ours = backward(on_host(), x, stride, *terms)
    assert_rounded(ours, *expected(x, stride, *terms, forward(on_host(), x, stride)[0]))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", [5, 16])
@pytest.mark.parametrize("rows", [[], ROWS[1:2], ROWS[3:4], ROWS[4:], ROWS[1:3], [(NONE,) * 5], ROWS[:4] * 5])
def test_backward_of_some_edges(rows, channels, dtype):
    """None, each kind alone, and more than the 16 that one launch takes, of which bfloat16 rounds each."""
    x = make((2, channels, 9, 11), dtype)
    terms = make_backward(x.shape, 1, dtype, rows=rows)
    wanted = [any(row[at] != NONE or row[at + 1] != NONE for row in rows) for at in (0, 2)]
    ours = backward(on_host(), x, 1, *terms, wanted)
    exact, scale = expected(x, 1, *terms, forward(on_host(), x, 1)[0])
    if len(rows) > 16 and dtype == torch.bfloat16:
        assert ((ours.double() - exact).abs() <= torch.finfo(dtype).eps * scale).all()
    else:
        assert_rounded(ours, exact, scale)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("stride", [1, 2])
def test_the_first_of_equal_maxima_gets_the_gradient(stride, dtype):
    x = make((3, 8, 9, 7), dtype)
    rows = [(NONE, NONE, NONE, 0, NONE)]
    for equal in (x.round(), torch.zeros_like(x), -torch.ones_like(x), torch.full_like(x, -torch.inf)):
        terms = make_backward(x.shape, stride, dtype, rows=rows)
        ours = backward(on_host(), equal, stride, *terms)
        given = [(grad.float(), row) for grad, row in terms[0]]
        theirs = backward(OPS, equal.float(), stride, given, terms[1].float(), *terms[2:])
        assert_rounded(ours, theirs.double(), 8 * terms[1].double().abs().max())


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_gradient_of_a_maximum_that_is_not_a_number_goes_nowhere(dtype):
    x = make((1, 8, 5, 5), dtype)
    x[0, 3, 2, 2] = torch.nan
    terms = make_backward(x.shape, 1, dtype, rows=[(NONE, NONE, NONE, 0, NONE)])
    ours = backward(on_host(), x, 1, *terms)
    given = [(grad.float(), row) for grad, row in terms[0]]
    theirs = backward(OPS, x.float(), 1, given, terms[1].float(), *terms[2:])
    assert_rounded(ours, theirs.double(), 8 * terms[1].double().abs().max())


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("wanted", [(True, True), (True, False), (False, True), (False, False)])
def test_agrees_with_the_cpu(stride, wanted):
    edges = Edges(torch.float32, stride, *wanted)
    results = []
    for ops in (OPS, on_host()):
        x_grad = in_slice(edges.before)
        ops.shared_pooling_backward(*edges.arguments(x_grad))
        results.append(x_grad)
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_same_bits_in_every_run(dtype):
    x, terms = make((5, 16, 16, 16), dtype), make_backward((5, 16, 16, 16), 1, dtype)
    one, other = ([*forward(on_host(), x, 1)[0], forward(on_host(), x, 1)[1][:2]] for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert torch.equal(backward(on_host(), x, 1, *terms), backward(on_host(), x, 1, *terms))


@pytest.mark.parametrize("dtype", DTYPES)
def test_aligned_and_not_are_one_computation(dtype):
    shape = (2, 16, 9, 11)
    results = []
    for sliced in (False, True):
        x = make(shape, dtype, sliced)
        results.append(
            [*forward(on_host(), x, 1)[0], backward(on_host(), x, 1, *make_backward(shape, 1, dtype))]
        )
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


def test_neighbours_are_left_alone():
    """What lies between the slices of channels keeps its bits."""
    x, terms = make((2, 5, 6, 7), torch.float32), make_backward((2, 5, 6, 7), 1, torch.float32, sliced=True)
    ours = backward(on_host(), x, 1, *terms)
    whole = ours._base if ours._base is not None else ours
    assert whole.shape[1] == 10
    assert whole[:, :3].isnan().all()
    assert whole[:, 8:].isnan().all()


def test_refuses_what_kernels_do_not_know():
    x = make((1, 4, 2, 2), torch.float32)
    with pytest.raises(ValueError, match=r"x must be float32 or bfloat16 on CUDA, got float64"):
        forward(on_host(), x.double(), 1)
    with pytest.raises(
        ValueError, match=r"statistics must be contiguous, .* float32 on cpu; got .* bfloat16"
    ):
        on_host().shared_pooling(x.bfloat16(), 1, True, False, [], [], torch.ones(1, 2, 4).bfloat16())


# ---------------------------------------------------------------------------- the functions


def pooled_sum(x, weights, grad):
    """Both functions that these ops are for, in a row: their results and gradients."""
    x, weights = x.detach().requires_grad_(), weights.detach().requires_grad_()
    pooled, statistics = shared_pooling(x, 2)
    out, _ = normalised_mixed_sum(weights, pooled, statistics=statistics, training=True)
    grads = torch.autograd.grad(out, (x, weights), grad)
    return [*(t.detach() for t in (*pooled, statistics, out)), *grads]


def pooled_sum_arguments(channels):
    """On the CPU, in float32 that bfloat16 has too."""
    random = Random(3)
    x, grad = (last(random.images(8, channels, *size).bfloat16().float()) for size in ((9, 8), (5, 4)))
    return x, random(2), grad


def assert_pooled_sum(ours, arguments):
    """As on the CPU; in bfloat16 but for the rounding of what is stored, each a few times on its way."""
    exact = pooled_sum(*(t.double() for t in arguments))
    for mine, truth in zip(ours, exact, strict=True):
        eps = torch.finfo(ours[0].dtype).eps
        assert (mine.cpu().double() - truth).norm() <= 2 * eps * truth.norm()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", [5, 16])
def test_functions(monkeypatch, channels, dtype):
    """What CUDA tensors would get from the functions, dtypes of all numbers included."""
    arguments = pooled_sum_arguments(channels)
    x, weights, grad = arguments
    for name in ("shared_pooling", "normalised_mixed_sum"):
        module = sys.modules[f"fastnas.ops.{name}"]
        monkeypatch.setattr(module, "OPS", on_host())
        monkeypatch.setattr(module, "check_images", lambda op, name, x: x)
    ours = pooled_sum(x.to(dtype), weights, grad.to(dtype))
    monkeypatch.undo()
    numbers = torch.float32
    assert [t.dtype for t in ours] == [dtype, dtype, numbers, dtype, dtype, numbers]
    assert_pooled_sum(ours, arguments)
