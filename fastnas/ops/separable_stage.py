"""The separable stage: ReLU, depthwise convolution, 1x1 convolution of whole groups of branches in one call."""

from __future__ import annotations

from typing import NamedTuple


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
