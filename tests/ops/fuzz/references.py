"""What a call should give, from the plain-PyTorch references of ``fastnas.ops``: returned tensors, and those written.

They write into the arguments that they get, as the operators do. There is none for a cell.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastnas.ops._images import normalised, per_channel, plain_statistics
from fastnas.ops._vectors import _REFERENCES
from fastnas.ops.highway_sum import _highway_sum_backward_ref, _highway_sum_ref
from fastnas.ops.mixed_sum import _mixed_sum_ref
from fastnas.ops.normalised_mixed_sum import _normalised_mixed_sum_ref
from fastnas.ops.separable_stage import DENSE, Branch, _separable_stage_ref
from fastnas.ops.shared_pooling import _shared_pooling_ref

Returned = Sequence[Tensor]


def mixed_sum(weights: Tensor, branches: list[Tensor]) -> Returned:
    return [_mixed_sum_ref(weights, branches)]


def mixed_sum_backward(grad: Tensor, weights: Tensor, branches: list[Tensor], wanted: list[int]) -> Returned:
    if not len(weights):
        return [weights.new_empty(0)]
    leaves = [t.detach().requires_grad_() for t in (weights, *(branches or [grad] * len(weights)))]
    with torch.enable_grad():
        found = torch.autograd.grad(_mixed_sum_ref(leaves[0], leaves[1:]), leaves, grad)
    return [found[0] if branches else weights.new_empty(0), *(found[1 + k] for k in wanted)]


def _rows(table: list[int]) -> list[Branch]:
    width = len(Branch._fields)
    return [Branch(*table[i : i + width]) for i in range(0, len(table), width)]


def _raw(row: Branch, state: Tensor, weights: Tensor) -> Tensor:
    """A branch's output from its source, which is normalised already."""
    channels, taps = state.shape[1], row.kernel**2
    size = row.channels * channels * (taps if row.kernel and row.depthwise == DENSE else 1)
    pointwise = weights[row.pointwise : row.pointwise + size].view(row.channels, channels, -1)
    if row.kernel and row.depthwise == DENSE:
        side = row.kernel
        return F.conv2d(F.relu(state), pointwise.unflatten(2, (side, side)), padding=side // 2)
    depthwise = None
    if row.kernel:
        depthwise = weights[row.depthwise : row.depthwise + channels * taps].view(
            channels, 1, row.kernel, row.kernel
        )
    elif row.shift:
        state = F.pad(state, (0, 1, 0, 1))[..., 1:, 1:]  # zeros where nothing is left
    raws, _ = _separable_stage_ref(
        state, [depthwise], [pointwise[..., None]], stride=row.stride, dilation=row.dilation
    )
    return raws[0]


def _states(sources: list[Tensor], norms: list[int], statistics: Tensor, eps: float) -> list[Tensor]:
    return [
        x if norm < 0 else normalised(x, statistics[norm, :, : x.shape[1]], eps)
        for x, norm in zip(sources, norms, strict=True)
    ]


def separable_stage(
    sources: list[Tensor],
    source_norms: list[int],
    weights: Tensor,
    statistics: Tensor,
    table: list[int],
    eps: float,
    training: bool,
) -> Returned:
    states, rows = _states(sources, source_norms, statistics, eps), _rows(table)
    outs: dict[int, list[tuple[int, Tensor]]] = {}
    for row in rows:
        raw = _raw(row, states[row.source], weights)
        outs.setdefault(row.out, []).append((row.out_channel, raw))
        if training and row.norm >= 0 and raw.numel():
            statistics[row.norm, :, row.out_channel : row.out_channel + row.channels] = plain_statistics(raw)
    return [torch.cat([raw for _, raw in sorted(outs[k], key=lambda part: part[0])], 1) for k in sorted(outs)]


def separable_stage_backward(
    grads: list[Tensor],
    raws: list[Tensor],
    sources: list[Tensor],
    source_norms: list[int],
    weights: Tensor,
    statistics: Tensor,
    coefficients: Tensor,
    table: list[int],
    eps: float,
    training: bool,
    weights_grad: list[Tensor],
    source_grads: list[Tensor],
) -> Returned:
    rows = _rows(table)
    states = [s.detach().requires_grad_() for s in _states(sources, source_norms, statistics, eps)]
    leaf = weights.detach().requires_grad_()
    with torch.enable_grad():
        outputs = [_raw(row, states[row.source], leaf) for row in rows]
    found = torch.autograd.grad(
        outputs,
        [leaf, *states],
        [_gradient(row, grads, raws, statistics, coefficients) for row in rows],
    )
    for row in rows if weights_grad else []:
        channels, taps = sources[row.source].shape[1], row.kernel**2
        dense = row.kernel > 0 and row.depthwise == DENSE
        size = row.channels * channels * (taps if dense else 1)
        spans = [slice(row.pointwise, row.pointwise + size)]
        if row.kernel and not dense:
            spans.append(slice(row.depthwise, row.depthwise + channels * taps))
        for span in spans:
            weights_grad[0][span] = found[0][span]
    for x, norm, to, grad in zip(sources, source_norms, source_grads, found[1:], strict=True):
        if norm < 0:
            to += grad
            continue
        to.copy_(grad)
        if x.numel():
            coefficients[norm] = _coefficients(x, statistics[norm], grad, eps, training)
    return []


def _gradient(
    row: Branch, grads: list[Tensor], raws: list[Tensor], statistics: Tensor, coefficients: Tensor
) -> Tensor:
    """Of a branch's output: a (g + b (raw - mean) + c)."""
    part = slice(row.out_channel, row.out_channel + row.channels)
    a, b, c = (per_channel(numbers[part]) for numbers in coefficients[row.norm])
    off = raws[row.out][:, part] - per_channel(statistics[row.norm, 0, part])
    return a * (grads[row.grad][:, part] + b * off + c)


def _coefficients(x: Tensor, statistics: Tensor, grad: Tensor, eps: float, training: bool) -> Tensor:
    """a, b, c with which a (grad + b (x - mean) + c) is the gradient of x, ``grad`` being that of x normalised."""
    mean, variance = statistics[:, : x.shape[1]]
    rstd, count = (variance + eps).rsqrt(), x.numel() // x.shape[1]
    product = (grad * (x - per_channel(mean))).sum((0, 2, 3))
    if not training:
        return torch.stack([rstd, torch.zeros_like(rstd), torch.zeros_like(rstd)])
    return torch.stack([rstd, -(rstd**2) * product / count, -grad.sum((0, 2, 3)) / count])


def _summand(
    x: Tensor, norm: int, weight: Tensor | None, statistics: Tensor, affine: Tensor | None, eps: float
) -> Tensor:
    weight = x.new_ones(()) if weight is None else weight
    if norm < 0:
        return weight * x
    parts = None if affine is None else [affine]
    return _normalised_mixed_sum_ref(
        weight[None], [x], affine=parts, statistics=statistics[norm, None], training=False, eps=eps
    )[0]


def normalised_mixed_sum(
    branches: list[Tensor],
    norms: list[int],
    weights: Tensor,
    indices: list[int],
    statistics: Tensor,
    eps: float,
    out: Tensor,
    add: bool = False,
    affine: Tensor | None = None,
    rectified: Sequence[int] = (),
) -> Returned:
    rows = rectified or [-1] * len(branches)
    total = out.clone() if add else torch.zeros_like(out)
    for x, norm, index, row in zip(branches, norms, indices, rows, strict=True):
        weight = None if index < 0 else weights[index]
        part = None if affine is None or row < 0 else affine[row]
        total = total + _summand(x, norm, weight, statistics, part, eps)
    out.copy_(total)
    return []


def shared_pooling(
    x: Tensor,
    stride: int,
    average: bool,
    maximum: bool,
    average_norms: list[int],
    maximum_norms: list[int],
    statistics: Tensor,
) -> Returned:
    if not x.numel():
        return [x.new_empty(_pooled(x, stride)) for wanted in (average, maximum) if wanted]
    pooled, own = _shared_pooling_ref(x, min(stride, 2**20))
    for norms, numbers in ((average_norms, own[0]), (maximum_norms, own[1])):
        for norm in norms:
            statistics[norm] = numbers
    return [out for out, wanted in zip(pooled, (average, maximum), strict=True) if wanted]


def _pooled(x: Tensor, stride: int) -> list[int]:
    return [*x.shape[:2], *(-(-side // stride) for side in x.shape[2:])]


def shared_pooling_backward(
    x: Tensor,
    stride: int,
    average: list[Tensor],
    maximum: list[Tensor],
    grads: list[Tensor],
    table: list[int],
    statistics: Tensor,
    coefficients: Tensor,
    weights: Tensor,
    x_grad: Tensor,
) -> Returned:
    if not x.numel():
        return []
    leaf = x.detach().requires_grad_()
    with torch.enable_grad():
        pooled, _ = _shared_pooling_ref(leaf, min(stride, 2**20))
    if maximum and not torch.equal(maximum[0], pooled[1].detach()):
        raise NotImplementedError  # then where the gradient goes is the operator's own business
    totals = [torch.zeros_like(out) for out in pooled]
    for k, g in enumerate(grads):
        row = table[5 * k : 5 * k + 5]
        for total, given, norm, index in (
            (totals[0], average, row[0], row[1]),
            (totals[1], maximum, row[2], row[3]),
        ):
            if norm >= 0:
                a, b, c = (per_channel(numbers) for numbers in coefficients[norm])
                total += a * (g + b * (given[0] - per_channel(statistics[norm, 0])) + c)
            elif index >= 0:
                total += weights[index] * g
        if row[4] >= 0:
            x_grad += weights[row[4]] * g
    x_grad += torch.autograd.grad(pooled, leaf, totals)[0]
    return []


def highway_sum(mixing: Tensor, states: Tensor, raw: Tensor) -> Returned:
    return [_highway_sum_ref(mixing, states, raw)]


def highway_sum_backward(grad: Tensor, mixing: Tensor, states: Tensor, raw: Tensor) -> Returned:
    return _highway_sum_backward_ref(grad, mixing, states, raw)


def _on_vectors(name: str) -> Callable[..., Returned]:
    def reference(*arguments: Any) -> Returned:
        returned = _REFERENCES[name](*arguments)
        return [] if returned is None else [returned]

    return reference


REFERENCES: dict[str, Callable[..., Returned]] = {
    function.__name__: function
    for function in (
        mixed_sum, mixed_sum_backward, separable_stage, separable_stage_backward, normalised_mixed_sum, shared_pooling,
        shared_pooling_backward, highway_sum, highway_sum_backward,
    )
} | {
    name: _on_vectors(name)
    for name in ("vector_norm", "perturb_", "difference_", "neumann_step_", "virtual_step_", "sgd_step_", "adam_step_")
}  # fmt: skip
