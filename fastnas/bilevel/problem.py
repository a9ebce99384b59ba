"""The bilevel problem as three oracles on flat vectors: all that a hypergradient estimator ever sees.

    min over alpha of L2(w*(alpha), alpha),    w*(alpha) = argmin over w of L1(w, alpha)

L1 is the training loss and L2 the validation loss, both of the current minibatch; w holds the P inner
parameters (weights), alpha the H outer ones (architecture parameters, hyperparameters, a meta-model).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from fastnas.bilevel import _arguments as check
from fastnas.bilevel.twice import check_twice_differentiable
from fastnas.errors import FastnasError

Loss = Callable[[Tensor, Tensor], Tensor]


@runtime_checkable
class BilevelProblem(Protocol):
    """Three oracles on flat vectors: the gradients of L1 and L2 at the present (w, alpha).

    What an oracle promises, because a difference of two of its values is divided by 2 eps:

    - It is a function of (w, alpha) alone: two calls see the same minibatch, the same augmentation and
      the same dropout masks, and leave BatchNorm's running statistics and the generators untouched.
    - It runs in full float32 or float64 (no TF32, no bfloat16): eps u moves a weight by about 1e-5.
    - What it returns is detached and the caller's own: no later call writes to it, it shares no memory
      with w, alpha or another result, and the caller may overwrite it.

    The gradient mode is whatever the caller's is; an oracle that uses autograd enables it itself.
    """

    @property
    def w(self) -> Tensor:
        """Inner parameters, shape (P,), float32 or float64: the live vector, written in place."""
        ...

    @property
    def alpha(self) -> Tensor:
        """Outer parameters, shape (H,): the live vector; estimators read it through the oracles only."""
        ...

    def train_grad_w(self) -> Tensor:
        """dL1/dw, shape (P,)."""
        ...

    def train_grad_alpha(self) -> Tensor:
        """dL1/dalpha, shape (H,)."""
        ...

    def val_grads(self) -> tuple[Tensor, Tensor]:
        """(dL2/dw, dL2/dalpha), shapes (P,) and (H,), from one backward pass."""
        ...

    def val_grad_alpha(self) -> Tensor:
        """dL2/dalpha alone, shape (H,): first order needs no more, and the weights' half costs as much again."""
        ...


@runtime_checkable
class TwiceDifferentiable(BilevelProblem, Protocol):
    """A problem that gives exact second-order products, too: without a step, in any precision.

    They promise what the oracles do. On a loss with kinks (ReLU, maxima) they are the second derivatives of the piece
    that (w, alpha) lies in.
    """

    def train_hessian_product(self, u: Tensor) -> Tensor:
        """d2L1/dw2 . u, (P,) -> (P,)."""
        ...

    def train_mixed_product(self, u: Tensor) -> Tensor:
        """d2L1/dalpha dw . u, (P,) -> (H,)."""
        ...

    def val_alpha_hessian_product(self, p: Tensor) -> Tensor:
        """d2L2/dalpha2 . p, (H,) -> (H,)."""
        ...


@contextmanager
def restored(problem: BilevelProblem) -> Iterator[Tensor]:
    """Let the block move ``problem.w`` and put it back, bit for bit, when the block ends or raises.

    The weights come back from a copy: subtracting what was added would leave rounding behind.
    One vector of P numbers is live while the block runs.

    Args:
        problem: whose ``w`` to keep.

    Yields:
        The saved copy of w, shape (P,); read it, do not write it.

    Example:
        >>> problem = FunctionProblem(lambda w, a: (w * a).sum(), lambda w, a: (w * w).sum(),
        ...                           torch.tensor([1.0, 2.0]), torch.tensor([3.0]))
        >>> with restored(problem) as saved:
        ...     problem.w.mul_(10)
        tensor([10., 20.])
        >>> problem.w
        tensor([1., 2.])
    """
    with kept(problem.w) as saved:
        yield saved


@contextmanager
def kept(vector: Tensor) -> Iterator[Tensor]:
    """:func:`restored` for any live vector: w or alpha."""
    with torch.no_grad():
        saved = vector.clone()
    try:
        yield saved
    finally:
        with torch.no_grad():
            vector.copy_(saved)


class FunctionProblem:
    """The oracles of any two differentiable functions, by autograd.

    For hyperparameter optimisation, meta-learning, and experiments: whatever can be written as
    ``train_loss(w, alpha)`` and ``val_loss(w, alpha)``. The current minibatch is what the functions close
    over; keep it, and any random mask, the same for the length of one hypergradient.

    Args:
        train_loss: L1; takes w (P,) and alpha (H,), returns a scalar tensor.
        val_loss: L2, likewise.
        w: inner parameters, shape (P,), float32 or float64. Kept, not copied: moves when you move it.
        alpha: outer parameters, shape (H,), float32 or float64; kept, not copied.

    Raises:
        FastnasError: a parameter is no flat vector of float32 or float64, a loss is no function, or, when
            an oracle is called, a loss returns no scalar or one cut off from both w and alpha, or has no second
            derivative where one is wanted.

    Example:
        The weight decay exp(alpha) of a ridge regression on one point; at the solution w* = 2/3:

        >>> problem = FunctionProblem(
        ...     train_loss=lambda w, alpha: (w[0] - 1) ** 2 + alpha[0].exp() * w[0] ** 2,
        ...     val_loss=lambda w, alpha: (w[0] - 0.5) ** 2,
        ...     w=torch.tensor([2 / 3]), alpha=torch.tensor([0.5]).log())
        >>> problem.train_grad_w().abs() < 1e-6
        tensor([True])
        >>> problem.train_grad_alpha()
        tensor([0.2222])
        >>> problem.val_grads()
        (tensor([0.3333]), tensor([0.]))
    """

    def __init__(self, train_loss: Loss, val_loss: Loss, w: Tensor, alpha: Tensor) -> None:
        for name, loss in (("train_loss", train_loss), ("val_loss", val_loss)):
            if not callable(loss):
                raise FastnasError(
                    f"FunctionProblem: {name} must be a function of (w, alpha), got {type(loss).__name__}"
                )
        check.flat_vector("FunctionProblem", "w", w)
        check.flat_vector("FunctionProblem", "alpha", alpha)
        # Detached: the same memory, and in-place writes to it are then no business of autograd.
        self.w = w.detach()
        self.alpha = alpha.detach()
        self._train_loss = train_loss
        self._val_loss = val_loss

    def train_grad_w(self) -> Tensor:
        """dL1/dw, shape (P,)."""
        return self._gradients("train_loss", self._train_loss, "w")[0]

    def train_grad_alpha(self) -> Tensor:
        """dL1/dalpha, shape (H,); zeros if L1 does not depend on alpha."""
        return self._gradients("train_loss", self._train_loss, "alpha")[0]

    def val_grads(self) -> tuple[Tensor, Tensor]:
        """(dL2/dw, dL2/dalpha), shapes (P,) and (H,); zeros for the one that L2 does not depend on."""
        grad_w, grad_alpha = self._gradients("val_loss", self._val_loss, "w", "alpha")
        return grad_w, grad_alpha

    def val_grad_alpha(self) -> Tensor:
        """dL2/dalpha, shape (H,); zeros if L2 does not depend on alpha."""
        return self._gradients("val_loss", self._val_loss, "alpha")[0]

    def train_hessian_product(self, u: Tensor) -> Tensor:
        """d2L1/dw2 . u, (P,) -> (P,), by differentiating twice."""
        return self._product("train_loss", self._train_loss, "w", "w", u)

    def train_mixed_product(self, u: Tensor) -> Tensor:
        """d2L1/dalpha dw . u, (P,) -> (H,), by differentiating twice."""
        return self._product("train_loss", self._train_loss, "w", "alpha", u)

    def val_alpha_hessian_product(self, p: Tensor) -> Tensor:
        """d2L2/dalpha2 . p, (H,) -> (H,), by differentiating twice."""
        return self._product("val_loss", self._val_loss, "alpha", "alpha", p)

    def _product(self, name: str, function: Loss, first: str, second: str, u: Tensor) -> Tensor:
        """The gradient by ``second`` of <d loss / d ``first``, u>."""
        with torch.enable_grad():
            loss, leaves = self._loss(name, function)
            check_twice_differentiable("FunctionProblem", name, loss)
            (grad,) = torch.autograd.grad(
                loss, leaves[first], create_graph=True, allow_unused=True, materialize_grads=True
            )
            slope = grad @ u
            if not slope.requires_grad:  # the gradient is a constant
                return torch.zeros_like(leaves[second])
            (result,) = torch.autograd.grad(slope, leaves[second], allow_unused=True, materialize_grads=True)
        return result.detach().clone(memory_format=torch.contiguous_format)

    def _gradients(self, name: str, function: Loss, *wanted: str) -> list[Tensor]:
        with torch.enable_grad():
            loss, leaves = self._loss(name, function)
            inputs = [leaves[leaf] for leaf in wanted]
            grads = torch.autograd.grad(loss, inputs, allow_unused=True, materialize_grads=True)
        # Cloned: autograd may return one tensor for both inputs (w + alpha), or an expanded one (w.sum()).
        return [grad.clone(memory_format=torch.contiguous_format) for grad in grads]

    def _loss(self, name: str, function: Loss) -> tuple[Tensor, dict[str, Tensor]]:
        """A loss with its graph, and the leaves of the graph."""
        leaves = {"w": self.w.detach().requires_grad_(), "alpha": self.alpha.detach().requires_grad_()}
        loss = function(leaves["w"], leaves["alpha"])
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            got = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
            raise FastnasError(f"FunctionProblem: {name} must return a scalar tensor, got {got}")
        if not loss.requires_grad:
            raise FastnasError(
                f"FunctionProblem: {name} depends on neither w nor alpha; compute it from the "
                "tensors it is given, without detach, item or no_grad"
            )
        return loss, leaves


def toy_problem(a: float = 1.0) -> FunctionProblem:
    """The one-dimensional problem of Bi et al. 2019, at its training minimum.

        L(w, alpha; x) = (w x - alpha)^2,    training x = 1, validation x = 2,    w = alpha = a

    There w*(alpha) = alpha, so the direct term is -2a, the implicit one 4a, and the hypergradient 2a: the
    first-order estimate has the wrong sign.

    Args:
        a: the value of alpha, and of w.

    Returns:
        The problem, P = H = 1, float64.

    Example:
        >>> toy_problem(a=3.0).val_grads()
        (tensor([12.], dtype=torch.float64), tensor([-6.], dtype=torch.float64))
    """

    def loss(x: float) -> Loss:
        return lambda w, alpha: ((w * x - alpha) ** 2).sum()

    w = torch.tensor([a], dtype=torch.float64)
    return FunctionProblem(loss(1.0), loss(2.0), w, w.clone())
