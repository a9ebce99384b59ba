"""A valid call of each operator, with small random sizes: its arguments by name, in the schema's order."""

from __future__ import annotations

import functools
from collections.abc import Callable
from random import Random
from typing import Any

import torch
from torch import Tensor

from tests.ops.images import in_slice, last
from tests.supernet.networks import SPACES, supernet

OPS = torch.ops.fastnas
EPS = 1e-5
NONE = -1
Call = dict[str, Any]


class Draw:
    """What calls are made of."""

    def __init__(self, random: Random) -> None:
        self.random = random
        self.generator = torch.Generator().manual_seed(random.randrange(2**62))
        self.dtype = random.choice([torch.float32, torch.float64])

    def __call__(self, *size: int, dtype: torch.dtype | None = None) -> Tensor:
        numbers = torch.randn(size, generator=self.generator, dtype=torch.float64)
        return self.guarded(numbers.to(dtype or self.dtype))

    def guarded(self, tensor: Tensor) -> Tensor:
        """Sometimes between other numbers, which nothing may change; else alone, where a sanitizer sees the ends."""
        if self.random.random() < 0.5:
            return tensor
        whole = torch.full((tensor.numel() + 128,), 7, dtype=tensor.dtype)
        inside = whole[64 : 64 + tensor.numel()].view(tensor.shape)
        return inside.copy_(tensor)

    def images(self, *shape: int) -> Tensor:
        count, channels, height, width = shape
        if self.random.random() < 0.3:
            return in_slice(self(*shape), self.random.randrange(3), self.random.randrange(3))
        return self(count, height, width, channels).permute(0, 3, 1, 2)

    def statistics(self, norms: int, channels: int) -> Tensor:
        return self.guarded(torch.stack([self(norms, channels), self(norms, channels).abs() + 0.1], 1))

    def shape(self, most_channels: int = 9) -> list[int]:
        between = self.random.randint
        return [between(1, 3), between(1, most_channels), between(1, 6), between(1, 6)]

    def ordered(self, count: int, most: int) -> list[int]:
        """``count`` of the numbers below ``most``, in any order."""
        return self.random.sample(range(most), count)


def mixed_sum(draw: Draw) -> Call:
    dtype = draw.random.choice([draw.dtype, torch.bfloat16])
    shape, count = draw.shape()[: draw.random.randint(0, 4)], draw.random.randint(1, 6)
    branches = [draw(*shape, dtype=dtype) for _ in range(count)]
    if len(shape) == 4 and draw.random.random() < 0.5:
        branches = [last(branch) for branch in branches]
    weights = draw(
        count, dtype=draw.random.choice([dtype, torch.float32 if dtype == torch.bfloat16 else dtype])
    )
    return {"weights": weights, "branches": branches}


def mixed_sum_backward(draw: Draw) -> Call:
    call = mixed_sum(draw)
    first, count = call["branches"][0], len(call["weights"])
    wanted = sorted(draw.ordered(draw.random.randint(0, count), count))
    if draw.random.random() < 0.3:
        call["branches"] = []
    return {"grad": draw(*first.shape, dtype=first.dtype), **call, "wanted": wanted}


def _stage(draw: Draw) -> tuple[Call, list[list[int]]]:
    """Arguments of the separable stage, and the rows of its table."""
    shape, pick = draw.shape(), draw.random.choice
    sources = draw.random.randint(1, 3)
    normalised = [draw.random.random() < 0.4 for _ in range(sources)]
    norms = [k if is_normalised else NONE for k, is_normalised in enumerate(normalised)]
    rows: list[list[int]] = []
    begin = out = 0
    for source in [
        *range(sources),
        *(draw.random.randrange(sources) for _ in range(draw.random.randrange(3))),
    ]:
        stride, parts = pick([1, 2]), min(pick([1, 1, 2]), shape[1])
        for part in range(parts):
            kernel, dilation, shift, dense = pick([0, 3, 5, 7]), pick([1, 2]), 0, False
            if kernel == 0:
                shift = draw.random.randrange(stride)
            elif stride == dilation == 1:
                dense = pick([True, False])
            channels = draw.random.randint(1, shape[1] // parts)
            depthwise = 0 if kernel == 0 or dense else shape[1] * kernel**2
            pointwise = shape[1] * channels * (kernel**2 if dense else 1)
            # Two parts of one output lie side by side.
            first = sum(row[7] for row in rows if row[8] == out) if part else 0
            offset = NONE if dense else begin
            row = [source, kernel, dilation, stride, shift, offset, begin + depthwise, channels, out, first]
            rows.append([*row, sources + out, out])
            begin += depthwise + pointwise
        out += 1
    call = {
        "sources": [draw.images(*shape) for _ in range(sources)],
        "source_norms": norms,
        "weights": draw(begin),
        "statistics": draw.statistics(sources + out, shape[1]),
        "table": [number for row in rows for number in row],
        "eps": EPS,
        "training": pick([True, False]),
    }
    return call, rows


def separable_stage(draw: Draw) -> Call:
    return _stage(draw)[0]


def separable_stage_backward(draw: Draw) -> Call:
    call, _ = _stage(draw)
    raws = OPS.separable_stage(*call.values())
    statistics, model = call["statistics"], call["sources"][0]
    return {
        "grads": [draw.images(*raw.shape) for raw in raws],
        "raws": raws,
        **{name: call[name] for name in ("sources", "source_norms", "weights", "statistics")},
        "coefficients": draw(len(statistics), 3, statistics.shape[2]),
        **{name: call[name] for name in ("table", "eps", "training")},
        "weights_grad": [draw(len(call["weights"]))] if draw.random.random() < 0.7 else [],
        "source_grads": [draw.images(*model.shape) for _ in call["sources"]],
    }


def normalised_mixed_sum(draw: Draw) -> Call:
    shape, count = draw.shape(), draw.random.randint(1, 6)
    norms = [k if draw.random.random() < 0.8 else NONE for k in draw.ordered(count, count + 1)]
    affine = None
    if draw.random.random() < 0.4:
        affine = draw(count, 2, shape[1])
    rows = [NONE if norm == NONE or draw.random.random() < 0.5 else k for k, norm in enumerate(norms)]
    return {
        "branches": [draw.images(*shape) for _ in range(count)],
        "norms": norms,
        "weights": draw(count + 1),
        "indices": [k if draw.random.random() < 0.8 else NONE for k in draw.ordered(count, count + 1)],
        "statistics": draw.statistics(count + 1, shape[1]),
        "eps": EPS,
        "out": draw.images(*shape),
        "add": draw.random.choice([True, False]),
        "affine": affine,
        "rectified": [] if affine is None else rows,
    }


def normalised_mixed_sum_backward(draw: Draw) -> Call:
    call = normalised_mixed_sum(draw)
    grad, affine, statistics = call.pop("out"), call["affine"], call["statistics"]
    names = ("branches", "norms", "weights", "indices", "statistics", "eps")
    return {
        "grad": grad,
        **{name: call[name] for name in names},
        "training": call["add"],
        "coefficients": draw(len(statistics), 3, statistics.shape[2]),
        "weights_grad": draw(len(call["weights"])),
        "affine": affine,
        "rectified": call["rectified"],
        "passed": None if affine is None else draw.images(len(affine) * len(grad), *grad.shape[1:]),
        "affine_grad": None if affine is None else draw(*affine.shape),
    }


def shared_pooling(draw: Draw) -> Call:
    shape, pick = draw.shape(), draw.random.choice
    average, maximum = pick([True, False]), pick([True, False])
    norms = draw.ordered(3, 4)
    return {
        "x": draw.images(*shape),
        "stride": pick([1, 1, 2, 3, 7]),
        "average": average,
        "maximum": maximum,
        "average_norms": norms[: draw.random.randrange(3)] if average else [],
        "maximum_norms": norms[2:] if maximum else [],
        "statistics": draw.statistics(4, shape[1]),
    }


def shared_pooling_backward(draw: Draw) -> Call:
    call = shared_pooling(draw)
    x, stride = call["x"], call["stride"]
    pooled = OPS.shared_pooling(x, stride, True, True, [], [], call["statistics"])
    average, maximum = ([p] if draw.random.random() < 0.7 else [] for p in pooled)
    edges = draw.random.randint(1, 3)
    norm, weight = (lambda: draw.random.randint(NONE, 3)), (lambda: draw.random.randint(NONE, 4))
    table = [
        (*((norm(), weight()) if average else (NONE, NONE)), *((norm(), weight()) if maximum else (NONE, NONE)),
         weight() if stride == 1 else NONE)
        for _ in range(edges)
    ]  # fmt: skip
    return {
        "x": x,
        "stride": stride,
        "average": average,
        "maximum": maximum,
        "grads": [draw.images(*pooled[0].shape) for _ in range(edges)],
        "table": [number for row in table for number in row],
        "statistics": call["statistics"],
        "coefficients": draw(4, 3, x.shape[1]),
        "weights": draw(5),
        "x_grad": draw.images(*x.shape),
    }


@functools.cache
def _cell(space: str) -> Call:
    """Arguments of the second stage of a small network."""
    net = supernet((space, 4, 3, 2, (8, 8)), "fused", torch.float64)
    index = next(i for i in net._fused)
    cell, spec = net._fused[index], net.space.stages[index]
    side = 4 if spec.kind == "reduction" else 8
    channels = [net.space.stages[source.stage].out_channels for source in spec.inputs]
    return {
        "plan": cell.plan.numbers,
        "inputs": [last(torch.randn(2, c, side, side, dtype=torch.float64)) for c in channels],
        "mixing": net.alphas[spec.alpha].detach().softmax(-1).reshape(-1),
        "weights": cell.weights.detach(),
        "statistics": torch.stack(
            [torch.zeros_like(cell.running[:, 0]), torch.ones_like(cell.running[:, 0])], 1
        ),
    }


def cell(draw: Draw) -> Call:
    call = {name: _copied(value) for name, value in _cell(draw.random.choice(SPACES)).items()}
    return {**call, "eps": EPS, "training": draw.random.choice([True, False]), "keep": True}


def cell_backward(draw: Draw) -> Call:
    call = cell(draw)
    out, kept = OPS.cell(*call.values())
    plan, *rest = (call[name] for name in ("plan", "inputs", "mixing", "weights", "statistics"))
    names = ("inputs", "mixing", "weights", "statistics")
    return {
        "plan": plan,
        "grad": last(torch.randn(out.shape, generator=draw.generator, dtype=out.dtype)),
        "out": out,
        "kept": kept if draw.random.random() < 0.7 else [],
        **dict(zip(names, rest, strict=True)),
        "eps": EPS,
        "training": call["training"],
        "weights_wanted": draw.random.choice([True, False]),
        "inputs_wanted": [draw.random.choice([True, False]) for _ in call["inputs"]],
    }


def _copied(value: Any) -> Any:
    return [item.clone() for item in value] if isinstance(value, list) else value.clone()


def highway_sum(draw: Draw) -> Call:
    sources, rows, units = draw.random.randint(1, 4), draw.random.randint(1, 11), draw.random.randint(1, 9)
    return {
        "mixing": draw(sources, 4),
        "states": draw(sources, rows, units),
        "raw": draw(sources, rows, 2 * units),
    }


def highway_sum_backward(draw: Draw) -> Call:
    call = highway_sum(draw)
    return {"grad": draw(*call["states"].shape[1:]), **call}


def _number(draw: Draw) -> Tensor:
    return draw(dtype=torch.float64).abs_()


def _rate(draw: Draw) -> Tensor | None:
    return _number(draw) if draw.random.random() < 0.3 else None


def vector_norm(draw: Draw) -> Call:
    return {"vector": draw(draw.random.randint(1, 99))}


def perturb_(draw: Draw) -> Call:
    n = draw.random.randint(1, 99)
    vectors = {"w": draw(n), "saved": draw(n), "u": draw(n)}
    return {**vectors, "norm": _number(draw), "radius": 0.5, "sign": draw.random.choice([1, -1])}


def difference_(draw: Draw) -> Call:
    n = draw.random.randint(1, 99)
    return {"ahead": draw(n), "behind": draw(n), "norm": _number(draw), "radius": 0.5}


def neumann_step_(draw: Draw) -> Call:
    n = draw.random.randint(1, 99)
    vectors = {name: draw(n) for name in ("v", "series", "ahead", "behind")}
    return {**vectors, "norm": _number(draw), "radius": 0.5, "gamma": 0.25, "rate": _rate(draw)}


def _step(draw: Draw) -> Call:
    n, momentum = draw.random.randint(1, 99), draw.random.choice([0.0, 0.9])
    buffer = draw(n) if momentum or draw.random.random() < 0.5 else None
    vectors = {"w": draw(n), "grad": draw(n), "buffer": buffer}
    return {
        **vectors,
        "learning_rate": 0.1,
        "momentum": momentum,
        "weight_decay": draw.random.choice([0.0, 0.01]),
    }


def virtual_step_(draw: Draw) -> Call:
    return {**_step(draw), "rate": _rate(draw)}


def sgd_step_(draw: Draw) -> Call:
    return {**_step(draw), "clip": draw.random.choice([1.0, float("inf")]), "rate": _rate(draw)}


def adam_step_(draw: Draw) -> Call:
    n = draw.random.randint(1, 99)
    return {
        **{"alpha": draw(n), "grad": draw(n), "exp_avg": draw(n), "exp_avg_sq": draw(n).abs_()},
        "step": draw(dtype=torch.float32).abs_().round_(),
        **{"learning_rate": 0.1, "beta1": 0.5, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.01},
    }


CALLS: dict[str, Callable[[Draw], Call]] = {
    function.__name__: function
    for function in (
        mixed_sum, mixed_sum_backward, separable_stage, separable_stage_backward, normalised_mixed_sum,
        normalised_mixed_sum_backward, shared_pooling, shared_pooling_backward, cell, cell_backward, highway_sum,
        highway_sum_backward, vector_norm, perturb_, difference_, neumann_step_, virtual_step_, sgd_step_, adam_step_,
    )
}  # fmt: skip
