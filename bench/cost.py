"""``python -m bench.cost``: time and peak memory of a step against batch size, channels, layers, T and K.

One quantity moves at a time, the others stay at the base point. Batch size, channels and layers are measured on
one pass, forward + backward; T and K on a whole step of iDARTS, whose memory should not depend on them.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import tyro
from tqdm import tqdm

from bench.contenders import (
    FORWARD_BACKWARD,
    Contest,
    agreements,
    check_backend,
    fastnas_function,
    fastnas_model,
    full_float32,
    require_agreement,
    vanilla_function,
    vanilla_model,
)
from bench.cost_report import QUANTITIES, save_plot, tables
from bench.measure import Function, alternate, environment, peak_bytes, spread
from fastnas._command import clear_errors
from fastnas.errors import FastnasError
from fastnas.spaces import make_space

GIB = 1 << 30
DESCRIPTION = """Measures time and peak memory of fastnas and of plain PyTorch against batch size, channels, layers,
T and K, one at a time; writes cost.json, cost.md and cost.svg into --out and prints the tables."""


@dataclass(frozen=True)
class Base:
    """What the quantities that do not move are."""

    batch_size: int = 16
    """Images in a minibatch."""
    channels: int = 16
    """C, channels of the first cells."""
    layers: int | None = None
    """Number of cells (nasbench201: N, cells in each of the three stages); None: 8 (5)."""
    inner_steps: int = 4
    """T, weight steps of an idarts step."""
    neumann_terms: int = 2
    """K of idarts."""
    image_size: int = 32
    """Side of the images in pixels."""


@dataclass(frozen=True)
class Values:
    """The values of each quantity, in any order."""

    batch_size: tuple[int, ...] = (4, 8, 16, 32, 64)
    """Images in a minibatch."""
    channels: tuple[int, ...] = (4, 8, 16, 32)
    """C."""
    layers: tuple[int, ...] = (2, 4, 8, 16)
    """Cells."""
    inner_steps: tuple[int, ...] = (1, 2, 4, 8)
    """T."""
    neumann_terms: tuple[int, ...] = (0, 1, 2, 4, 8)
    """K."""


@dataclass(frozen=True)
class CostConfig:
    """What to vary and how to measure it."""

    vary: tuple[str, ...] = tuple(QUANTITIES)
    """Any of batch-size, channels, layers, inner-steps (T), neumann-terms (K)."""
    values: Values = field(default_factory=Values)
    base: Base = field(default_factory=Base)
    space: str = "darts"
    """Search space: darts or nasbench201."""
    method: str = FORWARD_BACKWARD
    """What batch-size, channels and layers are measured on: forward-backward, or a step of first-order, darts, amended
    or idarts. T and K are always measured on idarts."""
    backend: str = "fused"
    """The executor of fastnas: fused or reference."""
    vanilla: bool = True
    """Measure plain PyTorch too, after a check that both compute the same."""
    rounds: int = 3
    """Timed calls of each side at each point, after one that measures memory."""
    seconds_limit: float = 300.0
    """Leave out what would take longer than this a call, judged from the next smaller value."""
    memory_limit: float = 12.0
    """Leave out what would need more GiB than this, judged from the next smaller value."""
    device: str = "cpu"
    """cpu, cuda or cuda:N."""
    threads: int | None = None
    """Threads of the CPU; None: torch's own choice."""
    seed: int = 0
    """Of weights, alphas and batches."""
    out: Path = Path("bench/results")
    """Folder of the results."""

    @property
    def varied(self) -> list[str]:
        """``vary`` as the names of fields, once each, in the table's order."""
        wanted = {name.replace("-", "_") for name in self.vary}
        return [name for name in QUANTITIES if name in wanted]

    def contest(self, quantity: str | None = None, value: int = 0) -> Contest:
        """The base point, or what is measured where ``quantity`` is ``value``."""
        method = "idarts" if quantity in ("inner_steps", "neumann_terms") else self.method
        common = {"space": self.space, "device": self.device, "seed": self.seed, "method": method}
        moved = {} if quantity is None else {quantity: value}
        return Contest(**(dataclasses.asdict(self.base) | common | moved))

    def points(self) -> Iterator[tuple[str, int]]:
        """Every quantity's values, smallest first."""
        for quantity in self.varied:
            for value in sorted(set(getattr(self.values, quantity))):
                yield quantity, value

    def check(self) -> None:
        """Raise FastnasError for what cannot be measured, before anything is."""
        for name in self.vary:
            if name.replace("-", "_") not in QUANTITIES:
                known = ", ".join(known.replace("_", "-") for known in QUANTITIES)
                raise FastnasError(f"unknown quantity {name!r}; known are {known}")
        if not self.vary:
            raise FastnasError("nothing to vary; name at least one quantity after --vary")
        check_backend(self.backend)
        for name, bound in {"rounds": 1, "threads": 1}.items():
            number = getattr(self, name)
            if number is not None and number < bound:
                raise FastnasError(f"{name} must be at least {bound}, got {number}")
        for name in ("seconds_limit", "memory_limit"):
            if not getattr(self, name) > 0:
                raise FastnasError(f"{name} must be above 0, got {getattr(self, name)}")
        for quantity in self.varied:
            if not getattr(self.values, quantity):
                raise FastnasError(f"values.{quantity} is empty; give at least one value")
        for contest in (self.contest(), *(self.contest(*point) for point in self.points())):
            contest.check()
            make_space(self.space, channels=contest.channels, layers=contest.depth)
        try:
            self.out.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            file = next(path for path in (self.out, *self.out.parents) if path.is_file())
            raise FastnasError(f"out must be a folder, but {file} is a file") from None


# ---------------------------------------------------------------------------- one point


def idarts_passes(contest: Contest) -> int:
    """Forward + backward passes of one iDARTS step: weight steps, dL2/dw, K products H u, the mixed product."""
    return contest.inner_steps + 1 + 2 * contest.neumann_terms + 2


def growth(before: Contest, after: Contest, quantity: str) -> tuple[float, float]:
    """How many times the time and the memory of ``before`` the next point may take.

    Both are in proportion to batch size and layers; with channels memory is, and time at most squared. With T and
    K time follows the passes and memory stays.
    """
    if quantity in ("inner_steps", "neumann_terms"):
        return idarts_passes(after) / idarts_passes(before), 1.0
    times = getattr(after, quantity) / getattr(before, quantity)
    return (times**2 if quantity == "channels" else times), times


def functions_of(config: CostConfig, contest: Contest, names: list[str]) -> dict[str, Function]:
    """What is called at one point, by implementation; both start from the same weights."""
    model = vanilla_model(contest)
    functions: dict[str, Function] = {}
    if "fastnas" in names:
        functions["fastnas"] = fastnas_function(contest, fastnas_model(contest, config.backend, model))
    if "vanilla" in names:
        functions["vanilla"] = vanilla_function(contest, model)
    return functions


def measure_point(config: CostConfig, quantity: str, value: int, names: list[str]) -> list[dict[str, Any]]:
    """A row per implementation: peak memory of its first call, then times, taking turns."""
    contest = config.contest(quantity, value)
    functions = functions_of(config, contest, names)
    peaks = {name: peak_bytes(function, contest.device) for name, function in functions.items()}
    times = alternate(functions, config.rounds, 0, contest.device)
    return [
        {
            "quantity": quantity,
            "value": value,
            "implementation": name,
            "method": contest.method,
            "seconds": spread(times[name]),
            "times": times[name],
            "peak_bytes": peaks[name],
        }
        for name in functions
    ]


# ---------------------------------------------------------------------------- all of them


def affordable(config: CostConfig, row: dict[str, Any] | None, quantity: str, value: int) -> str | None:
    """Why a point is left out, judged from the row of the next smaller value; None: it is measured."""
    if row is None:
        return None
    time, memory = growth(config.contest(quantity, row["value"]), config.contest(quantity, value), quantity)
    if time * row["seconds"]["median"] > config.seconds_limit:
        return f"would take more than {config.seconds_limit:g} s a call"
    if memory * row["peak_bytes"] > config.memory_limit * GIB:
        return f"would need more than {config.memory_limit:g} GiB"
    return None


def verify(config: CostConfig) -> None:
    """Both sides compute the same at the base point; FastnasError where they do not."""
    contest = config.contest()
    model = vanilla_model(contest)
    require_agreement(agreements(contest, model, fastnas_model(contest, config.backend, model)))


def plain(config: CostConfig) -> dict[str, Any]:
    """The configuration as JSON holds it, the number of layers filled in."""
    settings = json.loads(json.dumps(dataclasses.asdict(config), default=str))
    settings["base"]["layers"] = config.contest().depth
    return settings


def measure(config: CostConfig) -> Iterator[dict[str, Any]]:
    """Measure every point.

    Yields:
        The result so far, after each quantity: ``rows`` (of ``measure_point``), ``left_out`` (quantity, value,
        implementation, reason), ``configuration``, ``environment``.

    Raises:
        FastnasError: a wrong configuration, or the two sides disagree.
    """
    config.check()
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    full_float32()
    if config.vanilla:
        verify(config)
    names = ["fastnas", "vanilla"] if config.vanilla else ["fastnas"]
    rows: list[dict[str, Any]] = []
    left_out: list[dict[str, Any]] = []
    result = {"rows": rows, "left_out": left_out, "configuration": plain(config)}
    points = list(config.points())
    with tqdm(points, "measuring", unit="point", disable=None) as bar:
        last: dict[tuple[str, str], dict[str, Any]] = {}
        for number, (quantity, value) in enumerate(bar):
            bar.set_postfix_str(f"{quantity.replace('_', '-')} {value}")
            chosen = []
            for name in names:
                reason = affordable(config, last.get((quantity, name)), quantity, value)
                if reason is None:
                    chosen.append(name)
                else:
                    left_out.append(
                        {"quantity": quantity, "value": value, "implementation": name, "reason": reason}
                    )
            for row in measure_point(config, quantity, value, chosen) if chosen else []:
                rows.append(row)
                last[quantity, row["implementation"]] = row
            if number + 1 == len(points) or points[number + 1][0] != quantity:
                yield result | {"environment": environment(config.device)}


def write(result: dict[str, Any], out: Path) -> None:
    """cost.json, cost.md and cost.svg."""
    (out / "cost.json").write_text(json.dumps(result, indent=1) + "\n")
    (out / "cost.md").write_text(tables(result))
    save_plot(result, out / "cost.svg")


def main(arguments: list[str] | None = None) -> None:
    """Parses the flags, measures, writes what there is after every quantity, prints."""
    with clear_errors():
        config = tyro.cli(
            CostConfig,
            prog="python -m bench.cost",
            description=DESCRIPTION,
            args=sys.argv[1:] if arguments is None else arguments,
        )
        for result in measure(config):
            write(result, config.out)
        print(tables(result), end="")


if __name__ == "__main__":
    main()
