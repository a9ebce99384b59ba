"""The searches that a sweep is: every point with every seed, each checked before anything runs."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from fastnas.errors import FastnasError
from fastnas.runs.options import flag
from fastnas.search.config import SearchConfig
from fastnas.sweep.description import Sweep
from fastnas.sweep.sampling import draw

MOST = 10_000  # searches in a sweep: more is a slip of the pen


@dataclass(frozen=True)
class Trial:
    """One search of a sweep.

    Attributes:
        name: its folder's: what varies, and the seed.
        config: resolved, but for folder and resumption.
    """

    name: str
    config: SearchConfig

    @property
    def options(self) -> dict[str, Any]:
        """Keywords of ``fastnas.search``."""
        return self.config.to_options()


@dataclass(frozen=True)
class Point:
    """A row of the results: options that vary, and a trial for each seed.

    Attributes:
        options: the value of each option that varies anywhere in the sweep, here.
        trials: one a seed.
    """

    options: dict[str, Any]
    trials: list[Trial]


def points_of(sweep: Sweep) -> list[Point]:
    """The points of a sweep in the file's order; points of one configuration, in two grids say, are one.

    Raises:
        FastnasError: a configuration that no search can have, and whose.
    """
    grids = sweep.grids or [{}]
    sizes = [math.prod(len(values) for values in grid.values()) for grid in grids]
    count = sum(sizes) * max(len(sweep.points), 1) * max(sweep.draws, 1) * len(sweep.seeds)
    if count > MOST:
        raise FastnasError(
            f"{sweep.name}: {count:,} searches are more than the {MOST:,} that a sweep may have"
        )
    varying = list(dict.fromkeys(option for options in _combinations(sweep) for option in options))
    found: dict[str, Point] = {}
    for options in _combinations(sweep):
        configs = [_config(sweep, options, seed) for seed in sweep.seeds]
        shown = {option: configs[0].to_options()[option] for option in varying}
        key = json.dumps(configs[0].to_options())
        found.setdefault(key, Point(shown, [Trial("", config) for config in configs]))
    return [_named(point, sweep.seeds, taken) for taken in [set[str]()] for point in found.values()]


def _combinations(sweep: Sweep) -> Iterator[dict[str, Any]]:
    draws = draw(sweep.random, sweep.draws, sweep.draw_seed) if sweep.draws else [{}]
    for grid in sweep.grids or [{}]:
        for values in itertools.product(*grid.values()):
            for point, drawn in itertools.product(sweep.points or [{}], draws):
                yield {**dict(zip(grid, values, strict=True)), **point, **drawn}


def _config(sweep: Sweep, options: dict[str, Any], seed: int) -> SearchConfig:
    """The resolved configuration of one trial."""
    device = {} if sweep.resources.gpus else {"device": "cpu"}
    given = {"threads": sweep.resources.cpus, **device, **sweep.search, **options, "seed": seed}
    try:
        config = SearchConfig.from_options(given).resolved()
    except FastnasError as error:
        raise FastnasError(f"{sweep.name}, {said(options) or 'search'}: {error}") from None
    if not sweep.resources.gpus and config.run.device != "cpu":
        raise FastnasError(
            f"{sweep.name}: {flag('device')} {config.run.device} needs a GPU, and resources: gpus is 0; give a share "
            "of one, for example resources: {gpus: 0.5}"
        )
    return config


def said(options: dict[str, Any]) -> str:
    """Options in a line.

    >>> said({"inner_steps": 4, "gamma": None})
    'inner_steps=4 gamma=None'
    """
    return " ".join(f"{option}={_word(value)}" for option, value in options.items())


def _word(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _named(point: Point, seeds: list[int], taken: set[str]) -> Point:
    """The same with the trials' names, readable and each there once."""
    words = [f"{option.replace('_', '-')}-{_word(value)}" for option, value in point.options.items()]
    name = re.sub(r"[^A-Za-z0-9._-]", "+", "_".join(words))
    if (
        len(name) > 120 or f"{name}".lower() in taken
    ):  # a file system's limit, or letters that it does not tell apart
        digest = hashlib.sha256(json.dumps(point.options).encode()).hexdigest()[:12]
        name = f"{name[:100]}_{digest}"
    taken.add(name.lower())
    names = [f"{name}_seed-{seed}" if name else f"seed-{seed}" for seed in seeds]
    return replace(
        point, trials=[replace(trial, name=name) for trial, name in zip(point.trials, names, strict=True)]
    )
