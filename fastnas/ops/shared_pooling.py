"""Average- and max-pooling 3x3 of one state, read once for both."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

import fastnas._extension  # noqa: F401  (registers torch.ops.fastnas)
from fastnas.errors import FastnasError
from fastnas.ops._distrust import DISTRUSTED
from fastnas.ops._images import (
    as_kernels_give,
    channels_last,
    check_images,
    check_one_device,
    empty_images,
    numbers_dtype,
    plain_statistics,
)

OPS = torch.ops.fastnas
_OP = "shared_pooling"
_NONE = -1  # no norm, no weight


def shared_pooling(x: Tensor, stride: int = 1) -> tuple[list[Tensor], Tensor]:
    """The primitives ``avg_pool_3x3`` and ``max_pool_3x3`` of one state, in one pass over it.

    average[i] = mean and maximum[i] = max of the pixels of x under the 3x3 window around pixel i stride, those
    outside of the image not counted (DARTS, Liu et al. 2019, section 3.1 and appendix A.1): a drop-in for
    ``F.avg_pool2d(x, 3, stride, 1, count_include_pad=False)`` and ``F.max_pool2d(x, 3, stride, 1)``. The gradient
    of a maximum goes to the window's first pixel that has it, row by row. Differentiable once. Results are the
    same bits in every run and for every number of threads.

    Args:
        x: (B, C, H, W), float32 or float64 on the CPU, float32 or bfloat16 on CUDA. Read in place in channels-last
            memory, of which it may be a slice of channels; copied otherwise.
        stride: of both, >= 1.

    Returns:
        ``([average, maximum], statistics)``: each (B, C, ceil(H / stride), ceil(W / stride)), channels last, and
        (2, 2, C), the mean and biased variance of each one's channels as ``normalised_mixed_sum`` takes them (0 for
        an empty batch), float32 beside bfloat16. The statistics are not differentiable: that function carries the
        gradient through them.

        Kept for backward: x and the maximum.

    Raises:
        FastnasError: on arguments that do not fit together.

    Example:
        >>> x = torch.arange(9.0).view(1, 1, 3, 3)
        >>> (average, maximum), statistics = shared_pooling(x, stride=2)
        >>> average.flatten(), maximum.flatten()
        (tensor([2., 3., 5., 6.]), tensor([4., 5., 7., 8.]))
        >>> statistics[1]  # mean and variance of the maximum
        tensor([[6.0000],
                [2.5000]])
    """
    check_images(_OP, "x", x)
    if not isinstance(stride, int) or isinstance(stride, bool) or stride < 1:
        raise FastnasError(f"{_OP}: stride must be a whole number >= 1, got {stride!r}")
    if _OP in DISTRUSTED:
        return as_kernels_give(*_shared_pooling_ref(x, stride), x)
    average, maximum, statistics = _SharedPooling.apply(stride, channels_last(x))
    return [average, maximum], statistics


def _shared_pooling_ref(x: Tensor, stride: int = 1) -> tuple[list[Tensor], Tensor]:
    """``shared_pooling`` in plain PyTorch."""
    average = F.avg_pool2d(x, 3, stride, 1, count_include_pad=False)
    pooled = [average, F.max_pool2d(x, 3, stride, 1)]
    return pooled, torch.stack([plain_statistics(out) for out in pooled]).detach()


class _SharedPooling(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, stride: int, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        statistics = x.new_zeros(2, 2, x.shape[1], dtype=numbers_dtype(x))
        average, maximum = OPS.shared_pooling(x, stride, True, True, [0], [1], statistics)
        ctx.stride = stride
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(statistics)
        ctx.save_for_backward(x, maximum)
        return average, maximum, statistics

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, average_grad: Tensor | None, maximum_grad: Tensor | None, _: Tensor | None
    ) -> tuple[None, Tensor | None]:
        x, maximum = ctx.saved_tensors
        if average_grad is None and maximum_grad is None:
            return None, None
        # Each pooling is an edge of weight 1 with a gradient of its own.
        edges = []
        if average_grad is not None:
            edges.append((channels_last(average_grad), (_NONE, 0, _NONE, _NONE, _NONE)))
        if maximum_grad is not None:
            edges.append((channels_last(maximum_grad), (_NONE, _NONE, _NONE, 0, _NONE)))
        grads, numbers = [grad for grad, _ in edges], numbers_dtype(x)
        x_grad = torch.zeros_like(x, memory_format=torch.channels_last)
        OPS.shared_pooling_backward(
            x,
            ctx.stride,
            # Where nothing is normalised, the average's own values have the factor 0: any of its size will do.
            [maximum] if average_grad is not None else [],
            [maximum] if maximum_grad is not None else [],
            grads,
            [number for _, row in edges for number in row],
            x.new_empty(0, 2, x.shape[1], dtype=numbers),
            x.new_empty(0, 3, x.shape[1], dtype=numbers),
            x.new_ones(1, dtype=numbers),
            x_grad,
        )
        return None, x_grad


@torch.library.register_fake("fastnas::shared_pooling")
def _shared_pooling_fake(
    x: Tensor,
    stride: int,
    average: bool,
    maximum: bool,
    average_norms: Sequence[int],
    maximum_norms: Sequence[int],
    statistics: Tensor,
) -> list[Tensor]:
    check_one_device(_OP, x, statistics)
    if stride < 1:
        raise FastnasError(f"{_OP}: stride must be positive, got {stride}")
    count, channels, *size = x.shape
    height, width = ((side + stride - 1) // stride for side in size)
    return [empty_images(x, count, channels, height, width) for wanted in (average, maximum) if wanted]


@torch.library.register_fake("fastnas::shared_pooling_backward")
def _shared_pooling_backward_fake(
    x: Tensor,
    stride: int,
    average: Sequence[Tensor],
    maximum: Sequence[Tensor],
    grads: Sequence[Tensor],
    table: Sequence[int],
    statistics: Tensor,
    coefficients: Tensor,
    weights: Tensor,
    x_grad: Tensor,
) -> None:
    check_one_device(_OP, x, average, maximum, grads, statistics, coefficients, weights, x_grad)
    return None
