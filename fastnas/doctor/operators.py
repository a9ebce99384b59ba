"""What the doctor computes with each operator: one entry of ``OPERATORS`` an operator."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastnas import ops
from fastnas.doctor.checks import Case, Measured, MissingKernelError, Operator, Results, by_cases, poisoned
from fastnas.ops.finite_difference import _difference_ref, _perturb_ref
from fastnas.ops.highway_sum import _highway_sum_ref
from fastnas.ops.mixed_sum import _mixed_sum_ref
from fastnas.ops.neumann import _neumann_step_ref
from fastnas.ops.normalised_mixed_sum import _normalised_mixed_sum_ref
from fastnas.ops.optimiser import _adam_step_ref, _sgd_step_ref
from fastnas.ops.separable_stage import _separable_stage_ref
from fastnas.ops.shared_pooling import _shared_pooling_ref
from fastnas.ops.virtual_step import _virtual_step_ref
from fastnas.spaces import make_space
from fastnas.supernet import Supernet, build_supernet, gradients

RADIUS = 0.01
SMALL_IMAGES = [(3, 5, 7, 9), (2, 16, 8, 8)]  # (B, C, H, W)
IMAGES = [*SMALL_IMAGES, (2, 17, 6, 5), (17, 5, 7, 9), (1, 40, 7, 9), (6, 16, 32, 32)]
SMALL_VECTORS = [1, 129, 20_013]
VECTORS = [*SMALL_VECTORS, (1 << 20) + 13]


class Random:
    """Normal random numbers in float64, images in channels-last memory."""

    def __init__(self, seed: int = 0) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, *size: int) -> Tensor:
        return torch.randn(size, generator=self.generator, dtype=torch.float64)

    def images(self, *shape: int) -> Tensor:
        return _last(self(*shape))


def _last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def _value_and_grads(
    outputs: Callable[..., Sequence[Tensor]], leaves: dict[str, Tensor], grads: Sequence[Tensor]
) -> Results:
    """Outputs and the gradients of all leaves, by name."""
    inputs = [leaf.detach().requires_grad_() for leaf in leaves.values()]
    outs = outputs(*inputs)
    found = torch.autograd.grad(outs, inputs, [g.to(out.dtype) for g, out in zip(grads, outs, strict=True)])
    results = {f"output {k}" if len(outs) > 1 else "output": out.detach() for k, out in enumerate(outs)}
    return results | {f"d {name}": grad for name, grad in zip(leaves, found, strict=True)}


def _named(name: str, tensors: Sequence[Tensor]) -> dict[str, Tensor]:
    return {f"{name} {k}": tensor for k, tensor in enumerate(tensors)}


def _pooled_size(shape: tuple[int, ...], stride: int) -> tuple[int, ...]:
    return (*shape[:2], *(-(-side // stride) for side in shape[2:]))


# ---------------------------------------------------------------------------- images


def _mixed_sum(small: bool) -> list[Case]:
    def compute(reference: bool, images: list[Tensor], numbers: list[Tensor]) -> Results:
        *branches, grad = images
        function = _mixed_sum_ref if reference else ops.mixed_sum
        leaves = {"weights": numbers[0], **_named("branch", branches)}
        return _value_and_grads(lambda w, *x: [function(w, x)], leaves, [grad])

    random = Random()
    sizes = [(shape, count) for shape in (SMALL_IMAGES if small else IMAGES) for count in (1, 8)]
    sizes += [((33, 1, 1, 1), 300)]  # more branches than one launch takes
    return [
        Case([random.images(*shape) for _ in range(count + 1)], [random(count)], compute)
        for shape, count in sizes
    ]


def _normalised_mixed_sum(small: bool) -> list[Case]:
    def compute(training: bool, reference: bool, images: list[Tensor], numbers: list[Tensor]) -> Results:
        *branches, grad = images
        weights, statistics = numbers
        function = _normalised_mixed_sum_ref if reference else ops.normalised_mixed_sum
        options: dict[str, Any] = {} if training else {"statistics": statistics, "training": False}
        own = []

        def outputs(w: Tensor, *x: Tensor) -> list[Tensor]:
            out, rows = function(w, x, **options)
            own.append(rows)
            return [out]

        results = _value_and_grads(outputs, {"weights": weights, **_named("branch", branches)}, [grad])
        return results | ({"statistics": own[0]} if training else {})

    random, cases = Random(), []
    for shape in SMALL_IMAGES if small else IMAGES:
        for count in (1, 7):
            branches = [random.images(*shape) * (k + 1) + k for k in range(count)]
            statistics = torch.stack([random(count, shape[1]), random(count, shape[1]).abs() + 0.1], 1)
            for training in (True, False):
                images, numbers = [*branches, random.images(*shape)], [random(count), statistics]
                cases.append(Case(images, numbers, partial(compute, training)))
        cases.append(_rectified_case(Random(1), shape))
    return cases


def _rectified_case(random: Random, shape: tuple[int, ...]) -> Case:
    """A branch between two that are rectified; statistics that are given keep values off the switches."""
    images, numbers = [random.images(*shape) for _ in range(4)], [random(3)]
    affine = [random(2, shape[1]), random(2, shape[1])]
    statistics = torch.stack([random(3, shape[1]), random(3, shape[1]).abs() + 0.1], 1)
    for k, part in ((0, affine[0]), (2, affine[1])):
        mean, variance = (row[:, None, None] for row in statistics[k])
        scale, shift = (row[:, None, None] for row in part)
        switch = mean - shift / scale * (variance + 1e-5).sqrt()
        images[k] = _last(images[k] + 0.1 * ((images[k] - switch).abs() < 0.05))

    def compute(reference: bool, images: list[Tensor], numbers: list[Tensor]) -> Results:
        *branches, grad = images
        weights, statistics, *parts = numbers
        function = _normalised_mixed_sum_ref if reference else ops.normalised_mixed_sum

        def outputs(w: Tensor, *rest: Tensor) -> list[Tensor]:
            affine = [rest[3], None, rest[4]]
            return [function(w, rest[:3], affine=affine, statistics=statistics, training=False)[0]]

        leaves = {"weights": weights, **_named("branch", branches), **_named("affine", parts)}
        return _value_and_grads(outputs, leaves, [grad])

    return Case(images, [*numbers, statistics, *affine], compute)


def _highway_sum(small: bool) -> list[Case]:
    def compute(reference: bool, images: list[Tensor], numbers: list[Tensor]) -> Results:
        mixing, states, raw, grad = numbers
        function = _highway_sum_ref if reference else ops.highway_sum
        leaves = {"mixing": mixing, "states": states, "raw": raw}
        return _value_and_grads(lambda *given: [function(*given)], leaves, [grad])

    random, sizes = Random(), [(1, 1, 1), (3, 9, 17)]
    return [
        Case(
            [],
            [random(s, 4), random(s, rows, units), 3 * random(s, rows, 2 * units), random(rows, units)],
            compute,
        )
        for s, rows, units in (sizes if small else [*sizes, (8, 33, 300)])
    ]


# kernel, stride, dilation; kernel 0: no depthwise convolution
_KINDS = [(3, 1, 1), (0, 2, 1), (5, 2, 2), (7, 1, 1), (0, 1, 1), (3, 1, 2), (5, 1, 1), (3, 2, 1)]


def _separable_stage(small: bool) -> list[Case]:
    def compute(normalise: bool, reference: bool, images: list[Tensor], numbers: list[Tensor]) -> Results:
        x, *grads = images
        function = _separable_stage_ref if reference else ops.separable_stage
        if reference and x.is_cuda:
            # For torch's own depthwise kernels: cuDNN may have none for a shape.
            x = x.contiguous()
        own = []

        def outputs(x: Tensor, *weights: Tensor) -> list[Tensor]:
            depthwise, rest = [], list(weights)
            for kernel, *_ in _KINDS:
                depthwise.append(rest.pop(0) if kernel else None)
            raws, rows = function(
                x, depthwise, rest, stride=[s for _, s, _ in _KINDS], dilation=[d for *_, d in _KINDS],
                normalise=normalise,
            )  # fmt: skip
            own.append(rows)
            return raws

        results = _value_and_grads(outputs, {"x": x, **_named("weights", numbers)}, grads)
        return results | {"statistics": own[0]}

    random, cases = Random(), []
    for shape in SMALL_IMAGES if small else IMAGES:
        channels = shape[1]
        x = random.images(*shape)
        # No value close to its channel's mean, where the ReLU of a normalised x switches, nor to 0.
        for centre in (x.mean((0, 2, 3), keepdim=True), 0.0):
            x = x + 0.1 * ((x - centre).abs() < 0.03)
        depthwise = [random(channels, 1, k, k) / k for k, *_ in _KINDS if k]
        pointwise = [random(channels, channels, 1, 1) / channels**0.5 for _ in _KINDS]
        grads = [random.images(*_pooled_size(shape, stride)) for _, stride, _ in _KINDS]
        for normalise in (False, True):
            cases.append(Case([_last(x), *grads], [*depthwise, *pointwise], partial(compute, normalise)))
    return cases


def _shared_pooling(small: bool) -> list[Case]:
    def compute(stride: int, reference: bool, images: list[Tensor], numbers: list[Tensor]) -> Results:
        x, *grads = images
        function = _shared_pooling_ref if reference else ops.shared_pooling
        own = []

        def outputs(x: Tensor) -> list[Tensor]:
            pooled, rows = function(x, stride)
            own.append(rows)
            return pooled

        return _value_and_grads(outputs, {"x": x}, grads) | {"statistics": own[0]}

    random, cases = Random(), []
    for shape in SMALL_IMAGES if small else IMAGES:
        for stride in (1, 2):
            grads = [random.images(*_pooled_size(shape, stride)) for _ in range(2)]
            cases.append(Case([_distinct(random, shape), *grads], [], partial(compute, stride)))
    return cases


def _distinct(random: Random, shape: tuple[int, ...]) -> Tensor:
    """Whole numbers from -63 to 62, exact in bfloat16 too; all of any 3x3 window differ: a maximum has one place."""
    count, channels, height, width = shape
    rows, columns = torch.arange(height) % 3, torch.arange(width) % 3
    slots = torch.rand(count, channels, 9, generator=random.generator).argsort(-1)
    multiples = torch.randint(0, 14, shape, generator=random.generator)
    return _last((9 * multiples + slots[:, :, 3 * rows[:, None] + columns] - 63).double())


# ---------------------------------------------------------------------------- flat vectors


def _on_vectors(
    count: int, compute: Callable[[bool, list[Tensor], list[Tensor]], Results]
) -> Callable[[bool], list[Case]]:
    def cases(small: bool) -> list[Case]:
        random = Random()
        sizes = SMALL_VECTORS if small else VECTORS
        return [Case([random(size) for _ in range(count)], [], compute) for size in sizes]

    return cases


def _exact_norm(vector: Tensor) -> Tensor:
    """By a sum in pairs: that of the reference, one number after the other, is some hundred ulp off itself."""
    return vector.double().square().sum().sqrt()


def _vector_norm(reference: bool, vectors: list[Tensor], _: list[Tensor]) -> Results:
    return {"norm": (_exact_norm if reference else ops.vector_norm)(vectors[0])}


def _perturb(reference: bool, vectors: list[Tensor], _: list[Tensor]) -> Results:
    (saved, u), results = vectors, {}
    for sign in (1, -1):
        w = torch.full_like(saved, torch.nan)
        (_perturb_ref if reference else ops.perturb_)(w, saved, u, _exact_norm(u), RADIUS, sign)
        results[f"w, sign {sign}"] = w
    return results


def _difference(reference: bool, vectors: list[Tensor], _: list[Tensor]) -> Results:
    ahead, behind, u = vectors[0].clone(), *vectors[1:]
    (_difference_ref if reference else ops.difference_)(ahead, behind, _exact_norm(u), RADIUS)
    return {"ahead": ahead}


def _sgd_step(reference: bool, vectors: list[Tensor], _: list[Tensor]) -> Results:
    w, *grads = (vector.clone() for vector in vectors)
    buffer, norms = torch.zeros_like(w), []
    for grad in grads:
        norm = (_sgd_step_ref if reference else ops.sgd_step_)(w, grad, buffer, 0.1, 0.9, 3e-4, 0.5)
        norms.append(_exact_norm(grad) if reference else norm)
    return {"w": w, "buffer": buffer, "norms": torch.stack(norms)}


def _adam_step(reference: bool, vectors: list[Tensor], _: list[Tensor]) -> Results:
    alpha, *grads = (vector.clone() for vector in vectors)
    mean, square = torch.zeros_like(alpha), torch.zeros_like(alpha)
    step = torch.zeros((), device=alpha.device)
    for grad in grads:
        if reference:
            _adam_step_ref(alpha, grad, mean, square, step, 3e-4, 0.5, 0.999, 1e-8, 1e-3)
        else:
            ops.adam_step_(alpha, grad, mean, square, step, 3e-4, (0.5, 0.999), 1e-8, 1e-3)
    return {"alpha": alpha, "mean": mean, "square": square, "steps": step}


def _neumann_step(reference: bool, vectors: list[Tensor], _: list[Tensor]) -> Results:
    v, series, ahead, behind = (vector.clone() for vector in vectors)
    function = _neumann_step_ref if reference else ops.neumann_step_
    norm = function(v, series, ahead, behind, _exact_norm(v), RADIUS, 0.025)
    # Of the v that was written: rounding it to float32 moves its norm by far more than the norm's own error.
    share = torch.ones_like(norm) if reference else norm / _exact_norm(v)
    return {"v": v, "series": series, "norm over |v|": share}


def _virtual_step(reference: bool, vectors: list[Tensor], _: list[Tensor]) -> Results:
    w, grad, buffer = (vector.clone() for vector in vectors)
    (_virtual_step_ref if reference else ops.virtual_step_)(w, grad, buffer, 0.025, 0.9, 3e-4)
    return {"w": w}


# ---------------------------------------------------------------------------- the fused cell

# space, C, layers, (B, H, W); with 3 layers the DARTS space has a normal and two reduction cells
_SMALL_CELLS = [
    ("darts", 4, 3, (2, 8, 8)),
    ("nasbench201", 4, 1, (2, 8, 8)),
    ("nasbench1shot1-1", 4, 1, (2, 8, 8)),
]
_CELLS = [
    ("darts", 6, 3, (3, 16, 13)),
    ("nasbench201", 16, 1, (2, 32, 32)),
    ("nasbench1shot1-3", 8, 3, (2, 16, 13)),
]


def _cell(device: torch.device, dtype: torch.dtype, small: bool) -> list[Measured]:
    """Logits and both gradients of small supernets, relative errors in the 2-norm.

    In float32 rounding flips a ReLU now and then, which moves a gradient by 1e-6 to 1e-3: the batch is computed several
    times, its pixels moved by a rounding, and the median stands against the worst of plain PyTorch.
    """
    measured = []
    for space, channels, layers, (count, *sides) in _SMALL_CELLS if small else [*_SMALL_CELLS, *_CELLS]:

        def make(backend: str, dtype: torch.dtype, sizes: Any = (space, channels, layers)) -> Supernet:
            name, channels, layers = sizes
            torch.manual_seed(0)
            description = make_space(name, channels=channels, layers=layers, classes=10, image_channels=3)
            net = build_supernet(description, backend=backend, dtype=dtype, device=device)
            generator = torch.Generator().manual_seed(1)
            net.alphas.flat.copy_(torch.randn(len(net.alphas), generator=generator))
            return net

        random = Random(2)
        images, labels = random(count, 3, *sides).float(), torch.arange(count) % 10
        narrow = dtype == torch.bfloat16  # of activations alone, under autocast
        own = torch.float32 if narrow else dtype
        fused, plain = make("fused", own), make("reference", own)
        if not fused._fused:
            raise MissingKernelError(f"on {device.type} cells run as in the reference")
        exact = _pass(make("reference", torch.float64), images, labels)
        if dtype == torch.float64:  # two computations, neither more exact, are some hundred ulp apart
            with poisoned():
                errors = _relative(_pass(fused, images, labels), exact)
            measured += [Measured(f"{space}: {name}", error, 1e-10) for name, error in errors.items()]
            continue
        ours, theirs = [], []
        for _ in range(3 if small else 5):
            moved = images * (1 + (torch.rand(images.shape, generator=random.generator) - 0.5) * 2.0**-23)
            with poisoned():
                ours.append(_relative(_pass(fused, moved, labels, narrow), exact))
            theirs.append(_relative(_pass(plain, moved, labels, narrow), exact))
        for name in exact:
            found, worst = [draw[name] for draw in ours], max(draw[name] for draw in theirs)
            error = median(found) if all(map(math.isfinite, found)) else math.nan
            allowed = 2 * worst + 4 * torch.finfo(dtype).eps
            measured.append(Measured(f"{space}: {name}", error, allowed))
    return measured


def _pass(net: Supernet, images: Tensor, labels: Tensor, narrow: bool = False) -> Results:
    flat = net.weights.flat
    with net.frozen_statistics():
        with torch.autocast(flat.device.type, torch.bfloat16, enabled=narrow):
            logits = net(images.to(flat.device, flat.dtype)).to(flat.dtype)
        loss = F.cross_entropy(logits, labels.to(flat.device))
        weights, alphas = gradients(loss, net.weights, net.alphas)
    return {"logits": logits.detach(), "d weights": weights, "d alpha": alphas}


def _relative(found: Results, exact: Results) -> dict[str, float]:
    return {
        name: float((found[name].double() - value.double()).norm() / value.double().norm())
        for name, value in exact.items()
    }


_F32, _F64, _BF16 = torch.float32, torch.float64, torch.bfloat16
_IMAGES = {"cpu": (_F32, _F64), "cuda": (_F32, _BF16)}
_VECTORS = {"cpu": (_F32, _F64), "cuda": (_F32, _F64)}

OPERATORS: tuple[Operator, ...] = (
    Operator("mixed_sum", {"cpu": (_F32, _F64, _BF16), "cuda": (_F32, _BF16)}, by_cases(_mixed_sum)),
    Operator("highway_sum", {"cpu": (_F32, _F64), "cuda": (_F32, _F64)}, by_cases(_highway_sum)),
    Operator("normalised_mixed_sum", _IMAGES, by_cases(_normalised_mixed_sum)),
    Operator("separable_stage", _IMAGES, by_cases(_separable_stage)),
    Operator("shared_pooling", _IMAGES, by_cases(_shared_pooling)),
    Operator("cell", {"cpu": (_F32, _F64), "cuda": (_F32, _BF16)}, _cell),
    Operator("vector_norm", _VECTORS, by_cases(_on_vectors(1, _vector_norm))),
    Operator("perturb_", _VECTORS, by_cases(_on_vectors(2, _perturb))),
    Operator("difference_", _VECTORS, by_cases(_on_vectors(3, _difference))),
    Operator("sgd_step_", _VECTORS, by_cases(_on_vectors(4, _sgd_step))),
    Operator("adam_step_", _VECTORS, by_cases(_on_vectors(5, _adam_step))),
    Operator("neumann_step_", _VECTORS, by_cases(_on_vectors(4, _neumann_step))),
    Operator("virtual_step_", _VECTORS, by_cases(_on_vectors(3, _virtual_step))),
)
