"""Exact second-order products by tangents: the forward pass of a fused supernet carries the derivative of every number
along a direction, and a backward pass from the loss's tangent differentiates that derivative (docs/exact-products.md).

    phi(w, alpha) = d/dt L(w + t u, alpha + t p) at t = 0
    dphi/dw = L_ww u + L_wa p,    dphi/dalpha = L_aw u + L_aa p

A fused cell computes with dual numbers, which its kernels take as complex tensors: the real part is a value, the
imaginary one its tangent. What is no fused cell is plain PyTorch under ``torch.autograd.forward_ad``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import functional_call

from fastnas.spaces import Cell
from fastnas.supernet.arena import Arena
from fastnas.supernet.executor import Executor
from fastnas.supernet.fused import FusedSupernet
from fastnas.supernet.own_primitives import own_primitives
from fastnas.supernet.reference import Supernet


def carries_tangents(net: Executor) -> bool:
    """Whether :func:`loss_tangent` is for ``net``: cells are fused, and on the CPU, where kernels know dual numbers.

    Drop-path takes the kernels' place, and an auxiliary head's loss is no part of what is computed here. A primitive of
    the user's own need not have a forward derivative.
    """
    if not isinstance(net, FusedSupernet) or net.drop_path is not None or net.auxiliary is not None:
        return False
    if own_primitives(net.space):
        return False
    return net.has_fused_cells and net.weights.flat.device.type == "cpu"


def loss_tangent(
    net: FusedSupernet,
    loss: Callable[[Tensor, Tensor], Tensor],
    images: Tensor,
    labels: Tensor,
    weights: Tensor | None = None,
    alphas: Tensor | None = None,
) -> Tensor:
    """phi = d/dt loss(w + t u, alpha + t p) at t = 0, differentiable once by the leaves of the network's arenas.

    Args:
        net: in training mode, with frozen statistics.
        loss: (logits, labels) -> scalar, differentiable twice.
        images, labels: (B, C, H, W) and (B,).
        weights: u, (P,); None: w stays.
        alphas: p, (H,); None: alpha stays.

    Returns:
        phi, a scalar.
    """
    with forward_ad.dual_level(), net.composed_norms():
        value, tangent = _Pass(net, weights, alphas).logits(images)
    (grad,) = torch.autograd.grad(loss(value, labels), value, create_graph=True)
    return (grad * tangent).sum()


class _Pass:
    """One forward pass of values and tangents, within a dual level."""

    def __init__(self, net: FusedSupernet, weights: Tensor | None, alphas: Tensor | None) -> None:
        self.net, self.weights = net, weights
        self.mixing = net.mixing({name: _softmax(net.alphas, name, alphas) for name in net.alphas.tensors})

    def logits(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Values and tangents, (B, classes) each."""
        outputs: list[_Images] = []
        for index, spec in enumerate(self.net.space.stages):
            if isinstance(spec, Cell):
                inputs = [outputs[source.stage] for source in spec.inputs]
                outputs.append(self._cell(index, inputs, self.mixing.get(spec.mixing)))
            else:
                x = outputs[-1].dual if outputs else images
                outputs.append(_Images(dual=self._plain(index, x)))
        return _unpacked(outputs[-1].dual)

    def _cell(self, index: int, inputs: Sequence[_Images], mixing: Tensor | None) -> _Images:
        cell = self.net.fused_cell_of(index)
        if cell is None:
            node = partial(Supernet.node, self.net)
            return _Images(dual=self._plain(index, [x.dual for x in inputs], mixing, node))
        assert mixing is not None
        tangent = torch.zeros_like(cell.weights) if self.weights is None else self.weights[slice(*cell.span)]
        weights = _Pack.apply(cell.weights, tangent)
        return _Images(packed=cell.of_duals([x.packed for x in inputs], _packed(mixing), weights))

    def _plain(self, index: int, *arguments: Any) -> Tensor:
        """The output of a stage as its modules compute it."""
        prefix = f"stages.{index}."
        names = [name for name in self.net.weights.tensors if name.startswith(prefix)]
        parameters = {
            name.removeprefix(prefix): _along(self.net.weights, name, self.weights) for name in names
        }
        output: Tensor = functional_call(self.net.stages[index], parameters, arguments)
        return output


class _Images:
    """A stage's output with its tangent, in the form that the next stage takes: each is made once.

    Attributes:
        dual: of ``torch.autograd.forward_ad``.
        packed: complex, channels last, as the kernels take dual numbers.
    """

    def __init__(self, *, dual: Tensor | None = None, packed: Tensor | None = None) -> None:
        self._dual, self._packed = dual, packed

    @property
    def dual(self) -> Tensor:
        if self._dual is None:
            self._dual = forward_ad.make_dual(*_Unpack.apply(self._packed))
        return self._dual

    @property
    def packed(self) -> Tensor:
        if self._packed is None:
            assert self._dual is not None
            self._packed = _packed(self._dual)
        return self._packed


class _Pack(torch.autograd.Function):
    """Value and tangent as one complex tensor.

    Gradients of packed tensors are packed, too, crosswise: the gradient by a value carries, as its tangent, what phi
    changes by with the value; what phi changes by with the tangent is the ordinary gradient, and so the value.
    """

    @staticmethod
    def forward(ctx: Any, value: Tensor, tangent: Tensor) -> Tensor:
        return torch.complex(value, tangent)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        return grad.imag, grad.real


class _Unpack(torch.autograd.Function):
    """The inverse of :class:`_Pack`."""

    @staticmethod
    def forward(ctx: Any, packed: Tensor) -> tuple[Tensor, Tensor]:
        layout = torch.channels_last
        return packed.real.contiguous(memory_format=layout), packed.imag.contiguous(memory_format=layout)

    @staticmethod
    def backward(ctx: Any, value: Tensor, tangent: Tensor) -> Tensor:
        return torch.complex(tangent, value)


def _packed(dual: Tensor) -> Tensor:
    value, tangent = _unpacked(dual)
    layout = torch.channels_last if value.dim() == 4 else torch.contiguous_format
    packed: Tensor = _Pack.apply(
        value.contiguous(memory_format=layout), tangent.contiguous(memory_format=layout)
    )
    return packed


def _unpacked(dual: Tensor) -> tuple[Tensor, Tensor]:
    """Value and tangent; one without a tangent has zeros."""
    value, tangent = forward_ad.unpack_dual(dual)
    return value, torch.zeros_like(value) if tangent is None else tangent


def _softmax(arena: Arena, name: str, direction: Tensor | None) -> Tensor:
    """The softmax over the last dimension. Its forward derivative in torch 2.13 cannot be differentiated again."""
    value = arena[name].softmax(-1)
    if direction is None:
        return value
    part = value * arena.part(direction, name)
    return forward_ad.make_dual(value, part - value * part.sum(-1, keepdim=True))


def _along(arena: Arena, name: str, direction: Tensor | None) -> Tensor:
    """The tensor ``name``, with its part of the direction as its tangent."""
    if direction is None:
        return arena[name]
    return forward_ad.make_dual(arena[name], arena.part(direction, name))
