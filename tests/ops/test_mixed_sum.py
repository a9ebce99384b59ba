import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastnas.errors import FastnasError
from fastnas.ops import mixed_sum
from fastnas.ops.mixed_sum import _mixed_sum_ref
from tests.ops.accuracy import Exact, assert_as_accurate, wide
from tests.ops.settings import runs_with_threads

OPS = torch.ops.fastnas
# branch dtype and weight dtype
DTYPES = [
    (torch.float32, torch.float32),
    (torch.float64, torch.float64),
    (torch.bfloat16, torch.bfloat16),
    (torch.bfloat16, torch.float32),
]


def make(shape, branch_count, dtype=torch.float32, weights_dtype=None, seed=0):
    """``(weights, branches, grad)`` of normal random numbers."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*size):
        return torch.randn(size, generator=generator, dtype=torch.float64)

    weights = normal(branch_count).to(weights_dtype or dtype)
    branches = [normal(*shape).to(dtype) for _ in range(branch_count)]
    return weights, branches, normal(*shape).to(dtype)


def value_and_grads(function, weights, branches, grad):
    """``[out, d weights, *d branches]`` of ``function``."""
    leaves = [tensor.detach().requires_grad_() for tensor in (weights, *branches)]
    out = function(leaves[0], leaves[1:])
    return [out.detach(), *torch.autograd.grad(out, leaves, grad.to(out.dtype))]


def exact_value_and_grads(weights, branches, grad):
    """The same by the formulas, in longdouble."""
    w, x, g = wide(weights), np.stack([wide(branch) for branch in branches]), wide(grad)
    every = tuple(range(1, x.ndim))
    out = Exact(w.reshape(-1, *[1] * g.ndim) * x, axis=0)
    weights_grad = Exact(g * x, axis=every)
    return [out, weights_grad, *(Exact(np.asarray(w_k * g), axis=()) for w_k in w)]


def check_accuracy(weights, branches, grad):
    plain_weights = weights.to(branches[0].dtype)  # plain PyTorch would promote the product to float32
    ours = value_and_grads(mixed_sum, weights, branches, grad)
    plain = value_and_grads(_mixed_sum_ref, plain_weights, branches, grad)
    exact = exact_value_and_grads(weights, branches, grad)
    plain[1] = plain[1].to(weights.dtype)
    for mine, theirs, truth in zip(ours, plain, exact, strict=True):
        assert_as_accurate(mine, theirs, truth)


@pytest.mark.every_cpu_level
@pytest.mark.parametrize(("dtype", "weights_dtype"), DTYPES)
@pytest.mark.parametrize("size", [1, 7, 129, 151, 1134, 16384 + 2048 + 13])
def test_accuracy_odd_sizes(poisoned, size, dtype, weights_dtype):
    check_accuracy(*make((size,), 5, dtype, weights_dtype))


@pytest.mark.every_cpu_level
@pytest.mark.parametrize(("dtype", "weights_dtype"), DTYPES)
@pytest.mark.parametrize("branch_count", [1, 2, 4, 8, 40, 300])
def test_accuracy_branch_counts(poisoned, branch_count, dtype, weights_dtype):
    check_accuracy(*make((3, 5, 11), branch_count, dtype, weights_dtype))


@pytest.mark.every_cpu_level
@pytest.mark.parametrize(("dtype", "branch_count"), [(torch.float32, 9), (torch.bfloat16, 17)])
def test_accuracy_of_large_outputs(poisoned, dtype, branch_count):
    """More than 16 MiB of gradients, which are written past the caches."""
    check_accuracy(*make(((1 << 19) + 13,), branch_count, dtype))


@pytest.mark.every_cpu_level
@given(
    shape=st.lists(st.integers(0, 9), min_size=0, max_size=5),
    branch_count=st.integers(1, 9),
    dtypes=st.sampled_from(DTYPES),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=40, deadline=None)
def test_accuracy_random_shapes(shape, branch_count, dtypes, seed):
    check_accuracy(*make(shape, branch_count, *dtypes, seed=seed))


@pytest.mark.parametrize("shape", [(0,), (3, 0, 2)])
def test_empty(shape):
    out, weights_grad, *branch_grads = value_and_grads(mixed_sum, *make(shape, 3))
    assert out.shape == shape
    assert torch.equal(weights_grad, torch.zeros(3))
    assert [grad.shape for grad in branch_grads] == [torch.Size(shape)] * 3


def test_special_values():
    weights = torch.tensor([1.0, 1.0])
    values = torch.tensor([float("nan"), float("inf"), -float("inf"), 3.4e38, 1.0])
    for dtype in (torch.float32, torch.bfloat16):
        out = mixed_sum(weights.to(dtype), [values.to(dtype), torch.zeros(5, dtype=dtype)])
        torch.testing.assert_close(out, values.to(dtype), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("offset", [0x7FFF, 0x8000, 0x8001])
def test_bfloat16_rounds_to_nearest_even(offset):
    """Halfway between every two bfloat16 and one float32 ulp to either side, as torch itself rounds."""
    base = torch.arange(-(2**15), 2**15, dtype=torch.int32) << 16
    values = [(base + part).view(torch.float32) for part in (0, offset & ~0xFF, offset)]
    normal = values[2].isfinite() & (values[2].abs() > 2.0**-100)
    values = [value[normal] for value in values]
    # Three bfloat16 whose float32 sum is exact.
    branches = [values[0], values[1] - values[0], values[2] - values[1]]
    assert all(torch.equal(branch.bfloat16().float(), branch) for branch in branches)
    out = mixed_sum(torch.ones(3), [branch.bfloat16() for branch in branches])
    assert torch.equal(out, values[2].bfloat16())


LAYOUTS = {
    "sliced": lambda x: x.repeat_interleave(2, dim=3)[..., ::2],
    "offset": lambda x: torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape),  # unaligned
    "transposed": lambda x: x.transpose(1, 3).contiguous().transpose(1, 3),
    "channels_last": lambda x: x.to(memory_format=torch.channels_last),
    "expanded": lambda x: x[:1].expand(x.shape),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("mixed", [False, True])
def test_layouts(layout, mixed):
    weights, branches, grad = make((3, 5, 7, 9), 4)
    changed = [LAYOUTS[layout](x) if k > 0 or not mixed else x for k, x in enumerate(branches)]
    for some_grad in (grad, LAYOUTS[layout](grad), torch.ones(()).expand(grad.shape)):
        ours = value_and_grads(mixed_sum, weights, changed, some_grad)
        same = value_and_grads(mixed_sum, weights, [x.contiguous() for x in changed], some_grad.contiguous())
        exact = exact_value_and_grads(weights, changed, some_grad)
        for mine, contiguous, truth in zip(ours, same, exact, strict=True):
            assert_as_accurate(mine, contiguous, truth)


def test_dense_layout_is_kept_without_copies():
    weights, branches, grad = make((3, 5, 7, 9), 4)
    for layout in ("channels_last", "transposed"):
        changed = [LAYOUTS[layout](x) for x in branches]
        with torch.profiler.profile(profile_memory=True) as profile:
            out = mixed_sum(weights, changed)
        assert out.stride() == changed[0].stride()
        assert not [event for event in profile.events() if "copy" in event.name or "clone" in event.name]
        gradients = value_and_grads(mixed_sum, weights, changed, grad)[2:]
        assert all(gradient.stride() == changed[0].stride() for gradient in gradients)


def test_non_contiguous_weights():
    weights, branches, grad = make((4, 5), 3)
    spaced = torch.stack([weights, -weights], dim=1)[:, 0]
    for ours, theirs in zip(
        value_and_grads(mixed_sum, spaced, branches, grad),
        value_and_grads(mixed_sum, weights, branches, grad),
        strict=True,
    ):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(("dtype", "weights_dtype"), DTYPES)
def test_same_bits_for_any_number_of_threads(dtype, weights_dtype):
    arguments = make((300_007,), 6, dtype, weights_dtype)
    runs = runs_with_threads(lambda: value_and_grads(mixed_sum, *arguments))
    for run in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(run, runs[0], strict=True))


def test_inputs_are_left_alone():
    weights, branches, grad = make((129,), 3)
    copies = [tensor.clone() for tensor in (weights, *branches, grad)]
    value_and_grads(mixed_sum, weights, branches, grad)
    assert all(torch.equal(a, b) for a, b in zip(copies, (weights, *branches, grad), strict=True))


def test_branches_may_be_a_generator_and_repeat_a_tensor():
    weights, branches, _ = make((5,), 2)
    assert torch.equal(mixed_sum(weights, (x for x in branches)), mixed_sum(weights, branches))
    x = branches[0].requires_grad_()
    (gradient,) = torch.autograd.grad(mixed_sum(weights, [x, x]).sum(), x)
    torch.testing.assert_close(gradient, weights.sum().expand(5))


def double_arguments(branch_count=3):
    weights, branches, _ = make((2, 5), branch_count, torch.float64)
    return [tensor.requires_grad_() for tensor in (weights, *branches)]


def flat(weights, *branches):
    return mixed_sum(weights, branches)


@pytest.mark.parametrize("branch_count", [1, 5])
def test_gradcheck(branch_count):
    assert torch.autograd.gradcheck(flat, double_arguments(branch_count))


@pytest.mark.parametrize("frozen", [(), (0,), (1, 2, 3), (2,)])
def test_gradgradcheck(frozen):
    arguments = double_arguments()
    for k in frozen:
        arguments[k].requires_grad_(False)
    assert torch.autograd.gradgradcheck(flat, arguments)


def test_third_derivative():
    weights, x = double_arguments(1)
    out = (mixed_sum(weights, [x]) ** 3).sum()  # w^3 sum x^3
    (first,) = torch.autograd.grad(out, weights, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), weights, create_graph=True)
    (third,) = torch.autograd.grad(second.sum(), weights)
    torch.testing.assert_close(third, (6 * (x**3).sum()).reshape(1))


@pytest.mark.parametrize("needed", [[True, False, False], [False, True, True], [False, False, True]])
def test_only_needed_gradients_are_written(needed):
    weights, branches, grad = make((1000,), 2)
    leaves = [tensor.requires_grad_(need) for tensor, need in zip((weights, *branches), needed, strict=True)]
    out = mixed_sum(leaves[0], leaves[1:])
    with torch.profiler.profile(profile_memory=True) as profile:
        out.backward(grad)
    written = sum(max(event.self_cpu_memory_usage, 0) for event in profile.events() if "empty" in event.name)
    # new_empty of the weights' gradient takes at least one 64-byte line
    expected = sum(need * branch.nbytes for need, branch in zip(needed[1:], branches, strict=True))
    assert expected <= written <= expected + 64
    assert [leaf.grad is not None for leaf in leaves] == needed
    full = value_and_grads(mixed_sum, weights, branches, grad)[1:]
    for leaf, gradient in zip(leaves, full, strict=True):
        assert leaf.grad is None or torch.equal(leaf.grad, gradient)


def saved_bytes(leaves):
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.nbytes) or t, lambda t: t):
        mixed_sum(leaves[0], leaves[1:])
    return sum(saved)


def test_saves_its_inputs_and_no_more():
    weights, branches, _ = make((64, 7), 3)
    inputs = weights.nbytes + sum(x.nbytes for x in branches)
    assert saved_bytes([weights.requires_grad_(), *(x.requires_grad_() for x in branches)]) == inputs
    assert saved_bytes([weights.detach(), *branches]) == weights.nbytes
    assert saved_bytes([weights, *(x.detach() for x in branches)]) == inputs


def test_forward_allocates_the_output_alone():
    weights, branches, _ = make((1 << 16,), 8)
    with torch.profiler.profile(profile_memory=True) as profile:
        out = mixed_sum(weights, branches)
    allocated = sum(max(event.self_cpu_memory_usage, 0) for event in profile.events())
    assert allocated == out.nbytes


@pytest.mark.parametrize("shape", [(5, 7), (0,), (2, 3, 4, 5)])
def test_opcheck(shape):
    weights, branches, grad = make(shape, 3)
    torch.library.opcheck(OPS.mixed_sum.default, (weights, branches))
    for given_branches in (branches, []):
        for wanted in ([0, 2], []):
            arguments = (grad, weights, given_branches, wanted)
            torch.library.opcheck(OPS.mixed_sum_backward.default, arguments)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_opcheck_layouts(layout):
    weights, branches, grad = make((3, 5, 7, 9), 3)
    changed = [LAYOUTS[layout](x) for x in branches]
    for given_branches in (changed, [branches[0], *changed[1:]]):
        torch.library.opcheck(OPS.mixed_sum.default, (weights, given_branches))
        torch.library.opcheck(OPS.mixed_sum_backward.default, (grad, weights, given_branches, [1]))
    torch.library.opcheck(OPS.mixed_sum_backward.default, (LAYOUTS[layout](grad), weights, [], [1]))


def test_under_compile():
    weights, branches, grad = make((8, 9), 3)
    compiled = torch.compile(mixed_sum, fullgraph=True, backend="aot_eager")
    for ours, theirs in zip(
        value_and_grads(compiled, weights, branches, grad),
        value_and_grads(mixed_sum, weights, branches, grad),
        strict=True,
    ):
        assert torch.equal(ours, theirs)


X = [torch.ones(2, 3) for _ in range(8)]
W = torch.ones(8)
MISTAKES = [
    (W, [], "mixed_sum: at least one branch is needed, got none"),
    (W[:2], X, "mixed_sum: weights must have shape (K,), K = 8, got (2,)"),
    (W.view(4, 2), X, "mixed_sum: weights must have shape (K,), K = 8, got (4, 2)"),
    (
        W,
        [*X[:7], torch.ones(3, 2)],
        "mixed_sum: branches must share one shape, branch 0 has (2, 3) and branch 7 has (3, 2)",
    ),
    (
        W,
        [*X[:7], X[7].double()],
        "mixed_sum: branches must share one dtype, branch 0 is float32 and branch 7 is float64",
    ),
    (W.double(), X, "mixed_sum: weights must be float32 for float32 branches, got float64"),
    (
        W.double(),
        [x.bfloat16() for x in X],
        "mixed_sum: weights must be bfloat16 or float32 for bfloat16 branches, got float64",
    ),
    (
        W,
        [x.half() for x in X],
        "mixed_sum: branches must be float32, float64 or bfloat16 on the CPU, got float16",
    ),
    (
        W,
        [x.long() for x in X],
        "mixed_sum: branches must be float32, float64 or bfloat16 on the CPU, got int64",
    ),
    (W.to("meta"), X, "mixed_sum: weights and branches must be on one device"),
    ([1.0], X[:1], "mixed_sum: weights must be tensors, got list"),
    (W[:2], [X[0], 3.0], "mixed_sum: branches must be tensors, got float"),
]


@pytest.mark.parametrize(("weights", "branches", "sentence"), MISTAKES)
def test_mistakes_are_told_in_one_sentence(weights, branches, sentence):
    with pytest.raises(FastnasError) as caught:
        mixed_sum(weights, branches)
    assert str(caught.value) == sentence


def test_backward_op_checks_its_arguments():
    with pytest.raises(ValueError, match=r"grad must have the branches' shape \(2, 3\), dtype and device"):
        OPS.mixed_sum_backward(torch.ones(3), W, X, [0])
    for wanted in ([8], [-1], [1, 1], [2, 1]):
        with pytest.raises(ValueError, match="wanted must name branches from 0 to 7 in increasing order"):
            OPS.mixed_sum_backward(X[0], W, X, wanted)
