"""``python -m bench.breakdown``: where the time of one forward + backward of the fused supernet goes.

Seconds, calls, flops and bytes of a native op are those that it keeps itself (``bench.native_work``). The time of the
op ``cell`` beside them is what its buffers and calls take. torch's ops (``aten::``) outside of it are torch.profiler's:
stem, head, loss, softmax, the running statistics, and cells that are not fused. What is left of the wall time is
Python and autograd.

2 flops are a multiply-add; each tensor counts as read or written once. Peaks are measured on this machine before and
after, and the better is taken: of flops ``torch.mm`` of two float32 matrices of 2048 x 2048 ("sgemm", what a tuned
library reaches, not what the circuits could do), of bytes ``copy_`` of 256 MiB (read and written: 512 MiB; the
memory's, so an op whose tensors lie in the caches can be above it).
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from torch.profiler import ProfilerActivity, profile

from bench.contenders import Contest, fastnas_function, fastnas_model, full_float32, vanilla_model
from bench.measure import Function, alternate, environment, spread
from bench.native_work import Work, native_work
from fastnas._command import clear_errors
from fastnas.errors import FastnasError
from fastnas.spaces import make_space

DESCRIPTION = """Where the time of one forward + backward of the fused supernet goes, op by op: seconds, share, GFLOP/s
and GB/s against the peaks that this machine reaches."""

IN_CELLS = "cells: buffers and calls"
OUTSIDE = "torch: outside of the cells"
REST = "Python and autograd"


@dataclass(frozen=True)
class BreakdownConfig:
    """What to run, and how often."""

    space: str = "darts"
    """Search space: darts or nasbench201."""
    channels: int = 16
    """C, channels of the first cells."""
    layers: int | None = None
    """Number of cells (nasbench201: N, cells in each of the three stages); None: 8 (5)."""
    batch_size: int = 16
    """Images in a minibatch."""
    image_size: int = 32
    """Side of the images in pixels."""
    threads: int | None = None
    """Threads of the CPU; None: torch's own choice."""
    rounds: int = 5
    """Profiled calls, and as many without the profiler."""
    warmup: int = 1
    """Calls before them."""
    seed: int = 0
    """Of weights, alphas and batches."""
    out: Path | None = None
    """Folder for breakdown.json and breakdown.md; None: print only."""

    def check(self) -> Contest:
        """What is run; FastnasError for what cannot be."""
        fields = {field.name for field in dataclasses.fields(Contest)}
        contest = Contest(**{name: value for name, value in vars(self).items() if name in fields})
        contest.check()
        make_space(self.space, channels=self.channels, layers=contest.depth)
        for name, bound in {"rounds": 1, "warmup": 0, "threads": 1}.items():
            value = getattr(self, name)
            if value is not None and value < bound:
                raise FastnasError(f"{name} must be at least {bound}, got {value}")
        if self.out is not None and any(path.is_file() for path in (self.out, *self.out.parents)):
            raise FastnasError(f"out must be a folder, but {self.out} is a file or in one")
        return contest


# ---------------------------------------------------------------------------- this machine's peaks


@dataclass(frozen=True)
class Peaks:
    """What this machine reaches with the threads in use.

    Attributes:
        flops: a second, of ``torch.mm`` in float32.
        bytes: a second, of ``copy_``.
    """

    flops: float
    bytes: float


def measure_peaks(side: int = 2048, mebibytes: int = 256, rounds: int = 5) -> Peaks:
    """The best of ``rounds`` matrix products and copies."""
    a, b = torch.rand(side, side), torch.rand(side, side)
    product = torch.empty(side, side)
    source = torch.zeros(mebibytes << 18)
    target = torch.zeros_like(source)
    times = alternate(
        {"mm": lambda: torch.mm(a, b, out=product), "copy": lambda: target.copy_(source)}, rounds, warmup=1
    )
    return Peaks(2 * side**3 / min(times["mm"]), 2 * 4 * source.numel() / min(times["copy"]))


# ---------------------------------------------------------------------------- the times


@dataclass(frozen=True)
class Profile:
    """One call: its wall time in seconds, what each native op did, and the seconds spent beside them."""

    wall: float
    work: Mapping[str, Work]
    beside: Mapping[str, float]


def profiled(function: Function) -> Profile:
    """Runs it once under torch's profiler."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        start = time.perf_counter()
        work = native_work(function)
        wall = time.perf_counter() - start
    native, outside = 0.0, 0.0
    for event in profiler.events() or []:
        if any(name.startswith("fastnas::") for name in ancestors(event)):
            continue  # part of it
        if event.name.startswith("fastnas::"):
            native += event.cpu_time_total / 1e6
        elif event.name.startswith("aten::"):
            outside += event.self_cpu_time_total / 1e6
    in_kernels = sum(part.seconds for part in work.values())
    return Profile(wall, work, {IN_CELLS: native - in_kernels, OUTSIDE: outside})


def ancestors(event: Any) -> list[str]:
    """Names of the events around a profiler's event."""
    names = []
    while (event := event.cpu_parent) is not None:
        names.append(event.name)
    return names


def rows_of(profiles: Sequence[Profile], peaks: Peaks) -> list[dict[str, Any]]:
    """A row per native op, longest first, then the rest; seconds are means of a call.

    Returns:
        ``name``, ``calls``, ``seconds``, ``share`` of the wall time, and for native ops ``gflops``, ``gbytes`` (a
        second), ``flops_share`` and ``bytes_share`` of the peaks; None where it is not counted.
    """
    count = len(profiles)
    wall = sum(p.wall for p in profiles) / count
    rows: list[dict[str, Any]] = []
    for name, once in profiles[0].work.items():
        seconds = sum(p.work[name].seconds for p in profiles) / count
        flops, moved = once.flops / seconds, once.bytes / seconds
        rates = {"gflops": flops / 1e9, "gbytes": moved / 1e9}
        rates |= {"flops_share": flops / peaks.flops, "bytes_share": moved / peaks.bytes}
        rows.append({"name": name, "calls": once.calls, "seconds": seconds, "share": seconds / wall} | rates)
    rows.sort(key=lambda row: -row["seconds"])
    others = {name: sum(p.beside[name] for p in profiles) / count for name in (IN_CELLS, OUTSIDE)}
    others[REST] = wall - sum(row["seconds"] for row in rows) - sum(others.values())
    blank = dict.fromkeys(("gflops", "gbytes", "flops_share", "bytes_share"))
    for name, seconds in others.items():
        rows.append({"name": name, "calls": None, "seconds": seconds, "share": seconds / wall} | blank)
    return rows


def measure(config: BreakdownConfig) -> dict[str, Any]:
    """Run, count and time.

    Returns:
        ``rows`` (of ``rows_of``); ``wall_s``: median, p20 and p80 of a call without the profiler; ``profiled_s``:
        mean of a profiled one, what shares refer to; ``work``: flops and bytes of a call, by op; ``peaks``;
        ``configuration``, ``environment``.

    Raises:
        FastnasError: a wrong configuration.
    """
    contest = config.check()
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    full_float32()
    before = measure_peaks()
    function = fastnas_function(contest, fastnas_model(contest, "fused", vanilla_model(contest)))
    for _ in range(config.warmup):
        profiled(function)
    plain: list[float] = []
    profiles = []
    for _ in range(config.rounds):
        plain += alternate({"plain": function}, 1, 0)["plain"]
        profiles.append(profiled(function))
    after = measure_peaks()
    peaks = Peaks(max(before.flops, after.flops), max(before.bytes, after.bytes))
    return {
        "rows": rows_of(profiles, peaks),
        "wall_s": spread(plain),
        "profiled_s": sum(p.wall for p in profiles) / len(profiles),
        "work": {name: dataclasses.asdict(work) for name, work in profiles[0].work.items()},
        "peaks": dataclasses.asdict(peaks),
        "configuration": vars(config) | {"layers": contest.depth, "out": None},
        "environment": environment(),
    }


# ---------------------------------------------------------------------------- the table


def table(result: dict[str, Any]) -> str:
    """``measure``'s result as Markdown."""
    c, e, peaks, wall = (result[key] for key in ("configuration", "environment", "peaks", "wall_s"))
    head = ["", "calls", "ms", "share", "GFLOP/s", "of sgemm", "GB/s", "of copy"]
    lines = [head, ["---", *["---:"] * (len(head) - 1)]]
    for row in result["rows"]:
        name = row["name"] if row["name"] in (IN_CELLS, OUTSIDE, REST) else f"`{row['name']}`"
        lines.append(
            [
                name,
                cell(row["calls"], "d"),
                cell(1e3 * row["seconds"], ".1f"),
                cell(row["share"], ".1%"),
                cell(row["gflops"], ".1f"),
                cell(row["flops_share"], ".0%"),
                cell(row["gbytes"], ".1f"),
                cell(row["bytes_share"], ".0%"),
            ]
        )
    lines.append(["all", "", cell(1e3 * result["profiled_s"], ".1f"), "100.0%", "", "", "", ""])
    return "\n".join(
        [
            f"forward + backward on {c['space']}, C = {c['channels']}, {c['layers']} layers,"
            f" batch {c['batch_size']} of {c['image_size']}x{c['image_size']}, float32, fused;"
            f" {e['device']}, {e['threads']} threads, torch {e['torch']}, fastnas {e['fastnas']} ({e['commit']}).",
            "",
            f"{1e3 * wall['median']:.1f} ms a call (p20 {1e3 * wall['p20']:.1f}, p80 {1e3 * wall['p80']:.1f}),"
            f" {1e3 * result['profiled_s']:.1f} ms under the profiler, whose times these are: means of"
            f" {c['rounds']} calls. Peaks: {peaks['flops'] / 1e9:.0f} GFLOP/s (sgemm),"
            f" {peaks['bytes'] / 1e9:.1f} GB/s (copy).",
            "",
            *("| " + " | ".join(cells) + " |" for cells in lines),
        ]
    )


def cell(value: float | None, form: str) -> str:
    """A number, or "-" where there is none."""
    return "-" if value is None else format(value, form)


def main(arguments: list[str] | None = None) -> None:
    """Parses the flags, measures, prints and writes."""
    with clear_errors():
        config = tyro.cli(
            BreakdownConfig,
            prog="python -m bench.breakdown",
            description=DESCRIPTION,
            args=sys.argv[1:] if arguments is None else arguments,
        )
        result = measure(config)
        text = table(result) + "\n"
        if config.out is not None:
            config.out.mkdir(parents=True, exist_ok=True)
            (config.out / "breakdown.json").write_text(json.dumps(result, indent=1) + "\n")
            (config.out / "breakdown.md").write_text(text)
        print(text, end="")


if __name__ == "__main__":
    main()
