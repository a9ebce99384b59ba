"""The normalised mixed sum's CUDA kernels and binding, run on the CPU through tests/cuda_on_host."""

import ctypes
import itertools
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

import fastnas.ops  # noqa: F401  (registers torch.ops.fastnas)
from fastnas.ops._images import batch_statistics
from tests.cuda_on_host import sanitizer_flags
from tests.cuda_on_host.library import on_host
from tests.ops.images import Random, in_slice, last

OPS = torch.ops.fastnas
ROOT = Path(__file__).parents[2]
DTYPE_CODES = {torch.float32: 0, torch.bfloat16: 2}  # csrc/dtype.h
DTYPES = [torch.float32, torch.bfloat16]
NONE = -1
EPS = 1e-5
# (B, C, H, W): packs of 4 and 8 channels and none, one pixel, several chunks, more channels than a block takes
SHAPES = [
    (1, 1, 1, 1),
    (1, 3, 5, 7),
    (2, 4, 3, 3),
    (3, 16, 8, 8),
    (2, 20, 9, 5),
    (1, 8, 1, 9),
    (3, 32, 16, 16),
    (1, 1040, 2, 1),
    (1, 4112, 1, 2),
]


class Case:
    """Arguments of the raw ops and the exact results, in float64 from the same numbers."""

    def __init__(self, shape, count, dtype, *, mean=1.0, sliced=False, norms=None, indices=None, seed=0):
        random = Random(seed)
        place = in_slice if sliced else last
        images = [last((random(*shape) * (k % 3 + 1) + mean * k).to(dtype)) for k in range(count)]
        self.branches = [place(x) for x in images]
        self.grad = place(last((random(*shape) + 0.5).to(dtype)))
        self.before = place(last(random(*shape).to(dtype)))
        self.weights = random(count + 1)
        self.norms = list(range(count)) if norms is None else norms
        self.indices = list(range(count)) if indices is None else indices
        self.statistics = torch.full((count + 1, 2, shape[1]), torch.nan)
        for norm, x in zip(self.norms, images, strict=True):
            if norm != NONE:
                self.statistics[norm] = batch_statistics(x.float())
        self.terms = (self.branches, self.norms, self.weights, self.indices, self.statistics, EPS)

    def factors(self, k):
        """w, rstd and mean of branch k in float64."""
        norm, index = self.norms[k], self.indices[k]
        weight = 1.0 if index == NONE else self.weights[index].double()
        if norm == NONE:
            return weight, torch.ones(self.grad.shape[1]).double(), torch.zeros(self.grad.shape[1]).double()
        mean, variance = self.statistics[norm].double()
        return weight, (variance + EPS).rsqrt(), mean

    def forward(self, ops, add):
        out = self.before.clone() if add else torch.full_like(self.before, torch.nan)
        wide = in_slice(out) if self.before.stride() != last(self.before).stride() else last(out)
        ops.normalised_mixed_sum(*self.terms, wide, add)
        return wide

    def check_forward(self, add):
        out = self.forward(on_host(), add)
        terms = [self.before.double()] if add else []
        for k, x in enumerate(self.branches):
            weight, rstd, mean = self.factors(k)
            terms.append(weight * rstd.view(-1, 1, 1) * (x.double() - mean.view(-1, 1, 1)))
        assert_sum(out, terms)

    def backward(self, ops, training=True):
        coefficients = torch.full((len(self.statistics), 3, self.grad.shape[1]), torch.nan)
        weights_grad = torch.full_like(self.weights, torch.nan)
        ops.normalised_mixed_sum_backward(self.grad, *self.terms, training, coefficients, weights_grad)
        return coefficients, weights_grad

    def check_backward(self, training=True):
        coefficients, weights_grad = self.backward(on_host(), training)
        g, n = self.grad.double(), self.grad.numel() // self.grad.shape[1]
        written = torch.zeros(len(coefficients), dtype=torch.bool)
        for k, x in enumerate(self.branches):
            weight, rstd, mean = self.factors(k)
            off = x.double() - mean.view(-1, 1, 1)
            product, spread = (g * off).sum((0, 2, 3)), (g * off).square().sum((0, 2, 3)).sqrt()
            if self.indices[k] != NONE:
                exact, scatter = (rstd * product).sum(), (rstd * spread).norm()
                assert_close(weights_grad[self.indices[k]], exact, scatter)
            if self.norms[k] == NONE:
                continue
            written[self.norms[k]] = True
            a, b, c = coefficients[self.norms[k]]
            assert_close(a, weight * rstd, 0 * rstd)
            assert_close(b, -rstd.square() * product / n * training, rstd.square() * spread / n)
            assert_close(c, -g.mean((0, 2, 3)) * training, g.square().sum((0, 2, 3)).sqrt() / n)
        assert coefficients[~written].isnan().all()
        unused = [k for k in range(len(self.weights)) if k not in self.indices]
        assert weights_grad[unused].isnan().all()


def assert_close(ours, exact, spread):
    """A sum in float32, to a few ulp of itself and of what its terms scatter by."""
    assert ours.dtype == torch.float32
    eps = torch.finfo(torch.float32).eps
    assert ((ours.double() - exact).abs() <= 8 * eps * (exact.abs() + spread)).all()


def assert_sum(out, terms):
    """The sum of the terms, accumulated in float32 and rounded once to the dtype of ``out``."""
    exact = sum(terms)
    rounding = torch.finfo(out.dtype).eps / 2 * exact.abs()
    rounding += 4 * torch.finfo(torch.float32).eps * sum(term.abs() for term in terms)
    assert ((out.double() - exact).abs() <= rounding).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sliced", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_accuracy(shape, sliced, dtype):
    case = Case(shape, 5, dtype, sliced=sliced)
    case.check_forward(add=False)
    case.check_forward(add=True)
    case.check_backward()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("training", [True, False])
def test_summands_without_norm_or_weight(dtype, training):
    case = Case((3, 16, 6, 5), 5, dtype, norms=[2, NONE, 0, NONE, 3], indices=[4, 1, NONE, NONE, 0])
    case.check_forward(add=False)
    case.check_backward(training)


@pytest.mark.parametrize("shape", [(2, 5, 3, 3), (1, 8, 2, 2), (1, 4112, 1, 1)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_more_branches_than_one_launch_takes(dtype, shape):
    """96 of a sum forward, fewer where there are many channels; 4 times 26 backward; its last step 60."""
    case = Case(shape, 14 if shape[1] > 512 else 230, dtype, mean=0.1)
    case.check_forward(add=False)
    case.check_forward(add=True)
    case.check_backward()


@pytest.mark.parametrize("dtype", DTYPES)
def test_aligned_and_not_are_one_computation(dtype):
    """A slice whose pixels begin at no multiple of 16 bytes takes the other path: forward gives the same bits."""
    plain, sliced = (Case((2, 16, 5, 7), 6, dtype, sliced=sliced) for sliced in (False, True))
    assert torch.equal(plain.forward(on_host(), False), sliced.forward(on_host(), False))


def test_large_means_cost_no_digits():
    case = Case((2, 4, 16, 16), 4, torch.float32, mean=1e4)
    case.check_forward(add=False)
    case.check_backward()


@pytest.mark.parametrize("shape", [(2, 5, 7, 9), (3, 32, 16, 16)])
def test_agrees_with_the_cpu(shape):
    case = Case(shape, 7, torch.float32)
    for ours, theirs in zip(case.backward(on_host()), case.backward(OPS), strict=True):
        torch.testing.assert_close(ours, theirs, equal_nan=True, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(case.forward(on_host(), True), case.forward(OPS, True), rtol=1e-5, atol=1e-5)


def rectified_results(ops, case, affine, rectified, dtype):
    """What forward and backward write, by an op that knows ``dtype``, in float32."""
    branches = [x.to(dtype) for x in case.branches]
    out = torch.full_like(last(case.before.to(dtype)), torch.nan)
    terms = (branches, *case.terms[1:])
    ops.normalised_mixed_sum(*terms, out, False, affine, rectified)
    coefficients = torch.full((len(case.statistics), 3, affine.shape[2]), torch.nan)
    weights_grad, affine_grad = torch.full_like(case.weights, torch.nan), torch.full_like(affine, torch.nan)
    count, *rest = case.grad.shape
    passed = last(torch.full((len(affine) * count, *rest), torch.nan, dtype=dtype))
    ops.normalised_mixed_sum_backward(
        last(case.grad.to(dtype)), *terms, True, coefficients, weights_grad,
        affine, rectified, passed, affine_grad,
    )  # fmt: skip
    return out, passed, coefficients, weights_grad, affine_grad


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("shape", "count"), [((2, 5, 7, 9), 7), ((3, 16, 8, 8), 1), ((2, 8, 5, 5), 80), ((1, 1040, 2, 1), 4)]
)
def test_rectified_branches_agree_with_the_cpu(dtype, shape, count):
    """Every third branch is plain; 72 of a sum forward in a launch, fewer where there are many channels."""
    case = Case(shape, count, dtype)
    rectified = [NONE if k % 3 == 2 else k - k // 3 for k in range(count)]
    affine = Random(3)(max(rectified) + 1, 2, shape[1])
    ours = rectified_results(on_host(), case, affine, rectified, dtype)
    theirs = rectified_results(OPS, case, affine, rectified, torch.float32)
    for k, (mine, other) in enumerate(zip(ours, theirs, strict=True)):
        tolerance = 1e-2 if mine.dtype == torch.bfloat16 and k == 0 else 2e-5
        scale = other.nan_to_num(0).abs().max().item()
        assert mine.isnan().equal(other.isnan())
        torch.testing.assert_close(mine.float(), other, equal_nan=True, rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize("shape", [(0, 8, 3, 3), (2, 8, 0, 3)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_no_pixels(shape, dtype):
    case = Case(shape, 3, dtype)
    case.statistics.fill_(0.25)
    assert case.forward(on_host(), False).shape == shape
    for ours, theirs in zip(case.backward(on_host()), Case.backward(case_of(case), OPS), strict=True):
        assert torch.equal(ours.nan_to_num(7), theirs.nan_to_num(7))


def case_of(case):
    """The same for the CPU, which knows float32 alone."""
    case.branches, case.grad = [x.float() for x in case.branches], case.grad.float()
    case.terms = (case.branches, *case.terms[1:])
    return case


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_same_bits_in_every_run(dtype):
    case = Case((3, 16, 16, 16), 9, dtype)
    assert torch.equal(case.forward(on_host(), True), case.forward(on_host(), True))
    for one, other in zip(case.backward(on_host()), case.backward(on_host()), strict=True):
        assert torch.equal(one.nan_to_num(7), other.nan_to_num(7))


@pytest.fixture(scope="module")
def several_sums(tmp_path_factory):
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    target = tmp_path_factory.mktemp("host") / "several_sums.so"
    folders = [f"-I{ROOT / 'tests' / 'cuda_on_host'}", f"-I{ROOT / 'csrc'}"]
    options = ["-std=c++17", "-O1", "-shared", "-fPIC", "-DFASTNAS_WITH_CUDA", *sanitizer_flags()]
    kernels = ROOT / "csrc" / "normalised_mixed_sum" / "normalised_mixed_sum_cuda.cu"
    source = ROOT / "tests" / "ops" / "several_sums.cpp"
    subprocess.run([compiler, *options, *folders, "-x", "c++", kernels, source, "-o", target], check=True)
    return ctypes.CDLL(str(target)).several_sums


def numbers_of(tensor, row=None):
    """A tensor's address, or that of one of its rows."""
    at = 0 if row is None else row * tensor.stride(0) * tensor.element_size()
    return tensor.data_ptr() + at


class Sums:
    """Sum i takes ``counts[i]`` branches from number ``i`` on, round about; all in one call."""

    def __init__(self, case, counts, adds, backward):
        self.case, self.backward = case, backward
        self.outs = [last(case.before * (i + 1)) for i in range(len(counts))]
        self.adds = adds
        self.members = [
            [(i + k) % len(case.branches) for k in range(count)] for i, count in enumerate(counts)
        ]
        most, (_, channels, *_) = max(counts), case.before.shape
        self.coefficients = torch.full((len(counts), most, 3, channels), torch.nan)
        self.weights_grad = torch.full((len(counts), most), torch.nan)

    def run(self, several_sums, chosen):
        """The sums ``chosen``; returns what they have written."""
        case, numbers = self.case, []
        count, channels, *size = case.before.shape
        for i in chosen:
            members, out = self.members[i], self.outs[i]
            numbers += [len(members), out.data_ptr(), out.stride(3), self.adds[i]]
            for k, member in enumerate(members):
                x = case.branches[member]
                numbers += [x.data_ptr(), x.stride(3), numbers_of(case.statistics, member)]
                numbers += [numbers_of(case.weights, member), numbers_of(self.coefficients[i], k)]
                numbers += [numbers_of(self.weights_grad[i], k)]
        pixels, code = count * size[0] * size[1], DTYPE_CODES[case.before.dtype]
        given = (ctypes.c_int64 * len(numbers))(*map(int, numbers))
        shape = [ctypes.c_int64(n) for n in (len(chosen), pixels, channels, code)]
        assert several_sums(given, *shape, ctypes.c_double(EPS), ctypes.c_bool(self.backward)) == 0
        return self.outs, self.coefficients, self.weights_grad


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("counts", [(3, 1, 8, 7), (2,) * 20, (40, 100, 40, 30)])
@pytest.mark.parametrize("channels", [5, 16])
@pytest.mark.parametrize("backward", [False, True])
def test_several_sums_in_a_call(several_sums, dtype, counts, channels, backward):
    """They share branches, and each does what it does alone, to the bit."""
    case = Case((2, channels, 4, 5), max(counts), dtype)
    adds = list(itertools.islice(itertools.cycle([True, False, True]), len(counts)))
    together = Sums(case, counts, adds, backward).run(several_sums, range(len(counts)))
    one_by_one = Sums(case, counts, adds, backward)
    for i in range(len(counts)):
        alone = one_by_one.run(several_sums, [i])
    for ours, theirs in zip(together, alone, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            assert torch.equal(one.nan_to_num(7), other.nan_to_num(7))
    if backward:
        assert not together[2][0, : counts[0]].isnan().any()
    else:
        assert not any(torch.equal(out, case.before * (i + 1)) for i, out in enumerate(together[0]))


def test_refuses_what_kernels_do_not_know():
    case = Case((1, 4, 2, 2), 2, torch.float32)
    out = case.before.double()
    with pytest.raises(ValueError, match=r"out must be float32 or bfloat16 on CUDA, got float64"):
        on_host().normalised_mixed_sum(*case.terms, out)
    half = Case((1, 4, 2, 2), 2, torch.bfloat16)
    terms = (half.branches, half.norms, half.weights.bfloat16(), half.indices, half.statistics, EPS)
    with pytest.raises(ValueError, match=r"weights must be contiguous, .* float32 on cpu; got .* bfloat16"):
        on_host().normalised_mixed_sum(*terms, half.before)
