"""Bilevel problems with closed forms: their oracles are written by hand, not by autograd."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from fastnas.bilevel import BilevelProblem

Result = TypeVar("Result")


class AmendedToy:
    """Bi et al. 2019: L = (w x - alpha)^2, training x = 1, validation x = 2, at w = alpha = a.

    v = 4a, H = 2, d2L1/dalpha dw = -2: the direct term is -2a, the implicit one 4a, the whole 2a.
    """

    train_x = 1.0
    val_x = 2.0

    def __init__(self, a: float, w: float | None = None) -> None:
        self.w = torch.tensor([a if w is None else w], dtype=torch.float64)
        self.alpha = torch.tensor([a], dtype=torch.float64)

    def train_grad_w(self) -> Tensor:
        return 2 * self.train_x * (self.w * self.train_x - self.alpha)

    def train_grad_alpha(self) -> Tensor:
        return -2 * (self.w * self.train_x - self.alpha)

    def val_grads(self) -> tuple[Tensor, Tensor]:
        error = self.w * self.val_x - self.alpha
        return 2 * self.val_x * error, -2 * error

    def val_grad_alpha(self) -> Tensor:
        return -2 * (self.w * self.val_x - self.alpha)


class QuadraticProblem:
    """Two quadratics in w, coupled to alpha linearly, and bilinearly where ``curvature`` is given.

        L1 = w'A w/2 + w'B alpha + b'w + sum_j alpha_j w'M_j w/2
        L2 = (w - t)'Q (w - t)/2 + w'D alpha + |alpha|^2/2

    so H = A + sum_j alpha_j M_j, and row j of d2L1/dalpha dw is B'_j + M_j w: without ``curvature`` (M = 0)
    it does not depend on w. Central differences are exact here, up to rounding.

    Args:
        eigenvalues: of A, shape (P,).
        outer: H, the length of alpha.
        curvature: scale of the random symmetric M_j; 0 leaves them out.
    """

    def __init__(self, eigenvalues: Tensor, outer: int = 3, curvature: float = 0.0, seed: int = 0) -> None:
        inner = len(eigenvalues)
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        basis = torch.linalg.qr(normal(inner, inner)).Q
        self.A = basis @ torch.diag(eigenvalues.double()) @ basis.T
        self.B, self.D, self.b, self.t = (
            normal(inner, outer),
            normal(inner, outer),
            normal(inner),
            normal(inner),
        )
        root = normal(inner, inner)
        self.Q = root @ root.T / inner
        half = normal(outer, inner, inner) * (curvature / 2)
        self.M = half + half.mT
        self.w, self.alpha = normal(inner), normal(outer)

    def to(self, device: str) -> QuadraticProblem:
        for name, value in vars(self).items():
            setattr(self, name, value.to(device))
        return self

    # The losses, for the tests that differentiate them.

    def train_loss(self, w: Tensor, alpha: Tensor) -> Tensor:
        bent = (self.M @ w @ w) @ alpha
        return w @ self.A @ w / 2 + w @ self.B @ alpha + self.b @ w + bent / 2

    def val_loss(self, w: Tensor, alpha: Tensor) -> Tensor:
        return (w - self.t) @ self.Q @ (w - self.t) / 2 + w @ self.D @ alpha + alpha @ alpha / 2

    # The oracles.

    def train_grad_w(self) -> Tensor:
        return self.hessian() @ self.w + self.B @ self.alpha + self.b

    def train_grad_alpha(self) -> Tensor:
        return self.B.T @ self.w + self.M @ self.w @ self.w / 2

    def val_grads(self) -> tuple[Tensor, Tensor]:
        return self.Q @ (self.w - self.t) + self.D @ self.alpha, self.D.T @ self.w + self.alpha

    def val_grad_alpha(self) -> Tensor:
        return self.D.T @ self.w + self.alpha

    # The closed forms.

    def hessian(self) -> Tensor:
        """d2L1/dw2, (P, P)."""
        return self.A + torch.einsum("j,jpq->pq", self.alpha, self.M)

    def mixed(self, w: Tensor | None = None) -> Tensor:
        """d2L1/dalpha dw at w, (H, P)."""
        return self.B.T + self.M @ (self.w if w is None else w)

    def solution(self) -> Tensor:
        """w*(alpha) = argmin L1."""
        return torch.linalg.solve(self.hessian(), -(self.B @ self.alpha + self.b))

    def exact_hypergradient(self) -> Tensor:
        """dL2/dalpha - d2L1/dalpha dw . H^-1 . v at the present w, by a dense solve."""
        v, direct = self.val_grads()
        return direct - self.mixed() @ torch.linalg.solve(self.hessian(), v)


class OracleFailed(Exception):
    """What ``Counted`` raises."""


class Counted:
    """Another problem's oracles, counted by name; ``fail_at`` makes the n-th call (from 0) raise."""

    def __init__(self, problem: BilevelProblem, fail_at: int | None = None) -> None:
        self.problem = problem
        self.fail_at = fail_at
        self.calls: list[str] = []

    @property
    def w(self) -> Tensor:
        return self.problem.w

    @property
    def alpha(self) -> Tensor:
        return self.problem.alpha

    def _call(self, name: str, oracle: Callable[[], Result]) -> Result:
        if len(self.calls) == self.fail_at:
            raise OracleFailed(name)
        self.calls.append(name)
        return oracle()

    def train_grad_w(self) -> Tensor:
        return self._call("train_grad_w", self.problem.train_grad_w)

    def train_grad_alpha(self) -> Tensor:
        return self._call("train_grad_alpha", self.problem.train_grad_alpha)

    def val_grads(self) -> tuple[Tensor, Tensor]:
        return self._call("val_grads", self.problem.val_grads)

    def val_grad_alpha(self) -> Tensor:
        return self._call("val_grad_alpha", self.problem.val_grad_alpha)


class Cube(torch.autograd.Function):
    """x^3, whose gradient has no graph."""

    @staticmethod
    def forward(context, x):
        context.save_for_backward(x)
        return x**3

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(context, grad):
        return 3 * grad * context.saved_tensors[0] ** 2
