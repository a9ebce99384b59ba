import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastnas.ops import shared_pooling
from fastnas.ops.shared_pooling import _shared_pooling_ref
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
)
from tests.ops.settings import NOT_COMPILED, runs_with_threads

OPS = torch.ops.fastnas
DTYPES = [torch.float32, torch.float64]
NONE = -1


def make(shape, stride=1, dtype=torch.float32, seed=0):
    """``(x, [gradient of the average, of the maximum])``."""
    random = Random(seed, dtype)
    count, channels, *size = shape
    pooled = (count, channels, *(-(-side // stride) for side in size))
    return random.images(*shape), [random.images(*pooled), random.images(*pooled)]


def value_and_grad(function, x, grads, stride=1):
    """``[average, maximum, d x]``, and the statistics."""
    x = x.detach().requires_grad_()
    pooled, statistics = function(x, stride)
    return [*(out.detach() for out in pooled), *torch.autograd.grad(pooled, x, grads)], statistics


def check_accuracy(x, grads, stride):
    ours, statistics = value_and_grad(shared_pooling, x, grads, stride)
    plain, _ = value_and_grad(_shared_pooling_ref, x, grads, stride)
    exact, _ = value_and_grad(_shared_pooling_ref, x.double(), [grad.double() for grad in grads], stride)
    squares = [grad.double().square() for grad in grads]
    spread, _ = value_and_grad(_shared_pooling_ref, x.double().abs(), squares, stride)
    for mine, theirs, truth, scatter in zip(ours, plain, exact, spread, strict=True):
        assert_agrees(mine, theirs, truth, scatter.sqrt())
    assert torch.equal(ours[1].double(), exact[1])  # a maximum is one of the numbers
    assert_statistics_are_exact(statistics, ours[:2])


@pytest.mark.every_cpu_level
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("shape", SHAPES)
def test_accuracy(poisoned, shape, stride, dtype):
    check_accuracy(*make(shape, stride, dtype), stride)


@pytest.mark.every_cpu_level
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 19), st.integers(1, 9), st.integers(1, 9)),
    stride=st.integers(1, 4),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=40, deadline=None)
def test_accuracy_random_shapes(shape, stride, dtype, seed):
    check_accuracy(*make(shape, stride, dtype, seed), stride)


@pytest.mark.every_cpu_level
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mean", [0.0, 1e4, -1e4])
def test_accuracy_of_statistics_far_from_zero(mean, dtype):
    x, _ = make((17, 5, 16, 16), dtype=dtype)
    pooled, statistics = shared_pooling(x + mean)
    assert_statistics_are_exact(statistics, pooled)


@pytest.mark.parametrize("stride", [1, 2])
def test_the_first_of_equal_maxima_gets_the_gradient(stride):
    x, grads = make((3, 5, 8, 7), stride)
    for equal in (x.round(), torch.zeros_like(x), -torch.ones_like(x)):
        ours, _ = value_and_grad(shared_pooling, equal, grads, stride)
        plain, _ = value_and_grad(_shared_pooling_ref, equal, grads, stride)
        torch.testing.assert_close(ours, plain, rtol=0, atol=4e-6)


def test_infinite_values():
    x = torch.full((1, 5, 4, 4), -torch.inf)
    (average, maximum), _ = shared_pooling(x)
    assert torch.equal(average, x)
    assert torch.equal(maximum, x)
    x[0, 2, 1, 1] = torch.inf
    (_, maximum), _ = shared_pooling(x)
    assert torch.equal(maximum, _shared_pooling_ref(x)[0][1])


def test_not_a_number():
    x = torch.randn(1, 5, 6, 6)
    x[0, 2, 2, 3] = torch.nan
    for ours, plain in zip(shared_pooling(x)[0], _shared_pooling_ref(x)[0], strict=True):
        assert torch.equal(ours.isnan(), plain.isnan())


@pytest.mark.parametrize("shape", EMPTY)
def test_empty(poisoned, shape):
    x = torch.randn(shape, requires_grad=True)
    pooled, statistics = shared_pooling(x)
    assert [out.shape for out in pooled] == [shape, shape]
    assert torch.equal(statistics, torch.zeros(2, 2, shape[1]))
    assert torch.autograd.grad(pooled, x, [torch.ones(shape)] * 2)[0].shape == shape


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout):
    """Images and gradients as they come give what channels-last ones give, to the bit."""
    x, grads = make((3, 5, 7, 9))
    x, grads = LAYOUTS[layout](x), [LAYOUTS[layout](grad) for grad in grads]
    ours = value_and_grad(shared_pooling, x, grads)
    plain = [t.clone(memory_format=torch.channels_last) for t in (x, *grads)]
    same = value_and_grad(shared_pooling, plain[0], plain[1:])
    assert all(torch.equal(a, b) for a, b in zip((*ours[0], ours[1]), (*same[0], same[1]), strict=True))


def test_forward_allocates_its_outputs_alone():
    x, _ = make((3, 8, 7, 9))
    for given_x in (x, in_slice(x)):  # a slice is read where it lies
        ((average, maximum), statistics), taken = allocated(lambda x=given_x: shared_pooling(x))
        assert taken == average.nbytes + maximum.nbytes + statistics.nbytes


def test_saves_its_input_and_the_maximum():
    x, saved = make((3, 8, 7, 9))[0].requires_grad_(), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.nbytes) or t, lambda t: t):
        (_, maximum), _ = shared_pooling(x, 2)
    assert sum(saved) == x.nbytes + maximum.nbytes


def test_only_one_output_used():
    x, (average_grad, maximum_grad) = make((3, 8, 7, 9))
    zero = torch.zeros_like(average_grad)
    for kind, grads in ((0, [average_grad, zero]), (1, [zero, maximum_grad])):
        leaf = x.clone().requires_grad_()
        pooled, statistics = shared_pooling(leaf)
        assert not statistics.requires_grad
        (gradient,) = torch.autograd.grad(pooled[kind], leaf, grads[kind])
        assert torch.equal(gradient, value_and_grad(shared_pooling, x, grads)[0][2])


@pytest.mark.parametrize("dtype", DTYPES)
def test_same_bits_for_any_number_of_threads(dtype):
    x, grads = make((17, 24, 9, 8), dtype=dtype)
    first, *others = runs_with_threads(lambda: value_and_grad(shared_pooling, x, grads))
    for other in others:
        assert all(
            torch.equal(a, b) for a, b in zip((*other[0], other[1]), (*first[0], first[1]), strict=True)
        )


def test_inputs_are_left_alone():
    x, grads = make((3, 5, 7, 9))
    copies = [tensor.clone() for tensor in (x, *grads)]
    value_and_grad(shared_pooling, x, grads)
    assert all(torch.equal(a, b) for a, b in zip(copies, (x, *grads), strict=True))


@pytest.mark.parametrize("stride", [1, 2])
def test_gradcheck(stride):
    x = Random(dtype=torch.float64).images(2, 3, 4, 5).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: tuple(shared_pooling(x, stride)[0]), x)


def test_no_second_derivative():
    x = torch.randn(1, 2, 3, 3, requires_grad=True)
    (_, maximum), _ = shared_pooling(x)
    (gradient,) = torch.autograd.grad(maximum.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


class Edges:
    """Arguments of ``shared_pooling_backward`` in which every column of the table occurs, and their meaning."""

    WEIGHTS, NORMS = 4, 3
    ROWS = ((0, NONE, NONE, NONE, NONE), (NONE, 0, 1, NONE, NONE), (2, 1, NONE, 2, NONE), (NONE,) * 4 + (3,))

    def __init__(self, dtype, stride=1, average=True, maximum=True):
        random = Random(1, dtype)
        self.stride = stride
        self.x, (first, second) = make((3, 17, 7, 6), stride, dtype)
        self.grads = [first, in_slice(second), in_slice(random.images(*first.shape)), first]
        self.coefficients, self.weights = random(self.NORMS, 3, 17), random(self.WEIGHTS)
        self.statistics = random(self.NORMS, 2, 17)
        rows = [list(row) for row in self.ROWS]
        for row in rows:
            row[:2] = row[:2] if average else [NONE] * 2
            row[2:4] = row[2:4] if maximum else [NONE] * 2
            row[4] = row[4] if stride == 1 else NONE
        self.rows = rows
        pooled = OPS.shared_pooling(self.x, stride, True, True, [], [], self.x.new_empty(0, 2, 17))
        self.pooled = [in_slice(out) for out in pooled]
        self.before = random.images(3, 17, 7, 6)
        self.wanted = average, maximum

    def arguments(self, x_grad):
        given = [[out] if wanted else [] for out, wanted in zip(self.pooled, self.wanted, strict=True)]
        table = [number for row in self.rows for number in row]
        return (
            self.x,
            self.stride,
            *given,
            self.grads,
            table,
            self.statistics,
            self.coefficients,
            self.weights,
            x_grad,
        )

    def expected(self, dtype):
        """The gradient in plain PyTorch."""
        x = self.x.to(dtype).requires_grad_()
        pooled, _ = _shared_pooling_ref(x, self.stride)
        total, weights = self.before.to(dtype), self.weights.to(dtype)
        pooled_grads = [torch.zeros_like(out) for out in pooled]
        for grad, row in zip(self.grads, self.rows, strict=True):
            grad = grad.to(dtype)
            for kind in (0, 1):
                norm, weight = row[2 * kind : 2 * kind + 2]
                if norm != NONE:  # a norm's coefficients contain the weight
                    a, b, c = self.coefficients[norm].to(dtype).view(3, 1, -1, 1, 1)
                    mean = self.statistics[norm, 0].to(dtype).view(-1, 1, 1)
                    pooled_grads[kind] += a * (grad + b * (pooled[kind].detach() - mean) + c)
                elif weight != NONE:
                    pooled_grads[kind] += weights[weight] * grad
            if row[4] != NONE:
                total = total + weights[row[4]] * grad
        return total + torch.autograd.grad(pooled, x, pooled_grads)[0]


@pytest.mark.every_cpu_level
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("wanted", [(True, True), (True, False), (False, True), (False, False)])
@pytest.mark.parametrize("stride", [1, 2])
def test_accuracy_of_the_raw_backward(poisoned, dtype, stride, wanted):
    """Edges with and without norms, skip-connections, slices; added to what is there."""
    edges = Edges(dtype, stride, *wanted)
    for x_grad in (edges.before.clone(memory_format=torch.channels_last), in_slice(edges.before)):
        OPS.shared_pooling_backward(*edges.arguments(x_grad))
        exact = edges.expected(torch.float64)
        assert_agrees(x_grad, edges.expected(dtype), exact, exact.abs())


def test_what_is_not_wanted_is_not_computed():
    x, _ = make((2, 5, 4, 4))
    statistics = torch.full((3, 2, 5), torch.nan)
    both, known = shared_pooling(x)
    (average,) = OPS.shared_pooling(x, 1, True, False, [2, 0], [], statistics)
    assert torch.equal(average, both[0])
    assert torch.equal(statistics[[0, 2]], known[[0, 0]])
    assert statistics[1].isnan().all()
    (maximum,) = OPS.shared_pooling(x, 1, False, True, [], [], statistics)
    assert torch.equal(maximum, both[1])
    assert OPS.shared_pooling(x, 1, False, False, [], [], statistics) == []


def test_opcheck():
    x, _ = make((2, 5, 7, 4))
    for given_x in (x, in_slice(x)):
        statistics = torch.zeros(2, 2, 5)
        for arguments in ((2, True, True, [0], [1]), (1, False, True, [], [])):
            opcheck = torch.library.opcheck
            opcheck(OPS.shared_pooling.default, (given_x, *arguments, statistics), test_utils=NOT_COMPILED)
    edges = Edges(torch.float32)
    torch.library.opcheck(OPS.shared_pooling_backward.default, edges.arguments(edges.before))


X = torch.ones(2, 3, 4, 4).contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("x", "stride", "sentence"),
    [
        (X[0], 1, "shared_pooling: x must have shape (B, C, H, W), got (3, 4, 4)"),
        (X.half(), 1, "shared_pooling: x must be float32 or float64 on the CPU, got float16"),
        (X.to("meta"), 1, "shared_pooling: x must be on the CPU or on CUDA, got meta"),
        ([X], 1, "shared_pooling: x must be a tensor, got list"),
        (X, 0, "shared_pooling: stride must be a whole number >= 1, got 0"),
        (X, 1.0, "shared_pooling: stride must be a whole number >= 1, got 1.0"),
        (X, True, "shared_pooling: stride must be a whole number >= 1, got True"),
    ],
)
def test_mistakes_are_told_in_one_sentence(x, stride, sentence):
    assert_refused(sentence, shared_pooling, x, stride)


S = torch.ones(2, 2, 3)


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"x": X.half()}, "x must be float32 or float64 on the CPU, got float16"),
        ({"x": X[0]}, r"x must have shape \(N, C, H, W\), got \(3, 4, 4\)"),
        ({"x": X.contiguous()}, "x must be in channels_last memory"),
        ({"stride": 0}, "stride must be positive, got 0"),
        ({"statistics": S[0]}, r"statistics must have shape \(norms, 2, channels\), got \(2, 3\)"),
        ({"statistics": S[..., :2]}, "statistics must be contiguous"),
        (
            {"statistics": S.double()},
            "statistics must be contiguous, .*, float32 on cpu; got .* float64 on cpu",
        ),
        ({"average_norms": [2]}, "norm 2 of 3 channels among 2 of 3"),
        ({"maximum_norms": [-1]}, "norm -1 of 3 channels among 2 of 3"),
        ({"maximum_norms": [1], "statistics": torch.ones(1, 2, 4)}, "norm 0 of 3 channels among 1 of 4"),
        ({"maximum_norms": [0]}, "norm 0 is given twice"),
        ({"average": False}, "norms are given for a pooling that is not wanted"),
        ({"maximum": False}, "norms are given for a pooling that is not wanted"),
    ],
)
def test_raw_op_checks_its_arguments(changed, sentence):
    arguments = dict(
        x=X, stride=1, average=True, maximum=True, average_norms=[0], maximum_norms=[1], statistics=S
    )
    with pytest.raises(ValueError, match=f"shared_pooling: {sentence}"):
        OPS.shared_pooling(**(arguments | changed))


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"table": [0] * 4}, "the table must hold 5 numbers an edge, got 4 for 1 edges"),
        ({"coefficients": S}, r"coefficients must have shape \(norms, 3, channels\), got \(2, 2, 3\)"),
        ({"weights": torch.ones(1, 1)}, "weights must be contiguous"),
        ({"weights": torch.ones(1).double()}, "weights must be contiguous"),
        ({"average": [X[:, :2]]}, r"average must have shape \(2, 3, 4, 4\), got \(2, 2, 4, 4\)"),
        ({"maximum": [X.double()]}, "maximum must be float32 on cpu, got float64 on cpu"),
        ({"x_grad": X[:1]}, r"x_grad must have shape \(2, 3, 4, 4\), got \(1, 3, 4, 4\)"),
        ({"x_grad": X.contiguous()}, "x_grad must be in channels_last memory"),
        ({"grads": [X[..., :3]]}, "grads must be in channels_last memory"),
        ({"stride": 2, "average": [], "maximum": []}, r"grads must have shape \(2, 3, 2, 2\)"),
        ({"table": [NONE, 1, NONE, 0, 0]}, "weight 1 of 1"),
        ({"table": [2, 0, NONE, 0, 0]}, "norm 2 of 3 channels among 2 of 3"),
        ({"average": []}, "an edge has a pooling whose output is not given"),
        ({"maximum": []}, "an edge has a pooling whose output is not given"),
        (
            {"average": [], "table": [0, NONE, NONE, NONE, 0]},
            "an edge has a pooling whose output is not given",
        ),
    ],
)
def test_raw_backward_checks_its_arguments(changed, sentence):
    arguments = dict(
        x=X,
        stride=1,
        average=[X],
        maximum=[X],
        grads=[X],
        table=[0, 0, 1, 0, 0],
        statistics=torch.zeros(2, 2, 3),
        coefficients=torch.ones(2, 3, 3),
        weights=torch.ones(1),
        x_grad=X.clone(memory_format=torch.channels_last),
    )
    with pytest.raises(ValueError, match=f"shared_pooling: {sentence}"):
        OPS.shared_pooling_backward(**(arguments | changed))
    assert torch.equal(arguments["x_grad"], X)


def test_a_skip_connection_has_stride_one():
    pooled = X[:, :, ::2, ::2].contiguous(memory_format=torch.channels_last)
    with pytest.raises(ValueError, match="a skip-connection has stride 1"):
        OPS.shared_pooling_backward(
            X,
            2,
            [],
            [],
            [pooled],
            [NONE] * 4 + [0],
            torch.ones(0, 2, 3),
            torch.ones(0, 3, 3),
            torch.ones(1),
            torch.zeros_like(X),
        )
