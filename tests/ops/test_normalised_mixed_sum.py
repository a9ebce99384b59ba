import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from fastnas.ops import normalised_mixed_sum
from fastnas.ops.normalised_mixed_sum import _normalised_mixed_sum_ref
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
)
from tests.ops.settings import runs_with_threads

DTYPES = [torch.float32, torch.float64]
EPS = 1e-5


def make(shape, branch_count, dtype=torch.float32, seed=0):
    """``(weights, branches, grad)``; branches differ in mean and scale."""
    random = Random(seed, dtype)
    branches = [random.images(*shape) * (k + 1) + k for k in range(branch_count)]
    return random(branch_count), branches, random.images(*shape)


def value_and_grads(function, weights, branches, grad, **options):
    """``[out, d weights, *d branches]``, and the statistics."""
    leaves = [tensor.detach().requires_grad_() for tensor in (weights, *branches)]
    out, statistics = function(leaves[0], leaves[1:], **options)
    return [out.detach(), *torch.autograd.grad(out, leaves, grad)], statistics


def spreads(weights, branches, grad, statistics, eps):
    """What rounding errors of each result are proportional to (``Known.spread``)."""
    mean, variance = (row[:, :, None, None] for row in statistics.unbind(1))
    rstd = (variance + eps).rsqrt()
    terms = [
        # The factors of x are rounded, so its mean counts, too.
        (w * r * (x.abs() + m.abs())) ** 2
        for w, x, m, r in zip(weights, branches, mean, rstd, strict=True)
    ]
    products = torch.stack([(grad * (x - m) * r) ** 2 for x, m, r in zip(branches, mean, rstd, strict=True)])
    sums = products.sum((1, 2, 3, 4))
    grads = [
        ((w * r) ** 2 * (grad**2 + ((x.abs() + m.abs()) * r) ** 2 * p.mean((0, 2, 3))[:, None, None])).sqrt()
        for w, x, m, r, p in zip(weights, branches, mean, rstd, products, strict=True)
    ]
    return [sum(terms).sqrt(), sums.sqrt(), *grads]


def check_accuracy(weights, branches, grad, **options):
    ours, statistics = value_and_grads(normalised_mixed_sum, weights, branches, grad, **options)
    plain, _ = value_and_grads(_normalised_mixed_sum_ref, weights, branches, grad, **options)
    options = {
        key: value.double() if isinstance(value, torch.Tensor) else value for key, value in options.items()
    }
    wide = [weights.double(), [x.double() for x in branches], grad.double()]
    exact, exact_statistics = value_and_grads(_normalised_mixed_sum_ref, *wide, **options)
    spread = spreads(*wide, exact_statistics, options.get("eps", EPS))
    for mine, theirs, truth, scatter in zip(ours, plain, exact, spread, strict=True):
        assert_agrees(mine, theirs, truth, scatter)
    if "statistics" not in options:
        assert_statistics_are_exact(statistics, branches)


@pytest.mark.every_cpu_level
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("branch_count", [1, 4, 7])
@pytest.mark.parametrize("shape", SHAPES)
def test_accuracy(poisoned, shape, branch_count, dtype):
    check_accuracy(*make(shape, branch_count, dtype))


@pytest.mark.every_cpu_level
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("branch_count", [2, 40])
def test_accuracy_of_many_chunks(poisoned, branch_count, dtype):
    check_accuracy(*make((7, 19, 21, 20), branch_count, dtype))


@pytest.mark.every_cpu_level
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 70), st.integers(1, 9), st.integers(1, 9)),
    branch_count=st.integers(1, 9),
    dtype=st.sampled_from(DTYPES),
    eps=st.sampled_from([1e-5, 1e-2, 1.0]),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=40, deadline=None)
def test_accuracy_random_shapes(shape, branch_count, dtype, eps, seed):
    check_accuracy(*make(shape, branch_count, dtype, seed), eps=eps)


def some_statistics(branch_count, channels, dtype, seed=5):
    statistics = Random(seed, dtype)(branch_count, 2, channels)
    statistics[:, 1] = statistics[:, 1].abs() + 0.1
    return statistics


@pytest.mark.every_cpu_level
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(2, 5, 1, 1), (3, 17, 6, 5)])
def test_accuracy_in_evaluation(poisoned, shape, dtype):
    """Given statistics are constants."""
    arguments = make(shape, 5, dtype)
    statistics = some_statistics(5, shape[1], dtype)
    check_accuracy(*arguments, statistics=statistics)
    check_accuracy(*arguments, statistics=statistics, training=False)
    _, same = normalised_mixed_sum(*arguments[:2], statistics=statistics)
    assert torch.equal(same, statistics)


@pytest.mark.parametrize("dtype", DTYPES)
def test_known_batch_statistics_are_not_computed_again(dtype):
    weights, branches, grad = make((3, 17, 6, 5), 4, dtype)
    full, statistics = value_and_grads(normalised_mixed_sum, weights, branches, grad)
    again, same = value_and_grads(
        normalised_mixed_sum, weights, branches, grad, statistics=statistics, training=True
    )
    assert torch.equal(statistics, same)
    assert not statistics.requires_grad
    assert all(torch.equal(a, b) for a, b in zip(full, again, strict=True))
    wrong = some_statistics(4, 17, dtype)  # whatever is given is used
    other, _ = value_and_grads(normalised_mixed_sum, weights, branches, grad, statistics=wrong, training=True)
    assert not torch.equal(other[0], full[0])


@pytest.mark.every_cpu_level
@pytest.mark.parametrize("mean", [1e4, -1e4])
def test_accuracy_far_from_zero(mean):
    """A mean 10,000 times the deviation: the statistics are exact, the rest as accurate as alpha x + beta can be."""
    weights, branches, grad = make((17, 5, 9, 8), 3)
    branches = [x / (k + 1) + mean for k, x in enumerate(branches)]
    check_accuracy(weights, branches, grad)
    assert_statistics_are_exact(normalised_mixed_sum(weights, branches)[1], branches)


def rectified_value_and_grads(function, weights, branches, affine, grad, **options):
    """``[out, d weights, *d branches, *d affine]``; ``affine`` may have None."""
    parts = [part for part in affine if part is not None]
    leaves = [tensor.detach().requires_grad_() for tensor in (weights, *branches, *parts)]
    w, xs, rest = leaves[0], leaves[1 : 1 + len(branches)], iter(leaves[1 + len(branches) :])
    own = [None if part is None else next(rest) for part in affine]
    out, _ = function(w, xs, affine=own, **options)
    return [out.detach(), *torch.autograd.grad(out, leaves, grad)]


def make_rectified(shape, count, dtype, seed=0):
    """Branches of which every third is plain; no value lies so close to its ReLU's switch that rounding decides."""
    weights, branches, grad = make(shape, count, dtype, seed)
    random = Random(seed + 1, dtype)
    affine = [None if k % 3 == 2 else random(2, shape[1]) for k in range(count)]
    for x, part in zip(branches, affine, strict=True):
        for _ in range(100 if part is not None else 0):  # each move shifts the statistics
            z = F.batch_norm(x.double(), None, None, *part.double(), training=True)
            if not (close := z.abs() < 1e-4).any():
                break
            x += 0.05 * close
        else:
            assert part is None
    return weights, branches, affine, grad


@pytest.mark.every_cpu_level
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(2, 3, 5, 7), (3, 16, 8, 8), (1, 33, 4, 6), (3, 5, 21, 20)])
@pytest.mark.parametrize("count", [1, 5])
@pytest.mark.parametrize("training", [None, False])
def test_accuracy_of_rectified_branches(poisoned, shape, count, dtype, training):
    weights, branches, affine, grad = make_rectified(shape, count, dtype)
    options = {}
    if training is False:
        rows = [torch.stack([x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)]) for x in branches]
        options = {"statistics": torch.stack(rows), "training": False}
    ours, plain = (
        rectified_value_and_grads(function, weights, branches, affine, grad, **options)
        for function in (normalised_mixed_sum, _normalised_mixed_sum_ref)
    )
    wide = [
        weights.double(),
        [x.double() for x in branches],
        [p if p is None else p.double() for p in affine],
    ]
    options = {key: value.double() if key == "statistics" else value for key, value in options.items()}
    exact = rectified_value_and_grads(_normalised_mixed_sum_ref, *wide, grad.double(), **options)
    for mine, theirs, truth in zip(ours, plain, exact, strict=True):
        assert_agrees(mine, theirs, truth, truth.abs())


def test_rectified_branches_are_batch_norm_and_relu():
    weights, branches, affine, _ = make_rectified((5, 6, 4, 3), 3, torch.float32)
    expected = 0
    for w, x, part in zip(weights, branches, affine, strict=True):
        y = F.batch_norm(x, None, None, *(part if part is not None else (None, None)), training=True)
        expected = expected + w * (y if part is None else y.relu())
    torch.testing.assert_close(normalised_mixed_sum(weights, branches, affine=affine)[0], expected)


def test_gradcheck_of_rectified_branches():
    weights, branches, affine, _ = make_rectified((3, 2, 2, 3), 3, torch.float64)
    leaves = [t.requires_grad_() for t in (weights, *branches, affine[0], affine[1])]

    def flat(weights, *rest):
        return normalised_mixed_sum(weights, rest[:3], affine=[*rest[3:], None])[0]

    assert torch.autograd.gradcheck(flat, leaves)


def test_rectified_same_bits_for_any_number_of_threads():
    weights, branches, affine, grad = make_rectified((9, 24, 31, 30), 4, torch.float32)
    first, *others = runs_with_threads(
        lambda: rectified_value_and_grads(normalised_mixed_sum, weights, branches, affine, grad)
    )
    for other in others:
        assert all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_a_nan_is_not_rectified_away():
    branches = [torch.full((2, 3, 2, 2), torch.nan)]
    statistics = torch.ones(1, 2, 3)
    out, _ = normalised_mixed_sum(torch.ones(1), branches, affine=[torch.ones(2, 3)], statistics=statistics)
    assert out.isnan().all()


def test_is_batch_norm():
    weights, branches, _ = make((5, 6, 4, 3), 3)
    expected = sum(
        w * F.batch_norm(x, None, None, training=True) for w, x in zip(weights, branches, strict=True)
    )
    torch.testing.assert_close(normalised_mixed_sum(weights, branches)[0], expected)


@pytest.mark.parametrize("shape", EMPTY)
def test_empty(poisoned, shape):
    weights, branches, grad = make(shape, 3)
    (out, weights_grad, *grads), statistics = value_and_grads(normalised_mixed_sum, weights, branches, grad)
    assert [t.shape for t in (out, *grads)] == [shape] * 4
    assert torch.equal(weights_grad, torch.zeros(3))
    assert torch.equal(statistics, torch.zeros(3, 2, shape[1]))


def assert_same(a, b):
    assert all(torch.equal(x, y) for x, y in zip((*a[0], a[1]), (*b[0], b[1]), strict=True))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout):
    """Branches and gradients as they come give what channels-last ones give, to the bit."""
    weights, branches, grad = make((3, 5, 7, 9), 4)
    changed = [LAYOUTS[layout](x) if k != 1 else x for k, x in enumerate(branches)]
    for some_grad in (LAYOUTS[layout](grad), torch.ones(()).expand(grad.shape)):
        plain = [x.clone(memory_format=torch.channels_last) for x in (*changed, some_grad)]
        spaced = torch.stack([weights, -weights], dim=1)[:, 0]
        assert_same(
            value_and_grads(normalised_mixed_sum, spaced, changed, some_grad),
            value_and_grads(normalised_mixed_sum, weights, plain[:-1], plain[-1]),
        )


@pytest.mark.parametrize("dtype", DTYPES)
def test_same_bits_for_any_number_of_threads(dtype):
    arguments = make((9, 24, 31, 30), 6, dtype)
    first, *others = runs_with_threads(lambda: value_and_grads(normalised_mixed_sum, *arguments))
    for other in others:
        assert_same(other, first)


def test_inputs_are_left_alone():
    weights, branches, grad = make((3, 5, 7, 9), 3)
    statistics = some_statistics(3, 5, torch.float32)
    given_tensors = (weights, *branches, grad, statistics)
    copies = [tensor.clone() for tensor in given_tensors]
    for training in (True, False):
        value_and_grads(
            normalised_mixed_sum, weights, branches, grad, statistics=statistics, training=training
        )
    assert all(torch.equal(a, b) for a, b in zip(copies, given_tensors, strict=True))


def test_branches_may_be_a_generator_and_repeat_a_tensor():
    weights, branches, grad = make((3, 5, 2, 2), 2)
    ours = normalised_mixed_sum(weights, (x for x in branches))[0]
    assert torch.equal(ours, normalised_mixed_sum(weights, branches)[0])
    x = branches[0].requires_grad_()
    (twice,) = torch.autograd.grad(normalised_mixed_sum(weights, [x, x])[0], x, grad)
    (once,) = torch.autograd.grad(normalised_mixed_sum(weights.sum()[None], [x])[0], x, grad)
    torch.testing.assert_close(twice, once)


@pytest.mark.parametrize("training", [None, False])
def test_gradcheck(training):
    weights, branches, _ = make((3, 2, 2, 3), 3, torch.float64)
    statistics = None if training is None else some_statistics(3, 2, torch.float64)
    leaves = [tensor.requires_grad_() for tensor in (weights, *branches)]

    def flat(weights, *branches):
        return normalised_mixed_sum(weights, branches, statistics=statistics, training=training)[0]

    assert torch.autograd.gradcheck(flat, leaves)


@pytest.mark.parametrize("needed", [[True, False, False], [False, True, True], [False, False, True]])
def test_only_needed_gradients(needed):
    weights, branches, grad = make((3, 5, 4, 4), 2)
    leaves = [tensor.requires_grad_(need) for tensor, need in zip((weights, *branches), needed, strict=True)]
    normalised_mixed_sum(leaves[0], leaves[1:])[0].backward(grad)
    assert [leaf.grad is not None for leaf in leaves] == needed
    full = value_and_grads(normalised_mixed_sum, weights, branches, grad)[0][1:]
    for leaf, gradient in zip(leaves, full, strict=True):
        assert leaf.grad is None or torch.equal(leaf.grad, gradient)


def test_no_second_derivative():
    weights, branches, _ = make((3, 2, 3, 3), 2)
    out, _ = normalised_mixed_sum(weights.requires_grad_(), branches)
    (gradient,) = torch.autograd.grad(out.square().sum(), weights, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_saves_its_inputs_and_no_more():
    weights, branches, _ = make((3, 5, 7, 9), 3)
    saved, statistics = [], some_statistics(3, 5, torch.float32)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.nbytes) or t, lambda t: t):
        normalised_mixed_sum(weights.requires_grad_(), branches, statistics=statistics)
    assert sum(saved) == sum(t.nbytes for t in (weights, statistics, *branches))


def test_forward_allocates_the_output_alone():
    weights, branches, _ = make((3, 5, 7, 9), 3)
    branches = [in_slice(x) for x in branches]  # a slice is read where it lies
    statistics = some_statistics(3, 5, torch.float32)
    (out, _), taken = allocated(lambda: normalised_mixed_sum(weights, branches, statistics=statistics))
    assert taken == out.nbytes
    assert out.is_contiguous(memory_format=torch.channels_last)


def test_under_compile():
    arguments = make((3, 5, 4, 4), 3)
    compiled = torch.compile(normalised_mixed_sum, fullgraph=True, backend="aot_eager")
    ours, plain = (value_and_grads(function, *arguments)[0] for function in (compiled, normalised_mixed_sum))
    for mine, theirs in zip(ours, plain, strict=True):
        torch.testing.assert_close(mine, theirs)


X = last(torch.ones(2, 3, 4, 4))
W, S = torch.ones(2), torch.ones(2, 2, 3)


@pytest.mark.parametrize(
    ("weights", "branches", "options", "sentence"),
    [
        (W, [], {}, "at least one branch is needed, got none"),
        (W, [X, X[:1]], {}, "branches[1] must have shape (2, 3, 4, 4), got (1, 3, 4, 4)"),
        (W, [X, X.double()], {}, "branches[1] must be float32 on cpu as branches[0] is, got float64 on cpu"),
        (
            W,
            [X, X.to("meta")],
            {},
            "branches[1] must be float32 on cpu as branches[0] is, got float32 on meta",
        ),
        (W, [X.to("meta")] * 2, {}, "branches[0] must be on the CPU or on CUDA, got meta"),
        (W, [X.half()] * 2, {}, "branches[0] must be float32 or float64 on the CPU, got float16"),
        (W, [X[0]] * 2, {}, "branches[0] must have shape (B, C, H, W), got (3, 4, 4)"),
        (W, [1.0, X], {}, "branches[0] must be a tensor, got float"),
        (W, [X, 1.0], {}, "branches[1] must be a tensor, got float"),
        (W, [X], {}, "weights must have shape (1,), got (2,)"),
        (W.double(), [X, X], {}, "weights must be float32 on cpu as branches[0] is, got float64 on cpu"),
        ([1.0, 1.0], [X, X], {}, "weights must be a tensor, got list"),
        (W, [X, X], {"eps": -1.0}, "eps must be a finite number >= 0, got -1.0"),
        (W, [X, X], {"eps": "1"}, "eps must be a finite number >= 0, got '1'"),
        (W, [X, X], {"training": False}, "training=False needs statistics to normalise with, got none"),
        (W, [X, X], {"statistics": S[:1]}, "statistics must have shape (2, 2, 3), got (1, 2, 3)"),
        (
            W,
            [X, X],
            {"affine": [None]},
            "affine must have one entry a branch, 2, got 1; None: it is not rectified",
        ),
        (W, [X, X], {"affine": [None, W]}, "affine[1] must have shape (2, 3), got (2,)"),
        (
            W,
            [X, X],
            {"statistics": S.double()},
            "statistics must be float32 on cpu as branches[0] is, got float64 on cpu",
        ),
    ],
)
def test_mistakes_are_told_in_one_sentence(weights, branches, options, sentence):
    assert_refused(f"normalised_mixed_sum: {sentence}", normalised_mixed_sum, weights, branches, **options)
