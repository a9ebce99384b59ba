"""Cost against work: its command line, what it measures, its tables and plot."""

import json
import xml.etree.ElementTree as ElementTree

import pytest
import torch

import bench.contenders
from bench import cost, cost_report
from bench.cost import Base, CostConfig, Values, affordable, growth
from fastnas.errors import FastnasError

TINY = [
    *("--base.channels", "2", "--base.layers", "1", "--base.batch-size", "2", "--base.image-size", "8"),
    *("--rounds", "2", "--vary"),
]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            "--vary depth",
            "unknown quantity 'depth'; known are batch-size, channels, layers, inner-steps, neumann-terms",
        ),
        ("--vary", "nothing to vary; name at least one quantity after --vary"),
        ("--values.channels 4 5", "space darts: channels must be even (its reductions halve them), got 5"),
        ("--values.batch-size 8 1", "batch_size must be at least 2, got 1"),
        ("--vary layers --values.layers", "values.layers is empty; give at least one value"),
        ("--base.image-size 4", "image_size must be at least 8, got 4"),
        ("--space nasbench101", "unknown space 'nasbench101'; known are darts, nasbench201"),
        ("--backend slow", "unknown backend 'slow'; known are fused, reference"),
        ("--rounds 0", "rounds must be at least 1, got 0"),
        ("--memory-limit 0", "memory_limit must be above 0, got 0.0"),
        ("--seconds-limit nan", "seconds_limit must be above 0, got nan"),
    ],
)
def test_a_mistake_is_one_sentence(arguments, sentence, capsys, tmp_path):
    with pytest.raises(SystemExit) as stop:
        cost.main([*arguments.split(), "--out", str(tmp_path / "out")])
    assert stop.value.code == 2
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", f"error: {sentence}\n")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("beneath", ["", "beneath"])
def test_out_must_be_a_folder(tmp_path, capsys, beneath):
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(SystemExit) as stop:
        cost.main(["--out", str(file / beneath)])
    assert stop.value.code == 2
    assert capsys.readouterr().err == f"error: out must be a folder, but {file} is a file\n"


def test_unknown_method_is_refused():
    with pytest.raises(FastnasError, match="unknown method 'evolution'; known are forward-backward,"):
        CostConfig(method="evolution").check()


def test_both_sides_end_in_json_tables_and_plot(tmp_path, capsys):
    cost.main([*TINY, "batch-size", "neumann-terms", "--values.batch-size", "4", "2", "4",
               "--values.neumann-terms", "0", "--out", str(tmp_path)])  # fmt: skip
    result = json.loads((tmp_path / "cost.json").read_text())
    keys = [(row["quantity"], row["value"], row["implementation"], row["method"]) for row in result["rows"]]
    assert keys == [
        ("batch_size", 2, "fastnas", "forward-backward"),
        ("batch_size", 2, "vanilla", "forward-backward"),
        ("batch_size", 4, "fastnas", "forward-backward"),
        ("batch_size", 4, "vanilla", "forward-backward"),
        ("neumann_terms", 0, "fastnas", "idarts"),
        ("neumann_terms", 0, "vanilla", "idarts"),
    ]
    for row in result["rows"]:
        assert len(row["times"]) == 2
        assert min(row["times"]) <= row["seconds"]["median"] <= max(row["times"])
    small, large = (result["rows"][i]["peak_bytes"] for i in (1, 3))
    # Activations double; the gradients of the 16,000 weights do not.
    assert 1.3 < large / small < 2
    assert result["left_out"] == []
    assert result["configuration"]["base"]["layers"] == 1
    assert result["environment"]["device"]

    printed = capsys.readouterr().out
    assert printed == (tmp_path / "cost.md").read_text() == cost_report.tables(result)
    row = result["rows"][2]
    assert f"| 4 | {row['seconds']['median']:.3g} (" in printed
    assert f"| {row['peak_bytes'] / (1 << 20):.1f} |" in printed
    assert "idarts, batch 2, C = 2, 1 layers, T = 4." in printed
    assert ElementTree.parse(tmp_path / "cost.svg").getroot().tag.endswith("svg")


def test_memory_is_flat_in_inner_steps_and_neumann_terms(tmp_path):
    """K = 0 and 1 need a vector or two fewer than K >= 2, and a step that differentiated through T would grow."""
    values = ["--values.inner-steps", "1", "4", "--values.neumann-terms", "2", "5", "--rounds", "1"]
    cost.main([*TINY, "inner-steps", "neumann-terms", "--no-vanilla", *values, "--out", str(tmp_path)])
    rows = json.loads((tmp_path / "cost.json").read_text())["rows"]
    assert [(row["value"], row["implementation"]) for row in rows] == [(n, "fastnas") for n in (1, 4, 2, 5)]
    # What a weight step leaves until it is known to be finite: the generator's state, to make it again.
    state = torch.get_rng_state().numel()
    peaks = [row["peak_bytes"] - steps * state for row, steps in zip(rows, (1, 4, 4, 4), strict=True)]
    assert max(peaks) <= 1.02 * min(peaks)


def test_the_tables_show_one_implementation_alone(tmp_path, capsys):
    cost.main(
        [*TINY, "layers", "--no-vanilla", "--rounds", "1", "--values.layers", "1", "--out", str(tmp_path)]
    )
    printed = capsys.readouterr().out
    assert "| layers (cells) | fastnas fused, s | fastnas fused, MiB |" in printed
    assert "PyTorch" not in printed


# ---------------------------------------------------------------------------- what is left out

MADE_UP = CostConfig(base=Base(layers=8), seconds_limit=10.0, memory_limit=2.0)


@pytest.mark.parametrize(
    ("quantity", "before", "after", "expected"),
    [
        ("batch_size", 8, 32, (4, 4)),
        ("layers", 2, 4, (2, 2)),
        ("channels", 4, 8, (4, 2)),
        ("inner_steps", 1, 8, (15 / 8, 1)),  # T + 1 + 2 K + 2, K = 2
        ("neumann_terms", 0, 2, (11 / 7, 1)),  # T = 4
    ],
)
def test_growth(quantity, before, after, expected):
    contests = [MADE_UP.contest(quantity, value) for value in (before, after)]
    assert growth(*contests, quantity) == expected


@pytest.mark.parametrize(
    ("seconds", "peak", "reason"),
    [
        (4.9, 1 << 29, None),
        (5.1, 1 << 29, "would take more than 10 s a call"),
        (4.9, (1 << 30) + 1, "would need more than 2 GiB"),
    ],
)
def test_what_cannot_be_afforded_is_left_out(seconds, peak, reason):
    row = {"value": 8, "seconds": {"median": seconds}, "peak_bytes": peak}
    assert affordable(MADE_UP, row, "batch_size", 16) == reason
    assert affordable(MADE_UP, None, "batch_size", 1 << 20) is None


def test_what_is_left_out_is_said(tmp_path, capsys):
    cost.main([*TINY, "batch-size", "--values.batch-size", "2", "4", "--memory-limit", "1e-6",
               "--out", str(tmp_path)])  # fmt: skip
    result = json.loads((tmp_path / "cost.json").read_text())
    assert {row["value"] for row in result["rows"]} == {2}
    said = {(entry["value"], entry["implementation"]) for entry in result["left_out"]}
    assert said == {(4, "fastnas"), (4, "vanilla")}
    assert (
        "Left out: plain PyTorch at batch size (images) = 4, which would need more than 1e-06 GiB."
        in capsys.readouterr().out
    )


def test_a_missing_side_is_a_dash(tmp_path):
    """As where plain PyTorch alone no longer fits."""
    config = CostConfig(values=Values(batch_size=(2, 4)), base=Base(layers=1))
    seconds = {"median": 1.5, "p20": 1.0, "p80": 2.0}
    rows = [
        {"quantity": "batch_size", "value": value, "implementation": name, "method": "darts",
         "seconds": seconds, "times": [1.0, 2.0], "peak_bytes": peak << 20}
        for value, name, peak in ((2, "fastnas", 1), (2, "vanilla", 4), (4, "fastnas", 2))
    ]  # fmt: skip
    environment = dict.fromkeys(("device", "threads", "torch", "fastnas", "commit", "date"), "x")
    result = {"rows": rows, "left_out": [], "configuration": cost.plain(config), "environment": environment}
    lines = cost_report.tables(result).splitlines()
    assert "| 2 | 1.5 (1 to 2) | 1.5 (1 to 2) | 1.00 | 1.0 | 4.0 | 4.00 |" in lines
    assert "| 4 | 1.5 (1 to 2) | - | - | 2.0 | - | - |" in lines
    cost_report.save_plot(result, tmp_path / "a.svg")
    cost_report.save_plot(result, tmp_path / "b.svg")
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def test_nothing_is_measured_when_the_sides_disagree(tmp_path, monkeypatch, capsys):
    def other_alphas(contest, backend, model):
        net = bench.contenders.fastnas_model(contest, backend, model)
        net.alphas.flat.mul_(-50)
        return net

    monkeypatch.setattr(cost, "fastnas_model", other_alphas)
    monkeypatch.setattr(cost, "peak_bytes", lambda *_: pytest.fail("measured"))
    with pytest.raises(SystemExit) as stop:
        cost.main([*TINY, "layers", "--out", str(tmp_path)])
    assert stop.value.code == 2
    assert "fastnas and plain PyTorch disagree, so nothing was timed" in capsys.readouterr().err
