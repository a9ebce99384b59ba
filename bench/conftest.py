"""The benchmark rig: nothing runs without ``--benchmark-only``; with it, a table of speed-ups ends the run.

A benchmark says what it measured through ``benchmark.extra_info``:

    implementation    "vanilla", or a backend of fastnas; ratios are to the "vanilla" of the same group and case
    case              what was computed, e.g. "darts step, batch 16"
    peak_bytes        peak memory of one call, or None
    steps_per_epoch   search steps in an epoch of CIFAR-10's weight split, or None for what is no search step
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.measure import environment, spread

HERE = Path(__file__).resolve().parent
ROWS = pytest.StashKey[list[dict[str, Any]]]()
MIB = 1 << 20
# A peak below what the table shows, a scalar's bytes, says nothing as a ratio.
COMPARABLE = 0.05 * MIB


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("fastnas benchmarks")
    group.addoption("--batch-size", type=int, default=16, help="images in a minibatch (default 16)")
    group.addoption("--bench-device", default="cpu", help="cpu (default), cuda or cuda:N")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[ROWS] = []
    # A bare ``pytest --benchmark-only`` need not import the tests to find that they are no benchmarks.
    if (
        config.getoption("benchmark_only", default=False)
        and config.args_source is pytest.Config.ArgsSource.TESTPATHS
    ):
        config.args[:] = [str(HERE)]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep the benchmarks, or everything else."""
    wanted = bool(config.getoption("benchmark_only", default=False))

    def is_benchmark(item: pytest.Item) -> bool:
        return "benchmark" in getattr(item, "fixturenames", ()) and HERE in item.path.parents

    kept = [item for item in items if is_benchmark(item) == wanted]
    dropped = [item for item in items if is_benchmark(item) != wanted]
    if dropped:
        config.hook.pytest_deselected(items=dropped)
        items[:] = kept


@pytest.fixture(autouse=True)
def _remember(request: pytest.FixtureRequest) -> Iterator[None]:
    """Keep each benchmark's times for the closing table."""
    if "benchmark" not in request.fixturenames:
        yield
        return
    benchmark = request.getfixturevalue("benchmark")
    yield
    if benchmark.stats is not None and benchmark.stats.stats.data:
        row = {"group": benchmark.group or "", "case": benchmark.name, "implementation": benchmark.name}
        times = [float(t) for t in benchmark.stats.stats.data]
        request.config.stash[ROWS].append(row | benchmark.extra_info | {"times": times})


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    rows = config.stash[ROWS]
    if not rows:
        return
    e = environment(config.getoption("bench_device"))
    terminalreporter.section("speed-up and peak memory against plain PyTorch")
    terminalreporter.write_line(
        f"{e['device']}, {e['threads']} threads, torch {e['torch']},"
        f" fastnas {e['fastnas']} ({e['commit']}), {e['date']}"
    )
    for line in summary(rows):
        terminalreporter.write_line(line)
    terminalreporter.write_line("Each row was timed on its own: `python -m bench.speedup` takes turns.")


def summary(rows: list[dict[str, Any]]) -> list[str]:
    """The closing table, one line per implementation, grouped by group and case."""
    cases: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        cases.setdefault((row["group"], row["case"]), []).append(row)
    head = f"  {'':24}{'median ms':>12}{'p20':>12}{'p80':>12}{'speed-up':>10}{'peak MiB':>12}{'memory':>9}{'epoch':>10}"
    lines = []
    for (group, case), members in cases.items():
        lines += ["", f"{group}: {case}" if group else case, head]
        baseline = next((row for row in members if row["implementation"] == "vanilla"), None)
        lines += [summary_line(row, baseline) for row in members]
    return lines


def summary_line(row: dict[str, Any], baseline: dict[str, Any] | None) -> str:
    """One implementation's line; "-" for what was not measured or has nothing to be compared with."""
    times = spread(row["times"])
    speedup = memory = peak = epoch = "-"
    bytes_here = row.get("peak_bytes")
    if bytes_here is not None:
        peak = f"{bytes_here / MIB:.1f}"
    if baseline is not None:
        speedup = f"{spread(baseline['times'])['median'] / times['median']:.2f}x"
        if min(bytes_here or 0, baseline.get("peak_bytes") or 0) >= COMPARABLE:
            memory = f"{baseline['peak_bytes'] / bytes_here:.2f}x"
    if row.get("steps_per_epoch"):
        seconds = round(row["steps_per_epoch"] * times["median"])
        epoch = f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}"
    median, p20, p80 = (f"{1e3 * times[name]:.3f}" for name in ("median", "p20", "p80"))
    return f"  {row['implementation']:24}{median:>12}{p20:>12}{p80:>12}{speedup:>10}{peak:>12}{memory:>9}{epoch:>10}"
