"""Searches for a recurrent cell, on a tiny text."""

import math

import pytest
import torch

import fastnas
from fastnas.errors import FastnasError
from fastnas.search import SearchConfig, loop
from fastnas.search.__main__ import main
from fastnas.spaces import read_genotype
from tests.corpora import write_corpus
from tests.interrupted import interrupted_in

TINY = {
    "space": "recurrent",
    "dataset": "ptb",
    "hidden_size": 4,
    "batch_size": 4,
    "bptt": 7,
    "epochs": 2,
    "learning_rate": 2.0,
    "threads": 1,
    "device": "cpu",
}
VOLATILE = {"seconds", "words_per_second", "peak_memory_bytes"}


@pytest.fixture
def tiny(tmp_path):
    """``tiny(**options)`` runs that search into a folder of its own."""
    data = write_corpus(tmp_path / "text")
    return lambda **options: fastnas.search(**{**TINY, "data": data, "out": tmp_path / "run", **options})


def test_the_command_line(tmp_path, capsys):
    data, out = write_corpus(tmp_path / "text"), tmp_path / "run"
    sizes = [
        "--hidden-size",
        "4",
        "--batch-size",
        "4",
        "--bptt",
        "7",
        "--epochs",
        "1",
        "--threads",
        "1",
        "--learning-rate",
        "2",
    ]
    main(f"--space recurrent --dataset ptb --data {data} --method darts --out {out}".split() + sizes)
    printed = capsys.readouterr().out
    assert "val loss" in printed
    assert "perplexity" in printed
    assert "Genotype(recurrent=[" in printed
    assert len(read_genotype(None, out).recurrent) == 8


def test_a_search(tiny):
    off = dict.fromkeys(("dropout", "dropout_state", "dropout_input", "dropout_embedding"), 0.0)
    result = tiny(method="first-order", epochs=3, hidden_size=8, bptt=4, learning_rate=20.0, **off)
    first, last = result.metrics[0], result.metrics[-1]
    assert last["train_perplexity"] < 0.7 * first["train_perplexity"]
    assert last["val_perplexity"] == math.exp(last["val_loss"])
    assert "val_accuracy" not in last
    assert result.alphas["cell"].shape == (36, 5)
    assert last["learning_rate"] == 20.0


@pytest.mark.parametrize("method", ["darts", "idarts"])
def test_a_resumed_run_is_the_uninterrupted_one_to_the_bit(tiny, tmp_path, method):
    options = {"method": method, "inner_steps": 2, "neumann_terms": 1, "batch_size": 8, "bptt": 4}
    whole = tiny(**options)

    with interrupted_in(loop.Search, 2):
        tiny(**options, out=tmp_path / "part")
    torch.manual_seed(9)
    part = fastnas.search(resume=tmp_path / "part")
    assert torch.equal(part.alphas["cell"], whole.alphas["cell"])
    for a, b in zip(whole.metrics, part.metrics, strict=True):
        assert {k: v for k, v in a.items() if k not in VOLATILE} == {
            k: v for k, v in b.items() if k not in VOLATILE
        }


def test_the_executors_search_alike(tiny, tmp_path):
    options = {"method": "first-order", "epochs": 1, "dtype": "float64"}
    fused, reference = tiny(**options), tiny(**options, backend="reference", out=tmp_path / "reference")
    assert not torch.equal(fused.alphas["cell"], torch.zeros(36, 5))
    torch.testing.assert_close(fused.alphas["cell"], reference.alphas["cell"], rtol=1e-6, atol=1e-9)


def test_what_a_search_measures_beside(tiny):
    """The spectrum, a better hypergradient and the radius leave the search as it is."""
    options = {"method": "darts", "difference_radius": "auto", "epochs": 1, "batch_size": 16, "bptt": 2}
    plain = tiny(**options)
    beside = tiny(**options, spectrum_every=1, audit_every=1, out=plain.out.parent / "beside")
    assert torch.equal(plain.alphas["cell"], beside.alphas["cell"])
    assert beside.metrics[0]["hessian_lambda_max"] > 0
    assert abs(beside.metrics[0]["audit_cosine"]) <= 1


def test_defaults_are_the_authors(tmp_path):
    config = SearchConfig.from_options(
        {"space": "recurrent", "dataset": "ptb", "data": str(tmp_path)}
    ).resolved()
    assert config == config.resolved()
    options = config.to_options()
    wanted = {
        "batch_size": 256,
        "learning_rate": 20.0,
        "learning_rate_min": 20.0,
        "momentum": 0.0,
        "grad_clip": 0.25,
    }
    wanted |= {
        "weight_decay": 5e-7,
        "arch_learning_rate": 3e-3,
        "arch_weight_decay": 1e-3,
        "epochs": 50,
        "bptt": 35,
    }
    wanted |= {"hidden_size": 300, "dropout": 0.75, "dropout_state": 0.25, "channels": None, "layers": None}
    assert {name: options[name] for name in wanted} == wanted


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"dataset": "digits"}, "space recurrent reads text, and digits is images; take --dataset ptb"),
        ({"space": "darts"}, "space darts reads images, and ptb is text"),
        ({"channels": 4}, "--channels is about images, and space recurrent reads text: leave it out"),
        ({"cutout": 4}, "--cutout is about images"),
        (
            {"space": "darts", "dataset": "digits", "bptt": 4},
            "--bptt is about text, and space darts reads images",
        ),
        ({"dropout": 1.0}, "--dropout must be less than 1, got 1.0"),
        ({"bptt": 0}, "--bptt must be at least 1, got 0"),
        ({"bptt": 4000}, "--bptt 4000 is more than the"),
        ({"batch_size": 200}, "--batch-size 200 leaves no two words for each stream"),
        ({"inner_steps": 99}, "--inner-steps 99 is more than the"),
        ({"data": "nowhere"}, "--data"),
        ({"method": "exact", "hidden_size": 40}, "take a smaller one"),
    ],
)
def test_mistakes_are_one_sentence_and_leave_nothing_behind(tiny, tmp_path, options, sentence):
    given = {key: value for key, value in options.items()}
    if given.get("dataset") == "digits" and given.get("space") == "darts":
        given |= {"hidden_size": None, "data": None}
    with pytest.raises(FastnasError) as error:
        tiny(**given)
    assert sentence in str(error.value)
    assert not (tmp_path / "run").exists()
