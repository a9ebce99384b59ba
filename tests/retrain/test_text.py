"""Retraining of recurrent cells, on a tiny text."""

import json
import math

import pytest
import torch

from fastnas.errors import FastnasError
from fastnas.retrain import retrain
from fastnas.retrain import run as run_module
from fastnas.retrain.__main__ import main
from fastnas.retrain.config import RetrainConfig
from fastnas.retrain.text import TextTrainer, window_lengths
from fastnas.runs.interrupt import Interrupt
from fastnas.spaces import read_genotype
from tests.corpora import write_corpus
from tests.interrupted import interrupted_in

TINY = {
    "genotype": "DARTS_V2",
    "dataset": "ptb",
    "hidden_size": 6,
    "batch_size": 4,
    "bptt": 8,
    "epochs": 4,
    "learning_rate": 2.0,
    "dropout": 0.1,
    "dropout_input": 0.1,
    "threads": 1,
    "device": "cpu",
}
VOLATILE = {"seconds", "words_per_second", "peak_memory_bytes"}


@pytest.fixture
def tiny(tmp_path):
    """``tiny(**options)`` trains into a folder of its own."""
    data = write_corpus(tmp_path / "text")
    return lambda **options: retrain(**{**TINY, "data": data, "out": tmp_path / "run", **options})


def test_the_command_line_and_its_result(tmp_path, capsys):
    data, out = write_corpus(tmp_path / "text"), tmp_path / "run"
    sizes = [
        "--hidden-size",
        "6",
        "--batch-size",
        "4",
        "--bptt",
        "8",
        "--epochs",
        "1",
        "--threads",
        "1",
        "--learning-rate",
        "2",
    ]
    main(f"--genotype DARTS_V2 --dataset ptb --data {data} --out {out}".split() + sizes)
    result = json.loads((out / "result.json").read_text())
    assert result["parameters"] == 13 * 6 + 13 + 12 * 12 + 8 * 6 * 12
    assert result["space"] == "recurrent"
    assert result["test_perplexity"] == math.exp(result["test_loss"])
    assert 1 < result["test_perplexity"] < 100
    assert read_genotype(None, out) == read_genotype("recurrent", "DARTS_V2")
    assert "test perplexity" in capsys.readouterr().out


def test_it_learns_and_resumes_to_the_bit(tiny, tmp_path):
    """12 words at a perplexity of 3; with a patience of two epochs the mean of the weights begins on the way."""
    off = dict.fromkeys(("dropout", "dropout_input", "dropout_embedding"), 0.0)
    options = {"epochs": 13, "patience": 2, "learning_rate": 20.0, "hidden_size": 16, "bptt": 4, **off}
    options["dropout_state"] = 0.01  # draws masks, which a resumed run must draw, too
    whole = tiny(**options)
    assert whole.metrics[-1]["val_perplexity"] < 6 < 20 < whole.metrics[0]["val_perplexity"]
    assert whole.metrics[-1]["averaged_steps"] > 0 == whole.metrics[1]["averaged_steps"]

    with interrupted_in(TextTrainer, 13):
        tiny(**options, out=tmp_path / "part")
    torch.manual_seed(9)
    part = retrain(resume=tmp_path / "part")
    drop = VOLATILE | {"out"}
    for a, b in zip(whole.metrics, part.metrics, strict=True):
        assert {k: v for k, v in a.items() if k not in drop} == {k: v for k, v in b.items() if k not in drop}
    assert whole.result["test_loss"] == part.result["test_loss"]
    assert whole.result["best_epoch"] == 1 + min(range(13), key=lambda i: whole.metrics[i]["val_loss"])


def trainer(tmp_path, **options):
    options = {**TINY, "data": str(write_corpus(tmp_path / "text")), "dtype": "float64", **options}
    config = RetrainConfig.from_options(options).resolved()
    device = torch.device("cpu")
    found = run_module.trainer_of(config, read_genotype("recurrent", "DARTS_V2"), device, Interrupt())
    assert isinstance(found, TextTrainer)
    return found


def test_the_mean_is_that_of_the_weights_after_each_step(tmp_path):
    found = trainer(tmp_path)
    w, seen = found.net.weights.flat, []
    found.averaged += 1
    for _ in range(4):
        found.step(found.train[:3], found.net.initial_state(4), found.train[1:4].reshape(-1), 1.0)
        seen.append(w.clone())
    torch.testing.assert_close(found.average, torch.stack(seen).mean(0), rtol=1e-13, atol=1e-15)
    with found._tested():
        assert torch.equal(w, found.average)
    assert torch.equal(w, seen[-1])


def test_windows_cover_the_text_in_lengths_about_bptt():
    windows = list(window_lengths(14_524, 35, seed=0, epoch=1))
    begins, lengths = zip(*windows, strict=True)
    assert all(b + n == c for (b, n), c in zip(windows, begins[1:], strict=False))
    assert begins[-1] + lengths[-1] >= 14_522
    assert min(lengths) >= 5
    assert max(lengths) <= 55
    mean = sum(lengths) / len(lengths)
    assert abs(mean - (0.95 * 35 + 0.05 * 17.5)) < 1.5  # some 420 windows: a standard error of 0.3
    assert windows == list(window_lengths(14_524, 35, seed=0, epoch=1))
    assert windows != list(window_lengths(14_524, 35, seed=0, epoch=2))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            {"space": "darts"},
            "a genotype of space darts reads images, and ptb is text; take another --dataset",
        ),
        ({"recipe": "cifar"}, "--recipe cifar is for images, and ptb is not; take another, or leave it out"),
        ({"channels": 8}, "--channels is about images, and space recurrent reads text: leave it out"),
        ({"genotype": "NASNet"}, "genotype NASNet is one of the space darts; it does not fit recurrent"),
        ({"compile": "on"}, "--compile on is for images"),
        ({"patience": 0}, "--patience must be at least 1, got 0"),
    ],
)
def test_mistakes(tiny, tmp_path, options, sentence):
    with pytest.raises(FastnasError) as error:
        tiny(**options)
    assert sentence in str(error.value)
    assert not (tmp_path / "run").exists()
