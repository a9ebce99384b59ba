from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastnas.ops import normalised_mixed_sum, separable_stage
from fastnas.ops._images import batch_statistics
from fastnas.ops.normalised_mixed_sum import _normalised_mixed_sum_ref
from fastnas.ops.separable_stage import _separable_stage_ref
from tests.ops.accuracy import assert_agrees
from tests.ops.images import (
    EMPTY,
    LAYOUTS,
    SHAPES,
    Random,
    allocated,
    assert_refused,
    assert_statistics_are_exact,
    in_slice,
    last,
    squared,
)
from tests.ops.settings import runs_with_threads

OPS = torch.ops.fastnas
DTYPES = [torch.float32, torch.float64]
# kernel, stride, dilation
ALL = [(kernel, stride, dilation) for kernel in (0, 3, 5, 7) for stride in (1, 2) for dilation in (1, 2)]
SOME = [(3, 1, 1), (0, 2, 1), (5, 2, 2), (7, 1, 1), (0, 1, 1), (3, 1, 2)]


@dataclass
class Case:
    """Arguments of ``separable_stage`` and the gradients of its outputs."""

    x: list[torch.Tensor]  # one, read by all branches, or one for each
    shared: bool
    depthwise: list[torch.Tensor | None]
    pointwise: list[torch.Tensor]
    grads: list[torch.Tensor]
    options: dict[str, Any]

    def tensors(self):
        return [*self.x, *(w for w in self.depthwise if w is not None), *self.pointwise, *self.grads]

    def map(self, function, grads=None):
        """The same with ``function`` of every tensor (``grads`` of the gradients)."""
        options = {k: v.to(function(v).dtype) if torch.is_tensor(v) else v for k, v in self.options.items()}
        return Case(
            [function(x) for x in self.x],
            self.shared,
            [None if w is None else function(w) for w in self.depthwise],
            [function(w) for w in self.pointwise],
            [(grads or function)(g) for g in self.grads],
            options,
        )


def make(shape, kinds, out_channels=None, dtype=torch.float32, seed=0, shared=True, **options):
    """A case with a branch of each of ``kinds``; a normalised x has no value close to its mean, where ReLU switches."""
    random = Random(seed, dtype)
    count, channels, *size = shape
    out_channels = out_channels or channels
    x = [random.images(*shape) for _ in range(1 if shared else len(kinds))]
    if options.get("normalise"):
        x = [state + 0.1 * ((state - state.mean((0, 2, 3), keepdim=True)).abs() < 0.02) for state in x]
    depthwise = [random(channels, 1, k, k) / k if k else None for k, _, _ in kinds]
    pointwise = [random(out_channels, channels, 1, 1) / channels**0.5 for _ in kinds]
    grads = [
        random.images(count, out_channels, *(-(-side // stride) for side in size)) for _, stride, _ in kinds
    ]
    options |= {"stride": [stride for _, stride, _ in kinds], "dilation": [d for _, _, d in kinds]}
    return Case(x, shared, depthwise, pointwise, grads, options)


def value_and_grads(function, case):
    """``[*raws, *d x, *d depthwise, *d pointwise]``, and the statistics."""

    def leaf(tensor):
        return None if tensor is None else tensor.detach().requires_grad_()

    x, depthwise, pointwise = ([leaf(t) for t in group] for group in (case.x, case.depthwise, case.pointwise))
    raws, statistics = function(x[0] if case.shared else x, depthwise, pointwise, **case.options)
    leaves = [t for t in (*x, *depthwise, *pointwise) if t is not None]
    return [*(raw.detach() for raw in raws), *torch.autograd.grad(raws, leaves, case.grads)], statistics


def spreads(case):
    """The root of the sum of the squares of all products that each result is a sum of (``Known.spread``)."""
    eps = case.options.get("eps", 1e-5)
    options = {key: case.options[key] for key in ("stride", "dilation")}
    scale = 1.0
    if case.options.get("normalise"):
        given_rows = case.options.get("statistics")
        rows = [batch_statistics(x) for x in case.x] if given_rows is None else given_rows
        scale = max(float((row[1] + eps).rsqrt().max()) for row in rows)
        mean, variance = (torch.stack([*row])[:, :, None, None] for row in zip(*rows, strict=True))
        x = [(x - m) * (v + eps).rsqrt() for x, m, v in zip(case.x, mean, variance, strict=True)]
        case = replace(case, x=x)
    squares = replace(case.map(squared, torch.square), options=options)
    squares.depthwise = [None if w is None else w.abs() for w in squares.depthwise]
    squares.pointwise = [w.abs() for w in squares.pointwise]
    results, _ = value_and_grads(_separable_stage_ref, squares)
    scales = [
        scale if len(case.grads) <= i < len(case.grads) + len(case.x) else 1.0 for i in range(len(results))
    ]
    return [result.sqrt() * factor for result, factor in zip(results, scales, strict=True)]


def check_accuracy(case):
    wide = case.map(torch.Tensor.double)
    ours, statistics = value_and_grads(separable_stage, case)
    plain, _ = value_and_grads(_separable_stage_ref, case)
    exact, _ = value_and_grads(_separable_stage_ref, wide)
    for mine, theirs, truth, scatter in zip(ours, plain, exact, spreads(wide), strict=True):
        assert_agrees(mine, theirs, truth, scatter)
    assert_statistics_are_exact(statistics, ours[: len(case.grads)])


@pytest.mark.every_cpu_level
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_accuracy(poisoned, shape, dtype):
    """All kernels, strides and dilations in one call."""
    check_accuracy(make(shape, ALL, dtype=dtype))


@pytest.mark.every_cpu_level
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("channels", "out_channels"), [(1, 40), (40, 1), (16, 17), (17, 16), (5, 3)])
def test_accuracy_other_channels(poisoned, channels, out_channels, dtype):
    check_accuracy(make((2, channels, 7, 9), SOME, out_channels, dtype))


@pytest.mark.every_cpu_level
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES[1:-1])
@pytest.mark.parametrize("shared", [True, False])
def test_accuracy_normalised(poisoned, shape, shared, dtype):
    check_accuracy(make(shape, SOME, dtype=dtype, shared=shared, normalise=True))


def some_statistics(states, channels, dtype):
    statistics = Random(5, dtype)(states, 2, channels)
    statistics[:, 1] = statistics[:, 1].abs() + 0.1
    return statistics


@pytest.mark.every_cpu_level
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shared", [True, False])
def test_accuracy_in_evaluation(poisoned, shared, dtype):
    """Given statistics are constants; and fewer channels than x has."""
    rows = some_statistics(1 if shared else len(SOME), 17, dtype)
    case = make((3, 17, 6, 5), SOME, 16, dtype, shared=shared, normalise=True, statistics=rows)
    check_accuracy(case)
    case.options["training"] = False
    check_accuracy(case)


@pytest.mark.every_cpu_level
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 20), st.integers(1, 9), st.integers(1, 9)),
    kinds=st.lists(st.sampled_from(ALL), min_size=1, max_size=4),
    fewer=st.integers(0, 5),
    shared=st.booleans(),
    normalise=st.booleans(),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=40, deadline=None)
def test_accuracy_random_shapes(shape, kinds, fewer, shared, normalise, dtype, seed):
    out_channels = max(1, shape[1] - fewer)
    check_accuracy(make(shape, kinds, out_channels, dtype, seed, shared, normalise=normalise))


@pytest.mark.every_cpu_level
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mean", [1e4, -1e4])
def test_accuracy_of_statistics_far_from_zero(mean, dtype):
    """The variance of outputs whose mean is 10,000 times their deviation."""
    x, w = Random(0, dtype).images(17, 5, 16, 16), torch.eye(5, dtype=dtype)[:, :, None, None]
    raws, statistics = separable_stage(x + abs(mean), [None], [w * mean / abs(mean)])
    assert_statistics_are_exact(statistics, raws)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_whole_mixed_operation(dtype):
    """Two halves of a separable convolution and a dilated one: statistics go from op to op, gradients through them."""
    case = make((5, 8, 6, 7), [(3, 1, 1), (5, 2, 1), (3, 1, 2)], dtype=dtype, seed=1)
    case.options["stride"] = 1
    random = Random(2, dtype)
    second = [random(8, 1, 3, 3), random(8, 1, 5, 5)], [random(8, 8, 1, 1), random(8, 8, 1, 1)]
    weights, grad = random(3), random.images(5, 8, 6, 7)

    def run(stage, mixed, tensors, known):
        """``known``: whether the statistics of one op are given to the next."""
        weights, x, *rest = (t.detach().to(tensors).requires_grad_() for t in (weights_, *case.x, *flat))
        first, (depth2, points2) = (rest[:3], rest[3:6]), (rest[6:8], rest[8:])
        raws, rows = stage(x, *first, dilation=[1, 1, 2])
        given_rows = {"statistics": rows[:2], "training": True} if known else {}
        deep, deep_rows = stage(raws[:2], depth2, points2, normalise=True, **given_rows)
        given_rows = {"statistics": torch.cat([deep_rows, rows[2:]]), "training": True} if known else {}
        out, _ = mixed(weights, [*deep, raws[2]], **given_rows)
        return [out.detach(), *torch.autograd.grad(out, [weights, x, *rest], grad.to(tensors))]

    weights_, flat = weights, [*case.depthwise, *case.pointwise, *second[0], *second[1]]
    exact = run(_separable_stage_ref, _normalised_mixed_sum_ref, torch.float64, False)
    plain = run(_separable_stage_ref, _normalised_mixed_sum_ref, dtype, False)
    for known in (True, False):
        ours = run(separable_stage, normalised_mixed_sum, dtype, known)
        for mine, theirs, truth in zip(ours, plain, exact, strict=True):
            assert_agrees(mine, theirs, truth, truth.abs())


@pytest.mark.parametrize("shape", EMPTY)
@pytest.mark.parametrize("normalise", [False, True])
def test_empty(poisoned, shape, normalise):
    case = make(shape, SOME, normalise=normalise)
    results, statistics = value_and_grads(separable_stage, case)
    assert [t.shape for t in results] == [t.shape for t in (*case.grads, *case.tensors()[: -len(SOME)])]
    assert not any(t.any() for t in results)
    assert torch.equal(statistics, torch.zeros(len(SOME), 2, 5))


def assert_same(a, b):
    assert all(torch.equal(x, y) for x, y in zip((*a[0], a[1]), (*b[0], b[1]), strict=True))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("normalise", [False, True])
def test_layouts(layout, normalise):
    """States and gradients as they come give what channels-last ones give, to the bit."""
    case = make((3, 5, 7, 9), SOME, normalise=normalise)
    case.x, case.grads = ([LAYOUTS[layout](t) for t in group] for group in (case.x, case.grads))
    plain = replace(
        case,
        x=[t.clone(memory_format=torch.channels_last) for t in case.x],
        grads=[t.clone(memory_format=torch.channels_last) for t in case.grads],
    )
    assert_same(value_and_grads(separable_stage, case), value_and_grads(separable_stage, plain))


def test_weights_in_any_layout():
    case = make((3, 5, 7, 9), SOME)
    changed = replace(
        case,
        depthwise=[
            None if w is None else w.transpose(2, 3).contiguous().transpose(2, 3) for w in case.depthwise
        ],
        pointwise=[torch.stack([w, -w], dim=1)[:, 0] for w in case.pointwise],
    )
    assert_same(value_and_grads(separable_stage, case), value_and_grads(separable_stage, changed))


@pytest.mark.parametrize("dtype", DTYPES)
def test_same_bits_for_any_number_of_threads(dtype):
    case = make((19, 24, 9, 8), SOME, dtype=dtype, shared=False, normalise=True)
    first, *others = runs_with_threads(lambda: value_and_grads(separable_stage, case))
    for other in others:
        assert_same(other, first)


@pytest.mark.parametrize("normalise", [False, True])
def test_inputs_are_left_alone(normalise):
    case = make((3, 5, 7, 9), SOME, normalise=normalise)
    if normalise:
        case.options |= {"statistics": some_statistics(1, 5, torch.float32), "training": True}
    given_tensors = [*case.tensors(), *(v for v in case.options.values() if torch.is_tensor(v))]
    copies = [tensor.clone() for tensor in given_tensors]
    value_and_grads(separable_stage, case)
    assert all(torch.equal(a, b) for a, b in zip(copies, given_tensors, strict=True))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"normalise": True},
        {"normalise": True, "statistics": some_statistics(3, 3, torch.float64)},
    ],
)
def test_gradcheck(options):
    kinds = [(3, 2, 1), (0, 1, 1), (3, 1, 2)]
    case = make((2, 3, 3, 4), kinds, 2, torch.float64, shared=False, **options)
    x, depthwise, pointwise = case.x, case.depthwise, case.pointwise

    def flat(x0, x1, x2, d0, d2, p0, p1, p2):
        return tuple(separable_stage([x0, x1, x2], [d0, None, d2], [p0, p1, p2], **case.options)[0])

    leaves = [t.requires_grad_() for t in (*x, depthwise[0], depthwise[2], *pointwise)]
    assert torch.autograd.gradcheck(flat, leaves)


@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("needed", [(True, False), (False, True)])
def test_only_needed_gradients(needed, normalise):
    case = make((3, 5, 4, 4), SOME[:3], normalise=normalise)
    full = value_and_grads(separable_stage, case)[0][3:]
    x = case.x[0].requires_grad_(needed[0])
    w = case.pointwise[1].requires_grad_(needed[1])
    raws, _ = separable_stage(x, case.depthwise, case.pointwise, **case.options)
    torch.autograd.backward(raws, case.grads)
    assert (x.grad is not None, w.grad is not None) == needed
    assert x.grad is None or torch.equal(x.grad, full[0])
    assert w.grad is None or torch.equal(w.grad, full[-2])


def test_only_one_output_used():
    case = make((3, 5, 4, 4), SOME[:3])
    x = case.x[0].requires_grad_()
    raws, statistics = separable_stage(x, case.depthwise, case.pointwise, **case.options)
    assert not statistics.requires_grad
    (gradient,) = torch.autograd.grad(raws[1], x, case.grads[1])
    alone = make((3, 5, 4, 4), SOME[1:2])
    alone.x, alone.pointwise, alone.grads = [x], case.pointwise[1:2], case.grads[1:2]
    assert torch.equal(gradient, value_and_grads(separable_stage, alone)[0][1])


def test_no_second_derivative():
    x = torch.randn(2, 3, 4, 4, requires_grad=True)
    (raw,), _ = separable_stage(x, [None], [torch.ones(2, 3, 1, 1)])
    (gradient,) = torch.autograd.grad(raw.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


@pytest.mark.parametrize("normalise", [False, True])
def test_saves_the_state_and_the_weights_alone(normalise):
    case = make((3, 5, 7, 9), SOME, normalise=normalise)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.nbytes) or t, lambda t: t):
        x = case.x[0].requires_grad_()
        _, rows = separable_stage(x, case.depthwise, case.pointwise, **case.options)
    inputs = sum(t.nbytes for t in case.tensors()) - sum(t.nbytes for t in case.grads)
    assert sum(saved) == inputs + normalise * (rows.nbytes + rows[0].nbytes)


def test_forward_allocates_its_outputs_and_the_weights_side_by_side():
    case = make((3, 8, 7, 9), SOME)
    x = in_slice(case.x[0])  # a slice is read where it lies
    call = [x, case.depthwise, case.pointwise]
    (raws, statistics), taken = allocated(lambda: separable_stage(*call, **case.options))
    weights = sum(t.nbytes for t in (*case.depthwise, *case.pointwise) if t is not None)
    assert taken == sum(t.nbytes for t in (*raws, statistics)) + weights
    assert all(raw.is_contiguous(memory_format=torch.channels_last) for raw in raws)


X, P, D = last(torch.ones(2, 3, 4, 4)), torch.ones(4, 3, 1, 1), torch.ones(3, 1, 3, 3)
S, NORMED = torch.ones(1, 2, 3), {"normalise": True}
ENTRIES = "depthwise and pointwise must have one entry for each branch and at least one"


@pytest.mark.parametrize(
    ("x", "depthwise", "pointwise", "options", "sentence"),
    [
        (X, [], [], {}, f"{ENTRIES}, got 0 and 0"),
        (X, [D], [P, P], {}, f"{ENTRIES}, got 1 and 2"),
        ([X], [D, D], [P, P], {}, "x must be one state or 2, one for each branch, got 1"),
        ([X, X[:1]], [D, D], [P, P], {}, "x[1] must have shape (2, 3, 4, 4), got (1, 3, 4, 4)"),
        ([X, X.double()], [D, D], [P, P], {}, "x[1] must be float32 on cpu as x[0] is, got float64 on cpu"),
        ([X, 1.0], [D, D], [P, P], {}, "x[1] must be a tensor, got float"),
        (X[0], [D], [P], {}, "x must have shape (B, C, H, W), got (3, 4, 4)"),
        (X.half(), [D], [P], {}, "x must be float32 or float64 on the CPU, got float16"),
        (X.to("meta"), [D], [P], {}, "x must be on the CPU or on CUDA, got meta"),
        (X[:, :0], [D], [P], {}, "pointwise[0] must have shape (C_out, C, 1, 1), C = 0 >= 1, got (4, 3, 1, 1)"),
        (X, [D], [P[0]], {}, "pointwise[0] must have shape (C_out, C, 1, 1), C = 3 >= 1, got (3, 1, 1)"),
        (X, [D], [1.0], {}, "pointwise[0] must have shape (C_out, C, 1, 1), C = 3 >= 1, got float"),
        (X, [D], [P[:, :2]], {}, "pointwise[0] must have shape (4, 3, 1, 1), got (4, 2, 1, 1)"),
        (X, [D, D], [P, P[:3]], {}, "pointwise[1] must have shape (4, 3, 1, 1), got (3, 3, 1, 1)"),
        (X, [D], [P.double()], {}, "pointwise[0] must be float32 on cpu as x is, got float64 on cpu"),
        (X, [D[:2]], [P], {}, "depthwise[0] must have shape (3, 1, 3, 3), got (2, 1, 3, 3)"),
        (X, [None, D[0]], [P, P], {}, "depthwise[1] must have shape (3, 1, 3, 3), got (1, 3, 3)"),
        (X, [D[..., :1]], [P], {}, "the kernel of depthwise[0] must be 3, 5 or 7, got 1"),
        (X, [D.double()], [P], {}, "depthwise[0] must be float32 on cpu as x is, got float64 on cpu"),
        (X, [D], [P], {"stride": 3}, "stride must be 1 or 2, or one of them for each of 1 branches, got 3"),
        (X, [D], [P], {"stride": [1, 2]}, "stride must be 1 or 2, or one of them for each of 1 branches, got [1, 2]"),
        (X, [D], [P], {"dilation": 0}, "dilation must be 1 or 2, or one of them for each of 1 branches, got 0"),
        (X, [D], [P], {"eps": -1}, "eps must be a finite number >= 0, got -1"),
        (X, [D], [P], NORMED, "a normalised x must have as many channels as the outputs, 4, or more; got 3"),
        (X, [D], [P[:3]], {"statistics": S}, "statistics are given, but normalise is False"),
        (X, [D], [P[:3]], NORMED | {"training": False}, "training=False needs statistics to normalise with, got none"),
        (X, [D], [P[:3]], NORMED | {"statistics": S[0]}, "statistics must have shape (1, 2, 3), got (2, 3)"),
    ],
)  # fmt: skip
def test_mistakes_are_told_in_one_sentence(x, depthwise, pointwise, options, sentence):
    assert_refused(f"separable_stage: {sentence}", separable_stage, x, depthwise, pointwise, **options)
