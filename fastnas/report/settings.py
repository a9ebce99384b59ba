"""What a run was told, and how to make it again."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import fields
from functools import cache
from typing import Any, get_type_hints

from fastnas.data import default_augment
from fastnas.errors import FastnasError
from fastnas.report.read import KINDS, Run
from fastnas.retrain.config import RetrainConfig
from fastnas.runs.options import flag
from fastnas.runs.recipes import RECIPES
from fastnas.search.config import SearchConfig

# Where a run lies and runs: no choice of the experiment's.
PLACE = ("device", "threads", "out", "resume")
# The defaults of other options depend on these.
_DECIDING = ("space", "dataset", "method", "primitives", "consistency", "learning_rate")
_MODULES = {kind: command for command, kind in KINDS.items()}


def defaults_of(run: Run) -> dict[str, Any]:
    """What the options would be if only the space, the data and the method had been said."""
    if run.kind == "retrain":
        recipe = RECIPES.get(str(run.config.get("recipe")))
        augment = default_augment(str(run.config.get("dataset")))
        of_data = {"crop_padding": augment.crop_padding, "flip": augment.flip}
        return _json_like({**RetrainConfig().to_options(), **of_data, **(recipe.options if recipe else {})})
    given = {name: run.config[name] for name in _DECIDING if name in run.config}
    try:
        return _json_like(SearchConfig.from_options(given).resolved().to_options())
    except FastnasError:  # a space that is not known here, say
        return _json_like(SearchConfig().to_options())


def options_of(run: Run) -> tuple[dict[str, Any], dict[str, Any]]:
    """The options other than the defaults, and the rest; those that say where it ran are in neither."""
    defaults = defaults_of(run)
    told = ("space", "dataset", "method", "genotype", "recipe")
    chosen = {
        name: value
        for name, value in run.config.items()
        if name not in ("seed", *PLACE) and (name in told or value != defaults.get(name))
    }
    first = {name: chosen[name] for name in told if chosen.get(name) is not None}
    rest = {name: value for name, value in run.config.items() if name not in ("seed", *PLACE, *chosen)}
    return {**first, **{name: chosen[name] for name in sorted(set(chosen) - set(told))}}, rest


def command_of(run: Run) -> str:
    """What to type to make the run again, on the same number of threads, into a new folder."""
    chosen, _ = options_of(run)
    named = {**chosen, "seed": run.config.get("seed", 0)}
    if run.config.get("threads") is not None:
        named["threads"] = run.config["threads"]
    words = [word for name, value in named.items() for word in _words(name, value)]
    return shlex.join(["python", "-m", _MODULES[run.kind], *words])


def origin_of(run: Run) -> dict[str, str]:
    """Versions, machine and time of a run, as far as its folder says."""
    told = {**run.versions, **{name: v for name, v in run.provenance.items() if name != "arguments"}}
    own = {
        name: run.config[name] for name in ("seed", "threads", "device") if run.config.get(name) is not None
    }
    return {name: written(value) for name, value in {**own, **told}.items() if value is not None}


def typed(run: Run) -> str | None:
    """The command line by which it was started; None: it is not known."""
    arguments = run.provenance.get("arguments")
    if not isinstance(arguments, list) or not all(isinstance(word, str) for word in arguments):
        return None
    return shlex.join(["python", "-m", _MODULES[run.kind], *arguments])


def result_of(run: Run) -> dict[str, str]:
    """What a retraining found that no other part of its report says."""
    said = {*run.config, *run.versions, "genotype"}
    return {
        name: f"{value:.6g}" if isinstance(value, float) else written(value)
        for name, value in run.result.items()
        if name not in said
    }


def written(value: Any) -> str:
    """An option's value as a table has it.

    >>> written(["a", "b"]), written(None), written(0.025)
    ('a b', 'none', '0.025')
    """
    if value is None:
        return "none"
    if isinstance(value, list | tuple):
        return " ".join(map(str, value))
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict) else str(value)


def _words(name: str, value: Any) -> list[str]:
    if isinstance(value, bool) and name not in _three_valued():
        return [flag(name) if value else flag(f"no_{name}")]
    if isinstance(value, list):
        return [flag(name), *map(str, value)]
    return [flag(name), "None" if value is None else str(value)]


@cache
def _three_valued() -> frozenset[str]:
    """Options that are True, False or None: their flags take a word, those of the other bools none."""
    groups = [group.default_factory for of in (SearchConfig, RetrainConfig) for group in fields(of)]
    hints = {name: hint for group in groups for name, hint in get_type_hints(group).items()}
    return frozenset(name for name, hint in hints.items() if hint == bool | None)


def _json_like(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in options.items()}
