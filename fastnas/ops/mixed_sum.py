"""The weighted sum of a mixed operation, out = sum_k w_k x_k, in one pass over its branches."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

import fastnas._extension  # noqa: F401  (registers torch.ops.fastnas)
from fastnas.errors import FastnasError
from fastnas.ops._distrust import DISTRUSTED


def mixed_sum(weights: Tensor, branches: Iterable[Tensor]) -> Tensor:
    """The weighted sum of a mixed operation's branches, in one pass.

    out = sum_k weights[k] * branches[k]  (DARTS, Liu et al. 2019, equation 2), with
    d weights[k] = <d out, branches[k]> and d branches[k] = weights[k] * d out. A drop-in for
    ``sum(w * op(x) for w, op in zip(weights, ops))`` that never forms a product ``w * op(x)``.
    Differentiable any number of times. Sums are accumulated in float32 (float64 for float64) in one fixed
    order: results are the same bits in every run and for every number of threads.

    Args:
        weights: shape (K,), K >= 1, in the branches' dtype (or float32 with bfloat16 branches).
        branches: K tensors of one shape, dtype and device: float32, float64 or bfloat16 on the CPU, float32
            or bfloat16 on CUDA. Where all share one dense memory layout, channels-last say, the output has
            it too and nothing is copied; otherwise they are brought to the contiguous layout.

    Returns:
        The sum, in the branches' shape and dtype.

        Kept for backward: the K weights, and the branches only if the weights need a gradient.

    Raises:
        FastnasError: on arguments that do not fit together.

    Example:
        >>> branches = [torch.ones(2, 3), torch.full((2, 3), 10.0)]
        >>> mixed_sum(torch.tensor([0.5, 0.25]), branches)
        tensor([[3., 3., 3.],
                [3., 3., 3.]])
    """
    branches = tuple(branches)
    for name, value in (("weights", weights), *(("branches", branch) for branch in branches)):
        if not isinstance(value, Tensor):
            raise FastnasError(f"mixed_sum: {name} must be tensors, got {type(value).__name__}")
    if "mixed_sum" in DISTRUSTED:
        return _mixed_sum_ref(weights, branches)
    try:
        return _MixedSum.apply(weights, *branches)
    except ValueError as error:  # what the binding's checks raise
        raise FastnasError(str(error)) from None


def _mixed_sum_ref(weights: Tensor, branches: Sequence[Tensor]) -> Tensor:
    """``mixed_sum`` as it is commonly written, in plain PyTorch."""
    return sum(w * x for w, x in zip(weights, branches, strict=True))


class _MixedSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weights: Tensor, *branches: Tensor) -> Tensor:
        weights_needed, *branches_needed = ctx.needs_input_grad
        ctx.wanted = [k for k, needed in enumerate(branches_needed) if needed]
        # The branches are factors of the weights' gradient alone.
        ctx.save_for_backward(weights, *(branches if weights_needed else ()))
        return torch.ops.fastnas.mixed_sum(weights, branches)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weights, *branches = ctx.saved_tensors
        backward = _MixedSumBackward.apply if torch.is_grad_enabled() else _backward  # create_graph or not
        weights_grad, *wanted_grads = backward(grad, weights, ctx.wanted, *branches)
        branch_grads: list[Tensor | None] = [None] * len(weights)
        for k, branch_grad in zip(ctx.wanted, wanted_grads, strict=True):
            branch_grads[k] = branch_grad
        return weights_grad, *branch_grads


def _backward(
    grad: Tensor, weights: Tensor, wanted: list[int], *branches: Tensor
) -> tuple[Tensor | None, ...]:
    """(d weights, *[d branches[k] for k in wanted]); without branches d weights is None."""
    weights_grad, branch_grads = torch.ops.fastnas.mixed_sum_backward(grad, weights, branches, wanted)
    return weights_grad if branches else None, *branch_grads


class _MixedSumBackward(torch.autograd.Function):
    """``_backward``, differentiable.

    The map is bilinear in (grad, (weights, branches)), so its own derivatives are again mixed sums and
    inner products: its backward is written with these two functions, which makes it differentiable.
    """

    @staticmethod
    def forward(
        ctx: Any, grad: Tensor, weights: Tensor, wanted: list[int], *branches: Tensor
    ) -> tuple[Tensor | None, ...]:
        ctx.set_materialize_grads(False)
        ctx.wanted = wanted
        ctx.save_for_backward(grad, weights, *branches)
        return _backward(grad, weights, wanted, *branches)

    @staticmethod
    def backward(
        ctx: Any, weights_bar: Tensor | None, *wanted_bars: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        grad, weights, *branches = ctx.saved_tensors
        grad_needed, weights_needed, _, *branches_needed = ctx.needs_input_grad
        bars = {k: bar for k, bar in zip(ctx.wanted, wanted_bars, strict=True) if bar is not None}
        weights_of_bars = weights[list(bars)]

        grad_bar = None  # sum_k weights_bar[k] branches[k] + sum_k weights[k] bars[k], as one mixed sum
        if grad_needed and (weights_bar is not None or bars):
            coefficients = [weights_of_bars] if weights_bar is None else [weights_bar, weights_of_bars]
            terms = [*(branches if weights_bar is not None else ()), *bars.values()]
            grad_bar = _MixedSum.apply(torch.cat(coefficients), *terms)

        weights_out = None  # <grad, bars[k]>
        if weights_needed and bars:
            products, *_ = _MixedSumBackward.apply(grad, weights_of_bars, [], *bars.values())
            index = torch.tensor(list(bars), device=weights.device)
            weights_out = torch.zeros_like(weights).index_copy(0, index, products)

        branches_out: list[Tensor | None] = [None] * len(branches)  # weights_bar[k] grad
        needed = [k for k, need in enumerate(branches_needed) if need]
        if weights_bar is not None and needed:
            _, *products = _MixedSumBackward.apply(grad, weights_bar, needed)
            for k, product in zip(needed, products, strict=True):
                branches_out[k] = product
        return grad_bar, weights_out, None, *branches_out


def _empty_in_one_layout(tensors: Sequence[Tensor]) -> Tensor:
    """An empty tensor in the layout that csrc/layout.h gives to ``tensors``: theirs if shared and dense."""

    def strides(tensor: Tensor) -> list[int]:
        return [stride for stride, size in zip(tensor.stride(), tensor.shape, strict=True) if size != 1]

    like = torch.empty_like(tensors[0])  # keeps the strides if and only if they are dense
    if all(strides(tensor) == strides(like) for tensor in tensors):
        return like
    return torch.empty_like(tensors[0], memory_format=torch.contiguous_format)


@torch.library.register_fake("fastnas::mixed_sum")
def _mixed_sum_fake(weights: Tensor, branches: Sequence[Tensor]) -> Tensor:
    if not branches:
        raise ValueError("mixed_sum: at least one branch is needed, got none")
    if any(branch.device != weights.device for branch in branches):  # a meta tensor among real ones
        raise ValueError("mixed_sum: weights and branches must be on one device")
    return _empty_in_one_layout(branches)


@torch.library.register_fake("fastnas::mixed_sum_backward")
def _mixed_sum_backward_fake(
    grad: Tensor, weights: Tensor, branches: Sequence[Tensor], wanted: Sequence[int]
) -> tuple[Tensor, list[Tensor]]:
    model = branches if branches else [grad]
    weights_grad = weights.new_empty(weights.shape if branches else (0,))
    return weights_grad, [_empty_in_one_layout(model) for _ in wanted]
