"""One trial of a sweep: begun, gone on with, stopped, failed."""

import fcntl
import json
import signal
import threading
import time
from types import SimpleNamespace

import pytest
import torch

import fastnas
from fastnas.sweep.folder import Outcome, SweepFolder
from fastnas.sweep.trial import run_trial, stopped_by
from tests.sweep.conftest import TINY


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "outcomes").mkdir()
    return SweepFolder(tmp_path)


def test_its_outcome_is_what_its_run_measured(folder):
    run_trial(folder.path, "a", {**TINY, "epochs": 2, "device": "cpu"})
    rows = [json.loads(line) for line in (folder.run_of("a") / "metrics.jsonl").read_text().splitlines()]
    outcome = folder.outcome("a")
    assert outcome.row == rows[-1]
    assert outcome.seconds == sum(row["seconds"] for row in rows)
    assert outcome.peak_memory_bytes == rows[-1]["peak_memory_bytes"]
    assert outcome.sentence is None


def test_after_an_early_stop_the_row_is_that_of_its_genotype(folder, monkeypatch):
    rows = [{"epoch": epoch, "seconds": 1.0, "peak_memory_bytes": 7} for epoch in (1, 2, 3)]
    result = SimpleNamespace(metrics=rows, stop=SimpleNamespace(epoch=2))
    monkeypatch.setattr(fastnas, "search", lambda **options: result)
    run_trial(folder.path, "a", {})
    assert folder.outcome("a") == Outcome(row=rows[1], seconds=3.0, peak_memory_bytes=7)


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (fastnas.FastnasError("the data is not there"), "the data is not there"),
        (torch.OutOfMemoryError("CUDA out of memory.\nTried"), "OutOfMemoryError: CUDA out of memory. Tried"),
    ],
)
def test_whatever_ends_it_is_a_sentence(folder, monkeypatch, error, sentence):
    def fails(**options):
        raise error

    monkeypatch.setattr(fastnas, "search", fails)
    run_trial(folder.path, "a", {})
    assert folder.outcome("a") == Outcome(sentence=sentence)


def test_the_stop_file_is_ctrl_c(folder, monkeypatch):
    def waits(**options):
        folder.stop_file.touch()
        for _ in range(3000):  # steps: between two of them it is seen
            time.sleep(0.01)
        pytest.fail("nothing came")

    monkeypatch.setattr(fastnas, "search", waits)
    run_trial(folder.path, "a", {})
    assert folder.outcome("a") is None


def test_no_stop_file_is_no_ctrl_c_and_the_handler_is_put_back(tmp_path):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with stopped_by(tmp_path / "stop", every=0.01):
            assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
            time.sleep(0.05)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_it_waits_for_a_process_that_leaves_the_run(folder, monkeypatch):
    """As one of a killed sweep does."""
    run, taken = folder.run_of("a"), []
    run.mkdir(parents=True)
    other = (run / ".lock").open("w")
    fcntl.flock(other, fcntl.LOCK_EX)

    def searches(**options):
        taken.append(other.closed)
        raise KeyboardInterrupt

    monkeypatch.setattr(fastnas, "search", searches)
    threading.Timer(0.3, other.close).start()
    run_trial(folder.path, "a", {})
    assert taken == [True]
