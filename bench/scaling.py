"""``python -m bench.scaling``: data-parallel search steps by gloo, over several processes of one thread each.

Strong scaling shares one batch out among more processes, weak scaling gives each one its own batch of that size.
Every process is one rank of ``fastnas.runs.ranks``, and what is timed is ``SearchStep`` itself. A step takes as long
as on the slowest rank. Beside it: one all-reduce of as many numbers as the supernet has weights, and the model of
``bench.scaling_model`` for GPUs, which is no measurement (docs/scaling.md).
"""

from __future__ import annotations

import json
import multiprocessing
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import tyro

from bench.contenders import CLASSES
from bench.measure import environment, spread
from bench.scaling_model import Links, model_table
from fastnas._command import clear_errors
from fastnas.bilevel import METHODS, InnerSettings
from fastnas.errors import FastnasError
from fastnas.runs.ranks import Ranks
from fastnas.search.step import SearchStep
from fastnas.spaces import make_space
from fastnas.supernet import Batch, build_supernet

RESULT = Path(__file__).parent / "results" / "scaling.json"
DESCRIPTION = """Times search steps by 1, 2, ... processes of one thread each that meet by gloo: strong scaling (one
batch shared out) and weak scaling (a batch for each), and an all-reduce of the supernet's weights."""
REDUCTION = "all-reduce"
RATE = 0.025
# Of the model in docs/scaling.md: DARTS' search supernet, C = 16, 8 cells.
MODELLED_SPACE = 16, 8
OWN_TIMES, PROCESSES = (0.1, 1.0), (8, 64)
LINKS = (Links(10e9), Links(100e9))


@dataclass(frozen=True)
class ScalingConfig:
    """What to run, and how often."""

    processes: tuple[int, ...] = (1, 2)
    """Numbers of processes; the first is what the others are compared with."""
    methods: tuple[str, ...] = ("first-order", "darts", "idarts")
    """Entries of fastnas.bilevel.METHODS."""
    channels: int = 16
    """C, channels of the first cells of the DARTS supernet."""
    layers: int = 8
    """Its cells."""
    batch_size: int = 16
    """Strong scaling: images of all processes together; weak: of each."""
    image_size: int = 32
    """Side of the images in pixels."""
    rounds: int = 3
    """Timed steps."""
    warmup: int = 1
    """Steps before them."""
    model: bool = False
    """Print the model for GPUs and measure nothing."""
    json: bool = False
    """Print the result as JSON."""
    write: bool = False
    """Write it to bench/results/scaling.json, too."""

    def check(self) -> None:
        """Raises FastnasError for what cannot be run."""
        least = {"channels": 2, "layers": 1, "batch_size": 1, "image_size": 8, "rounds": 1, "warmup": 0}
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise FastnasError(f"{name} must be at least {bound}, got {getattr(self, name)}")
        if not self.processes or min(self.processes) < 1:
            raise FastnasError("processes must be numbers of at least 1")
        for size in self.processes:
            Ranks(0, size).check_divides(self.batch_size)
        for name in self.methods:
            if name not in METHODS:
                raise FastnasError(f"unknown method {name!r}; known are {', '.join(METHODS)}")


def measure(config: ScalingConfig) -> dict[str, Any]:
    """The measurement.

    Returns:
        ``rows``: one for each scaling ("strong", "weak", or ``REDUCTION``), method and number of processes, with
        median, p20 and p80 in seconds and ``efficiency``: of strong scaling t_first n_first / (t n), of weak scaling
        t_first / t. ``weights``, ``configuration``, ``environment``.

    Raises:
        FastnasError: a wrong configuration.
    """
    config.check()
    found = {size: _on_ranks(size, config) for size in config.processes}
    rows: list[dict[str, Any]] = []
    for name in next(iter(found.values())):
        first: float | None = None
        for size, times in found.items():
            scaling, _, method = name.partition(" ")
            of_rounds = spread(times[name])
            work = of_rounds["median"] * (size if scaling == "strong" else 1)
            first = first or work
            efficiency = None if scaling == REDUCTION else first / work
            rows.append(
                {
                    "scaling": scaling,
                    "method": method,
                    "processes": size,
                    **of_rounds,
                    "efficiency": efficiency,
                }
            )
    return {
        "rows": rows,
        "weights": len(_step(config, "first-order", Ranks()).net.weights),
        "configuration": vars(config),
        "environment": environment() | {"threads": 1},
    }


def _on_ranks(size: int, config: ScalingConfig) -> dict[str, list[float]]:
    """What ``_timed`` gives on ``size`` processes, of each round the slowest rank's."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["bench.scaling"])
    with tempfile.TemporaryDirectory() as folder:
        arguments = [(Path(folder), Ranks(rank, size), config) for rank in range(size)]
        started = [context.Process(target=_rank, args=some) for some in arguments]
        for process in started:
            process.start()
        for process in started:
            process.join()
        if any(process.exitcode for process in started):
            raise FastnasError(
                f"one of {size} processes ended by itself; what it printed above says why, and fewer take less memory"
            )
        times = [json.loads((Path(folder) / f"{rank}.json").read_text()) for rank in range(size)]
    return {name: [max(of) for of in zip(*(row[name] for row in times), strict=True)] for name in times[0]}


def _rank(folder: Path, ranks: Ranks, config: ScalingConfig) -> None:
    """One process: times everything, leaves it in ``folder``."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder / 'meeting'}", rank=ranks.rank, world_size=ranks.size
    )
    (folder / f"{ranks.rank}.json").write_text(json.dumps(_timed(ranks, config)))
    dist.destroy_process_group()


def _timed(ranks: Ranks, config: ScalingConfig) -> dict[str, list[float]]:
    """Seconds of every round, by name: "strong METHOD", "weak METHOD", and ``REDUCTION``."""
    times: dict[str, list[float]] = {}
    for scaling in ("strong", "weak"):
        images = config.batch_size // (ranks.size if scaling == "strong" else 1)
        for method in config.methods:
            step = _step(config, method, ranks)
            batches = [_batch(config, images, ranks, i) for i in range(METHODS[method].inner_steps + 1)]
            times[f"{scaling} {method}"] = _rounds(
                lambda step=step, batches=batches: step(batches[1:], batches[0], RATE),
                ranks,
                config,
            )
    flat = torch.ones_like(step.net.weights.flat)
    times[REDUCTION] = _rounds(lambda: ranks.average_(flat), ranks, config)
    return times


def _rounds(function: Any, ranks: Ranks, config: ScalingConfig) -> list[float]:
    found = []
    for turn in range(config.warmup + config.rounds):
        ranks.most([0])  # all begin together
        start = time.perf_counter()
        function()
        if turn >= config.warmup:
            found.append(time.perf_counter() - start)
    return found


def _step(config: ScalingConfig, method: str, ranks: Ranks) -> SearchStep:
    torch.manual_seed(0)
    net = build_supernet(make_space("darts", channels=config.channels, layers=config.layers))
    settings = InnerSettings(learning_rate=RATE, momentum=0.9, weight_decay=3e-4)
    return SearchStep(net, METHODS[method], settings, ranks=ranks)


def _batch(config: ScalingConfig, images: int, ranks: Ranks, number: int) -> Batch:
    generator = torch.Generator().manual_seed(1 + number * ranks.size + ranks.rank)
    size = config.image_size
    return (
        torch.randn(images, 3, size, size, generator=generator),
        torch.randint(CLASSES, (images,), generator=generator),
    )


def table(result: dict[str, Any]) -> str:
    """``measure``'s result for a reader, in Markdown."""
    c, e = result["configuration"], result["environment"]
    lines = [
        f"Search steps on DARTS' supernet, C = {c['channels']}, {c['layers']} cells, {result['weights']:,} weights, "
        f"batch {c['batch_size']} of {c['image_size']}x{c['image_size']} (strong: all processes together, weak: each), "
        f"float32, gloo, one thread a process; {e['device']}, torch {e['torch']}, fastnas {e['fastnas']} "
        f"({e['commit']}), {e['date']}. Medians of {c['rounds']} rounds of the slowest process.",
        "",
        "| scaling | method | processes | seconds | p20 | p80 | efficiency |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in result["rows"]:
        median, p20, p80 = (f"{row[key]:.3g}" for key in ("median", "p20", "p80"))
        share = "" if row["efficiency"] is None else f"{row['efficiency']:.0%}"
        lines.append(
            f"| {row['scaling']} | {row['method']} | {row['processes']} | {median} | {p20} | {p80} | {share} |"
        )
    return "\n".join(lines) + "\n"


def model() -> str:
    """The model's table of docs/scaling.md."""
    channels, layers = MODELLED_SPACE
    net = build_supernet(make_space("darts", channels=channels, layers=layers), backend="reference")
    return model_table(len(net.weights), len(net.alphas), OWN_TIMES, PROCESSES, LINKS)


def main(arguments: list[str] | None = None) -> None:
    """Parses the flags, measures, prints."""
    with clear_errors():
        config = tyro.cli(
            ScalingConfig,
            prog="python -m bench.scaling",
            description=DESCRIPTION,
            args=sys.argv[1:] if arguments is None else arguments,
        )
        if config.model:
            print(model(), end="")
            return
        result = measure(config)
        text = json.dumps(result, indent=1) + "\n"
        print(text if config.json else table(result), end="")
        if config.write:
            RESULT.write_text(text)


if __name__ == "__main__":
    main()
