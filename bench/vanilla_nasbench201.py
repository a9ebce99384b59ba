"""The baseline's second network: the NAS-Bench-201 search network in plain PyTorch.

As in bench/vanilla.py nothing of fastnas is imported, and the parameters register in the order of the
fastnas arena: stem, cells and reduction blocks in turn, last BatchNorm, classifier.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.vanilla import ModelWithAlphas, Zero

PRIMITIVES = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
NODES = 4  # the input and three that compute


def relu_conv_bn(c_in: int, c_out: int, kernel: int, stride: int, affine: bool, bias: bool) -> nn.Sequential:
    """ReLU, convolution, BatchNorm."""
    conv = nn.Conv2d(c_in, c_out, kernel, stride, padding=kernel // 2, bias=bias)
    return nn.Sequential(nn.ReLU(), conv, nn.BatchNorm2d(c_out, affine=affine))


def make_op(primitive: str, channels: int) -> nn.Module:
    """Make the module of one primitive on one edge.

    A convolution whose BatchNorm is not affine has a bias, as in the authors' code (``bias = not affine``):
    the BatchNorm takes it out again, but it is a weight, with a gradient of rounding errors.
    """
    if primitive == "none":
        return Zero(stride=1)
    if primitive == "skip_connect":
        return nn.Identity()
    if primitive == "avg_pool_3x3":
        return nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False)
    return relu_conv_bn(channels, channels, int(primitive[-1]), stride=1, affine=False, bias=True)


class Edge(nn.Module):
    """All primitives of one edge, summed with the edge's weights."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.ops = nn.ModuleList(make_op(primitive, channels) for primitive in PRIMITIVES)

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        return sum(w * op(x) for w, op in zip(weights, self.ops, strict=True))


class Cell(nn.Module):
    """A graph of four nodes and six edges, by target node, then source; its last node is its output."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.edges = nn.ModuleList(Edge(channels) for node in range(1, NODES) for _ in range(node))

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        nodes = [x]
        first = 0
        while first < len(self.edges):
            total = sum(self.edges[first + i](node, weights[first + i]) for i, node in enumerate(nodes))
            first += len(nodes)
            nodes.append(total)
        return nodes[-1]


class ReductionBlock(nn.Module):
    """A basic residual block of stride 2."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.conv_a = relu_conv_bn(c_in, c_out, 3, stride=2, affine=True, bias=False)
        self.conv_b = relu_conv_bn(c_out, c_out, 3, stride=1, affine=True, bias=False)
        self.shortcut = nn.Sequential(nn.AvgPool2d(2, 2), nn.Conv2d(c_in, c_out, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut(x) + self.conv_b(self.conv_a(x))


class NasBench201Supernet(ModelWithAlphas):
    """The search network of Dong and Yang 2020 (NAS-Bench-201).

    Args:
        C: channels of the first stage; the second and third have 2C and 4C.
        cells: cells per stage (N).
        classes: number of classes.
        image_channels: channels of the images.

    ``alphas`` holds the one cell's logits, (6, 5).

    >>> model = NasBench201Supernet(C=4, cells=1, classes=10)
    >>> model(torch.randn(2, 3, 8, 8)).shape
    torch.Size([2, 10])
    """

    def __init__(self, C: int, cells: int, classes: int, image_channels: int = 3) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(image_channels, C, 3, padding=1, bias=False), nn.BatchNorm2d(C))
        self.body = nn.ModuleList()
        for stage in range(3):
            channels = C * 2**stage
            if stage:
                self.body.append(ReductionBlock(channels // 2, channels))
            self.body.extend(Cell(channels) for _ in range(cells))
        self.last = nn.Sequential(nn.BatchNorm2d(4 * C), nn.ReLU())
        self.classifier = nn.Linear(4 * C, classes)
        edges = NODES * (NODES - 1) // 2
        self.alphas = [nn.Parameter(1e-3 * torch.randn(edges, len(PRIMITIVES)))]

    def forward(self, x: Tensor) -> Tensor:
        weights = F.softmax(self.alphas[0], dim=-1)
        x = self.stem(x)
        for block in self.body:
            x = block(x, weights) if isinstance(block, Cell) else block(x)
        return self.classifier(F.adaptive_avg_pool2d(self.last(x), 1).flatten(1))
