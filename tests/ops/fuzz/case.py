"""One case of the fuzzer: a random call, changed up to three times, run and judged."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from random import Random
from typing import Any

import torch
from torch import Tensor

from tests.ops.fuzz.calls import CALLS, Draw
from tests.ops.fuzz.mutations import is_stored, mutate
from tests.ops.fuzz.references import REFERENCES

# Of the largest number around. Each op's own tests hold it to its accuracy; this tells one number from another.
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-10, torch.bfloat16: 0.05}
LARGEST = 1e6  # numbers beyond it are not compared
# torch's own sentences, for what its dispatcher and allocator refuse
TORCH = (
    "Could not run", "not enough memory", "Storage size calculation overflowed", "numel: integer multiplication",
    "can't allocate", "overflow", "ZeroTensors are immutable", "no fake impl", "API call failed", "expected",
    "not implemented", "is not supported", "no kernel", "Cannot copy out of meta",
)  # fmt: skip


class FaultError(Exception):
    """What a case must not do."""


class _NoNumbersError(Exception):
    """Arguments that no reference computes with."""


@dataclass
class Outcome:
    changed: list[str]
    refused: str | None  # the sentence
    compared: bool


def run(case: str) -> Outcome:
    """The case "seed:operator:index". Raises a FaultError, or ends the process if the operator does."""
    _, name, _ = case.split(":")
    random = Random(case)
    call = CALLS[name](Draw(random))
    schema = getattr(torch.ops.fastnas, name).default._schema
    types = {argument.name: str(argument.type) for argument in schema.arguments}
    written = [a.name for a in schema.arguments if a.alias_info is not None and a.alias_info.is_write]
    assert list(call) == list(types)[: len(call)]
    changed = []
    for _ in range(random.choice([0, 1, 1, 1, 2, 3])):
        with contextlib.suppress(
            RuntimeError, ValueError, TypeError, NotImplementedError
        ):  # torch's own: no change
            changed.append(mutate(random, call, types))
    return _judged(name, call, written, changed)


def called(name: str, *arguments: Any) -> Any:
    return getattr(torch.ops.fastnas, name)(*arguments)


def _judged(name: str, call: dict[str, Any], written: list[str], changed: list[str]) -> Outcome:
    before = _Memory(call)
    wide = _in_float64(call) if name in REFERENCES else None
    try:
        with torch.no_grad():
            returned = called(name, *call.values())
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        before.check_unchanged(call, [])
        _check_sentence(name, error)
        return Outcome(changed, str(error), False)
    before.check_unchanged(call, written)
    results = [*_tensors(returned), *(t for key in written if key in call for t in _tensors(call[key]))]
    if name == "cell":
        _check_cell(call, results)
    return Outcome(changed, None, wide is not None and _compared(name, call, wide, written, results))


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return [t for item in value for t in _tensors(item)] if isinstance(value, (list, tuple)) else []


class _Memory:
    """The bytes of all arguments before a call."""

    def __init__(self, call: dict[str, Any]) -> None:
        self.bytes: dict[int, tuple[Tensor, Tensor]] = {}
        for tensor in _tensors(list(call.values())):
            if _has_memory(tensor):
                storage = tensor.untyped_storage()
                now = torch.empty(0, dtype=torch.uint8).set_(storage)
                self.bytes[storage.data_ptr()] = (now, now.clone())

    def check_unchanged(self, call: dict[str, Any], written: list[str]) -> None:
        """Raise unless nothing has changed but elements of the arguments ``written``."""
        for tensor in _tensors([call[name] for name in written if name in call]):
            if _has_memory(tensor) and tensor.numel():
                _, old = self.bytes[tensor.untyped_storage().data_ptr()]
                there = torch.empty(0, dtype=tensor.dtype).set_(
                    old.untyped_storage(), tensor.storage_offset(), tensor.shape, tensor.stride()
                )
                with contextlib.suppress(
                    RuntimeError
                ):  # of elements in one and the same place: none may change
                    there.copy_(tensor.detach())
        for now, old in self.bytes.values():
            if not torch.equal(now, old):
                raise FaultError(
                    f"memory was changed that is not written ({', '.join(written) or 'nothing'} is)"
                )


def _has_memory(tensor: Tensor) -> bool:
    return is_stored(tensor) and tensor.untyped_storage().nbytes() > 0


def _check_sentence(name: str, error: Exception) -> None:
    text = str(error)
    if isinstance(error, ValueError):
        stem = name.removesuffix("_backward")
        if "\n" in text or not text.startswith((stem, name)):
            raise FaultError(f"not a sentence about {name}: {text}")
    elif not any(part in text for part in TORCH):
        raise FaultError(f"an unknown {type(error).__name__}: {text}")


def _check_cell(call: dict[str, Any], results: list[Tensor]) -> None:
    """Nothing that was not initialised, which is NaN here, is in what a cell makes of ordinary numbers."""
    numbers = [call[key] for key in ("inputs", "mixing", "weights", "statistics")]
    ordinary = all(is_stored(t) and (not t.numel() or t.abs().max() < LARGEST) for t in _tensors(numbers))
    if ordinary and 0 < call["eps"] < LARGEST and (call["statistics"][:, 1] >= 0).all():
        for result in results:
            if result.isnan().any():
                raise FaultError("a result is NaN")


def _in_float64(call: dict[str, Any]) -> dict[str, Any] | None:
    """Copies of the arguments in float64, if they are numbers that references can compute with."""

    def wide(value: Any) -> Any:
        if isinstance(value, list):
            return [wide(item) for item in value]
        if not isinstance(value, Tensor):
            return value
        if not (is_stored(value) and value.is_floating_point() and value.numel() < 1e6):
            raise _NoNumbersError
        # A reference checks, too, that the count of steps is float32.
        return value.detach().clone() if value.dim() == 0 else value.detach().to(torch.float64, copy=True)

    try:
        return {name: wide(value) for name, value in call.items()}
    except _NoNumbersError:
        return None


def _compared(
    name: str, call: dict[str, Any], wide: dict[str, Any], written: list[str], results: list[Tensor]
) -> bool:
    """Raise if ``results`` are not the reference's; whether there is one of such arguments."""
    given = _tensors(list(wide.values()))
    numbers = [value for value in call.values() if isinstance(value, float)]
    variances = call["statistics"][:, 1] if "statistics" in call else torch.ones(())
    if variances.numel() and not (variances >= 1e-3).all():
        return False
    # A negative eps may make the root of nearly nothing.
    if not all(-1e-9 < number < LARGEST or number == float("inf") for number in numbers):
        return False
    if not all((t.abs() < LARGEST).all() for t in given):
        return False
    try:
        with torch.no_grad():
            expected = [*REFERENCES[name](*wide.values())]
    except NotImplementedError:
        return False
    except (RuntimeError, ValueError, IndexError) as error:
        raise FaultError(f"the reference refuses what the operator did: {error}") from error
    expected += [t for key in written if key in wide for t in _tensors(wide[key])]
    if [tuple(t.shape) for t in results] != [tuple(t.shape) for t in expected]:
        raise FaultError(
            f"shapes {[tuple(t.shape) for t in results]}, of the reference {[tuple(t.shape) for t in expected]}"
        )
    largest = [
        float(t.nan_to_num(0.0, torch.inf, torch.inf).abs().max()) for t in [*given, *expected] if t.numel()
    ]
    scale = max([1.0, *largest])
    if not scale < LARGEST**2:
        return False
    tolerance = max([TOLERANCE[t.dtype] for t in _tensors(list(call.values())) if t.dtype in TOLERANCE])
    for k, (ours, theirs) in enumerate(zip(results, expected, strict=True)):
        difference = torch.where(theirs.isnan() & ours.isnan(), 0.0, ours.double() - theirs).abs()
        if ours.numel() and not difference.max() <= tolerance * scale:
            raise FaultError(f"result {k} differs from the reference by {difference.max():g}")
    return True
