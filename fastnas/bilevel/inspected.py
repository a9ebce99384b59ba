"""Oracles whose results are watched for NaN and infinity, without waiting for the device."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fastnas.bilevel.problem import TwiceDifferentiable
from fastnas.bilevel.watch import Watch
from fastnas.errors import FastnasError

MEANING = {
    "train_grad_w": "dL1/dw",
    "train_grad_alpha": "dL1/dalpha",
    "val_grads": "dL2/dw and dL2/dalpha",
    "val_grad_alpha": "dL2/dalpha",
    "train_hessian_product": "d2L1/dw2 . u",
    "train_mixed_product": "d2L1/dalpha dw . u",
    "val_alpha_hessian_product": "d2L2/dalpha2 . p",
}


class NotFiniteError(FastnasError):
    """A hypergradient has a NaN or an infinity; says which oracle had one first."""


class Observed:
    """Another problem's oracles, whose results ``_look`` sees.

    Args:
        problem: whose oracles.
    """

    def __init__(self, problem: TwiceDifferentiable) -> None:
        self.problem = problem
        self.w, self.alpha = problem.w, problem.alpha

    def train_grad_w(self) -> Tensor:
        """dL1/dw, (P,)."""
        return self._one("train_grad_w", self.problem.train_grad_w())

    def train_grad_alpha(self) -> Tensor:
        """dL1/dalpha, (H,)."""
        return self._one("train_grad_alpha", self.problem.train_grad_alpha())

    def val_grads(self) -> tuple[Tensor, Tensor]:
        """dL2/dw (P,) and dL2/dalpha (H,)."""
        both = self.problem.val_grads()
        self._look("val_grads", *both)
        return both

    def val_grad_alpha(self) -> Tensor:
        """dL2/dalpha, (H,)."""
        return self._one("val_grad_alpha", self.problem.val_grad_alpha())

    def train_hessian_product(self, u: Tensor) -> Tensor:
        """d2L1/dw2 . u, (P,)."""
        return self._one("train_hessian_product", self.problem.train_hessian_product(u))

    def train_mixed_product(self, u: Tensor) -> Tensor:
        """d2L1/dalpha dw . u, (H,)."""
        return self._one("train_mixed_product", self.problem.train_mixed_product(u))

    def val_alpha_hessian_product(self, p: Tensor) -> Tensor:
        """d2L2/dalpha2 . p, (H,)."""
        return self._one("val_alpha_hessian_product", self.problem.val_alpha_hessian_product(p))

    def _one(self, name: str, result: Tensor) -> Tensor:
        self._look(name, result)
        return result

    def _look(self, name: str, *results: Tensor) -> None:
        """What the oracle ``name`` returned."""
        raise NotImplementedError


class Inspected(Observed):
    """Another problem's oracles. Whether their results were finite stays on the device until ``check`` asks.

    Args:
        problem: whose oracles.

    Example:
        >>> from fastnas.bilevel import FunctionProblem, t1_t2
        >>> problem = Inspected(FunctionProblem(lambda w, a: (w * a).log().sum(), lambda w, a: (w * a).sum(),
        ...                                     torch.tensor([0.01]), torch.tensor([0.0])))
        >>> try:
        ...     problem.check(t1_t2(problem))
        ... except NotFiniteError as error:
        ...     print(error)
        the oracle train_grad_alpha (dL1/dalpha) returned NaN or infinity
    """

    def __init__(self, problem: TwiceDifferentiable) -> None:
        super().__init__(problem)
        self._finite: list[tuple[str, Tensor]] = []

    def check(
        self,
        hypergradient: Tensor,
        watch: Watch | None = None,
        account: Callable[[], str | None] | None = None,
    ) -> Tensor:
        """Whether ``hypergradient`` and all that the oracles returned so far is finite: shape (), bool, on the device.

        Args:
            hypergradient: (H,).
            watch: raises what is below when its sentences are read; None: at once, which waits for the device.
            account: asked then for a phrase that says more.

        Raises:
            NotFiniteError: it is not.
        """
        seen, self._finite = [*self._finite, ("", hypergradient.isfinite().all())], []
        finite = torch.stack([flag for _, flag in seen])

        def say(flags: list[float]) -> None:
            if all(flags):
                return
            name = seen[flags.index(False)][0]
            what = f"the oracle {name} ({MEANING[name]}) returned" if name else "the hypergradient has"
            more = account() if account is not None else None
            raise NotFiniteError(f"{what} NaN or infinity{f', {more}' if more else ''}")

        if watch is None:
            say(finite.tolist())
        else:
            watch.add(finite, say)
        return finite.all()

    def _look(self, name: str, *results: Tensor) -> None:
        self._finite += [(name, result.isfinite().all()) for result in results]
