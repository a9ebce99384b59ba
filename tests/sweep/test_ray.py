"""Sweeps on a local Ray: searches share a GPU, fail, are stopped and killed, and end as if nothing had been."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
import ray

import fastnas
from fastnas.sweep import tuning
from fastnas.sweep.results import statistic
from fastnas.sweep.run import run_sweep
from tests.sweep.conftest import TINY

# As a shell starts a command in the foreground: with Ctrl-C not ignored.
DRIVER = (
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "from fastnas.sweep.__main__ import main; main()"
)
LONG = 25  # epochs, a few seconds: long enough to be stopped
FREE = ("seconds", "images_per_second", "peak_memory_bytes")


@pytest.fixture(scope="module")
def address():
    """A Ray with a GPU that is only a number: shares of it are given out as of any other."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(
        "local", num_cpus=4, num_gpus=1, include_dashboard=False, log_to_driver=False, logging_level="ERROR"
    )
    yield ray.get_runtime_context().gcs_address
    ray.shutdown()


@pytest.fixture
def at_once(monkeypatch):
    """How many trials run, each time that one begins."""
    seen = []

    class Watching(tuning.Progress):
        def on_trial_start(self, iteration, trials, trial, **info):
            seen.append(1 + sum(one.status == "RUNNING" for one in trials))  # the others, so far

    monkeypatch.setattr(tuning, "Progress", Watching)
    return seen


def rows(run):
    """The metrics of a run, without what differs between any two."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in FREE} for line in lines]


def test_two_searches_share_a_gpu_and_a_failing_one_is_a_line(address, tiny, tmp_path, at_once, capsys):
    out = tmp_path / "sweep"
    sweep = tiny(
        grid={"learning_rate": [0.025, 1e30]},
        seeds=[0, 1],
        resources={"gpus": 0.5},
        search={"device": "cpu"},
        report=["val_loss"],
    )
    text, failed = run_sweep(sweep, out)
    assert failed
    assert text.endswith(f"next:     python -m fastnas.report {out}")
    assert max(at_once) == 2
    assert text.count("NaN or infinity") == 2
    names = [f"learning-rate-0.025_seed-{seed}" for seed in (0, 1)]
    values = [rows(out / "trials" / name)[-1]["val_loss"] for name in names]
    good, bad = json.loads((out / "results.json").read_text())["rows"]
    assert good["metrics"]["val_loss"] == vars(statistic(values))
    assert not good["failed"]
    assert bad["metrics"]["val_loss"]["n"] == 0
    assert len(bad["failed"]) == 2
    shown = capsys.readouterr().out
    assert "4/4  " in shown
    assert shown.count("failed: ") == 2
    same = fastnas.search(**{**TINY, "seed": 1, "threads": 1, "device": "cpu", "out": tmp_path / "alone"})
    assert [{k: v for k, v in row.items() if k not in FREE} for row in same.metrics] == rows(
        out / "trials" / names[1]
    )


def test_stopped_and_killed_it_ends_as_if_undisturbed(address, written, tmp_path):
    out = tmp_path / "sweep"
    arguments = [
        str(written(grid={"epochs": [1, LONG]})),
        "--out",
        str(out),
        "--ray-address",
        address,
        "--max-concurrent",
        "1",
    ]
    first, second = out / "outcomes/epochs-1_seed-0.json", out / f"outcomes/epochs-{LONG}_seed-0.json"
    run = out / f"trials/epochs-{LONG}_seed-0"

    status, said = end(arguments, run, 2, signal.SIGINT)
    assert status == 130
    assert re.search(r"interrupted; to go on: python -m fastnas.sweep .* --resume$", said)
    assert first.exists()
    assert not second.exists()
    written_at, stopped = first.stat().st_mtime_ns, len(rows(run))

    end([*arguments, "--resume"], run, stopped + 2, signal.SIGKILL)
    assert not second.exists()
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, *arguments, "--resume"], capture_output=True, text=True, check=True
    )
    assert "1 of 2 searches had ended before" in done.stdout
    assert first.stat().st_mtime_ns == written_at
    alone = fastnas.search(
        **{**TINY, "epochs": LONG, "threads": 1, "device": "cpu", "out": tmp_path / "alone"}
    )
    assert rows(run) == rows(alone.out)
    assert json.loads(second.read_text())["row"] == json.loads(
        (run / "metrics.jsonl").read_text().splitlines()[-1]
    )


def end(arguments, run, epochs, number):
    """Sends signal ``number`` to a sweep once ``run`` has so many epochs; its status and what it said."""
    metrics = run / "metrics.jsonl"
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    give_up = time.monotonic() + 120
    while not (metrics.exists() and metrics.read_text().count("\n") >= epochs):
        assert driver.poll() is None, driver.stdout.read()
        assert time.monotonic() < give_up
        time.sleep(0.02)
    driver.send_signal(number)
    said, _ = driver.communicate(timeout=120)
    return driver.returncode, said.strip()
