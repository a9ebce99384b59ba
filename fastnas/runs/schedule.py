"""The learning rate's way to zero, and drop-path's way up: functions of the share of the epochs that is done."""

from __future__ import annotations

import math
from collections.abc import Callable

STEEP_END = 5  # epochs of PC-DARTS' linear schedule that end it
LARGE_BATCH = 256  # above it PC-DARTS warms up


def cosine(epochs: int, done: float) -> float:
    """(1 + cos(pi done / epochs)) / 2, as DARTS and NAS-Bench-201 have it."""
    return (1 + math.cos(math.pi * done / epochs)) / 2


def linear(epochs: int, done: float) -> float:
    """PC-DARTS' schedule for ImageNet (its ``adjust_lr``), with E epochs of which e are done and n = 5.

    1 - e / (E - n) while more than n are left, then (E - e) / (n (E - n)): the last value before stays for an epoch,
    and is then brought to zero in n equal steps. n is at most E - 1.
    """
    end = min(STEEP_END, epochs - 1)
    left = epochs - done
    return 1 - done / (epochs - end) if left > end or not end else left / (end * (epochs - end))


# name -> (share of the learning rate after so many of so many epochs, whether it moves within an epoch)
SCHEDULES: dict[str, tuple[Callable[[int, float], float], bool]] = {
    "cosine": (cosine, False),
    "cosine-steps": (cosine, True),
    "linear": (linear, False),
}


def learning_rate(
    schedule: str, peak: float, epochs: int, epoch: int, within: float = 0.0, warm_up: int = 0
) -> float:
    """The learning rate of a step.

    Args:
        schedule: an entry of ``SCHEDULES``.
        peak: the schedule's first value.
        epochs: E.
        epoch: of the step, from 1.
        within: share of the epoch that is done before the step.
        warm_up: in the first so many epochs the schedule's value is multiplied by epoch / warm_up.
    """
    share, moves = SCHEDULES[schedule]
    rate = peak * share(epochs, epoch - 1 + (within if moves else 0.0))
    return rate * epoch / warm_up if epoch < warm_up else rate


def drop_path(final: float, epochs: int, epoch: int) -> float:
    """DARTS' drop-path probability in an epoch (from 1): ``final`` (epoch - 1) / epochs."""
    return final * (epoch - 1) / epochs
