"""Two small supernets that differ only in their switches: one smooth, one of ReLU and max-pooling."""

from __future__ import annotations

import torch
from torch import Tensor

from fastnas.bilevel import FunctionProblem
from fastnas.bilevel.problem import Loss

FEATURES, HIDDEN, CLASSES = 8, 64, 5
SHAPES = [(FEATURES, HIDDEN), (HIDDEN, HIDDEN), (HIDDEN, CLASSES)]


def network(*, smooth: bool, seed: int, samples: int = 256) -> FunctionProblem:
    """Input -> mixed op of two primitives, weighted by softmax(alpha) -> hidden layer -> cross-entropy, float64.

    The primitives: tanh and logsumexp over pairs (smooth), or ReLU and the maximum of pairs. Training and
    validation batches are different.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    def loss() -> Loss:
        x = normal(samples, FEATURES)
        label = torch.randint(0, CLASSES, (samples,), generator=generator)
        return lambda w, alpha: torch.nn.functional.cross_entropy(logits(x, w, alpha), label)

    def logits(x: Tensor, w: Tensor, alpha: Tensor) -> Tensor:
        parts = w.split([rows * columns for rows, columns in SHAPES])
        first, second, third = (part.view(shape) for part, shape in zip(parts, SHAPES, strict=True))
        hidden = x @ first
        pairs = hidden.view(samples, HIDDEN // 2, 2)
        pooled = (pairs.logsumexp(2) if smooth else pairs.amax(2)).repeat_interleave(2, 1)
        share = alpha.softmax(0)
        mixed = share[0] * (hidden.tanh() if smooth else hidden.relu()) + share[1] * pooled
        hidden = mixed @ second
        return (hidden.tanh() if smooth else hidden.relu()) @ third

    w = torch.cat([normal(rows * columns) / rows**0.5 for rows, columns in SHAPES])
    return FunctionProblem(loss(), loss(), w, normal(2))


def small_network(seed: int = 0) -> FunctionProblem:
    """Smooth, and small enough for its dense Hessians: one layer of P = 40, a mixture of H = 6 functions of it."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    def loss() -> Loss:
        x, y = normal(30, 8), normal(30, 5)

        def value(w: Tensor, alpha: Tensor) -> Tensor:
            hidden = x @ w.view(8, 5)
            branches = (hidden, hidden.tanh(), hidden.sin(), hidden.cos(), hidden**2, hidden.sigmoid())
            return ((alpha.softmax(0) @ torch.stack(branches).flatten(1) - y.flatten()) ** 2).mean()

        return value

    return FunctionProblem(loss(), loss(), normal(40) / 3, normal(6))


def dense_hessians(problem: FunctionProblem) -> tuple[Tensor, Tensor]:
    """(d2L1/dw2, d2L2/dalpha2), by differentiating twice."""
    hessian = torch.autograd.functional.hessian
    return (
        hessian(lambda w: problem._train_loss(w, problem.alpha), problem.w),
        hessian(lambda alpha: problem._val_loss(problem.w, alpha), problem.alpha),
    )


def exact_products(problem: FunctionProblem, u: Tensor) -> tuple[Tensor, Tensor]:
    """(H u, d2L1/dalpha dw . u) of the training loss, by differentiating twice."""
    w, alpha = problem.w.clone().requires_grad_(), problem.alpha.clone().requires_grad_()
    (grad,) = torch.autograd.grad(problem._train_loss(w, alpha), w, create_graph=True)
    hessian_u, mixed_u = torch.autograd.grad(grad @ u, (w, alpha))
    return hessian_u, mixed_u
