"""What a sweep's file says: fixed options, what varies, seeds, resources, what is reported."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from fastnas.errors import FastnasError
from fastnas.search.config import SearchConfig
from fastnas.sweep.document import parse, read_document
from fastnas.sweep.sampling import check_distribution

SECTIONS = ("search", "grid", "points", "random", "seeds", "resources", "report")
PAPERS = Path(__file__).with_name("papers")
# What the sweep itself gives every trial, and what it is given as instead.
GIVEN = {
    "seed": "seeds: [0, 1, 2] is the list of seeds",
    "out": "every trial has a folder of its own under the sweep's --out",
    "resume": "python -m fastnas.sweep ... --resume goes on with a whole sweep",
    "live": "python -m fastnas.report OUT --serve shows all of a sweep's searches while they run",
}
OPTIONS = tuple(SearchConfig().to_options())


@dataclass(frozen=True)
class Resources:
    """What one trial takes of the machine.

    Attributes:
        cpus: threads, unless search says threads.
        gpus: a share of one GPU, so that several small searches run on it at once, or 0, or 1.
    """

    cpus: int = 1
    gpus: float = 0.0


@dataclass(frozen=True)
class Sweep:
    """A sweep's file, checked by itself; ``fastnas.sweep.trials`` says what searches it is.

    Attributes:
        name: the file's, without .yaml.
        search: the options that all trials share.
        grids: the trials of one grid are all combinations of its lists; several grids are one after the other.
        points: explicit options; every combination of a grid is taken with each.
        random: option -> distribution, (kind, arguments), each of ``draws`` draws likewise.
        draws: how many.
        draw_seed: of the draws.
        seeds: every point is searched with each.
        resources: of one trial.
        report: columns of metrics, dotted where a row of metrics has mappings; empty: the usual one.
    """

    name: str
    search: dict[str, Any]
    grids: list[dict[str, list[Any]]]
    points: list[dict[str, Any]]
    random: dict[str, tuple[str, list[Any]]]
    draws: int
    draw_seed: int
    seeds: list[int]
    resources: Resources
    report: list[str]
    document: dict[str, Any]


def read_sweep(source: str | Path, overrides: tuple[str, ...] = ()) -> Sweep:
    """The sweep in a file, or that of a paper by its name.

    Args:
        source: a YAML file, or the name of one of ``papers()``.
        overrides: key=value each, an option of the search or a path as grid.gamma, resources.gpus or seeds; the value
            is YAML.

    Raises:
        FastnasError: the file is no sweep: which key is wrong, and why.
    """
    path = _found(source)
    where = str(source)
    document = read_document(path)
    if not isinstance(document, dict):
        raise FastnasError(f"{where} is no sweep: it must have the keys {', '.join(SECTIONS)}")
    for override in overrides:
        document = _overridden(document, override)
    return _checked(document, path.stem, where)


def papers() -> dict[str, Path]:
    """The sweeps of papers' tables and figures that come along, by name."""
    return {path.stem: path for path in sorted(PAPERS.glob("*.yaml"))}


def _found(source: str | Path) -> Path:
    known, path = papers(), Path(source)
    if not path.exists() and str(source) not in known:
        raise FastnasError(
            f"there is no sweep file {path}, and no paper's sweep of that name; there are {', '.join(known)}"
        )
    return path if path.exists() else known[str(source)]


def _overridden(document: Mapping[str, Any], override: str) -> dict[str, Any]:
    key, equals, text = override.partition("=")
    where = f"--override {override}"
    if not equals or not key:
        raise FastnasError(f"{where} must be KEY=VALUE, for example epochs=1 or resources.gpus=0.5")
    value, changed = parse(text, where), copy.deepcopy(dict(document))
    head, dot, rest = key.partition(".")
    if not dot and head not in SECTIONS:
        head, dot, rest = "search", ".", key
        if any(key in section for section in _varied(changed)):
            raise FastnasError(
                f"{where}: the sweep varies {key}; take --override grid.{key}=[VALUE] if a grid has it"
            )
    if head not in SECTIONS:
        raise FastnasError(
            f"{where}: unknown key {head!r}; known are {', '.join(SECTIONS)}, and every option"
        )
    if not dot:
        changed[head] = value
        return changed
    section = changed.setdefault(head, {})
    # Of several grids, those that have the option.
    holders = (
        [one for one in section if isinstance(one, dict) and rest in one]
        if isinstance(section, list)
        else [section]
    )
    if not holders or not all(isinstance(one, dict) for one in holders):
        raise FastnasError(f"{where}: {head} has no {rest}")
    for one in holders:
        one[rest] = value
    return changed


def _varied(document: Mapping[str, Any]) -> list[Any]:
    grid, random = document.get("grid"), document.get("random")
    found = [*_listed(grid), *_listed(document.get("points"))]
    return [*found, random.get("options", {}) if isinstance(random, dict) else {}]


def _listed(value: Any) -> list[Any]:
    return [one for one in (value if isinstance(value, list) else [value]) if isinstance(one, dict)]


def _checked(document: dict[str, Any], name: str, where: str) -> Sweep:
    def fail(key: str, sentence: str) -> NoReturn:
        raise FastnasError(f"{where}: {key} {sentence}")

    for key in document:
        if key not in SECTIONS:
            fail(f"key {key!r}", f"is unknown; known are {', '.join(SECTIONS)}")
    search = document.get("search", {})
    _check_options(search, "search", fail)
    grid = document.get("grid", [])
    if grid == [] and "grid" in document:
        fail("grid", "is an empty list: give a value, or leave the key out")
    grids = grid if isinstance(grid, list) else [grid]
    for one in grids:
        _check_options(one, "grid", fail, empty=False)
        for option, values in one.items():
            _check_list(values, f"grid: {option}", fail)
    points = document.get("points", [])
    if "points" in document:
        _check_list(points, "points", fail)
    for one in points:
        _check_options(one, "points", fail, empty=False)
    random = document.get("random")
    draws, draw_seed, distributions = _random(random, fail) if "random" in document else (0, 0, {})
    for one in grids:
        _check_apart(search, one, "search", "grid", fail)
        _check_apart(one, distributions, "grid", "random", fail)
        for point in points:
            _check_apart(one, point, "grid", "points", fail)
    for point in points:
        _check_apart(search, point, "search", "points", fail)
        _check_apart(point, distributions, "points", "random", fail)
    _check_apart(search, distributions, "search", "random", fail)
    seeds = document.get("seeds", [0])
    _check_list(seeds, "seeds", fail)
    for seed in seeds:
        if type(seed) is not int or not 0 <= seed < 2**32:
            fail("seeds", f"must be whole numbers of at least 0 and below 2**32, got {seed!r}")
    report = document.get("report", [])
    if "report" in document:
        _check_list(report, "report", fail)
    for column in report:
        if not isinstance(column, str):
            fail("report", f"must be a list of names of metrics, got {column!r}")
    resources = _resources(document.get("resources", {}), fail)
    return Sweep(
        name, search, grids, points, distributions, draws, draw_seed, seeds, resources, report, document
    )


def _check_options(options: Any, key: str, fail: Any, *, empty: bool = True) -> None:
    if not isinstance(options, dict):
        fail(key, f"must map options of a search to values, got {options!r}")
    if not options and not empty:
        fail(key, "is empty: name an option, or leave the key out")
    for option in options:
        if option in GIVEN:
            fail(key, f"must not have {option}: {GIVEN[option]}")
        if option not in OPTIONS:
            fail(
                key,
                f"has an unknown option {option!r}; known are {', '.join(sorted(set(OPTIONS) - set(GIVEN)))}",
            )


def _check_list(values: Any, key: str, fail: Any) -> None:
    if not isinstance(values, list):
        fail(key, f"must be a list, got {values!r}")
    if not values:
        fail(key, "is an empty list: give a value, or leave the key out")
    # 1, 1.0 and true are equal in Python, and different values here.
    texts = [repr(value) for value in values]
    for value, text in zip(values, texts, strict=True):
        if texts.count(text) > 1:
            fail(key, f"has {value!r} twice")


def _check_apart(one: Any, other: Any, name: str, its: str, fail: Any) -> None:
    for option in one:
        if option in other:
            fail(name, f"and {its} both have {option}: leave it out of one")


def _random(section: Any, fail: Any) -> tuple[int, int, dict[str, tuple[str, list[Any]]]]:
    """Draws, their seed and the distributions."""
    keys = ("draws", "seed", "options")
    if not isinstance(section, dict) or not {"draws", "options"} <= section.keys() <= set(keys):
        fail("random", f"must have the keys draws and options, and may have seed, got {section!r}")
    draws, seed = section["draws"], section.get("seed", 0)
    for key, value, low in (("draws", draws, 1), ("seed", seed, 0)):
        if type(value) is not int or value < low:
            fail(f"random: {key}", f"must be a whole number of at least {low}, got {value!r}")
    _check_options(section["options"], "random: options", fail, empty=False)
    found = {}
    for option, distribution in section["options"].items():
        found[option] = check_distribution(distribution, f"random: {option}", fail)
    return draws, seed, found


def _resources(section: Any, fail: Any) -> Resources:
    if not isinstance(section, dict) or not section.keys() <= {"cpus", "gpus"}:
        fail("resources", f"may have the keys cpus and gpus, got {section!r}")
    cpus, gpus = section.get("cpus", 1), section.get("gpus", 0)
    if type(cpus) is not int or cpus < 1:
        fail("resources: cpus", f"must be a whole number of at least 1, got {cpus!r}")
    if type(gpus) not in (int, float) or not (math.isfinite(gpus) and 0 <= gpus <= 1):
        fail(
            "resources: gpus",
            f"must be from 0 to 1 (a search runs on one GPU or a share of it), got {gpus!r}",
        )
    return Resources(cpus, float(gpus))
