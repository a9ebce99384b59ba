"""The ops of a cell over dual numbers, in complex tensors: tangents, and the gradient of what tangents add up to.

Exact is plain PyTorch under forward mode and then in reverse, in float64. Gradients of a complex tensor are crosswise:
the real part is by the tangent, the imaginary one by the value (docs/exact-products.md).
"""

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import forward_ad

from fastnas.ops._images import plain_statistics
from fastnas.ops.separable_stage import DENSE, Branch, _Call, _separable_stage_ref, _SeparableStage
from fastnas.ops.shared_pooling import _shared_pooling_ref, _SharedPooling
from tests.ops.images import SHAPES, last

EPS = 1e-5
DTYPES = [torch.float32, torch.float64]
COMPLEX = {torch.float32: torch.complex64, torch.float64: torch.complex128}


class Pair:
    """A value and a tangent of small multiples of 1/4, so that many are equal and many are 0; both leaves."""

    def __init__(self, generator, *shape):
        draws = torch.randint(-6, 7, (2, *shape), generator=generator).double() / 4
        self.value, self.tangent = (draw.requires_grad_() for draw in draws)

    def leaves(self, dtype):
        return [part.detach().to(dtype).requires_grad_() for part in (self.value, self.tangent)]

    def packed(self, dtype):
        z = torch.complex(*(part.detach().to(dtype) for part in (self.value, self.tangent)))
        return (last(z) if z.dim() == 4 else z).requires_grad_()


def by_plain_pytorch(function, pairs, dtype, cotangents):
    """Outputs, their tangents, and the gradients of phi by values and by tangents."""
    leaves = [pair.leaves(dtype) for pair in pairs]
    with forward_ad.dual_level():
        outs = function(*(forward_ad.make_dual(*leaf) for leaf in leaves))
        found = [forward_ad.unpack_dual(out) for out in outs]
    phi = sum(
        (c.value.detach().to(dtype) * value + c.tangent.detach().to(dtype) * tangent).sum()
        for c, (value, tangent) in zip(cotangents, found, strict=False)
    )
    grads = torch.autograd.grad(phi, [part for leaf in leaves for part in leaf], materialize_grads=True)
    return [part.detach() for pair in found for part in pair] + list(grads)


def by_kernels(function, pairs, dtype, cotangents):
    packed = [pair.packed(dtype) for pair in pairs]
    outs = function(*packed)
    # Adjoints of values are the imaginary part.
    crosswise = [
        last(torch.complex(c.tangent.detach(), c.value.detach()).to(COMPLEX[dtype])) for c in cotangents
    ]
    grads = torch.autograd.grad(outs[: len(cotangents)], packed, crosswise)
    found = [part for out in outs for part in (out.detach().real, out.detach().imag)]
    return found + [part for grad in grads for part in (grad.imag, grad.real)]


def assert_right(ours, plain, exact, dtype):
    """At most twice plain PyTorch's error and some roundings of the largest number."""
    eps = torch.finfo(dtype).eps
    for a, b, true in zip(ours, plain, exact, strict=True):
        if not true.numel():
            continue
        largest = true.abs().max().item()
        error, theirs = ((x.double() - true).abs().max().item() for x in (a, b))
        assert error <= 2 * theirs + (16 if dtype == torch.float32 else 256) * eps * max(largest, 1), (
            error,
            theirs,
        )


def check(kernels, plain, pairs, cotangents, dtype):
    exact = by_plain_pytorch(plain, pairs, torch.float64, cotangents)
    beside = by_plain_pytorch(plain, pairs, dtype, cotangents)
    assert_right(by_kernels(kernels, pairs, dtype, cotangents), beside, exact, dtype)


@pytest.mark.every_cpu_level
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shared_pooling(shape, stride, dtype):
    """With many equal pixels: the tangent is the first's, row by row, and so is the gradient."""
    generator = torch.Generator().manual_seed(0)
    x = Pair(generator, *shape)
    size = F.max_pool2d(x.value.detach(), 3, stride, 1).shape

    def kernels(z):
        *pooled, statistics = _SharedPooling.apply(stride, z)
        return [*pooled, *statistics]

    def plain(x):
        pooled, _ = _shared_pooling_ref(x, stride)
        return [*pooled, *(composed_statistics(out) for out in pooled)]

    check(kernels, plain, [x], [Pair(generator, *size) for _ in range(2)], dtype)


def composed_statistics(x):
    mean = x.mean((0, 2, 3))
    return torch.stack([mean, (x - mean.view(1, -1, 1, 1)).square().mean((0, 2, 3))])


@pytest.mark.every_cpu_level
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(2, 5, 6, 7), (3, 16, 5, 9), (2, 17, 8, 4)], ids=str)
def test_separable_stage(shape, dtype):
    """All kernels, strides and dilations; of a source that is 0 in many places, where the ReLU lets no tangent pass.

    Normalised sources are left to the whole cell (tests/supernet/test_tangents.py): of them this op gives
    coefficients, which complex arithmetic would not multiply as dual numbers.
    """
    generator = torch.Generator().manual_seed(1)
    branches = [(3, 1, 1), (5, 2, 1), (7, 1, 1), (3, 1, 2), (5, 1, 2), (3, 2, 2), (7, 2, 1), (0, 2, 1)]
    channels = shape[1]
    sizes = [channels * (kernel**2 + channels) for kernel, _, _ in branches]
    rows, begin = [], 0
    for k, ((kernel, stride, dilation), size) in enumerate(zip(branches, sizes, strict=True)):
        points = begin + channels * kernel**2
        rows += Branch(0, kernel, dilation, stride, 0, begin, points, channels, k, 0, k, k)
        begin += size
    call = _Call(rows, len(branches), channels, False, True, EPS)

    def kernels(z, weights):
        *raws, own = _SeparableStage.apply(call, None, weights, z)
        return [*raws, *own]

    def plain(x, weights):
        depthwise, pointwise = [], []
        for part, (kernel, _, _) in zip(weights.split(sizes), branches, strict=True):
            depth, points = part.split([channels * kernel**2, channels**2])
            depthwise.append(depth.view(channels, 1, kernel, kernel) if kernel else None)
            pointwise.append(points.view(channels, channels, 1, 1))
        strides, dilations = [b[1] for b in branches], [b[2] for b in branches]
        raws, _ = _separable_stage_ref(x, depthwise, pointwise, stride=strides, dilation=dilations)
        return [*raws, *(composed_statistics(raw) for raw in raws)]

    size = [(shape[0], channels, *(-(-side // stride) for side in shape[2:])) for _, stride, _ in branches]
    pairs = [Pair(generator, *shape), Pair(generator, begin)]
    check(kernels, plain, pairs, [Pair(generator, *s) for s in size], dtype)


@pytest.mark.every_cpu_level
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", [5, 16, 19])
def test_dense_convolutions(channels, dtype):
    generator = torch.Generator().manual_seed(2)
    size = 9 * channels**2
    call = _Call([*Branch(0, 3, 1, 1, 0, DENSE, 0, channels, 0, 0, 0, 0)], 1, channels, False, True, EPS)

    def kernels(z, weights):
        raw, own = _SeparableStage.apply(call, None, weights, z)
        return [raw, *own]

    def plain(x, weights):
        raw = F.conv2d(F.relu(x), weights.view(channels, channels, 3, 3), padding=1)
        return [raw, composed_statistics(raw)]

    shape = (2, channels, 7, 6)
    pairs = [Pair(generator, *shape), Pair(generator, size)]
    check(kernels, plain, pairs, [Pair(generator, *shape)], dtype)


def test_a_value_is_the_one_without_a_tangent():
    """To the bit in float64 and float32, where sums go in the same order: a pooling's do."""
    generator = torch.Generator().manual_seed(3)
    for dtype in DTYPES:
        x = torch.randn(2, 16, 9, 7, generator=generator, dtype=torch.float64).to(dtype)
        z = last(torch.complex(x, torch.randn(x.shape, generator=generator).to(dtype)))
        for dual, single in zip(
            _SharedPooling.apply(1, z)[:2], _SharedPooling.apply(1, last(x))[:2], strict=True
        ):
            assert torch.equal(dual.real, single)


def test_statistics_of_the_references_agree():
    """What the tests above differentiate is what the ops' references compute."""
    x = torch.randn(3, 4, 5, 6, dtype=torch.float64)
    torch.testing.assert_close(composed_statistics(x), plain_statistics(x))
