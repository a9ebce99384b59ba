"""Primitives of the user's own: registered by name, tried where they are first built."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar, overload

import torch
from torch import nn

from fastnas.errors import FastnasError
from fastnas.spaces import Cell, Space
from fastnas.spaces.genotype import OWN_PRIMITIVES, is_word
from fastnas.supernet.own_checks import check_derivatives, check_forward, first_built
from fastnas.supernet.primitives import PRIMITIVES, Context, Factory, Statistics

_LIBRARYS = frozenset({"none", *PRIMITIVES})
_FROZEN = Statistics()  # a trial is like an oracle of a hypergradient: nothing moves
_FROZEN.moving = False

AnyFactory = TypeVar("AnyFactory", bound=Factory)


@overload
def register_primitive(
    name: str, factory: None = None, *, twice_differentiable: bool = True
) -> Callable[[AnyFactory], AnyFactory]: ...
@overload
def register_primitive(
    name: str, factory: AnyFactory, *, twice_differentiable: bool = True
) -> AnyFactory: ...
def register_primitive(
    name: str, factory: AnyFactory | None = None, *, twice_differentiable: bool = True
) -> AnyFactory | Callable[[AnyFactory], AnyFactory]:
    """Makes a primitive of your own known by its name: to ``--primitives``, spaces, genotypes and both executors.

    Where it is first built for so many channels and a stride, it is tried on a few small images: it keeps the channels,
    divides the size by the stride, rounded up, leaves its input and its buffers as they are, and its second
    derivatives are right. Registered again, the newer one counts. docs/guide/new-operator.md has a whole example.

    Args:
        name: a word of letters, digits and underscores, none of the library's primitives.
        factory: :class:`Context` -> a new module, (B, C, H, W) -> (B, C, ceil(H / stride), ceil(W / stride)), C being
            ``context.channels``; a module's class that takes a context is one. None: this is a decorator.
        twice_differentiable: whether its backward pass may be differentiated. False: that is not tried, and exact
            second-order products are refused; differences of gradients need none.

    Returns:
        The factory.

    Raises:
        FastnasError: the name cannot be had, or the factory cannot be called.

    >>> import fastnas
    >>> @fastnas.register_primitive("tanh_conv_1x1")
    ... def tanh_conv(context):
    ...     convolution = torch.nn.Conv2d(context.channels, context.channels, 1, context.stride, bias=False)
    ...     return torch.nn.Sequential(torch.nn.Tanh(), convolution, context.norm())
    >>> fastnas.spaces.make_space("darts", primitives=["skip_connect", "tanh_conv_1x1"]).alphas[0].shape
    (14, 2)
    """
    _check_name(name)
    if factory is None:
        return lambda given: register_primitive(name, given, twice_differentiable=twice_differentiable)
    if isinstance(factory, nn.Module) or not callable(factory):
        raise FastnasError(
            f"primitive {name!r}: the factory must make a module out of a context, as `lambda context: "
            f"Mine(context.channels)` does, got {type(factory).__name__}"
        )
    PRIMITIVES[name] = OwnPrimitive(name, factory, twice_differentiable)
    OWN_PRIMITIVES[name] = None
    return factory


def _check_name(name: str) -> None:
    if callable(name):
        raise FastnasError(
            'a primitive needs a name: @fastnas.register_primitive("NAME"), or register_primitive("NAME", factory)'
        )
    if not is_word(name):
        raise FastnasError(
            f"primitive {name!r}: the name must be a word of letters, digits and underscores that begins with a letter"
        )
    if name in _LIBRARYS:
        raise FastnasError(f"the name {name!r} is a primitive of this library; choose another")
    if hasattr(nn.ModuleDict, name):  # which keeps an edge's modules by these names
        raise FastnasError(f"the name {name!r} is a method of torch.nn.ModuleDict; choose another")


def own_primitives(space: Space) -> list[OwnPrimitive]:
    """The user's own among the primitives of a space, by name."""
    cells = [stage for stage in space.stages if isinstance(stage, Cell)]
    names = {name for cell in cells for edge in cell.edges for name in edge.primitives}
    found = [PRIMITIVES.get(name) for name in sorted(names)]
    return [primitive for primitive in found if isinstance(primitive, OwnPrimitive)]


def check_twice_differentiable(space: Space, what: str) -> None:
    """Raises FastnasError if ``what`` is asked for, and a primitive of the user's own is differentiable but once."""
    once = [own.name for own in own_primitives(space) if not own.twice_differentiable]
    if once:
        raise FastnasError(
            f"{what} cannot go through {', '.join(once)}, registered with twice_differentiable=False; take differences "
            "of gradients (--hvp difference --mixed-product difference), and leave out what compares with better ones"
        )


class OwnPrimitive:
    """A factory of the user's, whose module is tried the first time that one is built for a kind of context."""

    def __init__(self, name: str, factory: Factory, twice_differentiable: bool) -> None:
        self.name, self.factory, self.twice_differentiable = name, factory, twice_differentiable
        self._tried: set[Context] = set()

    def __call__(self, context: Context) -> nn.Module:
        kind = replace(context, statistics=_FROZEN)
        if kind not in self._tried:
            # The network that is being built must not notice: neither in its random numbers nor by its device.
            with torch.random.fork_rng(devices=[]), torch.device("cpu"), torch.enable_grad():
                self._try(kind)
            self._tried.add(kind)
        return self.factory(context)

    def _try(self, context: Context) -> None:
        torch.manual_seed(0)
        module = first_built(self.name, self.factory, context)
        check_forward(self.name, module, context)
        # Once a stride, where the cells are narrowest: in wide ones it would take seconds, and find the same.
        if self.twice_differentiable and all(context.stride != other.stride for other in self._tried):
            check_derivatives(self.name, module.double(), context)
