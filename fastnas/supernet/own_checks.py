"""A primitive of the user's own, tried on a few small images before a network is built of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

import torch
from torch import Tensor, nn

from fastnas._user_code import located
from fastnas.errors import FastnasError
from fastnas.supernet.primitives import Context, Factory

BATCH, HEIGHT, WIDTH = 2, 7, 6  # of the images: an odd side and an even one
STEP = 1e-8  # of the difference that second derivatives are held to, in float64: hardly a kink lies within it
AGREEMENT = 1e-3  # of the two, relative to their norms; rounding leaves about 1e-6


def first_built(name: str, factory: Factory, context: Context) -> nn.Module:
    """The module that ``factory`` makes, in training mode.

    Raises:
        FastnasError: it makes none, not a new one each time, or one that holds what no network can hold.
    """
    try:
        module, other = factory(context), factory(context)
    except Exception as error:
        _fail(name, f"cannot be built for {_said(context)}: {located(error)}", error)
    if not isinstance(module, nn.Module):
        _fail(name, f"is no torch.nn.Module: its factory made {type(module).__name__}")
    if module is other or {*map(id, module.parameters())} & {*map(id, other.parameters())}:
        _fail(name, "must be made anew each time, with weights of its own: its factory made the same again")
    for kind, tensors in (("weight", module.named_parameters()), ("buffer", module.named_buffers())):
        for of, tensor in tensors:
            if not tensor.is_floating_point():
                _fail(
                    name,
                    f"has a {kind} {of} of {tensor.dtype}, but in a network all have the type of its weights; make "
                    "it a plain Python value (nn.BatchNorm2d counts batches: take context.norm())",
                )
            if kind == "weight" and not tensor.requires_grad:
                _fail(name, f"has a weight {of} that requires no gradient; make it a buffer")
    return module.train()


def check_forward(name: str, module: nn.Module, context: Context) -> None:
    """One pass forward and one backward, in float32, on channels-last images as the executors give them.

    Raises:
        FastnasError: it fails, or the output or what is left behind is not as a cell needs it.
    """
    leaf, state = _images(context), [buffer.clone() for buffer in module.buffers()]
    given = leaf * 1  # no leaf: what writes into one fails with torch's words
    try:
        y = module(given)
        if isinstance(y, Tensor) and y.requires_grad:
            torch.autograd.grad(y.square().sum(), [leaf, *module.parameters()], materialize_grads=True)
    except Exception as error:
        _fail(
            name,
            f"fails on channels-last images {tuple(leaf.shape)} with {_said(context)}: {located(error)}",
            error,
        )
    _check_output(name, y, context)
    if not torch.equal(given, leaf):
        _fail(name, "writes into its input, which other edges read, too; leave out inplace=True, or clone it")
    if not all(torch.equal(old, new) for old, new in zip(state, module.buffers(), strict=True)):
        _fail(
            name,
            "changes a buffer as it runs, which a hypergradient must not; take context.norm() for a BatchNorm",
        )
    if list(module.parameters()) and not y.requires_grad:
        _fail(name, "has weights that no gradient reaches; is something in it detached?")


def _check_output(name: str, y: object, context: Context) -> None:
    height, width = (-(-side // context.stride) for side in (HEIGHT, WIDTH))
    wanted = (BATCH, context.channels, height, width)
    got = tuple(y.shape) if isinstance(y, Tensor) else type(y).__name__
    if not isinstance(y, Tensor) or got != wanted:
        _fail(
            name,
            f"makes {got} of images {(BATCH, context.channels, HEIGHT, WIDTH)} with {_said(context)}: it must keep the "
            f"channels and divide the size by the stride, rounded up, {wanted}",
        )
    if y.dtype != torch.float32:
        _fail(name, f"makes {y.dtype} of images of torch.float32: it must keep their type")
    if not bool(torch.isfinite(y).all()):
        _fail(name, "makes NaN or infinity of images drawn from N(0, 1)")


def check_derivatives(name: str, module: nn.Module, context: Context) -> None:
    """Differentiating twice gives what a difference of gradients gives, in float64.

    Raises:
        FastnasError: it does not, or cannot be done.
    """
    # By bad luck a step crosses a kink, of a ReLU say, and no difference agrees there: hardly twice.
    try:
        if any(_agrees(module, context, seed) for seed in (1, 2)):
            return
    except Exception as error:
        _fail_twice(name, located(error), error)
    _fail_twice(name, "what comes out is not what a difference of its gradients says")


def _fail_twice(name: str, why: str, cause: Exception | None = None) -> NoReturn:
    mend = "mend its backward pass, or register it with twice_differentiable=False"
    what = (
        f"cannot be differentiated twice: {why}; {mend}, which leaves out exact second-order products alone"
    )
    _fail(name, what, cause)


def _agrees(module: nn.Module, context: Context, seed: int) -> bool:
    """Whether both are the same along one direction."""
    torch.manual_seed(seed)
    leaves = [_images(context, torch.float64), *module.parameters()]
    direction = [torch.randn_like(leaf) for leaf in leaves]
    grads = _gradients(module, leaves, seed)
    along = sum(((g * d).sum() for g, d in zip(grads, direction, strict=True)), start=grads[0].new_zeros(()))
    exact = _twice(along, leaves)
    ahead, behind = (_moved(module, leaves, direction, step, seed) for step in (STEP, -STEP))
    difference = (ahead - behind) / (2 * STEP)
    scale = torch.maximum(exact.norm(), difference.norm()) + AGREEMENT * ahead.norm()
    return bool((exact - difference).norm() <= AGREEMENT * scale)


def _twice(along: Tensor, leaves: Sequence[Tensor]) -> Tensor:
    """d along / d leaves, flat; zeros where there is no graph."""
    if not along.requires_grad:
        return torch.cat([torch.zeros_like(leaf).reshape(-1) for leaf in leaves])
    parts = torch.autograd.grad(along, leaves, materialize_grads=True)
    return torch.cat([part.reshape(-1) for part in parts])


def _gradients(module: nn.Module, leaves: Sequence[Tensor], seed: int) -> tuple[Tensor, ...]:
    """Of the sum of weighted squares of the output, with a graph; the same random numbers each time."""
    torch.manual_seed(seed)
    y = module(leaves[0] * 1)
    value = (torch.linspace(0.5, 1.5, y.numel(), dtype=y.dtype) * y.square().reshape(-1)).sum()
    if not value.requires_grad:  # as noise, which depends on nothing
        return tuple(torch.zeros_like(leaf) for leaf in leaves)
    return torch.autograd.grad(value, leaves, create_graph=True, materialize_grads=True)


def _moved(
    module: nn.Module, leaves: Sequence[Tensor], direction: Sequence[Tensor], step: float, seed: int
) -> Tensor:
    """The gradients so far along the direction, flat; the leaves are as they were after it."""
    before = [leaf.detach().clone() for leaf in leaves]
    with torch.no_grad():
        for leaf, along in zip(leaves, direction, strict=True):
            leaf.add_(along, alpha=step)
    grads = _gradients(module, leaves, seed)
    with torch.no_grad():
        for leaf, old in zip(leaves, before, strict=True):
            leaf.copy_(old)
    return torch.cat([grad.detach().reshape(-1) for grad in grads])


def _images(context: Context, dtype: torch.dtype = torch.float32) -> Tensor:
    x = torch.randn(BATCH, context.channels, HEIGHT, WIDTH, dtype=dtype)
    return x.contiguous(memory_format=torch.channels_last).requires_grad_()


def _said(context: Context) -> str:
    return f"{context.channels} channels and stride {context.stride}"


def _fail(name: str, what: str, cause: Exception | None = None) -> NoReturn:
    raise FastnasError(f"primitive {name!r} {what}") from cause
