"""Peak memory: a forecast from steps on a few images, what is free, and what to say when there was not enough."""

from __future__ import annotations

import gc
import os
import re
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from fastnas._measure import memory_course, peak_bytes
from fastnas.errors import FastnasError

WARM_UP, SIZES = 2, (4, 8)  # batches that are run
SPARE = 0.1  # of a limit is left free: the allocator's gaps, libraries' own scratch
ALIKE = 0.02  # two measurements that differ by less are one
OFF = "FASTNAS_MEMORY_CHECK"
_UNITS = {"B": 1} | {
    f"{prefix}{tail}": base**power
    for power, prefix in enumerate("KMGT", 1)
    for tail, base in (("IB", 1024), ("B", 1000))
}
# The last two are all that the stable ABI leaves of an allocation that failed in the native extension.
_SAYINGS = (
    "out of memory",
    "can't allocate memory",
    "_ALLOC_FAILED",
    "std::bad_alloc",
    '( "aten::new_empty"',
    '( "aten::empty_like"',
)
Line = tuple[float, float]  # bytes whatever the batch, bytes for each of its items


@dataclass(frozen=True)
class Growth:
    """The peak memory of a function of a batch: the highest of some straight lines over the batch's size.

    Between two moments of the function memory grows by a number that is proportional to the batch, or by one that does
    not depend on it; which moment is the peak depends on the batch.
    """

    lines: tuple[Line, ...]

    def parts(self, batch: int) -> Line:
        """The line that is highest at ``batch``."""
        return max(self.lines, key=lambda line: line[0] + batch * line[1])

    def peak(self, batch: int) -> float:
        """Bytes at ``batch``."""
        fixed, each = self.parts(batch)
        return fixed + batch * each

    def largest(self, room: float) -> int:
        """The largest batch whose peak is at most ``room``; 0: there is none.

        >>> Growth(((100, 0), (0, 10))).largest(250), Growth(((100, 0), (0, 10))).largest(90)
        (25, 0)
        """
        if any(fixed > room for fixed, _ in self.lines):
            return 0
        return min((int((room - fixed) / each) for fixed, each in self.lines if each > 0), default=0)


@dataclass(frozen=True)
class Forecast:
    """Peak memory of a run's steps.

    Attributes:
        batch, unit: of the run, in images or streams.
        resident: what is there from the first step to the last, by part, in bytes.
        growth: of a step, above that.
        beside: of what is kept or computed beside a step's own memory; CUDA graphs alone have that.
    """

    batch: int
    unit: str
    resident: Mapping[str, int]
    growth: Growth
    beside: Growth = Growth(((0, 0),))

    def peak(self, batch: int | None = None) -> int:
        """Bytes in all, at the run's batch or another."""
        size = self.batch if batch is None else batch
        return round(sum(self.resident.values()) + self.growth.peak(size) + self.beside.peak(size))

    def largest(self, limit: int, *, resident: bool = True) -> int:
        """The largest batch that fits ``limit`` bytes, of which a tenth is left free; 0: none does.

        ``resident=False``: what is resident lies outside of the limit.
        """
        room = limit * (1 - SPARE) - (sum(self.resident.values()) if resident else 0)
        sums = [(a + c, b + d) for a, b in self.growth.lines for c, d in self.beside.lines]
        return Growth(tuple(sums)).largest(room)


def measured_growth(run: Callable[[int], object], device: torch.device) -> Growth:
    """The peak memory of ``run(batch)``, from calls on a few items.

    What torch's allocator holds after each allocation and release is followed in two calls. They do the same in
    the same order, so each of these moments is a straight line over the batch, known from two points. Where
    the moments do not match, or on a GPU do not add up to its own record, batches are doubled instead.
    """
    kept = (memory_course(partial(run, WARM_UP), device) or [0])[-1]  # made at the first call, for good
    small, large = SIZES
    courses = [memory_course(partial(run, size), device) for size in SIZES]
    if not len(courses[0]) == len(courses[1]) > 0 or not _adds_up(run, courses[1], device):
        return doubled_growth(run, device)
    step = large - small
    lines = [(kept + a - small * (b - a) / step, (b - a) / step) for a, b in zip(*courses, strict=True)]
    return Growth(envelope(lines))


def _adds_up(run: Callable[[int], object], course: Sequence[int], device: torch.device) -> bool:
    if device.type != "cuda":
        return True
    record = peak_bytes(partial(run, SIZES[1]), device)
    return abs(max(course) - record) <= ALIKE * record


def doubled_growth(run: Callable[[int], object], device: torch.device, most: int = 256) -> Growth:
    """The same from peaks alone: batches are doubled until the peak grows in proportion and is mostly the batch's."""
    size, peak, each = SIZES[0], peak_bytes(partial(run, SIZES[0]), device), 0.0
    while size < most:
        size *= 2
        before, last, peak = each, peak, peak_bytes(partial(run, size), device)
        each = max(peak - last, 0) / (size - size // 2)
        if abs(each - before) <= ALIKE * each and 2 * size * each >= peak:
            break
    return Growth(((max(peak - size * each, 0.0), each),))


def envelope(lines: Sequence[Line]) -> tuple[Line, ...]:
    """Those lines that are the highest somewhere from 0 on.

    >>> envelope([(5, 0), (2, 1), (0, 1), (0, 2)])
    ((5, 0), (0, 2))
    """
    found: list[Line] = []
    for fixed, each in sorted(lines, key=lambda line: (-line[0], -line[1])):
        if found and each <= found[-1][1]:
            continue
        # The line before is hidden where this one is higher already at the batch from which it would count.
        while len(found) > 1 and _meet(found[-2], (fixed, each)) <= _meet(found[-2], found[-1]):
            found.pop()
        found.append((fixed, each))
    return tuple(found)


def _meet(a: Line, b: Line) -> float:
    return (a[0] - b[0]) / (b[1] - a[1])


def free_memory(device: torch.device) -> int | None:
    """Bytes that a process may still take on ``device``; None: the system does not say.

    On a GPU with what torch's allocator has cached, on a CPU within the process's control group.
    """
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + cached
    found = [size for size in (_available(), _left_in_group()) if size is not None]
    return min(found, default=None)


def _available() -> int | None:
    try:
        text = Path("/proc/meminfo").read_text()
        return int(text.partition("MemAvailable:")[2].split()[0]) * 1024
    except (OSError, IndexError, ValueError):
        pass
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return None


def _left_in_group(root: Path = Path("/sys/fs/cgroup")) -> int | None:
    try:
        limit, used = ((root / f"memory.{name}").read_text().strip() for name in ("max", "current"))
        return max(int(limit) - int(used), 0)  # "max": there is no limit
    except (OSError, ValueError):
        return None


def bytes_of(text: str) -> int:
    """The bytes of ``24GiB``, ``500 MB`` or ``1e9``.

    Raises:
        FastnasError: that is no size.

    >>> bytes_of("24GiB") // 2**30, bytes_of("1.5 MB")
    (24, 1500000)
    """
    match = re.fullmatch(r"\s*([0-9.]+(?:e[0-9]+)?)\s*([a-zA-Z]*)\s*", text)
    unit = match and (match[2].upper() or "B")
    try:
        size = float(match[1]) * _UNITS[unit] if match and unit else 0.0
    except (ValueError, KeyError):
        size = 0.0
    if not 2**20 <= size < 2**60:
        raise FastnasError(
            f"--memory-limit must be a size of at least 1 MiB such as 24GiB or 800MB, got {text[:40]!r}"
        )
    return int(size)


def shown(size: float) -> str:
    """A size for people.

    >>> shown(300), shown(2**20), shown(5.25 * 2**30)
    ('300 B', '1.0 MiB', '5.25 GiB')
    """
    for unit, digits in (("B", 0), ("KiB", 1), ("MiB", 1)):
        if size < 1023.5:
            return f"{size:.{digits}f} {unit}"
        size /= 1024
    return f"{size:.2f} GiB"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` says that a device, or the system, had no memory left."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(saying in str(error) for saying in _SAYINGS)


@contextmanager
def memory_told(tell: Callable[[], str]) -> Iterator[None]:
    """Within it no memory left ends a run with what ``tell`` finds out, once what the failed step held is let go.

    Raises:
        FastnasError: something found no memory.
    """
    try:
        yield
        return
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        let_go(error)
    raise FastnasError(tell()) from None


def let_go(error: BaseException) -> None:
    """Frees what the frames of an error still hold, and torch's cache."""
    seen: BaseException | None = error
    while seen is not None:
        traceback.clear_frames(seen.__traceback__)
        seen = seen.__cause__ or seen.__context__
    free_cache()


def free_cache() -> None:
    """Gives back to the GPU what nothing uses."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def runs(function: Callable[[], object]) -> bool:
    """Whether the call finds enough memory."""
    try:
        function()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        let_go(error)
        return False
    free_cache()
    return True


def largest_that_runs(run: Callable[[int], object], tried: int) -> int:
    """A batch below ``tried`` that ``run`` finds enough memory for, to an eighth the largest; 0: not even one of 2.

    Found by running: what a forecast does not know, other programs and gaps between blocks, counts here.

    >>> def run(batch: int) -> None:
    ...     if batch > 41:
    ...         raise MemoryError
    >>> largest_that_runs(run, 64)
    40
    """
    most, least = tried, 0
    while most - max(least, 1) > max(least // 8, 1):
        middle = (most + max(least, 1)) // 2
        if runs(partial(run, middle)):
            least = middle
        else:
            most = middle
    return least


def is_distributed() -> bool:
    """Whether other processes take part: a step that one of them tries alone would wait for them for ever."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()
