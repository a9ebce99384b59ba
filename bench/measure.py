"""How this project measures: alternating wall times, peak memory, and where a figure was taken."""

from __future__ import annotations

import datetime
import platform
import time
from collections.abc import Callable, Mapping
from statistics import median, quantiles

import torch

from bench.commit import commit
from fastnas._measure import peak_bytes, synchronize

Function = Callable[[], object]


def alternate(
    functions: Mapping[str, Function], rounds: int, warmup: int, device: torch.device | str = "cpu"
) -> dict[str, list[float]]:
    """Time functions in turn, A B A B: a machine that slows down slows all of them.

    Args:
        functions: what to time, by name.
        rounds: timed calls of each.
        warmup: untimed calls of each before that.
        device: the device to wait for before the clock is read.

    Returns:
        Wall times in seconds, by name, in the order of the rounds.

    >>> times = alternate({"a": lambda: None, "b": lambda: None}, rounds=3, warmup=1)
    >>> [len(times[name]) for name in ("a", "b")]
    [3, 3]
    """
    times: dict[str, list[float]] = {name: [] for name in functions}
    for turn in range(warmup + rounds):
        for name, function in functions.items():
            synchronize(device)
            start = time.perf_counter()
            function()
            synchronize(device)
            if turn >= warmup:
                times[name].append(time.perf_counter() - start)
    return times


def spread(times: list[float]) -> dict[str, float]:
    """The median and the 20th and 80th percentiles (linear between measurements).

    >>> spread([3.0, 1.0, 2.0, 5.0, 4.0, 6.0])
    {'median': 3.5, 'p20': 2.0, 'p80': 5.0}
    """
    if len(times) == 1:
        return {"median": times[0], "p20": times[0], "p80": times[0]}
    cuts = quantiles(times, n=5, method="inclusive")
    return {"median": median(times), "p20": cuts[0], "p80": cuts[3]}


def device_name(device: torch.device | str) -> str:
    """The GPU's or the processor's name."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    from fastnas._devices import processor_name

    return processor_name()


def environment(device: torch.device | str = "cpu") -> dict[str, str | int | None]:
    """Where and with what a figure was taken: goes beside every result that is kept.

    >>> sorted(environment())
    ['commit', 'date', 'device', 'fastnas', 'python', 'threads', 'torch']
    """
    from fastnas._version import __version__

    return {
        "device": device_name(device),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        "fastnas": __version__,
        "commit": commit(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


__all__ = ["alternate", "device_name", "environment", "peak_bytes", "spread", "synchronize"]
