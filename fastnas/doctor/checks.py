"""Every operator against its reference in float64, on numbers whose errors tell a wrong kernel from rounding.

Each operator is an entry of ``OPERATORS``: its name, its dtypes, and a function that yields cases. A case is one
computation on random numbers. It runs by the operator (twice, for the same bits), by its plain-PyTorch reference in the
same precision, by the reference in float64, and by that once more with every input moved by a rounding, which shows
what the result scatters by.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fastnas._accuracy import largest, tolerance, tolerance_float64, wide
from fastnas.ops._distrust import DISTRUSTED
from fastnas.supernet import pinned

Results = dict[str, Tensor]
_ROUNDING = 2.0**-24  # by which inputs move; float64 sees it as a derivative


@dataclass(frozen=True)
class Case:
    """One computation.

    Attributes:
        images: float64, brought to the dtype of the check; vectors count as images.
        numbers: float64, brought to that dtype, but float32 where it is bfloat16 (weights, statistics).
        compute: (whether by the reference, images, numbers) -> results by name; leaves its arguments alone.
    """

    images: Sequence[Tensor]
    numbers: Sequence[Tensor]
    compute: Callable[[bool, list[Tensor], list[Tensor]], Results]


@dataclass(frozen=True)
class Measured:
    """The largest error of one result, and the largest that it may have."""

    result: str
    error: float
    tolerance: float

    @property
    def share(self) -> float:
        """Of the tolerance that the error takes; infinite for what is not a number."""
        if math.isnan(self.error):
            return math.inf
        return self.error / self.tolerance if self.tolerance > 0 else math.inf if self.error > 0 else 0.0


@dataclass(frozen=True)
class Operator:
    """What is checked.

    Attributes:
        name: as in ``fastnas.ops``; "cell" is the fused cell.
        dtypes: by the device's type.
        measure: (device, dtype, small shapes only) -> errors and tolerances; raises what the operator raises.
    """

    name: str
    dtypes: Mapping[str, tuple[torch.dtype, ...]]
    measure: Callable[[torch.device, torch.dtype, bool], Sequence[Measured]]


@dataclass(frozen=True)
class Finding:
    """One operator in one dtype.

    Attributes:
        operator, dtype: which.
        status: "ok", "wrong", "failed" (it raised) or "missing" (there is no kernel for this device in this build).
        worst: the result that comes closest to its tolerance, or is farthest beyond it; None where it raised.
        reason: what it raised, "" otherwise.
    """

    operator: str
    dtype: str
    status: str
    worst: Measured | None
    reason: str = ""

    @property
    def bad(self) -> bool:
        """Whether the operator must not be used."""
        return self.status in ("wrong", "failed")


class MissingKernelError(RuntimeError):
    """What is to be checked does not exist on this device, and nothing is wrong with that."""


class DeviceLostError(RuntimeError):
    """An operator left the device unusable for this process."""


def check(
    operators: Sequence[Operator], device: torch.device, *, small: bool, cuda_build: bool
) -> Iterator[Finding]:
    """Checks ``operators`` one after the other; with ``small`` on small shapes only.

    Args:
        cuda_build: whether the extension has CUDA kernels, so that on a GPU none may be missing.

    Raises:
        DeviceLostError: after the finding that says which operator broke the device.
    """
    for operator in operators:
        for dtype in operator.dtypes[device.type]:
            yield (finding := _check(operator, device, dtype, small, cuda_build))
            if finding.status == "failed" and not _device_lives(device):
                raise DeviceLostError(f"{operator.name} ({finding.dtype}) left {device} unusable")


def _check(
    operator: Operator, device: torch.device, dtype: torch.dtype, small: bool, cuda_build: bool
) -> Finding:
    text = str(dtype).removeprefix("torch.")
    try:
        # Beside this process's other work: nobody's random numbers, and the kernels themselves.
        threads = 1 if small else torch.get_num_threads()
        mine = [device.index or 0] if device.type == "cuda" else []
        with torch.random.fork_rng(mine), _trusting(), _threads(threads), pinned():
            measured = operator.measure(device, dtype, small)
    except Exception as error:
        must_run = device.type == "cpu" or cuda_build
        status = "failed" if must_run and not isinstance(error, MissingKernelError) else "missing"
        lines = str(error).strip().splitlines()
        return Finding(operator.name, text, status, None, lines[0] if lines else type(error).__name__)
    worst = max(measured, key=lambda one: one.share)
    return Finding(operator.name, text, "ok" if worst.share <= 1 else "wrong", worst)


def _device_lives(device: torch.device) -> bool:
    if device.type != "cuda":
        return True
    try:
        torch.cuda.synchronize(device)
        return bool(torch.ones(1, device=device).item() == 1)
    except RuntimeError:
        return False


@contextmanager
def _trusting() -> Iterator[None]:
    """Within it every operator runs its kernels, also those that were found wrong before."""
    before = set(DISTRUSTED)
    DISTRUSTED.clear()
    try:
        yield
    finally:
        DISTRUSTED.update(before)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Of small tensors a second thread is only waited for."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def poisoned() -> Iterator[None]:
    """Within it fresh tensors are full of NaN: what a kernel forgets to write is seen."""
    before = torch.get_deterministic_debug_mode()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own kernels need not be deterministic here
        torch.set_deterministic_debug_mode("warn")
        try:
            yield
        finally:
            torch.set_deterministic_debug_mode(before)


def measure_case(case: Case, device: torch.device, dtype: torch.dtype) -> list[Measured]:
    """The errors of the operator in one case, and what they may be."""
    of_numbers = torch.promote_types(dtype, torch.float32)
    images = [x.to(device, dtype) for x in case.images]
    numbers = [x.to(device, of_numbers) for x in case.numbers]
    with poisoned():
        ours, again = (case.compute(False, images, numbers) for _ in range(2))
    # Plain PyTorch in bfloat16 has everything in it.
    plain = case.compute(True, images, [x.to(dtype) for x in numbers])
    exact_inputs = [x.double() for x in images], [x.double() for x in numbers]
    exact = case.compute(True, *exact_inputs)
    spreads = dict.fromkeys(exact, 0.0)
    generator = torch.Generator().manual_seed(1)
    for _ in range(2):
        moved = case.compute(True, *([_moved(x, generator) for x in group] for group in exact_inputs))
        for name, value in exact.items():
            spread = largest(wide(moved[name].double() - value.double())) / _ROUNDING
            spreads[name] = max(spreads[name], spread)
    measured = []
    for name, truth in exact.items():
        mine, result, spread = ours[name], wide(truth), spreads[name]
        if mine.shape != truth.shape:
            raise RuntimeError(f"{name} has shape {tuple(mine.shape)}, its reference {tuple(truth.shape)}")
        if mine.dtype == torch.float64:
            allowed = tolerance_float64(largest(result), spread)
        else:
            off = wide(plain[name].to(mine.dtype)) - result
            # oneDNN leaves some depthwise weights' gradients in bfloat16 unwritten: no measure of ours.
            plain_error = largest(off[np.isfinite(off)])
            allowed = tolerance(mine.dtype, plain_error, largest(result), spread)
        measured.append(Measured(name, largest(wide(mine) - result), allowed))
        if not torch.equal(mine, again[name]):  # every sum has a fixed order
            difference = largest(wide(mine) - wide(again[name]))
            measured.append(Measured(f"{name}, a second time", difference, 0.0))
    return measured


def _moved(x: Tensor, generator: torch.Generator) -> Tensor:
    noise = 2 * torch.rand(x.shape, generator=generator, dtype=torch.float64) - 1
    return x * (1 + _ROUNDING * noise.to(x.device))


def by_cases(cases: Callable[[bool], Sequence[Case]]) -> Callable[..., list[Measured]]:
    """``Operator.measure`` of an operator that is described by cases: (small shapes only) -> cases."""

    def measure(device: torch.device, dtype: torch.dtype, small: bool) -> list[Measured]:
        return [one for case in cases(small) for one in measure_case(case, device, dtype)]

    return measure
