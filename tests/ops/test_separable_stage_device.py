"""separable_stage's CUDA kernels, run on the CPU (tests/cuda_on_host), against the CPU's own and plain PyTorch."""

import pytest
import torch

from fastnas.ops._images import empty_images
from fastnas.ops.separable_stage import Branch
from tests.cuda_on_host.library import on_host
from tests.ops import test_separable_stage_table as table_tests
from tests.ops.accuracy import assert_agrees
from tests.ops.images import Random, in_slice
from tests.ops.test_separable_stage_table import EPS, NONE, Call


@pytest.fixture(scope="module")
def ops():
    return on_host()


@pytest.fixture
def on_device(ops, monkeypatch):
    monkeypatch.setattr(table_tests, "OPS", ops)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("size", [(1, 2, 3), (2, 7, 9), (17, 8, 5), (3, 4, 6)])
def test_accuracy(on_device, size, training):
    call = Call(torch.float32, size, training)
    exact = call.expected(torch.float64)
    for mine, theirs, truth in zip(call.results(), call.expected(torch.float32), exact, strict=True):
        assert_agrees(mine, theirs, truth, truth.abs())


def test_statistics(on_device):
    table_tests.test_accuracy_of_statistics(torch.float32)


def test_statistics_are_left_alone_in_evaluation(on_device):
    table_tests.test_statistics_are_left_alone_in_evaluation()


def test_gradients_in_slices_and_without_weights(on_device):
    table_tests.test_gradients_in_slices_and_without_weights()


class Case:
    """A call of one source after the other, its branches in both directions, in any dtype."""

    def __init__(self, kinds, inputs, outputs, size, normalised=False, dtype=torch.float32):
        random = Random(3, torch.float64)
        self.sources = [
            random.images(size[0], inputs, *size[1:]) for _ in range(1 + max(k[0] for k in kinds))
        ]
        self.norms = [(s if normalised else NONE) for s in range(len(self.sources))]
        rows, begin = [], 1
        for i, (source, kernel, dilation, stride, shift, dense) in enumerate(kinds):
            own = 0 if dense else inputs * kernel**2
            points = inputs * outputs * (kernel**2 if dense else 1)
            norm = len(self.sources) + i
            depthwise = NONE if dense else begin
            rows.append(
                Branch(
                    source, kernel, dilation, stride, shift, depthwise, begin + own, outputs, i, 0, norm, i
                )
            )
            begin += own + points
        self.table = [number for row in rows for number in row]
        self.weights = random(begin) / 3
        norms = len(self.sources) + len(kinds)
        self.statistics = random(norms, 2, max(inputs, outputs))
        self.statistics[:, 1] = self.statistics[:, 1].abs() + 1
        self.coefficients = random(norms, 3, max(inputs, outputs))
        sides = [[-(-side // row.stride) for side in size[1:]] for row in rows]
        self.grads = [random.images(size[0], outputs, *side) for side in sides]
        self.before = [random.images(*x.shape) for x in self.sources]
        self.size = size
        # Every computation starts from the same numbers, those of the dtype.
        self.of_images(dtype, round_only=True)

    def of_images(self, dtype, round_only=False):
        for name in ("sources", "grads", "before"):
            tensors = [t.to(dtype) for t in getattr(self, name)]
            setattr(self, name, [t.double() for t in tensors] if round_only else tensors)
        numbers = torch.float32 if dtype == torch.bfloat16 else dtype
        for name in ("weights", "statistics", "coefficients"):
            number = getattr(self, name).to(numbers)
            setattr(self, name, number.double() if round_only else number)

    def run(self, ops, dtype, training=True, weights_wanted=True):
        """Raw outputs, their statistics, gradients of weights and sources, coefficients."""
        self.of_images(dtype)
        statistics, coefficients = self.statistics.clone(), self.coefficients.clone()
        raws = ops.separable_stage(
            self.sources, self.norms, self.weights, statistics, self.table, EPS, training
        )
        weights_grad = torch.full_like(self.weights, torch.nan)
        source_grads = [in_slice(t) for t in self.before]
        ops.separable_stage_backward(
            self.grads, raws, self.sources, self.norms, self.weights, statistics, coefficients, self.table, EPS,
            training, [weights_grad] if weights_wanted else [], source_grads,
        )  # fmt: skip
        # One vector for all of a kind: of a few numbers, one that cancels by chance would be the largest.
        of_a_kind = [torch.cat([t.flatten() for t in tensors]) for tensors in (raws, source_grads)]
        return [*of_a_kind, statistics, coefficients] + ([weights_grad[1:]] if weights_wanted else [])


KINDS = {
    "every depthwise kernel": [
        (0, kernel, dilation, stride, 0, False)
        for kernel in (3, 5, 7)
        for dilation in (1, 2)
        for stride in (1, 2)
    ],
    "dense": [(0, 3, 1, 1, 0, True), (0, 0, 1, 1, 0, False), (0, 5, 1, 1, 0, True)],
    "factorised reduction": [(0, 0, 1, 2, 0, False), (0, 0, 1, 2, 1, False)],
    "more than a launch takes": [(s % 9, 3, 1 + s % 2, 1, 0, False) for s in range(40)],
}
SIZES = [(2, 9, 7), (1, 1, 1), (3, 18, 20), (5, 8, 8)]


def check(ops, case, dtype=torch.float32, **options):
    ours = case.run(ops, dtype, **options)
    plain = case.run(torch.ops.fastnas, torch.float32, **options) if dtype == torch.float32 else ours
    exact = case.run(torch.ops.fastnas, torch.float64, **options)
    for mine, theirs, truth in zip(ours, plain, exact, strict=True):
        known = ~truth.isnan()
        mine, theirs, truth = (t[known] for t in (mine, theirs, truth))
        if dtype == torch.float32:
            assert_agrees(mine, theirs, truth, truth.abs())
        else:  # each image is rounded to 8 bits; a sum of many such errors grows with its root alone
            assert (mine.double() - truth).abs().max() <= 2**-6 * truth.abs().max()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("normalised", [False, True])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kinds", KINDS)
def test_every_kind(ops, kinds, size, normalised, training):
    inputs = 4 if kinds.startswith("more") else 6
    check(ops, Case(KINDS[kinds], inputs, inputs if normalised else 5, size, normalised), training=training)


@pytest.mark.parametrize(
    ("inputs", "outputs"), [(1, 1), (16, 16), (3, 40), (40, 3), (32, 32), (64, 64), (20, 70), (48, 16)]
)
def test_channels(ops, inputs, outputs):
    kinds = [(0, 3, 1, 1, 0, False), (0, 5, 2, 1, 0, False), (0, 3, 1, 1, 0, True), (0, 0, 1, 1, 0, False)]
    check(ops, Case(kinds, inputs, outputs, (2, 5, 6), inputs == outputs))


def test_tiles_of_large_images(ops):
    kinds = [(0, 5, 2, 1, 0, False), (0, 3, 1, 2, 0, False), (0, 3, 1, 1, 0, True)]
    check(ops, Case(kinds, 16, 16, (2, 35, 33), True))


def test_shared_memory_just_below_what_goes_without_asking(ops):
    """As in a reduction cell of 32 channels: 48 KiB hold what a kernel has of its own, too."""
    kinds = [(0, 5, 2, 2, 0, False), (0, 3, 2, 2, 0, False)]
    check(ops, Case(kinds, 32, 32, (1, 32, 32), True))


def test_without_gradients_of_weights(ops):
    check(ops, Case(KINDS["dense"], 6, 5, (2, 5, 6)), weights_wanted=False)


@pytest.mark.parametrize("kinds", KINDS)
def test_bfloat16(ops, kinds):
    check(ops, Case(KINDS[kinds], 8, 8, (2, 9, 8), True, torch.bfloat16), torch.bfloat16)


def test_large_means_keep_the_variance(ops):
    case = Case([(0, 0, 1, 1, 0, False)], 1, 1, (3, 18, 20))
    case.sources = [x.abs() + 1e4 for x in case.sources]
    check(ops, case)


def test_runs_repeat_to_the_bit(ops):
    case = Case(KINDS["every depthwise kernel"], 16, 16, (3, 9, 7), True)
    first, second = case.run(ops, torch.float32), case.run(ops, torch.float32)
    assert all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(first, second, strict=True))


def test_too_many_branches_of_a_source(ops):
    case = Case([(0, 0, 1, 1, 0, False)] * 65, 1, 1, (1, 2, 2))
    with pytest.raises(ValueError, match="at most 64 branches, source 0 by 65"):
        case.run(ops, torch.float32)


def test_empty_batches(ops):
    case = Case(KINDS["dense"], 6, 5, (2, 5, 6))
    case.sources = [empty_images(x, 0, *x.shape[1:]) for x in case.sources]
    case.grads = [empty_images(x, 0, *x.shape[1:]) for x in case.grads]
    case.before = case.sources
    *_, weights_grad = case.run(ops, torch.float32)
    assert (weights_grad == 0).all()
