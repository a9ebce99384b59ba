"""The normalised mixed sum, out = sum_k w_k BatchNorm(x_k): a mixed operation without the normalised branches."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

import fastnas._extension  # noqa: F401  (registers torch.ops.fastnas)
from fastnas.errors import FastnasError
from fastnas.ops._distrust import DISTRUSTED
from fastnas.ops._images import (
    as_kernels_give,
    batch_statistics,
    channels_last,
    check_eps,
    check_images,
    check_like,
    check_numbers,
    check_one_device,
    empty_images,
    is_training,
    normalised,
    normalised_gradient,
    per_channel,
    plain_statistics,
)

OPS = torch.ops.fastnas
_OP = "normalised_mixed_sum"


def normalised_mixed_sum(
    weights: Tensor,
    branches: Iterable[Tensor],
    *,
    affine: Sequence[Tensor | None] | None = None,
    statistics: Tensor | None = None,
    training: bool | None = None,
    eps: float = 1e-5,
) -> tuple[Tensor, Tensor]:
    """The weighted sum of branches that each get a BatchNorm without scale and shift, in one pass over them.

    out = sum_k weights[k] (x_k - mean_k) / sqrt(variance_k + eps) per channel: the mixed operation (DARTS, Liu et
    al. 2019, equation 2; its BatchNorms, appendix A.1) of normalised branches (Ioffe and Szegedy 2015, without
    affine), none of which is formed. With g = d out, r_k = 1 / sqrt(variance_k + eps), n = B H W, and <,> summing over
    the batch and its pixels,

    d weights[k] = sum_c r_k <g, x_k - mean_k>_c,
    d x_k = weights[k] r_k (g - <g, 1> / n - (x_k - mean_k) r_k^2 <g, x_k - mean_k> / n),

    of which only the first term is left for given statistics that are constants. Differentiable once. Results
    are the same bits in every run and for every number of threads.

    A branch with an ``affine`` part is rectified: ReLU(scale (x_k - mean_k) r_k + shift) takes the place of the
    normalised x_k, as in the convolution-BatchNorm-ReLU of NAS-Bench-101 (Ying et al. 2019, section 2.2). In d x_k
    weights[k] scale then stands for weights[k], and g is 0 where the ReLU is.

    Args:
        weights: (K,), K >= 1, in the branches' dtype; float32 where that is bfloat16.
        branches: K tensors (B, C, H, W), float32 or float64 on the CPU, float32 or bfloat16 on CUDA. Read in place
            in channels-last memory, of which they may be slices of channels; copied otherwise.
        affine: of each branch (2, C), scale and shift in the weights' dtype, or None: it is not rectified. None for
            all: none is.
        statistics: (K, 2, C), mean and biased variance of each branch's channels, in the weights' dtype. None: the
            batch's, computed here.
        training: whether they are the batch's own, so that gradients flow through them. None: exactly if
            ``statistics`` is. Give both where ``separable_stage`` and ``shared_pooling`` have computed them; in
            evaluation give constants alone.
        eps: added to the variance, >= 0.

    Returns:
        ``(out, statistics)``: (B, C, H, W) in channels-last memory, and the (K, 2, C) that it was normalised with, not
        differentiable (0 for an empty batch).

        Kept for backward: weights, statistics, branches and affine parts.

    Raises:
        FastnasError: on arguments that do not fit together.

    Example:
        >>> branches = [torch.tensor([1.0, 3.0]).view(2, 1, 1, 1), torch.tensor([6.0, 4.0]).view(2, 1, 1, 1)]
        >>> out, statistics = normalised_mixed_sum(torch.tensor([0.5, 0.25]), branches, eps=0.0)
        >>> out.flatten()
        tensor([-0.2500,  0.2500])
        >>> statistics[0]  # mean and variance of the first branch
        tensor([[2.],
                [1.]])
    """
    branches = tuple(branches)
    if not branches:
        raise FastnasError(f"{_OP}: at least one branch is needed, got none")
    first = check_images(_OP, "branches[0]", branches[0])
    for k, branch in enumerate(branches):
        check_like(_OP, f"branches[{k}]", branch, first.shape, "branches[0]", first)
    check_numbers(_OP, "weights", weights, (len(branches),), "branches[0]", first)
    rows, rectified = _affine_rows(affine, branches)
    eps = check_eps(_OP, eps)
    training = is_training(_OP, statistics, training)
    branches = tuple(channels_last(branch) for branch in branches)
    if statistics is None:
        statistics = torch.stack([batch_statistics(branch) for branch in branches])
    else:
        check_numbers(_OP, "statistics", statistics, (len(branches), 2, first.shape[1]), "branches[0]", first)
        statistics = statistics.detach()
    if _OP in DISTRUSTED:
        out, statistics = _normalised_mixed_sum_ref(
            weights, branches, affine=affine, statistics=statistics, training=training, eps=eps
        )
        (out,), statistics = as_kernels_give([out], statistics, first)
        return out, statistics
    parts = torch.stack(rows) if rows else None
    out = _NormalisedMixedSum.apply(
        training, eps, rectified, statistics.contiguous(), weights.contiguous(), parts, *branches
    )
    return out, statistics


def _affine_rows(
    affine: Sequence[Tensor | None] | None, branches: Sequence[Tensor]
) -> tuple[list[Tensor], list[int]]:
    """The affine parts that there are, and of each branch the row of its own among them, or -1; [] without any."""
    if affine is None:
        return [], []
    if len(affine) != len(branches):
        raise FastnasError(
            f"{_OP}: affine must have one entry a branch, {len(branches)}, got {len(affine)}; None: it is not rectified"
        )
    rows: list[Tensor] = []
    rectified = []
    for k, part in enumerate(affine):
        if part is not None:
            check_numbers(_OP, f"affine[{k}]", part, (2, branches[0].shape[1]), "branches[0]", branches[0])
            rows.append(part)
        rectified.append(-1 if part is None else len(rows) - 1)
    return rows, rectified


def _normalised_mixed_sum_ref(
    weights: Tensor,
    branches: Sequence[Tensor],
    *,
    affine: Sequence[Tensor | None] | None = None,
    statistics: Tensor | None = None,
    training: bool | None = None,
    eps: float = 1e-5,
) -> tuple[Tensor, Tensor]:
    """``normalised_mixed_sum`` as it is commonly written, in plain PyTorch."""
    if is_training(_OP, statistics, training):
        statistics = torch.stack([plain_statistics(x) for x in branches])
    assert statistics is not None
    values = [normalised(x, own, eps) for x, own in zip(branches, statistics, strict=True)]
    for k, part in enumerate(affine or ()):
        if part is not None:
            scale, shift = (per_channel(row) for row in part)
            values[k] = torch.relu(scale * values[k] + shift)
    return sum(w * value for w, value in zip(weights, values, strict=True)), statistics.detach()


class _NormalisedMixedSum(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        training: bool,
        eps: float,
        rectified: list[int],
        statistics: Tensor,
        weights: Tensor,
        affine: Tensor | None,
        *branches: Tensor,
    ) -> Tensor:
        ctx.training, ctx.eps, ctx.rectified = training, eps, rectified
        ctx.save_for_backward(statistics, weights, affine, *branches)
        out = torch.empty_like(branches[0], memory_format=torch.channels_last)
        each = range(len(branches))
        OPS.normalised_mixed_sum(
            branches, each, weights, each, statistics, eps, out, False, affine, rectified
        )
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        statistics, weights, affine, *branches = ctx.saved_tensors
        weights_needed, affine_needed, *needed = ctx.needs_input_grad[4:]
        grad = channels_last(grad)
        count, _, channels = statistics.shape
        coefficients = statistics.new_empty(count, 3, channels)
        weights_grad = torch.empty_like(weights)
        each = range(count)
        passed = affine_grad = None
        grads = [grad] * count
        if affine is not None:
            affine_grad = torch.empty_like(affine)
            passed = empty_images(grad, len(affine) * len(grad), *grad.shape[1:])
            parts = passed.unflatten(0, (len(affine), len(grad))).unbind()
            grads = [grad if row < 0 else parts[row] for row in ctx.rectified]
        OPS.normalised_mixed_sum_backward(
            grad, branches, each, weights, each, statistics, ctx.eps, ctx.training, coefficients, weights_grad,
            affine, ctx.rectified, passed, affine_grad,
        )  # fmt: skip
        branch_grads = [
            normalised_gradient(row, mean, own, x, ctx.training) if wanted else None
            for row, mean, own, x, wanted in zip(
                coefficients, statistics[:, 0], grads, branches, needed, strict=True
            )
        ]
        return (
            *(None,) * 4,
            weights_grad if weights_needed else None,
            affine_grad if affine_needed else None,
            *branch_grads,
        )


@torch.library.register_fake("fastnas::normalised_mixed_sum")
def _normalised_mixed_sum_fake(
    branches: Sequence[Tensor],
    norms: Sequence[int],
    weights: Tensor,
    indices: Sequence[int],
    statistics: Tensor,
    eps: float,
    out: Tensor,
    add: bool = False,
    affine: Tensor | None = None,
    rectified: Sequence[int] = (),
) -> None:
    check_one_device(_OP, branches, weights, statistics, out, affine)
    return None


@torch.library.register_fake("fastnas::normalised_mixed_sum_backward")
def _normalised_mixed_sum_backward_fake(
    grad: Tensor,
    branches: Sequence[Tensor],
    norms: Sequence[int],
    weights: Tensor,
    indices: Sequence[int],
    statistics: Tensor,
    eps: float,
    training: bool,
    coefficients: Tensor,
    weights_grad: Tensor,
    affine: Tensor | None = None,
    rectified: Sequence[int] = (),
    passed: Tensor | None = None,
    affine_grad: Tensor | None = None,
) -> None:
    check_one_device(
        _OP, grad, branches, weights, statistics, coefficients, weights_grad, affine, passed, affine_grad
    )
    return None
