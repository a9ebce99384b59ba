"""Random points: the same ones for the same seed, whatever else the sweep has."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

Distributions = Mapping[str, tuple[str, list[Any]]]
KINDS = ("choice", "uniform", "loguniform")


def check_distribution(value: Any, key: str, fail: Any) -> tuple[str, list[Any]]:
    """A distribution as a file has it, {loguniform: [LOW, HIGH]} or {choice: [...]}: kind and arguments.

    Args:
        value: of the file.
        key: names it in a sentence.
        fail: called with key and sentence if it is none; raises.
    """
    if not isinstance(value, dict) or len(value) != 1 or next(iter(value)) not in KINDS:
        fail(key, f"must be one of {', '.join(KINDS)} with a list, as {{uniform: [0, 1]}}, got {value!r}")
    (kind, arguments), *_ = value.items()
    if not isinstance(arguments, list) or not arguments:
        fail(key, f"must have a list behind {kind}, got {arguments!r}")
    if kind != "choice":
        numbers = [one for one in arguments if type(one) in (int, float) and math.isfinite(one)]
        positive = kind == "uniform" or all(one > 0 for one in numbers)
        if not (len(arguments) == len(numbers) == 2 and numbers[0] < numbers[1] and positive):
            above = "" if kind == "uniform" else " above 0"
            fail(key, f"must have two numbers{above} behind {kind}, the lower first, got {arguments!r}")
    return kind, arguments


def draw(distributions: Distributions, draws: int, seed: int) -> list[dict[str, Any]]:
    """``draws`` random points.

    >>> draw({"eta": ("uniform", [0, 1])}, 2, 0)
    [{'eta': 0.6369616873214543}, {'eta': 0.2697867137638703}]
    """
    generator = np.random.default_rng(seed)
    return [
        {option: _value(generator, *distribution) for option, distribution in distributions.items()}
        for _ in range(draws)
    ]


def _value(generator: np.random.Generator, kind: str, arguments: list[Any]) -> Any:
    if kind == "choice":
        return arguments[int(generator.integers(len(arguments)))]
    low, high = arguments
    if kind == "uniform":
        return float(generator.uniform(low, high))
    return float(math.exp(generator.uniform(math.log(low), math.log(high))))
