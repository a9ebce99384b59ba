"""The reference executor: a space in plain PyTorch, one branch after the other, differentiable twice."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastnas.errors import FastnasError
from fastnas.spaces import Auxiliary, Cell, Head, MatrixCell, Mixing, Pool, Residual, Space, Stem
from fastnas.supernet.executor import Executor, initial_alpha
from fastnas.supernet.matrix_cell import MatrixCellModule
from fastnas.supernet.mixing import CellMixing, first_weights
from fastnas.supernet.primitives import (
    BatchNorm,
    Context,
    FactorizedReduce,
    Statistics,
    conv_bn_relu,
    make_primitive,
    relu_conv_bn,
    smooth_,
)

NodeSum: TypeAlias = Callable[[Sequence[Tensor], Sequence[Tensor] | None], Tensor]
Norm: TypeAlias = Callable[[int], BatchNorm]


class Supernet(Executor):
    """Executes a :class:`Space`: images (B, C, H, W) -> logits (B, classes).

    The weights are ``parameters()``; architecture parameters are kept apart from them.

    Args:
        space: the description that it executes.
        dtype, device: of weights, architecture parameters and running statistics.
        smooth: softplus stands for every ReLU and the average for every maximum: a network without kinks.

    Attributes:
        space: the description that it executes.
        weights: in the order stem, cells (preprocessing, then edges by target and source, primitives in the space's
            order), head, auxiliary head.
        drop_path: probability, (), with which training drops each primitive's output but an identity's, image by image;
            read anew in every forward pass. None: nothing is dropped.
        auxiliary_weight: of the auxiliary head's loss in ``penalty``.
    """

    def __init__(
        self,
        space: Space,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        smooth: bool = False,
    ) -> None:
        super().__init__()
        self.space = space
        self.stages = nn.ModuleList(self._stage(i) for i in range(len(space.stages)))
        self.auxiliary = self._auxiliary()
        self.drop_path: Tensor | None = None
        self.auxiliary_weight = 0.4
        self._auxiliary_logits: Tensor | None = None
        if smooth:
            smooth_(self)
        alphas = {alpha.name: initial_alpha(alpha) for alpha in space.alphas}
        self._gather(alphas, dtype, device)
        self._mixing = {
            spec.mixing: CellMixing(spec, space.alphas)
            for spec in space.stages
            if isinstance(spec, Cell) and spec.is_mixed
        }

    def forward(self, images: Tensor) -> Tensor:
        logits, self._auxiliary_logits = self.heads(images)
        return logits

    def penalty(self, targets: Tensor) -> Tensor | None:
        """``auxiliary_weight`` times the auxiliary head's cross-entropy, in training mode."""
        logits, self._auxiliary_logits = self._auxiliary_logits, None  # they hold the graph
        if logits is None:
            return None
        return self.auxiliary_weight * F.cross_entropy(logits.to(self.weights.flat.dtype), targets)

    def heads(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """The logits (B, classes) of the head and, in training mode, of the auxiliary head if there is one."""
        mixing = self.mixing({name: alpha.softmax(-1) for name, alpha in self.alphas.tensors.items()})
        outputs: list[Tensor] = []
        for spec in self.space.stages:
            if isinstance(spec, Cell):
                inputs = [outputs[source.stage] for source in spec.inputs]
                outputs.append(self.cell(len(outputs), inputs, mixing.get(spec.mixing)))
            else:
                outputs.append(self.block(len(outputs), outputs[-1] if outputs else images))
        if self.auxiliary is None or self.space.auxiliary is None or not self.training:
            return outputs[-1], None
        return outputs[-1], self.auxiliary(outputs[self.space.auxiliary.stage])

    def mixing(self, softmaxed: Mapping[str, Tensor]) -> dict[tuple[Mixing | None, ...], Tensor]:
        """The vector that weighs the branches of a cell, by ``Cell.mixing``; cells that nothing weighs have none."""
        return {key: weights(softmaxed) for key, weights in self._mixing.items()}

    def block(self, index: int, x: Tensor) -> Tensor:
        """The output of stage ``index``, which is no ``Cell``."""
        output: Tensor = self.stages[index](x)
        return output

    def cell(self, index: int, inputs: Sequence[Tensor], mixing: Tensor | None) -> Tensor:
        """The output of stage ``index``, a cell; ``mixing`` has a number for each primitive of each edge."""
        output: Tensor = self.stages[index](inputs, mixing, self.node, self.drop_path)
        return output

    def node(self, branches: Sequence[Tensor], weights: Sequence[Tensor] | None) -> Tensor:
        """A node of a cell: the sum of all branches that enter it, weighted or (a discrete network) not."""
        if weights is None:
            return sum(branches[1:], start=branches[0])
        first, *rest = (weight * branch for weight, branch in zip(weights, branches, strict=True))
        return sum(rest, start=first)

    def _stage(self, index: int) -> nn.Module:
        spec, c_in = self.space.stages[index], self.space.in_channels(index)

        def norm(channels: int, affine: bool = True) -> BatchNorm:
            return BatchNorm(channels, affine, self._statistics)

        if isinstance(spec, Stem):
            return _stem(spec, c_in, norm)
        if isinstance(spec, Residual):
            return ResidualBlock(c_in, spec, norm)
        if isinstance(spec, Head):
            return self._head(spec, c_in, norm)
        if isinstance(spec, Pool):
            return nn.MaxPool2d(2, ceil_mode=True)
        if isinstance(spec, MatrixCell):
            return MatrixCellModule(spec, c_in, self._statistics)
        return MixedCell(
            spec, [self.space.stages[i.stage].out_channels for i in spec.inputs], self._statistics
        )

    def _auxiliary(self) -> AuxiliaryHead | None:
        spec = self.space.auxiliary
        if spec is None:
            return None
        return AuxiliaryHead(spec, self.space.stages[spec.stage].out_channels, self._statistics)

    @staticmethod
    def _head(spec: Head, c_in: int, norm: Callable[..., BatchNorm]) -> nn.Module:
        before: list[nn.Module] = [norm(c_in), nn.ReLU()] if spec.normalise else []
        if spec.projection is not None:
            before.append(relu_conv_bn(c_in, spec.projection, 1, 1, norm(spec.projection, False)))
            c_in = spec.projection
        return nn.Sequential(*before, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(c_in, spec.classes))


def smooth_twin(net: Supernet) -> Supernet:
    """A copy of ``net`` without kinks (``Supernet(smooth=True)``), whichever its executor; same weights, same names.

    Softplus lies above ReLU everywhere, so the twin is another network with the same weights: a place to see what a
    finite difference does where there is nothing to cross, not an approximation of ``net``.

    >>> from fastnas.spaces import make_space
    >>> net = Supernet(make_space("darts", channels=4, layers=3))
    >>> torch.equal(smooth_twin(net).weights.flat, net.weights.flat)
    True
    """
    flat = net.weights.flat
    with torch.random.fork_rng(devices=[]):  # its initial weights are drawn, and not used
        twin = Supernet(net.space, dtype=flat.dtype, device=flat.device, smooth=True)
    with torch.no_grad():
        for mine, its in (
            (twin.weights, net.weights),
            (twin.alphas, net.alphas),
            (twin.running, net.running),
        ):
            mine.flat.copy_(its.flat)
    twin.drop_path, twin.auxiliary_weight = net.drop_path, net.auxiliary_weight
    twin.train(net.training)
    return twin


class MixedCell(nn.Module):
    """One cell: preprocessed inputs, then node after node, then the concatenation of its output states."""

    def __init__(self, spec: Cell, c_in: Sequence[int], statistics: Statistics) -> None:
        super().__init__()
        self.spec = spec
        self.preprocess = nn.ModuleList()
        for source, channels in zip(spec.inputs, c_in, strict=True):
            norm = BatchNorm(spec.channels, spec.affine, statistics)
            if source.preprocess == "identity":
                self.preprocess.append(nn.Identity())
            elif source.preprocess == "factorized_reduce":
                self.preprocess.append(FactorizedReduce(channels, spec.channels, norm))
            elif source.preprocess == "conv_bn_relu":
                self.preprocess.append(conv_bn_relu(channels, spec.channels, 1, 1, norm))
            else:
                self.preprocess.append(relu_conv_bn(channels, spec.channels, 1, 1, norm))
        self.edges = nn.ModuleList()
        for edge in spec.edges:
            context = Context(spec.channels, edge.stride, spec.affine, spec.normalise_pools, statistics)
            # "none" contributes exactly zero to value and gradients: it has no module.
            names = [name for name in edge.primitives if name != "none"]
            self.edges.append(nn.ModuleDict({name: make_primitive(name, context) for name in names}))

    def forward(
        self,
        inputs: Sequence[Tensor],
        weights: Tensor | None,
        node: NodeSum,
        drop_path: Tensor | None = None,
    ) -> Tensor:
        states = [pre(x) for pre, x in zip(self.preprocess, inputs, strict=True)]
        numbers = None if weights is None else weights.reshape(-1).unbind()
        first = first_weights(self.spec)
        for target in range(len(states), self.spec.states):
            branches, mixing = [], []
            shape_of: Tensor | None = None
            for i, (edge, primitives) in enumerate(zip(self.spec.edges, self.edges, strict=True)):
                if edge.target != target:
                    continue
                shape_of = states[edge.source][:, :, :: edge.stride, :: edge.stride]
                assert isinstance(primitives, nn.ModuleDict)
                for name, primitive in primitives.items():
                    branch = primitive(states[edge.source])
                    if drop_path is not None and self.training and not isinstance(primitive, nn.Identity):
                        branch = dropped(branch, drop_path)
                    branches.append(branch)
                    if numbers is not None:
                        mixing.append(numbers[first[i] + edge.primitives.index(name)])
            if branches:
                states.append(node(branches, None if numbers is None else mixing))
            else:  # every edge that enters is "none"
                assert shape_of is not None
                states.append(torch.zeros_like(shape_of))
        outputs = [states[i] for i in self.spec.output]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)


def dropped(x: Tensor, probability: Tensor) -> Tensor:
    """Drop-path (Larsson et al. 2017): each image of ``x`` (B, C, H, W) is 0 with ``probability`` (), else divided by
    1 - probability, which keeps the mean."""
    keep = 1 - probability
    kept = torch.rand(len(x), 1, 1, 1, device=x.device) < keep
    return x * (kept / keep).to(x.dtype)


class ResidualBlock(nn.Module):
    """Two ReLU-conv-BN 3x3, the first with the stride; the shortcut is average-pooled and projected."""

    def __init__(self, c_in: int, spec: Residual, norm: Norm) -> None:
        super().__init__()
        c, s = spec.channels, spec.stride
        self.first = relu_conv_bn(c_in, c, 3, s, norm(c))
        self.second = relu_conv_bn(c, c, 3, 1, norm(c))
        self.shortcut = nn.Sequential(nn.AvgPool2d(s, s, ceil_mode=True), nn.Conv2d(c_in, c, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut(x) + self.second(self.first(x))


def check_auxiliary(spec: Auxiliary, height: int, width: int) -> None:
    """Raises FastnasError if images of this size behind its cell are too small for the auxiliary head."""
    smallest = 5 + spec.pool_stride  # two windows of its pooling
    if min(height, width) < smallest:
        raise FastnasError(
            f"the auxiliary head needs images of {smallest}x{smallest} behind its cell, got {height}x{width}: "
            "take larger images, or no auxiliary head (--auxiliary 0)"
        )


class AuxiliaryHead(nn.Module):
    """The second classifier of an :class:`Auxiliary`: (B, C, H, W) -> (B, classes).

    DARTS' head, whose second convolution leaves one pixel of the images that DARTS has there. Larger ones are averaged.
    """

    CHANNELS = (128, 768)

    def __init__(self, spec: Auxiliary, c_in: int, statistics: Statistics) -> None:
        super().__init__()
        first, second = self.CHANNELS
        self.features = nn.Sequential(
            nn.ReLU(),
            nn.AvgPool2d(5, spec.pool_stride),
            nn.Conv2d(c_in, first, 1, bias=False),
            BatchNorm(first, True, statistics),
            nn.ReLU(),
            nn.Conv2d(first, second, 2, bias=False),
            *([BatchNorm(second, True, statistics)] if spec.normalise_last else []),
            nn.ReLU(),
        )
        self.spec = spec
        self.classifier = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(second, spec.classes)
        )

    def forward(self, x: Tensor) -> Tensor:
        check_auxiliary(self.spec, x.shape[2], x.shape[3])
        output: Tensor = self.classifier(self.features(x))
        return output


def _stem(spec: Stem, c_in: int, norm: Norm) -> nn.Sequential:
    layers: list[nn.Module] = []
    for left, stride in zip(reversed(range(len(spec.strides))), spec.strides, strict=True):
        channels = spec.channels >> left
        layers += [nn.Conv2d(c_in, channels, 3, stride, 1, bias=False), norm(channels)]
        layers += [nn.ReLU()] if left or spec.rectified else []
        c_in = channels
    return nn.Sequential(*layers)
