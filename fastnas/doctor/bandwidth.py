"""How close the memory-bound operators come to a copy from device to device, measured then and there.

Every operator reads and writes several sets of tensors in turn, together far more than the L2 cache holds; all calls
of a round are captured in one CUDA graph, so that no launch is waited for, and timed by events around its replay.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor

from fastnas import ops

OPS = torch.ops.fastnas

# What a search does (DARTS space, C = 16, 8 cells, batch 64): branches of a cell, and the flat weights.
BRANCHES, IMAGES = 8, (64, 16, 32, 32)
WEIGHTS = 1_930_618
ROUNDS = 15


@dataclass(frozen=True)
class Bandwidth:
    """One operator in one dtype.

    Attributes:
        bytes: that one call reads and writes, each once.
        seconds: of one call, the median.
        copy_seconds: of a copy that moves as many bytes.
    """

    operator: str
    dtype: str
    bytes: int
    seconds: float
    copy_seconds: float

    @property
    def rate(self) -> float:
        """Bytes a second."""
        return self.bytes / self.seconds

    @property
    def share(self) -> float:
        """Of the copy's bandwidth."""
        return self.copy_seconds / self.seconds


@dataclass(frozen=True)
class _Contestant:
    """Bytes of one call, and what makes a call on tensors of its own."""

    operator: str
    dtype: torch.dtype
    bytes: int
    make: Callable[[torch.device], Callable[[], object]]


def bandwidths(device: torch.device) -> list[Bandwidth]:
    """All memory-bound operators, on a GPU; those that have no kernel there are left out."""
    found = []
    with torch.cuda.device(device), torch.no_grad():
        for one in _contestants():
            try:
                seconds = _seconds(one.make, one.bytes, device)
            except (ValueError, RuntimeError, NotImplementedError):
                torch.cuda.synchronize(device)  # a device that is lost says so here
                continue
            copy = _seconds(_copy(one.bytes // 2), one.bytes, device)
            found.append(
                Bandwidth(one.operator, str(one.dtype).removeprefix("torch."), one.bytes, seconds, copy)
            )
    return found


def copy_rate(device: torch.device) -> float:
    """Bytes a second, read and written, of a copy much larger than the caches."""
    size = min(1 << 30, torch.cuda.get_device_properties(device).total_memory // 16)
    with torch.cuda.device(device):
        return 2 * size / _seconds(_copy(size), 2 * size, device)


def _copy(size: int) -> Callable[[torch.device], Callable[[], object]]:
    def make(device: torch.device) -> Callable[[], object]:
        source, target = (torch.ones(size, dtype=torch.uint8, device=device) for _ in range(2))
        return lambda: target.copy_(source)

    return make


def _seconds(make: Callable[[torch.device], Callable[[], object]], size: int, device: torch.device) -> float:
    """The median time of one call over as many sets of tensors as fill the L2 cache four times."""
    cache = torch.cuda.get_device_properties(device).L2_cache_size
    calls = [make(device) for _ in range(max(2, -(-4 * cache // size)))]
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for call in calls:
            call()
    stream.synchronize()
    graph, kept = torch.cuda.CUDAGraph(), []
    # stream() outside: if the end of a capture fails, torch.cuda.graph leaves its stream the current one.
    with torch.cuda.stream(stream), torch.cuda.graph(graph, stream=stream):
        for call in calls:
            kept.append(call())  # outputs live on: each call writes memory of its own
    times = []
    for _ in range(3 + ROUNDS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1e3 / len(calls))
    return median(times[3:])


def _contestants() -> list[_Contestant]:
    found = []
    image, k, channels = torch.Size(IMAGES).numel(), BRANCHES, IMAGES[1]

    def images(device: torch.device, dtype: torch.dtype, count: int) -> list[Tensor]:
        """Channels last."""
        batch, channels, *sides = IMAGES
        return [
            torch.randn(batch, *sides, channels, device=device).to(dtype).permute(0, 3, 1, 2)
            for _ in range(count)
        ]

    def vectors(device: torch.device, count: int) -> list[Tensor]:
        return [torch.randn(WEIGHTS, device=device) for _ in range(count)]

    for dtype in (torch.float32, torch.bfloat16):

        def forward(device: torch.device, dtype: torch.dtype = dtype) -> Callable[[], object]:
            weights, x = torch.rand(k, device=device), images(device, dtype, k)
            return lambda: OPS.mixed_sum(weights, x)

        def backward(device: torch.device, dtype: torch.dtype = dtype) -> Callable[[], object]:
            weights, (grad, *x) = torch.rand(k, device=device), images(device, dtype, k + 1)
            return lambda: OPS.mixed_sum_backward(grad, weights, x, range(k))

        def normalised(device: torch.device, dtype: torch.dtype = dtype) -> Callable[[], object]:
            weights, (out, *x) = torch.rand(k, device=device), images(device, dtype, k + 1)
            statistics = torch.ones(k, 2, channels, device=device)
            return lambda: OPS.normalised_mixed_sum(x, range(k), weights, range(k), statistics, 1e-5, out)

        def normalised_backward(device: torch.device, dtype: torch.dtype = dtype) -> Callable[[], object]:
            weights, (grad, *x) = torch.rand(k, device=device), images(device, dtype, k + 1)
            statistics, coefficients = (torch.ones(k, n, channels, device=device) for n in (2, 3))
            weights_grad = torch.empty_like(weights)
            return lambda: OPS.normalised_mixed_sum_backward(
                grad, x, range(k), weights, range(k), statistics, 1e-5, True, coefficients, weights_grad
            )

        one = image * dtype.itemsize
        found += [
            _Contestant("mixed_sum", dtype, (k + 1) * one, forward),
            _Contestant("mixed_sum, backward", dtype, (2 * k + 1) * one, backward),
            _Contestant("normalised_mixed_sum", dtype, (k + 1) * one, normalised),
            _Contestant("normalised_mixed_sum, backward", dtype, (k + 1) * one, normalised_backward),
        ]

    def norm(device: torch.device) -> Callable[[], object]:
        (x,) = vectors(device, 1)
        return lambda: ops.vector_norm(x)

    def perturb(device: torch.device) -> Callable[[], object]:
        w, saved, u = vectors(device, 3)
        length = torch.ones((), dtype=torch.float64, device=device)
        return lambda: ops.perturb_(w, saved, u, length, 0.01, 1)

    def difference(device: torch.device) -> Callable[[], object]:
        ahead, behind = vectors(device, 2)
        length = torch.ones((), dtype=torch.float64, device=device)
        return lambda: ops.difference_(ahead, behind, length, 0.01)

    def sgd(device: torch.device) -> Callable[[], object]:
        w, grad, buffer = vectors(device, 3)
        return lambda: ops.sgd_step_(w, grad, buffer, 0.025, 0.9, 3e-4, 5.0)

    def neumann(device: torch.device) -> Callable[[], object]:
        v, series, ahead, behind = vectors(device, 4)
        length = torch.ones((), dtype=torch.float64, device=device)
        return lambda: ops.neumann_step_(v, series, ahead, behind, length, 0.01, 0.025)

    def virtual(device: torch.device) -> Callable[[], object]:
        w, grad, buffer = vectors(device, 3)
        return lambda: ops.virtual_step_(w, grad, buffer, 0.025, 0.9, 3e-4)

    # The vectors that each reads and writes; SGD reads the gradient once for its norm and once for the step.
    passes: Sequence[tuple[str, int, Callable[[torch.device], Callable[[], object]]]] = (
        ("vector_norm", 1, norm),
        ("perturb_", 3, perturb),
        ("difference_", 3, difference),
        ("sgd_step_", 6, sgd),
        ("neumann_step_", 6, neumann),
        ("virtual_step_", 4, virtual),
    )
    found += [_Contestant(name, torch.float32, count * WEIGHTS * 4, make) for name, count, make in passes]
    return found
