"""The raw op ``separable_stage``: what its table of branches can say beyond the function's arguments."""

from dataclasses import dataclass, field

import pytest
import torch
import torch.nn.functional as F

from fastnas.ops._images import batch_statistics, normalised, plain_statistics
from fastnas.ops.separable_stage import Branch
from tests.ops.accuracy import assert_agrees
from tests.ops.images import Random, allocated, assert_statistics_are_exact, in_slice, last
from tests.ops.settings import NOT_COMPILED

OPS = torch.ops.fastnas
DTYPES = [torch.float32, torch.float64]
NONE = -1
EPS = 1e-5
CHANNELS = 17

# Three sources, the second normalised by row 2 of the statistics, the third a slice of fewer channels. Outputs 1 (the
# halves of a factorised reduction) and 5 are written by two branches each; outputs share gradients; row 0 is unused.
SOURCE_CHANNELS = [CHANNELS, CHANNELS, 5]
SOURCE_NORMS = [NONE, 2, NONE]
KINDS = [
    # source, kernel, dilation, stride, shift, channels, out, out_channel, norm, grad
    (0, 3, 1, 1, 0, CHANNELS, 0, 0, 1, 0),
    (0, 0, 1, 2, 0, 8, 1, 0, 3, 1),
    (0, 0, 1, 2, 1, 9, 1, 8, 3, 1),
    (1, 5, 2, 2, 0, CHANNELS, 2, 0, 4, 1),
    (2, 7, 1, 1, 0, CHANNELS, 3, 0, 5, 0),
    (1, 0, 1, 1, 0, CHANNELS, 4, 0, 6, 2),
    (2, 0, 1, 1, 0, 6, 5, 0, 7, 2),
    (0, 3, 2, 1, 0, 11, 5, 6, 7, 2),
]
NORMS = 8


@dataclass
class Call:
    """A call of the raw ops in which everything occurs, and what it means in plain PyTorch."""

    dtype: torch.dtype = torch.float32
    size: tuple[int, ...] = (2, 7, 9)
    training: bool = True
    branches: list[Branch] = field(default_factory=list)

    def __post_init__(self):
        random = Random(1, self.dtype)
        count, *size = self.size
        halved = [-(-side // 2) for side in size]
        self.sources = [random.images(count, channels, *size) for channels in SOURCE_CHANNELS]
        self.sources[2] = in_slice(self.sources[2])
        begin = 3  # weights before, between and behind the branches' belong to nobody
        for source, kernel, dilation, stride, shift, channels, out, out_channel, norm, grad in KINDS:
            inputs = SOURCE_CHANNELS[source]
            points = begin + inputs * kernel**2 + 1
            self.branches.append(
                Branch(
                    source,
                    kernel,
                    dilation,
                    stride,
                    shift,
                    begin,
                    points,
                    channels,
                    out,
                    out_channel,
                    norm,
                    grad,
                )
            )
            begin = points + inputs * channels + 2
        self.weights = random(begin) / 3
        self.statistics = torch.full((NORMS, 2, CHANNELS), torch.nan, dtype=self.dtype)
        self.statistics[2] = batch_statistics(self.sources[1])
        if not self.training:
            self.statistics = torch.where(
                self.statistics.isnan(), random(NORMS, 2, CHANNELS), self.statistics
            )
            self.statistics[2, 1] += 1
        self.coefficients = random(NORMS, 3, CHANNELS)
        self.grads = [in_slice(random.images(count, CHANNELS, *s)) for s in (size, halved, size)]
        self.before = [random.images(*x.shape) for x in self.sources]
        self.table = [number for branch in self.branches for number in branch]

    def forward(self):
        return OPS.separable_stage(
            self.sources, SOURCE_NORMS, self.weights, self.statistics, self.table, EPS, self.training
        )

    def backward(self, raws, weights_wanted=True, slices=False):
        """``(d weights, d sources, coefficients)`` of the raw op."""
        source_grads = [
            in_slice(t) if slices else t.clone(memory_format=torch.channels_last) for t in self.before
        ]
        weights_grad = torch.full_like(self.weights, 7)
        coefficients = self.coefficients.clone()
        OPS.separable_stage_backward(
            self.grads, raws, self.sources, SOURCE_NORMS, self.weights, self.statistics, coefficients,
            self.table, EPS, self.training, [weights_grad] if weights_wanted else [], source_grads,
        )  # fmt: skip
        return weights_grad, source_grads, coefficients

    def results(self):
        """Raw outputs, and gradients of weights and sources, with the normalised source's written out."""
        raws = self.forward()
        weights_grad, source_grads, coefficients = self.backward([in_slice(raw) for raw in raws])
        a, b, c = (row[:, None, None] for row in coefficients[2])
        mean = self.statistics[2, 0, :, None, None]
        source_grads[1] = a * (source_grads[1] + b * (self.sources[1] - mean) + c)
        return [*raws, torch.where(self.owned(), weights_grad, 0), *source_grads]

    def owned(self):
        """Which weights are some branch's."""
        owned = torch.zeros(len(self.weights), dtype=torch.bool)
        for b in self.branches:
            inputs = SOURCE_CHANNELS[b.source]
            owned[b.depthwise : b.depthwise + inputs * b.kernel**2] = True
            owned[b.pointwise : b.pointwise + inputs * b.channels] = True
        return owned

    def expected(self, dtype):
        """``results`` in plain PyTorch."""
        weights, *sources = leaves = [
            t.to(dtype).detach().requires_grad_() for t in (self.weights, *self.sources)
        ]
        parts: dict[int, list[torch.Tensor]] = {}
        loss = torch.zeros((), dtype=dtype)
        for b in self.branches:
            x = sources[b.source]
            if SOURCE_NORMS[b.source] != NONE:
                known = self.statistics[SOURCE_NORMS[b.source]].to(dtype)
                x = normalised(x, plain_statistics(x) if self.training else known, EPS)
            x, inputs = F.relu(x), SOURCE_CHANNELS[b.source]
            depthwise = weights[b.depthwise : b.depthwise + inputs * b.kernel**2].view(
                inputs, 1, b.kernel, b.kernel
            )
            if b.kernel:
                x = F.conv2d(x, depthwise, None, b.stride, b.dilation * (b.kernel // 2), b.dilation, inputs)
            else:  # one line of zeros where an odd size ends before the last shifted pixel
                x = F.pad(x, (0, b.shift, 0, b.shift))[:, :, b.shift :: b.stride, b.shift :: b.stride]
            pointwise = weights[b.pointwise : b.pointwise + inputs * b.channels].view(
                b.channels, inputs, 1, 1
            )
            t = F.conv2d(x, pointwise)
            parts.setdefault(b.out, []).append(t)
            channels = slice(b.out_channel, b.out_channel + b.channels)
            by_grad, by_raw, constant = self.coefficients[b.norm, :, channels, None, None].to(dtype)
            known = self.statistics[b.norm, 0, channels, None, None].to(dtype)
            off = t.detach() - (t.detach().mean((0, 2, 3), keepdim=True) if self.training else known)
            gradient = by_grad * (self.grads[b.grad][:, channels].to(dtype) + by_raw * off + constant)
            loss = loss + (gradient * t).sum()
        weights_grad, *source_grads = torch.autograd.grad(loss, leaves)
        for s in (0, 2):
            source_grads[s] = source_grads[s] + self.before[s].to(dtype)
        raws = [torch.cat(parts[out], dim=1).detach() for out in sorted(parts)]
        return [*raws, weights_grad, *source_grads]


@pytest.mark.every_cpu_level
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("size", [(1, 2, 3), (2, 7, 9), (17, 8, 5), (3, 4, 6)])
def test_accuracy(poisoned, size, training, dtype):
    call = Call(dtype, size, training)
    for mine, theirs, truth in zip(
        call.results(), call.expected(dtype), call.expected(torch.float64), strict=True
    ):
        assert_agrees(mine, theirs, truth, truth.abs())


@pytest.mark.every_cpu_level
@pytest.mark.parametrize("dtype", DTYPES)
def test_accuracy_of_statistics(dtype):
    call = Call(dtype, (5, 8, 6))
    before = call.statistics.clone()
    raws = call.forward()
    assert_statistics_are_exact(call.statistics[[1, 3, 4, 5, 6, 7]], raws)
    assert call.statistics[0].isnan().all()  # nobody's
    assert torch.equal(call.statistics[2], before[2])


def test_statistics_are_left_alone_in_evaluation():
    call = Call(training=False)
    before = call.statistics.clone()
    call.forward()
    assert torch.equal(call.statistics.nan_to_num(9), before.nan_to_num(9))


def test_gradients_in_slices_and_without_weights():
    call = Call()
    raws = call.forward()
    weights_grad, source_grads, coefficients = call.backward(raws)
    assert (weights_grad[~call.owned()] == 7).all()  # nobody's weights
    untouched, in_slices, same = call.backward(raws, weights_wanted=False, slices=True)
    assert (untouched == 7).all()
    assert torch.equal(coefficients, same)
    assert all(torch.equal(a, b) for a, b in zip(source_grads, in_slices, strict=True))


def test_forward_allocates_its_outputs_alone():
    call = Call()
    raws, taken = allocated(call.forward)
    assert taken == sum(raw.nbytes for raw in raws)


@pytest.mark.parametrize("training", [True, False])
def test_opcheck(training):
    call = Call(training=training)
    call.statistics.nan_to_num_()
    arguments = (call.sources, SOURCE_NORMS, call.weights, call.statistics, call.table, EPS, training)
    torch.library.opcheck(OPS.separable_stage.default, arguments, test_utils=NOT_COMPILED)
    raws = call.forward()
    torch.library.opcheck(
        OPS.separable_stage_backward.default,
        (
            call.grads, raws, call.sources, SOURCE_NORMS, call.weights, call.statistics, call.coefficients,
            call.table, EPS, training, [torch.zeros_like(call.weights)], call.before,
        ),
    )  # fmt: skip


X, W, S = last(torch.ones(2, 3, 4, 4)), torch.ones(9 * 3 + 4 * 3), torch.ones(2, 2, 4)
ROW = Branch(0, 3, 1, 1, 0, 0, 27, 4, 0, 0, 0, 0)


def table(*changes):
    return [number for change in changes for number in ROW._replace(**change)]


def arguments():
    return dict(
        sources=[X],
        source_norms=[NONE],
        weights=W,
        statistics=S.clone(),
        table=[*ROW],
        eps=EPS,
        training=True,
    )


SHARED = [
    ({"table": []}, "the table must hold 12 numbers a branch, got 0"),
    ({"table": [0] * 13}, "the table must hold 12 numbers a branch, got 13"),
    ({"sources": [], "source_norms": []}, "one norm a source is needed"),
    ({"source_norms": []}, "one norm a source is needed"),
    ({"sources": [X.half()]}, "sources must be float32 or float64 on the CPU, got float16"),
    ({"sources": [X[0]]}, r"sources must have shape \(N, C, H, W\), got \(3, 4, 4\)"),
    ({"sources": [X.contiguous()]}, "sources must be in channels_last memory"),
    ({"sources": [X, X[:1]], "source_norms": [-1, -1]}, r"sources must have shape \(2, 3, 4, 4\), got \(1, 3, 4, 4\)"),
    ({"sources": [X, X.double()], "source_norms": [NONE] * 2}, "sources must be float32 on cpu, got float64 on cpu"),
    ({"sources": [X, X], "source_norms": [NONE] * 2}, "no branch reads source 1 of 2"),
    ({"sources": [X[:, :0]]}, "sources must have channels, source 0 has none"),
    ({"source_norms": [2]}, "source of 3 channels with norm 2 among 2 of 4"),
    ({"source_norms": [1]}, "source of 3 channels with norm 1 among 2 of 4"),
    ({"source_norms": [-2]}, "source of 3 channels with norm -2 among 2 of 4"),
    ({"weights": W[:, None]}, r"weights must be contiguous, of shape \(39\)"),
    ({"weights": W.double()}, "weights must be contiguous, .* got .*, float64 on cpu"),
    ({"weights": W[1:]}, "a branch's weights lie outside of the 38 given"),
    ({"table": table({"depthwise": 13})}, "a branch's weights lie outside of the 39 given"),
    ({"table": table({"depthwise": -1})}, "a branch's weights lie outside of the 39 given"),
    ({"table": table({"pointwise": -1})}, "a branch's weights lie outside of the 39 given"),
    ({"statistics": S[0]}, r"statistics must have shape \(norms, 2, channels\), got \(2, 4\)"),
    ({"statistics": S.double()}, "statistics must be contiguous, .* got .*, float64 on cpu"),
    ({"statistics": torch.ones(1, 2, 3)}, "a norm has 3 channels, an output more"),
    ({"table": table({"out_channel": 1})}, "a norm has 4 channels, an output more"),
    ({"table": table({"source": 1})}, "branch of source 1 among 1"),
    ({"table": table({"source": -1})}, "branch of source -1 among 1"),
    *(({"table": table({"kernel": k})}, f"kernel must be 3, 5, 7, or 0 for none, got {k}") for k in (1, 4, 9)),
    *(
        ({"table": table(change)}, "dilation and stride must be 1 or 2 and channels positive, got")
        for change in ({"dilation": 3}, {"dilation": 0}, {"stride": 0}, {"stride": 3}, {"channels": 0})
    ),
    *(
        ({"table": table(change)}, "shift must be less than the stride, and 0 with a depthwise kernel, got")
        for change in ({"kernel": 0, "shift": 1}, {"stride": 2, "shift": 1}, {"kernel": 0, "stride": 2, "shift": -1})
    ),
    ({"table": table({"out": -1})}, "out and its channel must not be negative"),
    ({"table": table({"out_channel": -1})}, "out and its channel must not be negative"),
    ({"table": table({"norm": 2})}, "norm 2 among 2"),
    ({"table": table({"norm": -2})}, "norm -2 among 2"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        *SHARED,
        ({"table": table({"out": 1})}, "output 1 of 1 branches"),
        (
            {"table": table({}, {"stride": 2, "out_channel": 4, "norm": NONE})},
            "branches of one output must have one size",
        ),
        (
            {"table": table({}, {"norm": 1})},
            "branches must write each channel of an output once",
        ),
        (
            {"table": table({}, {"out_channel": 5, "norm": NONE})},
            "branches must write each channel of an output once, output 0 has 9 .* 8",
        ),
        (
            {"table": table({"out": 1}, {"out": 1, "out_channel": 4, "norm": NONE})},
            "branches must write each channel of an output once, output 0 has 0 .* 0",
        ),
    ],
)
def test_raw_op_checks_its_arguments(changed, sentence):
    given = arguments() | changed
    with pytest.raises(ValueError, match=f"separable_stage: {sentence}"):
        OPS.separable_stage(**given)
    assert (given["statistics"] == 1).all()


G = last(torch.ones(2, 4, 4, 4))


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        *SHARED,
        ({"coefficients": S}, r"coefficients must be contiguous, of shape \(2, 3, 4\)"),
        ({"source_grads": []}, "one gradient a source is needed"),
        ({"source_grads": [X[:1]]}, r"source_grads must have shape \(2, 3, 4, 4\), got \(1, 3, 4, 4\)"),
        ({"source_grads": [X.contiguous()]}, "source_grads must be in channels_last memory"),
        ({"weights_grad": [W[1:]]}, r"weights_grad must be contiguous, of shape \(39\)"),
        ({"raws": []}, "a branch names output 0 of 0, gradient 0 of 1 and norm 0"),
        ({"grads": []}, "a branch names output 0 of 1, gradient 0 of 0 and norm 0"),
        ({"table": table({"norm": NONE})}, "a branch names output 0 of 1, gradient 0 of 1 and norm -1"),
        ({"table": table({"grad": -1})}, "a branch names output 0 of 1, gradient -1 of 1 and norm 0"),
        ({"raws": [X]}, r"grads must have shape \(2, 3, 4, 4\), got \(2, 4, 4, 4\)"),
        ({"raws": [X], "grads": [X]}, "output 0 has too few channels"),
        ({"raws": [G[:1]]}, r"raws must have shape \(2, 4, 4, 4\), got \(1, 4, 4, 4\)"),
        ({"raws": [G.double()]}, "raws must be float32 on cpu, got float64 on cpu"),
        ({"grads": [G[:1]]}, r"grads must have shape \(2, 4, 4, 4\), got \(1, 4, 4, 4\)"),
        ({"grads": [G.contiguous()]}, "grads must be in channels_last memory"),
    ],
)
def test_raw_backward_checks_its_arguments(changed, sentence):
    x_grad, weights_grad = X.clone(memory_format=torch.channels_last), W.clone()
    given = arguments() | dict(grads=[G], raws=[G], coefficients=torch.ones(2, 3, 4))
    given |= dict(weights_grad=[weights_grad], source_grads=[x_grad])
    with pytest.raises(ValueError, match=f"separable_stage: {sentence}"):
        OPS.separable_stage_backward(**(given | changed))
    assert torch.equal(x_grad, X)
    assert torch.equal(weights_grad, W)
