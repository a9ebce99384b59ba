"""Whole searches and retrainings by several processes: alike on all of them, stopped together, resumed to the bit."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fastnas.errors import FastnasError, Terminated
from fastnas.retrain import retrain, run
from fastnas.retrain.images import ImageTrainer
from fastnas.retrain.text import TextTrainer
from fastnas.runs.ranks import ALONE
from fastnas.search import loop, search
from fastnas.search.step import SearchStep
from tests.corpora import write_corpus
from tests.several_ranks import on_ranks

TIMES = {"seconds", "images_per_second", "words_per_second", "peak_memory_bytes"}
SMALL = {"epochs": 2, "threads": 1, "device": "cpu"}
IMAGES = {**SMALL, "channels": 2, "layers": 1, "images": 64, "batch_size": 8, "inner_steps": 2}
TEXT = {
    **SMALL,
    "space": "recurrent",
    "dataset": "ptb",
    "hidden_size": 4,
    "batch_size": 4,
    "bptt": 7,
    "learning_rate": 2.0,
    "method": "darts",
}
RETRAINED_IMAGES = {
    **SMALL,
    "genotype": "DARTS_V2",
    "channels": 2,
    "layers": 1,
    "images": 68,  # 54 to train on: the last batch has 14 images
    "batch_size": 20,
    "drop_path": 0.3,
}
RETRAINED_TEXT = {
    **SMALL,
    "genotype": "ENAS",
    "space": "recurrent",
    "dataset": "ptb",
    "hidden_size": 4,
    "batch_size": 4,
    "bptt": 7,
    "learning_rate": 2.0,
}
NO_DROPOUT = {f"dropout{part}": 0.0 for part in ("", "_state", "_input", "_embedding", "_words")}


def timeless(rows):
    return [{name: value for name, value in row.items() if name not in TIMES} for row in rows]


def state(out):
    """The tensors of a run's newest checkpoint."""
    return load_file(sorted((Path(out) / "checkpoints").glob("*.safetensors"))[-1])


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def searched(ranks, options, stop_at=None):
    """A search; SIGTERM comes to the last rank alone, in step ``stop_at``."""
    loop.launched = lambda: ranks
    return finished(ranks, SearchStep, "__call__", stop_at, lambda: searching(options))


def searching(options):
    found = search(**options)
    return timeless(found.metrics), str(found.genotype), found.alphas


def retrained(ranks, options, stop_at=None):
    run.launched = lambda: ranks
    kind = TextTrainer if "bptt" in options else ImageTrainer
    return finished(ranks, kind, "step", stop_at, lambda: retraining(options))


def retraining(options):
    found = retrain(**options)
    return timeless(found.metrics), {k: v for k, v in found.result.items() if k not in TIMES}


def finished(ranks, kind, name, stop_at, call):
    steps, step = [], getattr(kind, name)

    def counted(self, *arguments):
        steps.append(1)
        if len(steps) == stop_at and ranks.rank == ranks.size - 1:
            signal.raise_signal(signal.SIGTERM)
        return step(self, *arguments)

    setattr(kind, name, counted)
    try:
        return call()
    except Terminated as stop:
        return "terminated", str(stop), len(steps)
    except FastnasError as error:
        return type(error).__name__, str(error)
    finally:
        setattr(kind, name, step)


CASES = {
    "images": (searched, IMAGES),
    "text": (searched, TEXT),
    "retrained images": (retrained, RETRAINED_IMAGES),
    "retrained text": (retrained, RETRAINED_TEXT),
}


@pytest.mark.parametrize("case", CASES)
def test_all_ranks_stop_after_one_step_and_resume_to_the_bit(case, tmp_path):
    """Dropout's and drop-path's masks, hidden states and BatchNorm's statistics of each rank are in the checkpoint."""
    function, options = CASES[case]
    if "dataset" in options:
        options = {**options, "data": str(write_corpus(tmp_path / "text"))}
    whole, broken = str(tmp_path / "whole"), str(tmp_path / "broken")
    undisturbed = on_ranks(2, function, {**options, "out": whole})
    assert len(undisturbed[0][0]) == 2  # rows
    assert repr(undisturbed[0]) == repr(undisturbed[1])
    stopped = on_ranks(2, function, {**options, "out": broken}, 2)
    for word, sentence, steps in stopped:
        assert (word, steps) == ("terminated", 2)
        assert "torchrun --nproc-per-node 2 -m fastnas." in sentence
    assert "rng.cpu@1" in state(broken)
    resumed = on_ranks(2, function, {"resume": broken})
    assert repr(resumed) == repr(undisturbed)
    assert same(state(whole), state(broken))
    assert not list(Path(whole).glob("*@1*"))


def test_a_text_is_retrained_as_by_one_process(tmp_path):
    """Without BatchNorm and masks: the rows of all numbers, those of the evaluation among them."""
    options = {
        **RETRAINED_TEXT,
        **NO_DROPOUT,
        "data": str(write_corpus(tmp_path / "text")),
        "dtype": "float64",
    }
    alone = retrained(ALONE, {**options, "out": str(tmp_path / "alone")})
    run.launched = lambda: ALONE
    both = on_ranks(2, retrained, {**options, "out": str(tmp_path / "both")})
    for rows, result in both:
        assert len(rows) == len(alone[0]) == 2
        for row, expected in zip(rows, alone[0], strict=True):
            assert row == pytest.approx(expected, rel=1e-10)
        assert result["test_loss"] == pytest.approx(alone[1]["test_loss"], rel=1e-10)
    weights = [state(tmp_path / name)["weights"] for name in ("alone", "both")]
    torch.testing.assert_close(weights[1], weights[0], rtol=1e-10, atol=1e-12)


def test_a_search_goes_on_with_another_number_of_ranks(tmp_path):
    data = str(write_corpus(tmp_path / "text"))
    one, two = (
        {**TEXT, "data": data, "out": str(tmp_path / "1")},
        {**TEXT, "data": data, "out": str(tmp_path / "2")},
    )
    assert searched(ALONE, one, 3)[0] == "terminated"
    assert on_ranks(2, searched, two, 3)[0][0] == "terminated"
    for found in on_ranks(2, searched, {"resume": str(tmp_path / "1")}):
        assert len(found[0]) == 2
    assert len(searched(ALONE, {"resume": str(tmp_path / "2")})[0]) == 2
    assert "rng.cpu@1" in state(tmp_path / "1")
    assert "rng.cpu@1" not in state(tmp_path / "2")


def perturbed(ranks, options):
    """A search in which the last rank's weights are another way rounded."""
    step = SearchStep.__call__

    def other(self, *arguments):
        report = step(self, *arguments)
        if ranks.rank:
            flat = self.net.weights.flat
            flat[0] = torch.nextafter(flat[0], flat[0] + 1)
        return report

    SearchStep.__call__ = other
    return searched(ranks, options)


def test_ranks_that_part_are_found_before_a_checkpoint_is_written(tmp_path):
    for name, sentence in on_ranks(2, perturbed, {**IMAGES, "out": str(tmp_path / "run")}):
        assert name == "FastnasError"
        assert sentence.startswith("rank 1 has other weights than rank 0, at ")
    assert not list((tmp_path / "run").glob("checkpoints/*.json"))


def test_mistakes_are_said_once(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    for options, sentence in (
        ({**IMAGES, "out": str(tmp_path / "full")}, "is not empty"),
        (
            {**IMAGES, "out": str(tmp_path / "new"), "batch_size": 9},
            "--batch-size 9 is the batch of all 2 processes",
        ),
    ):
        (zero, said), (one, repeated) = on_ranks(2, searched, options)
        assert (zero, one) == ("FastnasError", "RepeatedError")
        assert sentence in said == repeated
    assert not (tmp_path / "new").exists()
    few = {**RETRAINED_IMAGES, "images": 54, "out": str(tmp_path / "new")}
    (one, repeated), (two, said) = reversed(on_ranks(2, retrained, few))
    assert (one, two) == ("RepeatedError", "FastnasError")
    assert repeated == said
    assert "3 of the 43 training images for the last batch" in said


def victim(launcher, rank):
    """The process of that rank among a launcher's children."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = (folder / "stat").read_text().rpartition(")")[2].split()[1]
            variables = (folder / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if int(parent) == launcher.pid and b"RANK=%d" % rank in variables:
            return int(folder.name)
    return None


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="looks processes up in /proc")
def test_a_killed_rank_ends_the_others_and_torchrun_resumes(tmp_path):
    """The same end to the bit as undisturbed; and the survivor says one sentence."""
    whole, out = tmp_path / "whole", tmp_path / "run"
    options = {**IMAGES, "images": 128}
    expected = on_ranks(2, searched, {**options, "out": str(whole)})[0]
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        "--max-restarts=1",
    ]
    command += ["-m", "fastnas.search", *flags, "--checkpoint-seconds=0", f"--out={out}", "--resume"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    launcher = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        until = time.monotonic() + 60
        while len(list(out.glob("checkpoints/*.json"))) < 2:
            assert launcher.poll() is None, launcher.stdout.read()
            assert time.monotonic() < until
            time.sleep(0.02)
        os.kill(victim(launcher, 1), signal.SIGKILL)
        printed, _ = launcher.communicate(timeout=100)
    finally:
        launcher.kill()
    assert launcher.returncode == 0, printed
    assert (
        "error: another process of this run has ended or does not answer" in printed
        or "interrupted" in printed
    )
    assert "Traceback" not in printed
    assert printed.count("genotype: ") == 1
    assert expected[1] in printed
    assert same(state(out), state(whole))
