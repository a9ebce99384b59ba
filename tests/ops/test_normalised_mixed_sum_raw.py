"""The raw op ``normalised_mixed_sum``: what its summands' norms and weights can say beyond the function's arguments."""

import pytest
import torch

from fastnas.ops._images import batch_statistics
from fastnas.ops.normalised_mixed_sum import _normalised_mixed_sum_ref
from tests.ops.accuracy import assert_agrees
from tests.ops.images import Random, in_slice, last

OPS = torch.ops.fastnas
DTYPES = [torch.float32, torch.float64]
NONE = -1
EPS = 1e-5

# Of five summands; row 1 of the statistics is not used, nor are weights 2 and 3.
NORMS = [2, NONE, 0, NONE, 3]
INDICES = [4, 1, NONE, NONE, 0]


class Raw:
    """Arguments of the raw ops: summands with and without norm and weight, rows in any order, slices."""

    def __init__(self, dtype=torch.float32, shape=(3, 17, 6, 5)):
        random = Random(0, dtype)
        branches = [random.images(*shape) * (k + 1) + k for k in range(5)]
        self.branches = [in_slice(x) if k % 2 else x for k, x in enumerate(branches)]
        self.grad = in_slice(random.images(*shape))
        self.weights = random(5)
        self.statistics = torch.full((4, 2, shape[1]), torch.nan, dtype=dtype)
        for norm, x in zip(NORMS, branches, strict=True):
            if norm != NONE:
                self.statistics[norm] = batch_statistics(x)
        self.terms = (self.branches, NORMS, self.weights, INDICES, self.statistics, EPS)

    def expected(self, training, dtype):
        """out, d weights and d branches in plain PyTorch."""
        leaves = [t.detach().to(dtype).requires_grad_() for t in (self.weights, *self.branches)]
        weights, *branches = leaves
        out = 0
        for x, norm, index in zip(branches, NORMS, INDICES, strict=True):
            if norm != NONE:
                given_row = None if training else self.statistics[norm, None].to(dtype)
                x, _ = _normalised_mixed_sum_ref(weights.new_ones(1), [x], statistics=given_row)
            out = out + (x if index == NONE else weights[index] * x)
        return [out.detach(), *torch.autograd.grad(out, leaves, self.grad.to(dtype))]


@pytest.mark.every_cpu_level
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("training", [True, False])
def test_accuracy(poisoned, dtype, training):
    raw = Raw(dtype)
    out = in_slice(torch.zeros_like(raw.grad))
    OPS.normalised_mixed_sum(*raw.terms, out)
    coefficients, weights_grad = torch.full((4, 3, 17), 7.0, dtype=dtype), torch.full((5,), 7.0, dtype=dtype)
    OPS.normalised_mixed_sum_backward(raw.grad, *raw.terms, training, coefficients, weights_grad)
    ours = [out, weights_grad]
    for x, norm, index in zip(raw.branches, NORMS, INDICES, strict=True):
        a, b, c = (row[:, None, None] for row in coefficients[norm])
        own = raw.grad if index == NONE else raw.weights[index] * raw.grad
        mean = raw.statistics[norm, 0, :, None, None]
        ours.append(own if norm == NONE else a * (raw.grad + b * (x - mean) + c))
    assert (weights_grad[[2, 3]] == 7).all()
    assert (coefficients[1] == 7).all()
    weights_grad[[2, 3]] = 0
    exact = raw.expected(training, torch.float64)
    for mine, theirs, truth in zip(ours, raw.expected(training, dtype), exact, strict=True):
        assert_agrees(mine, theirs, truth, truth.abs())


@pytest.mark.parametrize("shape", [(3, 17, 6, 5), (0, 17, 6, 5)])
def test_opcheck(shape):
    raw = Raw(shape=shape)
    out = last(torch.zeros(shape))
    torch.library.opcheck(OPS.normalised_mixed_sum.default, (*raw.terms, out))
    for training in (True, False):
        written = torch.zeros(4, 3, 17), torch.zeros(5)
        arguments = (raw.grad, *raw.terms, training, *written)
        torch.library.opcheck(OPS.normalised_mixed_sum_backward.default, arguments)


X = last(torch.ones(2, 3, 4, 4))
W, S = torch.ones(2), torch.ones(2, 2, 3)

SHARED = [
    ({"out": X.half()}, "out must be float32 or float64 on the CPU, got float16"),
    ({"norms": [0]}, "one norm and one weight a branch are needed, and at least one branch"),
    ({"indices": [0]}, "one norm and one weight a branch are needed, and at least one branch"),
    ({"branches": []}, "one norm and one weight a branch are needed, and at least one branch"),
    ({"statistics": S[0]}, r"statistics must have shape \(norms, 2, channels\), got \(2, 3\)"),
    ({"statistics": S.double()}, "statistics must be contiguous, .* got .*, float64 on cpu"),
    ({"weights": W[:, None]}, "weights must be contiguous"),
    ({"weights": W.double()}, "weights must be contiguous, .* got .*, float64 on cpu"),
    ({"out": X.contiguous()}, "out must be in channels_last memory"),
    ({"branches": [X, X.contiguous()]}, "branches must be in channels_last memory"),
    ({"branches": [X, X.double()]}, "branches must be float32 on cpu, got float64 on cpu"),
    ({"branches": [X, X[:1]]}, r"branches must have shape \(2, 3, 4, 4\), got \(1, 3, 4, 4\)"),
    ({"norms": [0, 2]}, "norm 2 of 3 channels among 2 of 3"),
    ({"norms": [0, -2]}, "norm -2 of 3 channels among 2 of 3"),
    ({"statistics": torch.ones(2, 2, 4)}, "norm 0 of 3 channels among 2 of 4"),
    ({"indices": [0, 2]}, "weight 2 of 2"),
    ({"indices": [-2, 0]}, "weight -2 of 2"),
]


def raw_arguments():
    return dict(branches=[X, X], norms=[0, 1], weights=W, indices=[0, 1], statistics=S, eps=EPS)


@pytest.mark.parametrize(("changed", "sentence"), SHARED)
def test_raw_op_checks_its_arguments(changed, sentence):
    out = X.clone(memory_format=torch.channels_last)
    with pytest.raises(ValueError, match=f"normalised_mixed_sum: {sentence}"):
        OPS.normalised_mixed_sum(**(raw_arguments() | {"out": out} | changed))
    assert torch.equal(out, X)


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        *(
            ({"grad": c["out"]}, s.replace("out must", "grad must")) if "out" in c else (c, s)
            for c, s in SHARED
        ),
        ({"norms": [0, 0]}, "backward needs a norm of its own for each branch, norm 0 has two"),
        ({"indices": [1, 1]}, "backward needs a weight of its own for each branch, weight 1 has two"),
        ({"coefficients": S}, r"coefficients must be contiguous, of shape \(2, 3, 3\)"),
        ({"weights_grad": W[:1]}, r"weights_grad must be contiguous, of shape \(2\)"),
    ],
)
def test_raw_backward_checks_its_arguments(changed, sentence):
    arguments = raw_arguments() | dict(grad=X, training=True)
    arguments |= dict(coefficients=torch.zeros(2, 3, 3), weights_grad=torch.zeros(2))
    with pytest.raises(ValueError, match=f"normalised_mixed_sum: {sentence}"):
        OPS.normalised_mixed_sum_backward(**(arguments | changed))
    assert not arguments["coefficients"].any()
