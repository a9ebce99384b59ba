"""Peak memory and waiting for a device, for whatever measures: the benchmarks and the audit."""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Callable
from itertools import accumulate

import torch

# Read at the first profile: the profiler would report its stages on the standard error.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")


def synchronize(device: torch.device | str) -> None:
    """Wait for the device; nothing to do on a CPU."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def peak_memory(device: torch.device) -> int:
    """Bytes at the most since the process began: allocated on a GPU, resident on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def peak_bytes(function: Callable[[], object], device: torch.device | str = "cpu") -> int:
    """The most that torch's allocator held during one call, above what it held at its start.

    On a GPU ``torch.cuda.max_memory_allocated``; measure a function that replays a CUDA graph at its first
    call, which captures: a replay allocates nothing. On a CPU the running sum of the profiler's memory
    events, one for every tensor storage allocated or freed. Two things are not seen: memory that bypasses
    torch's allocator (a library's own scratch), on either device, and on a CPU that the call frees what was
    there before it.

    >>> peak_bytes(lambda: torch.zeros(1 << 20))
    4194304
    """
    device = torch.device(device)
    if device.type == "cuda":
        synchronize(device)
        start = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        function()
        synchronize(device)
        return torch.cuda.max_memory_allocated(device) - start
    return max(memory_course(function, device), default=0)


def memory_course(function: Callable[[], object], device: torch.device | str = "cpu") -> list[int]:
    """What torch's allocator held above its start after each allocation and each release of one call, in bytes.

    >>> memory_course(lambda: torch.zeros(1 << 20))
    [4194304, 0]
    """
    device = torch.device(device)
    kind = torch.autograd.DeviceType.CUDA if device.type == "cuda" else torch.autograd.DeviceType.CPU
    with torch.autograd.profiler.profile(profile_memory=True, use_kineto=True) as profiler:
        function()
        synchronize(device)
    assert profiler.kineto_results is not None
    # The events as kineto recorded them: profiler.events() would first build a tree of all operators.
    memory = [
        (event.start_ns(), event.nbytes())
        for event in profiler.kineto_results.events()
        if event.name() == "[memory]" and event.device_type() == kind
    ]
    return list(accumulate(size for _, size in sorted(memory, key=lambda event: event[0])))
