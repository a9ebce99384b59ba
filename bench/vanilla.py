"""The baseline: the DARTS supernet and its search steps in plain PyTorch, as papers' code writes them.

One module per primitive, one kernel after another, ``sum(w * op(x))``, lists of parameters, Python loops.
Nothing of fastnas is imported here: every speed-up that this project names is a ratio to this file.

The parameters register in the order stem, cells (both inputs' preprocessing, then the edges by target node,
then source state, then primitive), classifier: the order of the fastnas arena, so that
``zip(model.parameters(), ...)`` copies weights either way.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

PRIMITIVES = (
    "none",
    "max_pool_3x3",
    "avg_pool_3x3",
    "skip_connect",
    "sep_conv_3x3",
    "sep_conv_5x5",
    "dil_conv_3x3",
    "dil_conv_5x5",
)

# ---------------------------------------------------------------------------- the primitives


class Zero(nn.Module):
    """``none``: no signal, at the edge's stride."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        if self.stride == 1:
            return x.mul(0.0)
        return x[:, :, :: self.stride, :: self.stride].mul(0.0)


class FactorizedReduce(nn.Module):
    """Halve the image with two 1x1 convolutions, the second one shifted by a pixel, side by side."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.even = nn.Conv2d(c_in, c_out // 2, 1, stride=2, bias=False)
        self.odd = nn.Conv2d(c_in, c_out // 2, 1, stride=2, bias=False)
        self.bn = nn.BatchNorm2d(c_out, affine=False)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(x)
        return self.bn(torch.cat([self.even(x), self.odd(x[:, :, 1:, 1:])], dim=1))


def relu_conv_bn(c_in: int, c_out: int) -> nn.Module:
    """ReLU, 1x1 convolution, BatchNorm: what a cell does with its inputs."""
    return nn.Sequential(
        nn.ReLU(), nn.Conv2d(c_in, c_out, 1, bias=False), nn.BatchNorm2d(c_out, affine=False)
    )


def depthwise_stage(channels: int, kernel: int, stride: int, dilation: int = 1) -> nn.Module:
    """ReLU, depthwise convolution, 1x1 convolution, BatchNorm."""
    padding = dilation * (kernel // 2)
    return nn.Sequential(
        nn.ReLU(),
        nn.Conv2d(
            channels, channels, kernel, stride, padding, dilation=dilation, groups=channels, bias=False
        ),
        nn.Conv2d(channels, channels, 1, bias=False),
        nn.BatchNorm2d(channels, affine=False),
    )


def make_op(primitive: str, channels: int, stride: int) -> nn.Module:
    """Make the module of one primitive on one edge."""
    if primitive == "none":
        return Zero(stride)
    if primitive == "max_pool_3x3":
        return nn.Sequential(nn.MaxPool2d(3, stride, padding=1), nn.BatchNorm2d(channels, affine=False))
    if primitive == "avg_pool_3x3":
        pool = nn.AvgPool2d(3, stride, padding=1, count_include_pad=False)
        return nn.Sequential(pool, nn.BatchNorm2d(channels, affine=False))
    if primitive == "skip_connect":
        return nn.Identity() if stride == 1 else FactorizedReduce(channels, channels)
    kernel = int(primitive[-1])
    if primitive.startswith("sep_conv"):
        return nn.Sequential(depthwise_stage(channels, kernel, stride), depthwise_stage(channels, kernel, 1))
    return depthwise_stage(channels, kernel, stride, dilation=2)


# ---------------------------------------------------------------------------- the supernet


class MixedOp(nn.Module):
    """All primitives of one edge, summed with the edge's weights."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.ops = nn.ModuleList(make_op(primitive, channels, stride) for primitive in PRIMITIVES)

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        return sum(w * op(x) for w, op in zip(weights, self.ops, strict=True))


class Cell(nn.Module):
    """Two inputs, ``nodes`` nodes that each read every state before them, all nodes concatenated."""

    def __init__(
        self, c_prev_prev: int, c_prev: int, channels: int, nodes: int, reduce: bool, after_reduce: bool
    ) -> None:
        super().__init__()
        self.nodes, self.reduce = nodes, reduce
        make_first = FactorizedReduce if after_reduce else relu_conv_bn
        self.preprocess0 = make_first(c_prev_prev, channels)
        self.preprocess1 = relu_conv_bn(c_prev, channels)
        self.edges = nn.ModuleList(
            MixedOp(channels, stride=2 if reduce and source < 2 else 1)
            for node in range(nodes)
            for source in range(2 + node)
        )

    def forward(self, s0: Tensor, s1: Tensor, weights: Tensor) -> Tensor:
        states = [self.preprocess0(s0), self.preprocess1(s1)]
        first = 0
        for _ in range(self.nodes):
            node = sum(self.edges[first + i](state, weights[first + i]) for i, state in enumerate(states))
            first += len(states)
            states.append(node)
        return torch.cat(states[2:], dim=1)


class ModelWithAlphas(nn.Module):
    """A supernet whose architecture parameters are no module parameters, but follow it to a device."""

    alphas: list[nn.Parameter]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ModelWithAlphas:
        super()._apply(fn, recurse)
        for alpha in self.alphas:
            alpha.data = fn(alpha.data)
        return self


class DartsSupernet(ModelWithAlphas):
    """The search network of Liu et al. 2019 (DARTS) for images.

    Args:
        C: channels of the first cells; doubled at every reduction.
        layers: number of cells; those at ``layers // 3`` and ``2 * layers // 3`` reduce.
        classes: number of classes.
        image_channels: channels of the images.
        nodes: intermediate nodes of a cell.

    ``alphas`` holds the normal and the reduction cells' logits, each (edges, 8): (14, 8) with 4 nodes.

    >>> model = DartsSupernet(C=4, layers=3, classes=10)
    >>> model(torch.randn(2, 3, 8, 8)).shape
    torch.Size([2, 10])
    """

    def __init__(self, C: int, layers: int, classes: int, image_channels: int = 3, nodes: int = 4) -> None:
        super().__init__()
        c_prev_prev = c_prev = 3 * C
        self.stem = nn.Sequential(
            nn.Conv2d(image_channels, c_prev, 3, padding=1, bias=False), nn.BatchNorm2d(c_prev)
        )
        self.cells = nn.ModuleList()
        channels, after_reduce = C, False
        for layer in range(layers):
            reduce = layer in (layers // 3, 2 * layers // 3)
            channels = 2 * channels if reduce else channels
            self.cells.append(Cell(c_prev_prev, c_prev, channels, nodes, reduce, after_reduce))
            c_prev_prev, c_prev, after_reduce = c_prev, nodes * channels, reduce
        self.classifier = nn.Linear(c_prev, classes)
        edges = sum(2 + node for node in range(nodes))
        self.alphas = [nn.Parameter(1e-3 * torch.randn(edges, len(PRIMITIVES))) for _ in range(2)]

    def forward(self, x: Tensor) -> Tensor:
        weights_normal, weights_reduce = (F.softmax(alpha, dim=-1) for alpha in self.alphas)
        s0 = s1 = self.stem(x)
        for cell in self.cells:
            s0, s1 = s1, cell(s0, s1, weights_reduce if cell.reduce else weights_normal)
        return self.classifier(F.adaptive_avg_pool2d(s1, 1).flatten(1))


# ---------------------------------------------------------------------------- the search steps

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class SearchSettings:
    """The usual settings: DARTS' optimisers, and each estimator's own constants."""

    w_lr: float = 0.025
    w_momentum: float = 0.9
    w_decay: float = 3e-4
    w_clip: float = 5.0
    a_lr: float = 3e-4
    a_decay: float = 1e-3
    radius: float = 0.01  # r of the central differences: eps = r / |u|
    amended_eta: float = 0.1
    neumann_gamma: float = 0.025  # the weight steps' rate
    neumann_terms: int = 2  # K


def concat(tensors: Sequence[Tensor]) -> Tensor:
    """All the numbers of some tensors in one vector."""
    return torch.cat([t.reshape(-1) for t in tensors])


class Search:
    """One search: a model with ``alphas``, its two optimisers and a hypergradient per estimator.

    A hypergradient is a list shaped as ``model.alphas``; a step computes it, lets Adam move alpha, and
    moves the weights by SGD.
    """

    def __init__(self, model: ModelWithAlphas, settings: SearchSettings | None = None) -> None:
        self.model, self.settings = model, settings or SearchSettings()
        self.weights = list(model.parameters())
        s = self.settings
        self.w_optimizer = torch.optim.SGD(self.weights, s.w_lr, s.w_momentum, weight_decay=s.w_decay)
        self.a_optimizer = torch.optim.Adam(model.alphas, s.a_lr, betas=(0.5, 0.999), weight_decay=s.a_decay)

    # -- gradients and differences of gradients

    def gradients(
        self, batch: Batch, wrt: Sequence[Tensor], model: ModelWithAlphas | None = None
    ) -> list[Tensor]:
        """The gradients of the loss on a batch; zeros for what the network does not use."""
        images, labels = batch
        loss = F.cross_entropy((model or self.model)(images), labels)
        return list(torch.autograd.grad(loss, wrt, allow_unused=True, materialize_grads=True))

    def central_difference(
        self, batch: Batch, vector: Sequence[Tensor], wrt: Sequence[Tensor]
    ) -> list[Tensor]:
        """d2L/d(wrt)dw times ``vector``: [g(w + eps u) - g(w - eps u)] / (2 eps), eps = r / |u|."""
        eps = self.settings.radius / concat(vector).norm().item()
        self.move_weights(vector, eps)
        plus = self.gradients(batch, wrt)
        self.move_weights(vector, -2 * eps)
        minus = self.gradients(batch, wrt)
        self.move_weights(vector, eps)
        return [(p - m) / (2 * eps) for p, m in zip(plus, minus, strict=True)]

    def move_weights(self, vector: Sequence[Tensor], scale: float) -> None:
        """Add ``scale * vector`` to the weights, in place."""
        for weight, v in zip(self.weights, vector, strict=True):
            weight.data.add_(v, alpha=scale)

    def validation_gradients(
        self, val: Batch, model: ModelWithAlphas | None = None
    ) -> tuple[list[Tensor], list[Tensor]]:
        """dL2/dw and dL2/dalpha, in one pass."""
        model = model or self.model
        grads = self.gradients(val, [*model.parameters(), *model.alphas], model)
        return grads[: len(self.weights)], grads[len(self.weights) :]

    # -- hypergradients

    def first_order(self, train: Batch, val: Batch) -> list[Tensor]:
        """dL2/dalpha at the weights as they are (Liu et al. 2019, xi = 0)."""
        return self.gradients(val, self.model.alphas)

    def darts(self, train: Batch, val: Batch) -> list[Tensor]:
        """dL2/dalpha(w') - xi d2L1/dalpha dw . dL2/dw(w'), w' one SGD step on (Liu et al. 2019, eq. 7-8)."""
        s = self.settings
        theta = concat([w.data for w in self.weights])
        moment = concat([self.momentum(w) for w in self.weights])
        step = s.w_momentum * moment + concat(self.gradients(train, self.weights)) + s.w_decay * theta
        unrolled = self.model_with(theta - s.w_lr * step)
        vector, direct = self.validation_gradients(val, unrolled)
        implicit = self.central_difference(train, vector, self.model.alphas)
        return [d - s.w_lr * i for d, i in zip(direct, implicit, strict=True)]

    def amended(self, train: Batch, val: Batch) -> list[Tensor]:
        """dL2/dalpha - eta d2L1/dalpha dw . H . dL2/dw (Bi et al. 2019, eq. 6)."""
        vector, direct = self.validation_gradients(val)
        product = self.central_difference(train, vector, self.weights)
        implicit = self.central_difference(train, product, self.model.alphas)
        return [d - self.settings.amended_eta * i for d, i in zip(direct, implicit, strict=True)]

    def idarts(self, train: Batch, val: Batch) -> list[Tensor]:
        """dL2/dalpha - gamma d2L1/dalpha dw . sum_k (I - gamma H)^k dL2/dw (Zhang et al. 2021, eq. 8-9)."""
        gamma = self.settings.neumann_gamma
        vector, direct = self.validation_gradients(val)
        total = [v.clone() for v in vector]
        for _ in range(self.settings.neumann_terms):
            product = self.central_difference(train, vector, self.weights)
            vector = [v - gamma * p for v, p in zip(vector, product, strict=True)]
            total = [t + v for t, v in zip(total, vector, strict=True)]
        implicit = self.central_difference(train, total, self.model.alphas)
        return [d - gamma * i for d, i in zip(direct, implicit, strict=True)]

    def momentum(self, weight: Tensor) -> Tensor:
        """SGD's momentum buffer of a weight; zero before the first step."""
        return self.w_optimizer.state[weight].get("momentum_buffer", torch.zeros_like(weight))

    def model_with(self, theta: Tensor) -> ModelWithAlphas:
        """A second model whose weights are the vector ``theta``."""
        model = copy.deepcopy(self.model)
        first = 0
        for weight in model.parameters():
            weight.data.copy_(theta[first : first + weight.numel()].view_as(weight))
            first += weight.numel()
        return model

    # -- steps

    def alpha_step(self, hypergradient: Sequence[Tensor]) -> None:
        """Let Adam move alpha."""
        for alpha, grad in zip(self.model.alphas, hypergradient, strict=True):
            alpha.grad = grad
        self.a_optimizer.step()

    def weight_step(self, train: Batch) -> None:
        """One clipped step of SGD with momentum."""
        self.w_optimizer.zero_grad()
        for weight, grad in zip(self.weights, self.gradients(train, self.weights), strict=True):
            weight.grad = grad
        nn.utils.clip_grad_norm_(self.weights, self.settings.w_clip)
        self.w_optimizer.step()

    def first_order_step(self, train: Sequence[Batch], val: Batch) -> None:
        """An alpha step of first-order DARTS, then a weight step."""
        self.alpha_step(self.first_order(train[0], val))
        self.weight_step(train[0])

    def darts_step(self, train: Sequence[Batch], val: Batch) -> None:
        """An alpha step of second-order DARTS, then a weight step."""
        self.alpha_step(self.darts(train[0], val))
        self.weight_step(train[0])

    def amended_step(self, train: Sequence[Batch], val: Batch) -> None:
        """An alpha step of the amended gradient, then a weight step."""
        self.alpha_step(self.amended(train[0], val))
        self.weight_step(train[0])

    def idarts_step(self, train: Sequence[Batch], val: Batch) -> None:
        """T weight steps, one per training batch, then an alpha step of iDARTS at the last one."""
        for batch in train:
            self.weight_step(batch)
        self.alpha_step(self.idarts(train[-1], val))
