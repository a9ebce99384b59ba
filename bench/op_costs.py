"""The work of one call of a native op, counted from its arguments: floating-point operations and bytes.

Flops are those of the algorithm that runs: 2 a multiply-add of the convolutions (every tap of every output position,
padding included; what backward computes again, too), 2 a branch and number of a mixed sum (its product and sum), 1 a
tap of a pooling (its addition or comparison), 2 a multiply-add of what forms a gradient for pooling. ReLU,
normalisation and statistics are not counted.

Bytes are those of the call's image tensors and weights, each read or written once, and twice where it is added to;
what stays in the caches in between, and the vectors of one number a channel, are not counted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fastnas.ops.separable_stage import DENSE, Branch


@dataclass(frozen=True)
class Work:
    """Of one call, or the sum over several."""

    calls: int = 0
    flops: int = 0
    bytes: int = 0

    def __add__(self, other: Work) -> Work:
        return Work(self.calls + other.calls, self.flops + other.flops, self.bytes + other.bytes)


def size(*tensors: Tensor) -> int:
    """Bytes of the elements that are seen, not of the storage: a slice counts as a slice."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def branches(table: Sequence[int]) -> list[Branch]:
    """The rows of a separable stage's table."""
    columns = len(Branch._fields)
    return [Branch(*table[i : i + columns]) for i in range(0, len(table), columns)]


def convolution_flops(branch: Branch, source: Tensor) -> tuple[int, int]:
    """One pass of a branch's depthwise convolution over ``source``, and one of its 1x1 (or dense) convolution."""
    count, channels, *sides = source.shape
    height, width = (-(-side // branch.stride) for side in sides)
    positions = count * height * width
    if is_dense(branch):
        return 0, 2 * branch.kernel**2 * channels * branch.channels * positions
    depthwise = 2 * branch.kernel**2 * channels * positions
    return depthwise, 2 * channels * branch.channels * positions


def is_dense(branch: Branch) -> bool:
    """Whether one dense convolution stands in place of a depthwise and a 1x1."""
    return branch.kernel > 0 and branch.depthwise == DENSE


def weight_numbers(branch: Branch, source: Tensor) -> int:
    """Weights of a branch."""
    if is_dense(branch):
        return source.shape[1] * branch.kernel**2 * branch.channels
    return source.shape[1] * (branch.kernel**2 + branch.channels)


def separable_stage(outs: Sequence[Tensor], sources: Sequence[Tensor], *rest: Any) -> Work:
    """Both convolutions of every branch, once."""
    _, weights, _, table, *_ = rest
    rows = branches(table)
    flops = sum(sum(convolution_flops(row, sources[row.source])) for row in rows)
    parameters = sum(weight_numbers(row, sources[row.source]) for row in rows) * weights.element_size()
    return Work(1, flops, size(*sources, *outs) + parameters)


def separable_stage_backward(
    _: None, grads: Sequence[Tensor], raws: Sequence[Tensor], sources: Sequence[Tensor], *rest: Any
) -> Work:
    """Each convolution's gradient of its input; with weights' gradients those, and depthwise outputs again."""
    norms, weights, _, _, table, _, _, weights_grad, source_grads = rest
    rows = branches(table)
    passes = 3 if weights_grad else 1, 2 if weights_grad else 1  # depthwise, 1x1
    flops = 0
    for row in rows:
        depthwise, pointwise = convolution_flops(row, sources[row.source])
        flops += passes[0] * depthwise + passes[1] * pointwise
    parameters = sum(weight_numbers(row, sources[row.source]) for row in rows) * weights.element_size()
    read = [grads[i] for i in sorted({row.grad for row in rows})] + [
        raws[i] for i in {row.out for row in rows}
    ]
    touched = size(*read, *sources) + parameters * (2 if weights_grad else 1)
    for grad, norm in zip(source_grads, norms, strict=True):
        touched += size(grad) * (1 if norm >= 0 else 2)  # written, or added to
    return Work(1, flops, touched)


def normalised_mixed_sum(_: None, terms: Sequence[Tensor], *rest: Any) -> Work:
    """A product and a sum for each branch and number."""
    _, _, _, _, _, out, *add = rest
    return Work(1, 2 * len(terms) * out.numel(), size(*terms, out) + any(add) * size(out))


def normalised_mixed_sum_backward(_: None, grad: Tensor, terms: Sequence[Tensor], *rest: Any) -> Work:
    """The products with the gradient; the branches' own gradients are formed elsewhere."""
    return Work(1, 2 * len(terms) * grad.numel(), size(grad, *terms))


def shared_pooling(pooled: Sequence[Tensor], x: Tensor, *rest: Any) -> Work:
    """Nine taps for each pooled number."""
    return Work(1, sum(9 * tensor.numel() for tensor in pooled), size(x, *pooled))


def shared_pooling_backward(
    _: None,
    x: Tensor,
    stride: int,
    average: Sequence[Tensor],
    maximum: Sequence[Tensor],
    grads: Sequence[Tensor],
    table: Sequence[int],
    statistics: Tensor,
    coefficients: Tensor,
    weights: Tensor,
    x_grad: Tensor,
) -> Work:
    """One multiply-add an edge and kind, another for b (p - mean) where it is normalised, then the taps."""
    rows = [table[i : i + 5] for i in range(0, len(table), 5)]
    flops, read = 0, [x, *average, *maximum]
    for pooled, norm, weight in ((average, 0, 1), (maximum, 2, 3)):
        if pooled:
            users = sum(row[norm] >= 0 or row[weight] >= 0 for row in rows)
            normalised = sum(row[norm] >= 0 for row in rows)
            flops += (2 * users + 2 * normalised + 9) * pooled[0].numel()
    for row, grad in zip(rows, grads, strict=True):
        flops += 2 * grad.numel() * (row[4] >= 0)
        if max(row) >= 0:
            read.append(grad)
    return Work(1, flops, size(*read) + 2 * size(x_grad))


def mixed_sum(out: Tensor, weights: Tensor, terms: Sequence[Tensor]) -> Work:
    """A product and a sum for each branch and number."""
    return Work(1, 2 * len(terms) * out.numel(), size(out, *terms))


def mixed_sum_backward(
    result: tuple[Tensor, Sequence[Tensor]],
    grad: Tensor,
    weights: Tensor,
    terms: Sequence[Tensor],
    wanted: Sequence[int],
) -> Work:
    """The weights' gradients, and one product for each wanted branch's."""
    return Work(1, (2 * len(terms) + len(wanted)) * grad.numel(), size(grad, *terms, *result[1]))


# By the op's name; each takes the call's result and its arguments.
COUNTS: dict[str, Callable[..., Work]] = {
    function.__name__: function
    for function in (
        separable_stage,
        separable_stage_backward,
        normalised_mixed_sum,
        normalised_mixed_sum_backward,
        shared_pooling,
        shared_pooling_backward,
        mixed_sum,
        mixed_sum_backward,
    )
}


class CountWork(TorchDispatchMode):
    """Within it the work of every call of a native op is added up, by the op's name.

    Attributes:
        work: of the ops in ``COUNTS``.
        calls: of all ops of fastnas.
    """

    def __init__(self) -> None:
        super().__init__()
        self.work: dict[str, Work] = {}
        self.calls: dict[str, int] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if function.namespace == "fastnas":
            name = function._schema.name.removeprefix("fastnas::")
            self.calls[name] = self.calls.get(name, 0) + 1
            if name in COUNTS:
                assert not kwargs, name
                self.work[name] = self.work.get(name, Work()) + COUNTS[name](result, *args)
        return result
