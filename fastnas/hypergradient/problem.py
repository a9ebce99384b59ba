"""Two closures over live parameters as a bilevel problem: the oracles on flat vectors, to the bit."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeAlias

import torch
from torch import Tensor, nn

from fastnas.bilevel.twice import check_twice_differentiable, not_twice
from fastnas.errors import FastnasError
from fastnas.hypergradient.buffers import CalledBuffers
from fastnas.hypergradient.leaves import Parameters, check_together, leaves
from fastnas.supernet.arena import Arena, joined
from fastnas.supernet.problem import narrow, pinned

Closure: TypeAlias = Callable[[], Tensor]


class ModuleProblem:
    """L1 = ``train_loss()``, L2 = ``val_loss()``: what closures over live modules compute, for ``fastnas.bilevel``.

    A context manager. Within it the inner parameters are views into one flat vector w, the outer ones into another,
    alpha; the modules hold the same ``Parameter`` objects and see every move of w. At its end all of them are back in
    the memory they came from, which nothing wrote to meanwhile; ``commit`` hands the present w over to it first.

    An oracle leaves the buffers of every module that it calls (BatchNorm's running statistics) and torch's random
    state as they were, and starts from the same random state each time: dropout masks are those of one draw. Autocast
    and TF32 are off. What a loss draws from other generators, or writes elsewhere, is the loss's own business.

    Args:
        train_loss: L1; takes nothing, returns a scalar tensor computed from the live parameters, the same each time.
        val_loss: L2, likewise.
        inner: a module (those of its parameters that require a gradient), a tensor or several: the P inner parameters.
        outer: likewise, the H outer parameters.
        keep_graph: keep the graph of an exact product for the next one while w and alpha stay, which is 1.3 to 2.4
            times as fast. For the length of one hypergradient only: nothing tells it of another minibatch.

    Attributes:
        w, alpha: (P,) and (H,), the live vectors, within the context.

    Raises:
        FastnasError: a parameter is no leaf that requires a gradient, is not float32 or float64, or is both inner and
            outer; they differ in dtype or device; and by an oracle: its loss is no scalar, does not depend on the
            parameters in question, or has no second derivative where one is wanted.

    Example:
        >>> from fastnas.bilevel import cg
        >>> model, decay = torch.nn.Linear(1, 1, bias=False), torch.zeros(1, requires_grad=True)
        >>> _ = torch.nn.init.constant_(model.weight, 0.5)  # the minimum of the training loss
        >>> with ModuleProblem(
        ...     lambda: (model.weight - 1).square().sum() + decay.exp() * model.weight.square().sum(),
        ...     lambda: model.weight.square().sum(),
        ...     model, decay
        ... ) as problem:
        ...     cg(problem, steps=1)  # w* = 1/(1 + exp(decay)), so dL2/ddecay = -2 w*^2 (1 - w*)
        tensor([-0.2500])
    """

    w: Tensor
    alpha: Tensor

    def __init__(
        self,
        train_loss: Closure,
        val_loss: Closure,
        inner: Parameters,
        outer: Parameters,
        *,
        keep_graph: bool = False,
    ) -> None:
        check_loss("train_loss", train_loss)
        check_loss("val_loss", val_loss)
        self._losses = {"train_loss": train_loss, "val_loss": val_loss}
        self._tensors = {"inner": leaves("inner", inner), "outer": leaves("outer", outer)}
        check_together(self._tensors["inner"], self._tensors["outer"])
        self._arenas: dict[str, Arena] = {}
        self._homes: dict[str, list[Tensor]] = {}
        self._buffers = CalledBuffers(*(given for given in (inner, outer) if isinstance(given, nn.Module)))
        self._keep_graph = keep_graph
        # One for this problem and all that ``on`` makes of it: the graphs of T steps would hold T passes' activations.
        self._graph: dict[object, tuple[Tensor | None, ...]] = {}

    def __enter__(self) -> ModuleProblem:
        for name, tensors in self._tensors.items():
            # Other tensors on the same memory: they stay behind when the parameters move.
            self._homes[name] = [tensor.detach() for tensor in tensors]
        try:
            for name, tensors in self._tensors.items():
                named = {str(i): tensor for i, tensor in enumerate(tensors)}
                with torch.no_grad():
                    self._arenas[name] = Arena(named, dtype=tensors[0].dtype, device=tensors[0].device)
        except BaseException:  # no memory for it
            self.__exit__()
            raise
        self.w, self.alpha = self._arenas["inner"].flat, self._arenas["outer"].flat
        self._buffers.listen()
        return self

    def __exit__(self, *failure: object) -> None:
        self._graph.clear()
        self._buffers.stop()
        for name, tensors in self._tensors.items():
            for tensor, home in zip(tensors, self._homes[name], strict=True):
                tensor.data = home

    def commit(self) -> None:
        """Writes the present w to the parameters' own memory: they stay there when the context ends."""
        with torch.no_grad():
            for tensor, home in zip(self._tensors["inner"], self._homes["inner"], strict=True):
                home.copy_(tensor)

    def outer_views(self, vector: Tensor) -> tuple[Tensor, ...]:
        """A vector (H,) cut into the shapes of the outer parameters; views of it."""
        tensors = self._tensors["outer"]
        parts = vector.split([tensor.numel() for tensor in tensors])
        return tuple(part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True))

    def accumulate(self, grads: Sequence[Tensor]) -> None:
        """Adds to the ``.grad`` of the outer parameters, as ``backward()`` does."""
        for tensor, grad in zip(self._tensors["outer"], grads, strict=True):
            tensor.grad = grad.clone() if tensor.grad is None else tensor.grad + grad

    def on(self, train_loss: Closure) -> ModuleProblem:
        """The same live parameters with another training loss, that of another minibatch."""
        other = copy.copy(self)
        other._losses = self._losses | {"train_loss": train_loss}
        return other

    def train_grad_w(self) -> Tensor:
        """dL1/dw, (P,)."""
        return self._gradients("train_loss", "inner")[0]

    def train_grad_alpha(self) -> Tensor:
        """dL1/dalpha, (H,)."""
        return self._gradients("train_loss", "outer")[0]

    def val_grads(self) -> tuple[Tensor, Tensor]:
        """dL2/dw (P,) and dL2/dalpha (H,); the second is zero where L2 does not depend on alpha."""
        grad_w, grad_alpha = self._gradients("val_loss", "inner", "outer")
        return grad_w, grad_alpha

    def val_grad_alpha(self) -> Tensor:
        """dL2/dalpha, (H,)."""
        return self._gradients("val_loss", "outer")[0]

    def train_hessian_product(self, u: Tensor) -> Tensor:
        """d2L1/dw2 . u, (P,) -> (P,), by differentiating twice."""
        return self._product("train_loss", "inner", "inner", u)

    def train_mixed_product(self, u: Tensor) -> Tensor:
        """d2L1/dalpha dw . u, (P,) -> (H,), by differentiating twice."""
        return self._product("train_loss", "inner", "outer", u)

    def val_alpha_hessian_product(self, p: Tensor) -> Tensor:
        """d2L2/dalpha2 . p, (H,) -> (H,), by differentiating twice."""
        return self._product("val_loss", "outer", "outer", p)

    def _gradients(self, name: str, first: str, *more: str) -> tuple[Tensor, ...]:
        """The flat gradients by the parameters ``first``, which the loss must depend on, and ``more``."""
        wanted = [self._arenas[group] for group in (first, *more)]
        with self._evaluation():
            parts = _derivatives(self._loss(name), [leaf for arena in wanted for leaf in arena.leaves])
        _check_dependence(name, first, parts[: len(wanted[0].leaves)])
        return joined(_materialised(parts, wanted), *wanted)

    def _product(self, name: str, first: str, second: str, u: Tensor) -> Tensor:
        """The gradient by ``second`` of <d loss / d ``first``, u>."""
        by = self._arenas[second]
        with self._evaluation():
            parts = self._with_graph(name, first)
            pieces = u.split([leaf.numel() for leaf in self._arenas[first].leaves])
            slopes = [  # a part without a graph is a constant
                (part, piece.view(part.shape))
                for part, piece in zip(parts, pieces, strict=True)
                if part is not None and part.requires_grad
            ]
            if not slopes:
                return torch.zeros_like(by.flat)
            try:
                products = _derivatives(
                    [part for part, _ in slopes],
                    by.leaves,
                    [piece for _, piece in slopes],
                    retain_graph=self._keep_graph,
                )
            except RuntimeError as error:
                raise not_twice("hypergradient", name, _first_line(error)) from error
        return joined(_materialised(products, [by]), by)[0]

    def _with_graph(self, name: str, first: str) -> tuple[Tensor | None, ...]:
        """d loss / d ``first``, differentiable again; the last one made, if it may be kept and nothing has moved."""
        point = (self._losses[name], first, self.w._version, self.alpha._version)
        if point not in self._graph:
            self._graph.clear()  # its memory, before the next one is made
            loss = self._loss(name)
            check_twice_differentiable("hypergradient", name, loss)
            parts = _derivatives(loss, self._arenas[first].leaves, create_graph=True)
            _check_dependence(name, first, parts)
            if not self._keep_graph:
                return parts
            self._graph[point] = parts
        return self._graph[point]

    def _loss(self, name: str) -> Tensor:
        loss = self._losses[name]()
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            got = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
            raise FastnasError(f"hypergradient: {name} must return a scalar tensor, got {got}")
        if not loss.requires_grad:
            raise FastnasError(
                f"hypergradient: {name} depends on no parameter that requires a gradient; compute it from the live "
                "inner and outer parameters, without detach, item or no_grad"
            )
        return loss.sum()  # shape ()

    @contextmanager
    def _evaluation(self) -> Iterator[None]:
        """Within it a loss and its derivatives are a function of w and alpha alone, in full precision."""
        device = self.w.device
        index = (
            torch.cuda.current_device() if device.index is None and device.type == "cuda" else device.index
        )
        with (
            torch.random.fork_rng([index] if device.type == "cuda" else []),
            self._buffers.kept(),
            pinned(),
            narrow(device, None),
            torch.enable_grad(),
        ):
            yield


def check_loss(name: str, loss: object) -> None:
    """Raise unless ``loss`` can be called."""
    if not callable(loss):
        raise FastnasError(
            f"hypergradient: {name} must be a function without arguments that returns the loss, "
            f"got {type(loss).__name__}"
        )


def _derivatives(
    outputs: Tensor | Sequence[Tensor],
    inputs: Sequence[Tensor],
    along: Sequence[Tensor] | None = None,
    **graph: bool,
) -> tuple[Tensor | None, ...]:
    """``torch.autograd.grad``, None for what the outputs do not depend on."""
    return torch.autograd.grad(outputs, inputs, along, allow_unused=True, **graph)


def _materialised(parts: Sequence[Tensor | None], arenas: Sequence[Arena]) -> list[Tensor]:
    given = [leaf for arena in arenas for leaf in arena.leaves]
    return [
        torch.zeros_like(leaf) if part is None else part.detach()
        for part, leaf in zip(parts, given, strict=True)
    ]


def _check_dependence(name: str, group: str, parts: Sequence[Tensor | None]) -> None:
    if all(part is None for part in parts):
        raise FastnasError(
            f"hypergradient: {name} does not depend on the {group} parameters, so there is nothing to differentiate; "
            "compute it from the live ones, without detach, item or no_grad"
        )


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0].rstrip(".") if str(error).strip() else type(error).__name__
