"""The separable stage: ReLU, depthwise convolution, 1x1 convolution of whole groups of branches in one call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

import fastnas._extension  # noqa: F401  (registers torch.ops.fastnas)
from fastnas.errors import FastnasError
from fastnas.ops._distrust import DISTRUSTED
from fastnas.ops._images import (
    as_kernels_give,
    batch_statistics,
    channels_last,
    check_eps,
    check_images,
    check_like,
    check_numbers,
    check_one_device,
    empty_images,
    is_training,
    normalised,
    normalised_gradient,
    plain_statistics,
)

OPS = torch.ops.fastnas
_OP = "separable_stage"
_NONE = -1  # no norm


DENSE = -1


class Branch(NamedTuple):
    """One branch of a call: a row of the native op's table. Offsets count numbers in the flat weights.

    Attributes:
        source: index of the state that it reads.
        kernel: 3, 5 or 7, of the depthwise convolution; 0: there is none, every ``stride``-th pixel is taken.
        dilation, stride: of the depthwise convolution; padding is ``dilation * (kernel // 2)``.
        shift: first pixel, less than the stride; only without a depthwise convolution.
        depthwise: offset of its weights (C_in, kernel, kernel); DENSE: one dense convolution of stride and
            dilation 1 instead of depthwise and 1x1.
        pointwise: offset of its weights (channels, C_in), dense (channels, C_in, kernel, kernel).
        channels: of its output.
        out: index of the output tensor that it writes; ``out_channel`` its first channel there.
        norm: row of the statistics that its output's mean and variance go to; -1: none.
        grad: index of the tensor that its output's gradient is formed from.
    """

    source: int
    kernel: int
    dilation: int
    stride: int
    shift: int
    depthwise: int
    pointwise: int
    channels: int
    out: int
    out_channel: int
    norm: int
    grad: int


def separable_stage(
    x: Tensor | Sequence[Tensor],
    depthwise: Sequence[Tensor | None],
    pointwise: Sequence[Tensor],
    *,
    stride: int | Sequence[int] = 1,
    dilation: int | Sequence[int] = 1,
    normalise: bool = False,
    statistics: Tensor | None = None,
    training: bool | None = None,
    eps: float = 1e-5,
) -> tuple[list[Tensor], Tensor]:
    """The convolutions of K branches up to their BatchNorm, in one call that reads a shared state once.

    raws[k] = pointwise[k] * (depthwise[k] * ReLU(x)), * the convolution: the ReLU-conv part of ``sep_conv``,
    ``dil_conv`` and, without a depthwise convolution, of a 1x1 preprocessing (DARTS, Liu et al. 2019, section 3.1 and
    appendix A.1). With ``normalise``, x is (x - mean) / sqrt(variance + eps) first, BatchNorm without affine (Ioffe
    and Szegedy 2015): the second half of a ``sep_conv`` then reads the raw outputs of the first. The activations and
    depthwise outputs are never written to memory. Differentiable once. Results are the same bits in every run
    and for every number of threads.

    Args:
        x: the state that all branches read, (B, C, H, W) of float32 or float64 on the CPU, float32 or bfloat16 on
            CUDA, or one state for each branch, all of one shape. Read in place in channels-last memory, of which it
            may be a slice of channels; copied otherwise. Beside bfloat16 states weights and statistics are float32.
        depthwise: of each branch (C, 1, k, k), k = 3, 5 or 7, padded by ``dilation * (k // 2)``; None: there is
            none, and every ``stride``-th pixel is taken.
        pointwise: of each branch (C_out, C, 1, 1), C_out the same in all.
        stride, dilation: of the depthwise convolutions, 1 or 2; one number for all branches or one for each.
        normalise: normalise x by its statistics.
        statistics: of x where it is normalised, (states, 2, C), one state if x is a tensor: mean and biased
            variance of each channel. None: the batch's, computed here.
        training: whether they are the batch's own, so that gradients flow through them. None: exactly if
            ``statistics`` is. Give both where an earlier ``separable_stage`` has computed them.
        eps: added to the variance of x, >= 0.

    Returns:
        ``(raws, statistics)``: K outputs (B, C_out, ceil(H / stride), ceil(W / stride)) in channels-last memory, and
        (K, 2, C_out), their means and biased variances as ``normalised_mixed_sum`` takes them (0 for an empty batch).
        The statistics are not differentiable: that function carries the gradient through them.

        Kept for backward: x, the weights side by side, and the statistics of a normalised x.

    Raises:
        FastnasError: on arguments that do not fit together. A normalised x cannot have fewer channels than C_out.

    Example:
        >>> x, w = torch.ones(1, 2, 3, 3), torch.ones(4, 2, 1, 1)
        >>> (raw, narrow), statistics = separable_stage(x, [torch.ones(2, 1, 3, 3), None], [w, w], stride=(1, 2))
        >>> raw[0, 0]
        tensor([[ 8., 12.,  8.],
                [12., 18., 12.],
                [ 8., 12.,  8.]])
        >>> narrow.shape, statistics.shape
        (torch.Size([1, 4, 2, 2]), torch.Size([2, 2, 4]))
    """
    pointwise, depthwise = tuple(pointwise), tuple(depthwise)
    strides, dilations = (
        _per_branch(name, value, len(pointwise))
        for name, value in (("stride", stride), ("dilation", dilation))
    )
    sources = [x] if isinstance(x, Tensor) else list(x)
    source_of = [0 if isinstance(x, Tensor) else k for k in range(len(pointwise))]
    _check(sources, source_of, depthwise, pointwise, isinstance(x, Tensor))
    out_channels, channels = len(pointwise[0]), sources[0].shape[1]
    if normalise and out_channels > channels:
        raise FastnasError(
            f"{_OP}: a normalised x must have as many channels as the outputs, {out_channels}, or more; got {channels}"
        )
    if statistics is not None and not normalise:
        raise FastnasError(f"{_OP}: statistics are given, but normalise is False")
    eps = check_eps(_OP, eps)
    sources = [channels_last(source) for source in sources]
    training = not normalise or is_training(_OP, statistics, training)
    if statistics is not None:
        check_numbers(_OP, "statistics", statistics, (len(sources), 2, channels), "x", sources[0])
    elif normalise:
        statistics = torch.stack([batch_statistics(source) for source in sources])

    if _OP in DISTRUSTED:
        raws, own = _separable_stage_ref(
            x, depthwise, pointwise, stride=strides, dilation=dilations, normalise=normalise,
            statistics=statistics, training=training, eps=eps,
        )  # fmt: skip
        return as_kernels_give(raws, own, sources[0])

    table: list[int] = []
    weights: list[Tensor] = []
    begin, norm = 0, len(sources) if normalise else 0
    for k, (of_depth, of_points) in enumerate(zip(depthwise, pointwise, strict=True)):
        kernel, depth_size = (0, 0) if of_depth is None else (of_depth.shape[-1], of_depth.numel())
        table += Branch(
            source=source_of[k], kernel=kernel, dilation=dilations[k], stride=strides[k], shift=0, depthwise=begin,
            pointwise=begin + depth_size, channels=out_channels, out=k, out_channel=0, norm=norm + k, grad=k,
        )  # fmt: skip
        begin += depth_size + of_points.numel()
        weights += [of_points.flatten()] if of_depth is None else [of_depth.flatten(), of_points.flatten()]
    call = _Call(table, len(pointwise), out_channels, normalise, training, eps)
    *raws, own = _SeparableStage.apply(call, statistics, torch.cat(weights), *sources)
    return raws, own


def _separable_stage_ref(
    x: Tensor | Sequence[Tensor],
    depthwise: Sequence[Tensor | None],
    pointwise: Sequence[Tensor],
    *,
    stride: int | Sequence[int] = 1,
    dilation: int | Sequence[int] = 1,
    normalise: bool = False,
    statistics: Tensor | None = None,
    training: bool | None = None,
    eps: float = 1e-5,
) -> tuple[list[Tensor], Tensor]:
    """``separable_stage`` as it is commonly written, in plain PyTorch."""
    count = len(pointwise)
    sources = [x] * count if isinstance(x, Tensor) else x
    strides, dilations = (_per_branch("", value, count) for value in (stride, dilation))
    raws = []
    for k in range(count):
        state, of_depth, step, spread = sources[k], depthwise[k], strides[k], dilations[k]
        if normalise:
            batch = is_training(_OP, statistics, training)
            known = None if statistics is None else statistics[0 if isinstance(x, Tensor) else k]
            state = normalised(state, plain_statistics(state) if batch or known is None else known, eps)
        state = F.relu(state)
        if of_depth is not None:
            padding = spread * (of_depth.shape[-1] // 2)
            state = F.conv2d(
                state, of_depth.to(state.dtype), None, step, padding, spread, groups=len(of_depth)
            )
            step = 1
        raws.append(F.conv2d(state, pointwise[k].to(state.dtype), stride=step))
    return raws, torch.stack([plain_statistics(raw) for raw in raws]).detach()


def _per_branch(name: str, value: int | Sequence[int], count: int) -> list[int]:
    """``value`` for each of ``count`` branches."""
    values = [value] * count if isinstance(value, int) else list(value)
    if len(values) != count or any(number not in (1, 2) for number in values):
        raise FastnasError(
            f"{_OP}: {name} must be 1 or 2, or one of them for each of {count} branches, got {value!r}"
        )
    return values


def _check(
    sources: Sequence[object],
    source_of: Sequence[int],
    depthwise: Sequence[object],
    pointwise: Sequence[object],
    shared: bool,
) -> None:
    """Raise unless states and weights fit together."""
    if not pointwise or len(depthwise) != len(pointwise):
        raise FastnasError(
            f"{_OP}: depthwise and pointwise must have one entry for each branch and at least one, "
            f"got {len(depthwise)} and {len(pointwise)}"
        )
    if not shared and len(sources) != len(pointwise):
        raise FastnasError(
            f"{_OP}: x must be one state or {len(pointwise)}, one for each branch, got {len(sources)}"
        )
    model = check_images(_OP, "x" if shared else "x[0]", sources[0])
    for k, source in enumerate(sources):
        check_like(_OP, f"x[{k}]", source, model.shape, "x[0]", model)
    channels = model.shape[1]
    first = pointwise[0]
    if not isinstance(first, Tensor) or first.dim() != 4 or len(first) == 0 or channels == 0:
        got = tuple(first.shape) if isinstance(first, Tensor) else type(first).__name__
        raise FastnasError(
            f"{_OP}: pointwise[0] must have shape (C_out, C, 1, 1), C = {channels} >= 1, got {got}"
        )
    for k, (of_depth, of_points) in enumerate(zip(depthwise, pointwise, strict=True)):
        check_numbers(_OP, f"pointwise[{k}]", of_points, (len(first), channels, 1, 1), "x", model)
        if of_depth is None:
            continue
        kernel = of_depth.shape[-1] if isinstance(of_depth, Tensor) and of_depth.dim() == 4 else 3
        if kernel not in (3, 5, 7):
            raise FastnasError(f"{_OP}: the kernel of depthwise[{k}] must be 3, 5 or 7, got {kernel}")
        check_numbers(_OP, f"depthwise[{k}]", of_depth, (channels, 1, kernel, kernel), "x", model)


class _Call(NamedTuple):
    """What a call knows beside its tensors."""

    table: list[int]
    branches: int
    out_channels: int
    normalise: bool
    training: bool
    eps: float


class _SeparableStage(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, call: _Call, statistics: Tensor | None, weights: Tensor, *sources: Tensor
    ) -> tuple[Tensor, ...]:
        # Rows of the statistics: those of the normalised sources, then those of the outputs.
        channels = call.out_channels if statistics is None else statistics.shape[2]
        own = weights.new_zeros(call.branches, 2, channels)
        rows = own if statistics is None else torch.cat([statistics, own])
        norms = _source_norms(call, len(sources))
        raws = OPS.separable_stage(sources, norms, weights, rows, call.table, call.eps, True)
        ctx.call = call
        ctx.save_for_backward(weights, *sources, *([] if statistics is None else [rows]))
        own = own if statistics is None else rows[len(sources) :, :, : call.out_channels].clone()
        ctx.mark_non_differentiable(own)
        return *raws, own

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *raw_grads: Tensor) -> tuple[Tensor | None, ...]:
        call: _Call = ctx.call
        weights, *sources = ctx.saved_tensors
        normed = 0
        rows = weights.new_zeros(call.branches, 2, call.out_channels)
        if call.normalise:
            rows = sources.pop()
            normed = len(sources)
        grads = [channels_last(grad) for grad in raw_grads[: call.branches]]
        coefficients = weights.new_zeros(rows.shape[0], 3, rows.shape[2])
        coefficients[normed:, 0] = 1  # the gradient of an output is 1 (grad + 0 (raw - 0) + 0) ...
        weights_grad = [torch.empty_like(weights)] if ctx.needs_input_grad[2] else []
        start = torch.empty_like if call.normalise else torch.zeros_like
        source_grads = [start(source, memory_format=torch.channels_last) for source in sources]
        OPS.separable_stage_backward(
            grads,
            grads,  # ... so anything finite of its size will do for the output, which need not be kept
            sources,
            _source_norms(call, len(sources)),
            weights,
            rows,
            coefficients,
            call.table,
            call.eps,
            call.training,
            weights_grad,
            source_grads,
        )
        wanted: list[Tensor | None] = [*source_grads]
        if call.normalise:
            wanted = [
                normalised_gradient(row, mean, grad, x, call.training) if needed else None
                for row, mean, grad, x, needed in zip(
                    coefficients, rows[:, 0], source_grads, sources, ctx.needs_input_grad[3:], strict=False
                )
            ]
        return None, None, weights_grad[0] if weights_grad else None, *wanted


def _source_norms(call: _Call, count: int) -> list[int]:
    return list(range(count)) if call.normalise else [_NONE] * count


@torch.library.register_fake("fastnas::separable_stage")
def _separable_stage_fake(
    sources: Sequence[Tensor],
    source_norms: Sequence[int],
    weights: Tensor,
    statistics: Tensor,
    table: Sequence[int],
    eps: float,
    training: bool,
) -> list[Tensor]:
    check_one_device(_OP, sources, weights, statistics)
    branches = _branches(table, len(sources))
    outs = []
    for out in range(max(branch.out for branch in branches) + 1):
        of_out = [branch for branch in branches if branch.out == out]
        count, _, *size = sources[of_out[0].source].shape
        height, width_out = ((side + of_out[0].stride - 1) // of_out[0].stride for side in size)
        channels = max(branch.out_channel + branch.channels for branch in of_out)
        outs.append(empty_images(sources[0], count, channels, height, width_out))
    return outs


def _branches(table: Sequence[int], sources: int) -> list[Branch]:
    """The rows of a table, of whose numbers those that sizes depend on are as the native op wants them."""
    width = len(Branch._fields)
    if not table or len(table) % width:
        raise FastnasError(f"{_OP}: the table must hold {width} numbers a branch, got {len(table)}")
    branches = [Branch(*table[i : i + width]) for i in range(0, len(table), width)]
    outs = {branch.out for branch in branches}
    fits = all(b.stride in (1, 2) and 0 <= b.source < sources and b.channels >= 1 for b in branches)
    if not fits or outs != set(range(len(outs))):
        raise FastnasError(
            f"{_OP}: the table must name sources from 0 to {sources - 1}, strides 1 or 2, channels >= 1 and all "
            f"outputs from 0, got {list(table)}"
        )
    return branches


@torch.library.register_fake("fastnas::separable_stage_backward")
def _separable_stage_backward_fake(
    grads: Sequence[Tensor],
    raws: Sequence[Tensor],
    sources: Sequence[Tensor],
    source_norms: Sequence[int],
    weights: Tensor,
    statistics: Tensor,
    coefficients: Tensor,
    table: Sequence[int],
    eps: float,
    training: bool,
    weights_grad: Sequence[Tensor],
    source_grads: Sequence[Tensor],
) -> None:
    check_one_device(_OP, grads, raws, sources, weights, statistics, coefficients, weights_grad, source_grads)
    return None
