"""The primitives and building blocks of the spaces as plain PyTorch modules.

``PRIMITIVES`` maps a name to a factory; a space may use any name in it, so one more of the library's is one entry here.
A user's own are entered by ``fastnas.register_primitive`` (``own_primitives.py``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastnas.errors import FastnasError

# Of every BatchNorm, as nn.BatchNorm2d's.
MOMENTUM = 0.1
EPS = 1e-5


class Statistics:
    """What the BatchNorms of a network are to do beside normalising.

    Attributes:
        moving: move their running statistics: only weight steps do, the oracles of a hypergradient not.
        composed: in training mode compute mean and variance by operations that autograd sees. PyTorch's own
            ``batch_norm`` takes the saved statistics for constants when its forward derivative is differentiated.
    """

    moving = True
    composed = False


class BatchNorm(nn.Module):
    """BatchNorm over all but the channels; running statistics move only in training mode while ``statistics.moving``.

    With ``affine`` it has a scale and a shift, without it none. Momentum 0.1 and eps 1e-5 as in nn.BatchNorm2d.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, affine: bool, statistics: Statistics) -> None:
        super().__init__()
        self.statistics = statistics
        self.weight = nn.Parameter(torch.ones(channels)) if affine else None
        self.bias = nn.Parameter(torch.zeros(channels)) if affine else None
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        if self.training and self.statistics.composed:
            return self._composed(x)
        frozen = self.training and not self.statistics.moving
        return F.batch_norm(
            x,
            None if frozen else self.running_mean,
            None if frozen else self.running_var,
            self.weight,
            self.bias,
            self.training,
            momentum=MOMENTUM,
            eps=EPS,
        )

    def _composed(self, x: Tensor) -> Tensor:
        """With the batch's statistics; the running ones stay."""

        others = [dimension for dimension in range(x.dim()) if dimension != 1]
        off = x - x.mean(others, keepdim=True)
        normalised = off * torch.rsqrt(off.square().mean(others, keepdim=True) + EPS)
        if self.weight is None or self.bias is None:
            return normalised
        return normalised * self.weight.view(1, -1, 1, 1) + self.bias.view(1, -1, 1, 1)


@dataclass(frozen=True)
class Context:
    """What a primitive is built for: C channels in and out, the stride of its edge, and its cell's conventions.

    Attributes:
        channels: C, of the images that it gets and gives.
        stride: by which it divides their size, rounding up.
        affine: whether BatchNorms have scale and shift: a discrete network's have, a supernet's mostly not.
        normalise_pools: whether a BatchNorm is behind what has no weights, as in DARTS' supernet.
        statistics: of the network's BatchNorms; ``norm`` hands it on.
    """

    channels: int
    stride: int
    affine: bool
    normalise_pools: bool
    statistics: Statistics

    def norm(self, channels: int | None = None) -> BatchNorm:
        """A BatchNorm as the cell has them, whose running statistics stay put within a hypergradient.

        Args:
            channels: that it normalises; C if None.
        """
        return BatchNorm(channels or self.channels, self.affine, self.statistics)


Factory: TypeAlias = Callable[[Context], nn.Module]


def relu_conv_bn(
    c_in: int, c_out: int, kernel: int, stride: int, norm: BatchNorm, *, bias: bool = False
) -> nn.Sequential:
    """ReLU, k x k convolution with padding k // 2, ``norm``."""
    return nn.Sequential(nn.ReLU(), nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, bias=bias), norm)


def conv_bn_relu(c_in: int, c_out: int, kernel: int, stride: int, norm: BatchNorm) -> nn.Sequential:
    """k x k convolution with padding k // 2, ``norm``, ReLU."""
    convolution = nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(convolution, norm, nn.ReLU())


class FactorizedReduce(nn.Module):
    """Halves the image without a loss of positions: two 1x1 convolutions of stride 2, one shifted by a pixel."""

    def __init__(self, c_in: int, c_out: int, norm: BatchNorm) -> None:
        super().__init__()
        self.relu = nn.ReLU()
        self.even = nn.Conv2d(c_in, c_out // 2, 1, stride=2, bias=False)
        self.odd = nn.Conv2d(c_in, c_out - c_out // 2, 1, stride=2, bias=False)
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(x)
        height, width = x.shape[-2:]
        # An odd side gets one zero line, so that both halves have (side + 1) // 2 positions.
        shifted = F.pad(x, (0, width % 2, 0, height % 2))[:, :, 1:, 1:]
        return self.norm(torch.cat([self.even(x), self.odd(shifted)], dim=1))


def smooth_(network: nn.Module) -> None:
    """Takes the kinks out of ``network``, in place: softplus for each ReLU, the average for each maximum.

    What is left has derivatives of every order; weights and their names stay.
    """
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.ReLU):
                setattr(module, name, nn.Softplus())
            elif isinstance(child, nn.MaxPool2d):
                pool = nn.AvgPool2d(child.kernel_size, child.stride, child.padding, child.ceil_mode, False)
                setattr(module, name, pool)


def _depthwise_stage(ctx: Context, kernel: int, stride: int, dilation: int) -> list[nn.Module]:
    """ReLU, depthwise k x k, 1x1, BatchNorm."""
    padding = dilation * (kernel // 2)
    depthwise = nn.Conv2d(
        ctx.channels, ctx.channels, kernel, stride, padding, dilation, groups=ctx.channels, bias=False
    )
    return [nn.ReLU(), depthwise, nn.Conv2d(ctx.channels, ctx.channels, 1, bias=False), ctx.norm()]


def _sep_conv(kernel: int) -> Callable[[Context], nn.Module]:
    return lambda ctx: nn.Sequential(
        *_depthwise_stage(ctx, kernel, ctx.stride, 1), *_depthwise_stage(ctx, kernel, 1, 1)
    )


def _dil_conv(kernel: int) -> Callable[[Context], nn.Module]:
    return lambda ctx: nn.Sequential(*_depthwise_stage(ctx, kernel, ctx.stride, 2))


def _nor_conv(kernel: int) -> Callable[[Context], nn.Module]:
    # NAS-Bench-201 gives a convolution a bias where the BatchNorm behind it has no shift.
    return lambda ctx: relu_conv_bn(
        ctx.channels, ctx.channels, kernel, ctx.stride, ctx.norm(), bias=not ctx.affine
    )


def _conv_bn_relu(kernel: int) -> Callable[[Context], nn.Module]:
    return lambda ctx: conv_bn_relu(ctx.channels, ctx.channels, kernel, ctx.stride, ctx.norm())


def _conv_7x1_1x7(ctx: Context) -> nn.Module:
    c, s = ctx.channels, ctx.stride
    return nn.Sequential(
        nn.ReLU(),
        nn.Conv2d(c, c, (1, 7), (1, s), (0, 3), bias=False),
        nn.Conv2d(c, c, (7, 1), (s, 1), (3, 0), bias=False),
        ctx.norm(),
    )


class Noise(nn.Module):
    """N(0, 1) of the output's shape, new at every forward pass; nothing of its source is in it (Zela et al. 2020)."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        count, channels, height, width = x.shape
        stride = self.stride
        shape = count, channels, (height + stride - 1) // stride, (width + stride - 1) // stride
        # Drawn in float32 and in this order of axes, so that precisions and executors see the same numbers.
        return torch.randn(shape, device=x.device).to(x.dtype)


def _pool(pool: Callable[[int], nn.Module]) -> Callable[[Context], nn.Module]:
    return lambda ctx: (
        nn.Sequential(pool(ctx.stride), ctx.norm()) if ctx.normalise_pools else pool(ctx.stride)
    )


def _skip_connect(ctx: Context) -> nn.Module:
    return nn.Identity() if ctx.stride == 1 else FactorizedReduce(ctx.channels, ctx.channels, ctx.norm())


PRIMITIVES: dict[str, Factory] = {
    "max_pool_3x3": _pool(lambda stride: nn.MaxPool2d(3, stride, 1)),
    "avg_pool_3x3": _pool(lambda stride: nn.AvgPool2d(3, stride, 1, count_include_pad=False)),
    "skip_connect": _skip_connect,
    "sep_conv_3x3": _sep_conv(3),
    "sep_conv_5x5": _sep_conv(5),
    "sep_conv_7x7": _sep_conv(7),
    "dil_conv_3x3": _dil_conv(3),
    "dil_conv_5x5": _dil_conv(5),
    "conv_7x1_1x7": _conv_7x1_1x7,
    "noise": lambda ctx: Noise(ctx.stride),
    "nor_conv_1x1": _nor_conv(1),
    "nor_conv_3x3": _nor_conv(3),
    "maxpool3x3": _pool(lambda stride: nn.MaxPool2d(3, stride, 1)),
    "conv3x3-bn-relu": _conv_bn_relu(3),
    "conv1x1-bn-relu": _conv_bn_relu(1),
}


def make_primitive(name: str, ctx: Context) -> nn.Module:
    """The module of the primitive ``name``: (B, C, H, W) -> (B, C, ceil(H / stride), ceil(W / stride)).

    Raises:
        FastnasError: the name is unknown. ("none" has no module: an executor leaves it out.)
    """
    if name not in PRIMITIVES:
        raise FastnasError(f"unknown primitive {name!r}; known are none, {', '.join(PRIMITIVES)}")
    return PRIMITIVES[name](ctx)
