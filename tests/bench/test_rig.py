"""The rig: benchmarks run when asked for, and end with a table."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from bench.conftest import summary

ROOT = Path(__file__).resolve().parents[2]


def run_pytest(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments]
    # A process among several that test would take no times.
    alone = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    return subprocess.run(command, cwd=ROOT, env=alone, capture_output=True, text=True, timeout=600)


@pytest.mark.parametrize("where", [["bench"], ["bench/bench_search_step.py"]])
def test_plain_pytest_collects_no_benchmark(where):
    done = run_pytest("--collect-only", *where)
    assert "test_search_step" not in done.stdout
    assert "deselected" in done.stdout
    assert done.returncode == (0 if where == ["bench"] else 5), done.stdout + done.stderr  # 5: nothing left


@pytest.mark.parametrize("where", [[], ["bench"], ["bench/bench_search_step.py"]])
def test_benchmark_only_collects_nothing_else(where):
    done = run_pytest("--collect-only", "--benchmark-only", *where)
    collected = [line for line in done.stdout.splitlines() if "::" in line]
    assert done.returncode == 0, done.stdout + done.stderr
    assert any("test_search_step[idarts-vanilla]" in line for line in collected)
    assert all(re.match(r"bench/bench_\w+\.py::test_\w+", line) for line in collected)


def test_a_run_ends_with_the_table_and_writes_json(tmp_path):
    report = tmp_path / "report.json"
    done = run_pytest(
        "bench/bench_search_step.py",
        "--benchmark-only",
        "--batch-size=2",
        "-k=forward-backward and (vanilla or reference)",
        f"--benchmark-json={report}",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    table = done.stdout[done.stdout.index("speed-up and peak memory") :]
    assert "search step: forward-backward, DARTS supernet C = 16, 8 cells, batch 2" in table
    rows = {line.split()[0]: line.split()[1:] for line in table.splitlines() if line.startswith("  ")}
    assert rows["vanilla"][3] == "1.00x"
    assert rows["vanilla"][5] == "1.00x"
    benchmarks = {b["extra_info"]["implementation"]: b for b in json.loads(report.read_text())["benchmarks"]}
    assert set(benchmarks) == {"vanilla", "reference"}
    for name, entry in benchmarks.items():
        assert entry["extra_info"]["batch_size"] == 2
        assert float(rows[name][0]) == pytest.approx(1e3 * entry["stats"]["median"], abs=1e-3)
        # 125.6 MB are kept for backward per image.
        assert 2 * 100e6 < entry["extra_info"]["peak_bytes"] < 2 * 200e6


def test_summary():
    def row(implementation: str, times: list[float], **info: object) -> dict[str, object]:
        return {"group": "g", "case": "c", "implementation": implementation, "times": times} | info

    rows = [
        row("vanilla", [2.0, 4.0, 6.0], peak_bytes=8 << 20, steps_per_epoch=1000),
        row("fused", [1.0, 1.0, 1.0], peak_bytes=2 << 20, steps_per_epoch=1000),
        row("bare", [0.5]),
        row("lean", [0.5], peak_bytes=8),
        row("alone", [0.5]) | {"case": "other"},
    ]
    lines = [line.split() for line in summary(rows)]
    assert lines[1] == ["g:", "c"]
    assert lines[3] == ["vanilla", "4000.000", "2800.000", "5200.000", "1.00x", "8.0", "1.00x", "1:06:40"]
    assert lines[4] == ["fused", "1000.000", "1000.000", "1000.000", "4.00x", "2.0", "4.00x", "0:16:40"]
    assert lines[5] == ["bare", "500.000", "500.000", "500.000", "8.00x", "-", "-", "-"]
    assert lines[6] == ["lean", "500.000", "500.000", "500.000", "8.00x", "0.0", "-", "-"]
    assert lines[10] == ["alone", "500.000", "500.000", "500.000", "-", "-", "-", "-"]
