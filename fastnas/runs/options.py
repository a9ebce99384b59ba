"""Typed dataclasses of dataclasses that the command line, Python and the run folder share."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

from fastnas.errors import FastnasError
from fastnas.spaces.genotype import shorten

Configured = TypeVar("Configured", bound="Options")
Filled = TypeVar("Filled")


class Options:
    """A frozen dataclass whose fields are groups, dataclasses too: each of their fields is a flag and a keyword.

    Attributes:
        FREE: names of the fields that do not change a run's numbers.
        OWN: of those that the processes of one run may be told differently.
    """

    FREE: ClassVar[frozenset[str]] = frozenset(
        {"device", "threads", "out", "resume", "checkpoint_seconds", "detect_anomaly"}
        | {"live", "live_host", "live_port", "tensorboard"}
    )
    OWN: ClassVar[frozenset[str]] = frozenset(
        {"device", "threads", "live", "live_host", "live_port", "tensorboard"}
    )

    @classmethod
    def from_options(cls: type[Configured], options: Mapping[str, Any]) -> Configured:
        """From flat keywords.

        Raises:
            FastnasError: an unknown keyword or a value of another type.
        """
        rest = dict(options)
        groups: dict[str, Any] = {}
        for group in dataclasses.fields(cls):  # type: ignore[arg-type]
            group_class = group.default_factory
            assert isinstance(group_class, type)
            hints = typing.get_type_hints(group_class)
            names = [f.name for f in dataclasses.fields(group_class) if f.name in rest]
            groups[group.name] = group_class(**{n: _typed(n, rest.pop(n), hints[n]) for n in names})
        if rest:
            known = ", ".join(sorted(cls().to_options()))
            raise FastnasError(f"unknown option {shorten(next(iter(rest)))}; known are {known}")
        return cls(**groups)

    def to_options(self) -> dict[str, Any]:
        """Flat keywords, plain values: what config.json holds and :meth:`from_options` reads."""
        flat: dict[str, Any] = {}
        for group in dataclasses.fields(self):  # type: ignore[arg-type]
            flat.update(dataclasses.asdict(getattr(self, group.name)))
        return {name: str(value) if isinstance(value, Path) else value for name, value in flat.items()}

    def differences(self: Configured, other: Configured) -> list[str]:
        """Names of the fields that would make another trajectory; what does not change its numbers does not count."""
        mine, its = self.to_options(), other.to_options()
        free = self.free()
        return [name for name in mine if name not in free and mine[name] != its[name]]

    def decisive(self) -> dict[str, Any]:
        """What all processes of a run must have been told alike, as flat keywords."""
        return {name: value for name, value in self.to_options().items() if name not in self.OWN}

    def free(self) -> frozenset[str]:
        """Names of the fields that do not change this run's numbers."""
        return self.FREE


LARGEST = 2**53  # of whole numbers: what a float still holds

# name -> (lowest value, whether that value itself is allowed)
Bounds = Mapping[str, tuple[float, bool]]


def check_bounds(options: Mapping[str, Any], bounds: Bounds) -> None:
    """Raises FastnasError if an option lies below its bound or is absurdly large; None and "auto" are not."""
    for name, (low, inclusive) in bounds.items():
        value = options[name]
        if value is None or value == "auto":
            continue
        finite = isinstance(value, int) or math.isfinite(value)
        if not finite or value < low or (value == low and not inclusive):
            bound = "at least" if inclusive else "a finite number greater than"
            raise FastnasError(f"{flag(name)} must be {bound} {low:g}, got {shorten(value)}")
        if isinstance(value, int) and value > LARGEST:
            raise FastnasError(f"{flag(name)} must be at most 2**53, got {shorten(value)}")


def check_choices(options: Mapping[str, Any], choices: Mapping[str, Collection[str]]) -> None:
    """Raises FastnasError if an option is none of its choices."""
    for name, known in choices.items():
        if options[name] not in known:
            raise FastnasError(f"unknown {flag(name)[2:]} {options[name]!r}; known are {', '.join(known)}")


def check_below_one(options: Mapping[str, Any], names: Collection[str]) -> None:
    """Raises FastnasError if one of these options is not below 1; None is."""
    for name in names:
        if options[name] is not None and not options[name] < 1:
            raise FastnasError(f"{flag(name)} must be less than 1, got {options[name]}")


def filled(value: Filled | None) -> Filled:
    """A value of a resolved configuration, which has no default any more."""
    assert value is not None
    return value


def flag(name: str) -> str:
    """The flag of the option ``name``.

    >>> flag("batch_size")
    '--batch-size'
    """
    return f"--{name.replace('_', '-')}"


_UNIONS = (types.UnionType, typing.Union)  # of classes, and of whatever else


def _typed(name: str, value: Any, hint: Any) -> Any:
    """``value`` as the field's type: exact, but for int -> float and str -> Path."""
    allowed = typing.get_args(hint) if typing.get_origin(hint) in _UNIONS else (hint,)
    if type(value) in allowed or (value is None and type(None) in allowed):
        return value
    words = [word for t in allowed if typing.get_origin(t) is Literal for word in typing.get_args(t)]
    if value in words:
        return value
    if tuple[str, ...] in allowed and _is_list_of_strings(value):
        return tuple(value)
    if Path in allowed and isinstance(value, str | Path):
        return Path(value)
    if float in allowed and type(value) is int and abs(value) <= LARGEST:
        return float(value)
    types_ = [t for t in allowed if typing.get_origin(t) is not Literal]
    expected = " or ".join([*map(_in_words, types_), *words])
    raise FastnasError(f"option {name} must be {expected}, got {shorten(value)}")


def _is_list_of_strings(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(item, str) for item in value)


def _in_words(allowed: Any) -> str:
    if typing.get_origin(allowed) is tuple:
        return "a list of strings"
    return "None" if allowed is type(None) else str(allowed.__name__)
