"""Kill -9 at random moments: whatever a run was doing, it goes on and comes to the same, to the bit.

A quarter of the kills in ordinary tests; with ``FASTNAS_FUZZ=long``, as in ``make fuzz``, all 200.
"""

import os
import random
import shutil
import time

import pytest

from tests.corpora import write_corpus
from tests.runs.lives import life, live, same

SEARCH = {
    "channels": 2,
    "layers": 1,
    "images": 32,
    "batch_size": 4,
    "epochs": 2,
    "crop_padding": 1,
    "cutout": 2,
}
RETRAIN = {"genotype": "DARTS_V2", "channels": 2, "layers": 1, "images": 60, "batch_size": 8, "epochs": 2}
SHARE = 1 if os.environ.get("FASTNAS_FUZZ") == "long" else 4
TEXT = {"dataset": "ptb", "hidden_size": 6, "bptt": 4, "batch_size": 4, "epochs": 2}
RUNS = {
    "search": ("search", {**SEARCH, "method": "idarts", "inner_steps": 2}, 80),
    "search-robustdarts": ("search", {**SEARCH, "space": "robustdarts-s4", "method": "darts"}, 20),
    "search-text": ("search", {**TEXT, "space": "recurrent", "method": "darts"}, 30),
    "retrain": ("retrain", {**RETRAIN, "drop_path": 0.3, "auxiliary": 0.0}, 40),
    "retrain-text": ("retrain", {**TEXT, "genotype": "DARTS_V1", "patience": 1, "learning_rate": 1.0}, 30),
}


@pytest.mark.parametrize("name", RUNS)
def test_a_run_that_is_killed_again_and_again_comes_to_the_same(tmp_path, name):
    command, options, kills = RUNS[name]
    kills //= SHARE
    options = {**options, "threads": 1, "device": "cpu", "checkpoint_seconds": 0.0}
    if options.get("dataset") == "ptb":
        options["data"] = write_corpus(tmp_path / "text")
    live(command, options, tmp_path / "whole")
    draw, finished, out = random.Random(0), 0, tmp_path / "killed"
    for again in ("first", "second"):  # the first process waits for what it is a copy of
        begin = time.monotonic()
        life(command, options, tmp_path / again).join()
        seconds = time.monotonic() - begin
        assert same(tmp_path / again, tmp_path / "whole")
    while kills or not finished:
        process = life(command, options, out)
        process.join(draw.uniform(0, seconds) if kills else None)
        if process.exitcode is None:
            process.kill()
            process.join()
            kills -= 1
            continue
        assert process.exitcode == 0
        assert same(out, tmp_path / "whole")
        finished += 1
        shutil.rmtree(out)
