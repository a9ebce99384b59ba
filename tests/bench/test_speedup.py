"""The command line of the comparison."""

import json

import pytest
import torch

import bench.contenders
from bench import speedup

SMALL = ["--channels", "4", "--layers", "3", "--batch-size", "4", "--image-size", "8"]
TINY = [*SMALL, "--rounds", "3", "--backend", "reference"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("--space nasbench101", "error: unknown space 'nasbench101'; known are darts, nasbench201\n"),
        ("--backend slow", "error: unknown backend 'slow'; known are fused, reference\n"),
        ("--channels 5", "error: space darts: channels must be even (its reductions halve them), got 5\n"),
        ("--rounds 0", "error: rounds must be at least 1, got 0\n"),
        ("--threads 0", "error: threads must be at least 1, got 0\n"),
    ],
)
def test_a_mistake_is_one_sentence(arguments, sentence, capsys):
    with pytest.raises(SystemExit) as stop:
        speedup.main(arguments.split())
    assert stop.value.code == 2
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", sentence)


def test_an_unknown_method_names_those_that_there_are(capsys):
    with pytest.raises(SystemExit) as stop:
        speedup.main(["--method", "evolution"])
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith(
        "error: unknown method 'evolution'; known are forward-backward,"
    )


def test_json(capsys):
    speedup.main([*TINY, "--json"])
    result = json.loads(capsys.readouterr().out)
    assert result["ratio"] == pytest.approx(result["vanilla_s"] / result["fastnas_s"])
    assert result["memory_ratio"] == pytest.approx(result["vanilla_bytes"] / result["fastnas_bytes"])
    # Weights and their gradients are floats: a pass allocates at least the gradients.
    weights = sum(p.numel() for p in bench.contenders.DartsSupernet(4, 3, 10).parameters())
    assert min(result["vanilla_bytes"], result["fastnas_bytes"]) > 4 * weights
    for side in ("vanilla", "fastnas"):
        assert 0 < result[f"{side}_s_p20"] <= result[f"{side}_s"] <= result[f"{side}_s_p80"]
    assert result["configuration"]["rounds"] == 3
    assert result["configuration"]["layers"] == 3
    assert result["environment"]["torch"] == torch.__version__
    assert [row["quantity"] for row in result["agreement"]] == [
        "logits",
        "weight gradients",
        "alpha gradients",
    ]


def test_table(capsys):
    speedup.main([*TINY, "--method", "idarts", "--inner-steps", "2", "--neumann-terms", "1", "--rounds", "1"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "idarts (T = 2, K = 1) on darts, C = 4, 3 layers, batch 4 of 8x8, float32"
    rows = {line[:18].strip(): line[18:].split() for line in lines}
    median_ms, _, _, _, epoch_s = (float(cell) for cell in rows["plain PyTorch"])
    steps = 25_000 / (4 * 2)
    assert epoch_s == pytest.approx(steps * median_ms / 1e3, abs=0.5 + steps * 0.05e-3)
    assert "fastnas reference" in rows


def test_nothing_is_timed_when_the_sides_disagree(monkeypatch, capsys):
    def other_alphas(*arguments):
        net = bench.contenders.fastnas_model(*arguments)
        net.alphas.flat.mul_(-50)
        return net

    monkeypatch.setattr(speedup, "fastnas_model", other_alphas)
    monkeypatch.setattr(speedup, "alternate", lambda *_: pytest.fail("timed"))
    with pytest.raises(SystemExit) as stop:
        speedup.main(TINY)
    assert stop.value.code == 2
    assert "fastnas and plain PyTorch disagree, so nothing was timed" in capsys.readouterr().err
