"""What the native ops did while a function ran, by the records that they keep themselves (csrc/work.h)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fastnas._extension import fastnas_C


@dataclass(frozen=True)
class Work:
    """Of one op.

    Attributes:
        calls: of its kernels.
        seconds: in them; on a GPU, in launching them.
        flops: floating-point operations of the algorithm that runs, 2 a multiply-add.
        bytes: of images and weights, each read or written once, and twice where it is added to.
    """

    calls: int
    seconds: float
    flops: int
    bytes: int


def native_work(function: Callable[[], object]) -> dict[str, Work]:
    """Calls ``function``; the work that it gave to each op, by the op's name."""
    before = fastnas_C.records()
    function()
    after = fastnas_C.records()
    done = {}
    for name, record in after.items():
        first = before.get(name, (0, 0.0, 0, 0))
        if record[0] > first[0]:
            done[name] = Work(*(b - a for a, b in zip(first, record, strict=True)))
    return done
