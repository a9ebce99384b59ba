"""Changes to the arguments of a call, each of which its schema accepts."""

from __future__ import annotations

import math
from collections.abc import Callable
from random import Random
from typing import Any

import torch
from torch import Tensor

INTS = [-(2**63), -(2**62), -(2**40), -100, -2, -1, 0, 1, 2, 3, 5, 7, 8, 100, 2**31, 2**40, 2**62, 2**63 - 1]
STEPS = [-100, -3, -2, -1, 1, 2, 3, 100]
FLOATS = [math.nan, math.inf, -math.inf, -1.0, -0.0, 0.0, 1e-300, 1e300, 3.0]
SIZES = [0, 1, 2, 2**31, 2**40, 2**62]  # none between, which memory might hold
DTYPES = [
    torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int32, torch.int64, torch.uint8, torch.bool,
    torch.complex64, torch.complex128,
]  # fmt: skip


def number(random: Random, value: int) -> int:
    if random.random() < 0.5:
        return random.choice(INTS)
    return max(-(2**63), min(2**63 - 1, value + random.choice(STEPS)))


def items(random: Random, values: list[Any], change: Callable[[Random, Any], Any]) -> list[Any]:
    """A list with one change: of an item, or one left out, added, twice there or elsewhere."""
    values = list(values)
    if not values:
        return values
    at, other = random.randrange(len(values)), random.randrange(len(values))
    kind = random.choice(["change", "change", "change", "remove", "repeat", "swap", "copy", "none", "cut"])
    if kind == "change":
        values[at] = change(random, values[at])
    elif kind == "remove":
        del values[at]
    elif kind == "repeat":
        values.insert(at, values[other])
    elif kind == "swap":
        values[at], values[other] = values[other], values[at]
    elif kind == "copy":
        values[at] = values[other]
    elif kind == "none":
        values = []
    else:
        values = values[:at]
    return values


def is_stored(given: Tensor) -> bool:
    """Whether the elements are in memory, where torch may be asked for them."""
    if given.layout != torch.strided or given.device.type != "cpu" or given._is_zerotensor():
        return False
    last = given.storage_offset() + sum(
        (n - 1) * stride for n, stride in zip(given.shape, given.stride(), strict=True)
    )
    return not given.numel() or (last + 1) * given.element_size() <= given.untyped_storage().nbytes()


def tensor(random: Random, given: Tensor) -> Tensor:
    if not is_stored(given) or given.numel() > 10**6:  # repeated, and nobody's to copy
        return given
    if given.dtype == torch.int64 and given.dim() == 1 and random.random() < 0.9:  # a plan
        return torch.tensor(items(random, given.tolist(), number), dtype=torch.int64)
    return random.choice(TENSORS)(random, given)


def _dim(random: Random, given: Tensor) -> int:
    return random.randrange(given.dim()) if given.dim() else 0


def _of_dtype(random: Random, given: Tensor) -> Tensor:
    return given.to(random.choice(DTYPES))


def _less(random: Random, given: Tensor) -> Tensor:
    dim = _dim(random, given)
    return (
        given.narrow(dim, 0, random.randrange(given.shape[dim])) if given.numel() and given.dim() else given
    )


def _more(random: Random, given: Tensor) -> Tensor:
    return torch.cat([given, given], _dim(random, given)) if given.dim() else given.expand(2)


def _other_rank(random: Random, given: Tensor) -> Tensor:
    choices = [given[None], given.flatten(), given.reshape(-1)[:1].squeeze()]
    return random.choice(choices) if given.numel() else given[None]


def _transposed(random: Random, given: Tensor) -> Tensor:
    return given.transpose(_dim(random, given), _dim(random, given)) if given.dim() else given


def _contiguous(random: Random, given: Tensor) -> Tensor:
    return given.clone(memory_format=torch.contiguous_format)


def _spread(random: Random, given: Tensor) -> Tensor:
    """Every other element of a larger tensor."""
    if not given.dim():
        return given
    dim = _dim(random, given)
    return (
        given.repeat_interleave(2, dim)
        .narrow(dim, 0, 2 * given.shape[dim])
        .unflatten(dim, (-1, 2))
        .select(dim + 1, 0)
    )


def _repeated(random: Random, given: Tensor) -> Tensor:
    """Elements of a dimension in one and the same place."""
    if not given.numel() or not given.dim():
        return given
    dim = _dim(random, given)
    size = list(given.shape)
    size[dim] = random.choice([size[dim], size[dim], 2**46])  # beyond any memory
    return given.narrow(dim, 0, 1).expand(size)


def _strides(random: Random, given: Tensor) -> Tensor:
    """Other strides over the same memory."""
    if not given.numel():
        return given
    strides = [random.choice([0, 1, 1, stride, 2 * stride]) for stride in given.stride()]
    storage = given.untyped_storage().nbytes() // given.element_size() - given.storage_offset()
    reach = 1 + sum((size - 1) * stride for size, stride in zip(given.shape, strides, strict=True))
    return given.as_strided(given.shape, strides) if reach <= storage else given


def _vast_and_empty(random: Random, given: Tensor) -> Tensor:
    sizes = [random.choice(SIZES) for _ in given.shape]
    if sizes:
        sizes[random.randrange(len(sizes))] = 0
    strides = [random.choice([0, 1, *SIZES]) for _ in sizes]
    return given.new_empty(0).as_strided(sizes, strides) if sizes else given


def _elsewhere(random: Random, given: Tensor) -> Tensor:
    return given.to("meta")


def _sparse(random: Random, given: Tensor) -> Tensor:
    return given.to_sparse() if given.dim() else given


def _values(random: Random, given: Tensor) -> Tensor:
    if not given.is_floating_point():
        return given
    return torch.full_like(given, random.choice(FLOATS))


def _needs_grad(random: Random, given: Tensor) -> Tensor:
    return given.detach().requires_grad_() if given.is_floating_point() else given


def _view(random: Random, given: Tensor) -> Tensor:
    """Lazily conjugate or negative."""
    return (
        given.conj() if given.is_complex() else torch._neg_view(given) if given.is_floating_point() else given
    )


def _zero(random: Random, given: Tensor) -> Tensor:
    """Without memory on purpose."""
    return torch._efficientzerotensor(given.shape, dtype=given.dtype)


def _without_memory(random: Random, given: Tensor) -> Tensor:
    given = given.clone()
    storage = given.untyped_storage()
    storage.resize_(random.choice([0, storage.nbytes() // 2]))
    return given


TENSORS: list[Callable[[Random, Tensor], Tensor]] = [
    _of_dtype, _less, _more, _other_rank, _transposed, _contiguous, _spread, _repeated, _strides, _vast_and_empty,
    _elsewhere, _sparse, _values, _needs_grad, _view, _zero, _without_memory,
]  # fmt: skip


def _shifted(random: Random, given: Tensor, like: Tensor) -> Tensor:
    """Memory of ``given`` in the form of ``like``, perhaps beginning a little later."""
    offset = given.storage_offset() + random.choice([0, 0, 1, 3])
    reach = 1 + sum((size - 1) * stride for size, stride in zip(like.shape, like.stride(), strict=True))
    fits = (offset + reach) * given.element_size() <= given.untyped_storage().nbytes()
    return given.as_strided(like.shape, like.stride(), offset) if fits and like.numel() else given


def _all_tensors(call: dict[str, Any]) -> list[Tensor]:
    values = [item for value in call.values() for item in (value if isinstance(value, list) else [value])]
    return [value for value in values if isinstance(value, Tensor) and value.layout == torch.strided]


def _alias(random: Random, given: Tensor, call: dict[str, Any]) -> Tensor:
    other = random.choice(_all_tensors(call) or [given])
    if other.dtype != given.dtype or other.is_meta or given.layout != torch.strided:
        return given
    return _shifted(random, other, given)


def mutate(random: Random, call: dict[str, Any], types: dict[str, str]) -> str:
    """Changes one argument of ``call``, whose types the schema says; the argument's name."""
    name = random.choice(list(call))
    value, kind = call[name], types[name]

    def changed(random: Random, given: Tensor) -> Tensor:
        return _alias(random, given, call) if random.random() < 0.2 else tensor(random, given)

    if kind in ("Tensor", "Optional[Tensor]"):
        absent = kind != "Tensor" and random.random() < 0.2
        if value is None:
            value = random.choice(_all_tensors(call))
        call[name] = None if absent else changed(random, value)
    elif kind == "List[Tensor]":
        call[name] = items(random, value, changed)
    elif kind == "List[int]":
        call[name] = items(random, value, number)
    elif kind == "List[bool]":
        call[name] = items(random, value, lambda _, flag: not flag)
    elif kind == "bool":
        call[name] = not value
    elif kind == "int":
        call[name] = number(random, value)
    else:
        assert kind == "float"
        call[name] = random.choice(FLOATS)
    return name
