"""Problems made of problems: one whose oracles are counted, and the mean of several minibatches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

from fastnas.bilevel import TwiceDifferentiable
from fastnas.bilevel.inspected import Observed


@dataclass
class Meter:
    """What was asked of the oracles so far.

    Attributes:
        gradients: first-order oracles called, each a forward and a backward pass.
        products: exact second-order products.
        tick: called after each of them; a progress bar's.
    """

    gradients: int = 0
    products: int = 0
    tick: Callable[[], object] = lambda: None

    def gradient(self) -> None:
        """Counts one."""
        self.gradients += 1
        self.tick()

    def product(self) -> None:
        """Counts one."""
        self.products += 1
        self.tick()


class Metered(Observed):
    """Another problem's oracles, counted.

    Args:
        problem: whose oracles.
        meter: what counts.
    """

    def __init__(self, problem: TwiceDifferentiable, meter: Meter) -> None:
        super().__init__(problem)
        self.meter = meter

    def _look(self, name: str, *results: Tensor) -> None:
        (self.meter.product if name.endswith("_product") else self.meter.gradient)()


class Averaged:
    """The mean loss of several minibatches, each with its own BatchNorm statistics, as a search's steps have them.

    Args:
        problems: of the same w and alpha, at least one.
    """

    def __init__(self, problems: Sequence[TwiceDifferentiable]) -> None:
        self.problems = problems
        self.w, self.alpha = problems[0].w, problems[0].alpha

    def train_grad_w(self) -> Tensor:
        """dL1/dw, (P,)."""
        return self._mean(lambda problem: problem.train_grad_w())

    def train_grad_alpha(self) -> Tensor:
        """dL1/dalpha, (H,)."""
        return self._mean(lambda problem: problem.train_grad_alpha())

    def val_grads(self) -> tuple[Tensor, Tensor]:
        """dL2/dw (P,) and dL2/dalpha (H,)."""
        both = self._mean(lambda problem: torch.cat(problem.val_grads()))
        return both[: len(self.w)], both[len(self.w) :]

    def val_grad_alpha(self) -> Tensor:
        """dL2/dalpha, (H,)."""
        return self._mean(lambda problem: problem.val_grad_alpha())

    def train_hessian_product(self, u: Tensor) -> Tensor:
        """d2L1/dw2 . u, (P,)."""
        return self._mean(lambda problem: problem.train_hessian_product(u))

    def train_mixed_product(self, u: Tensor) -> Tensor:
        """d2L1/dalpha dw . u, (H,)."""
        return self._mean(lambda problem: problem.train_mixed_product(u))

    def val_alpha_hessian_product(self, p: Tensor) -> Tensor:
        """d2L2/dalpha2 . p, (H,)."""
        return self._mean(lambda problem: problem.val_alpha_hessian_product(p))

    def _mean(self, oracle: Callable[[TwiceDifferentiable], Tensor]) -> Tensor:
        return reduce(torch.add, map(oracle, self.problems)) / len(self.problems)
