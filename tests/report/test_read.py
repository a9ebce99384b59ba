"""Folders of runs, whole, damaged and hostile: a report reads what it can and says what it left out."""

import json
import os
import pickle

import pytest
import torch
from safetensors.torch import save, save_file

import fastnas
from fastnas.report import read_run
from fastnas.report.read import MOST_ALPHA, number, runs_of
from tests.report.runs import write_retraining, write_search


@pytest.fixture
def run(tmp_path):
    """The folder of a search of four epochs."""
    write_search(tmp_path / "run")
    return tmp_path / "run"


def edit(file, change):
    """Puts ``change(content)`` into a JSON file."""
    file.write_text(json.dumps(change(json.loads(file.read_text()))))


def test_a_whole_search(tmp_path):
    alphas = write_search(tmp_path / "run")
    run = read_run(tmp_path / "run")
    assert (run.kind, run.name, run.epochs, run.notes) == ("search", "run", (1, 2, 3, 4), ())
    assert run.values("val_loss") == (2.2, 1.1, pytest.approx(2.2 / 3), 0.55)
    assert run.genotype == run.genotypes[-1]
    assert sorted(run.alphas) == [1, 2, 3, 4]
    assert torch.equal(run.alphas[3]["reduce"], alphas[3]["reduce"].double())
    assert run.space.alphas[0].shape == (14, 8)
    assert run.provenance["commit"] == "0123abc"


def test_a_search_that_really_ran(tmp_path):
    """The folder's layout is the search's, and not only these tests'."""
    options = {"channels": 2, "layers": 1, "images": 64, "batch_size": 8, "inner_steps": 2, "threads": 1}
    result = fastnas.search(**options, epochs=2, device="cpu", method="first-order", out=tmp_path / "run")
    run = read_run(tmp_path / "run")
    assert run.rows == tuple(json.loads(json.dumps(result.metrics)))
    assert run.genotype == result.genotype
    assert torch.equal(run.alphas[2]["normal"].float(), result.alphas["normal"])
    assert not run.notes


def test_a_retraining(tmp_path):
    write_retraining(tmp_path / "run")
    run = read_run(tmp_path / "run")
    assert run.kind == "retrain"
    assert run.result == {"test_accuracy": 0.6, "parameters": 1234}
    assert run.genotypes == (run.genotype,) * 3
    assert run.genotype.skip_share() == 1


def test_a_row_that_a_kill_cut_off(run):
    whole = (run / "metrics.jsonl").read_text()
    (run / "metrics.jsonl").write_text(whole[:-40])
    found = read_run(run)
    assert found.epochs == (1, 2, 3)
    assert found.notes == (
        "line 4 of metrics.jsonl is no row of metrics and is left out; the run was killed while it wrote it",
    )


def test_a_resumed_run_counts_the_later_row(run):
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    rows.append({**rows[1], "val_loss": 7.0})
    (run / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = read_run(run)
    assert found.epochs == (1, 2, 3, 4)
    assert found.values("val_loss")[1] == 7.0


def test_a_folder_of_an_older_version(tmp_path):
    """Without where it comes from, and without alphas."""
    write_search(tmp_path / "run", alphas=False)
    edit(tmp_path / "run/config.json", lambda content: {k: v for k, v in content.items() if k == "config"})
    run = read_run(tmp_path / "run")
    assert (run.alphas, run.provenance, run.kind) == ({}, {}, "search")


def test_a_run_before_its_first_epoch(tmp_path):
    write_search(tmp_path / "run", epochs=1)
    for name in ("metrics.jsonl", "genotype.json"):
        (tmp_path / "run" / name).unlink()
    run = read_run(tmp_path / "run")
    assert (run.rows, run.genotype, run.notes) == ((), None, ())


def test_alphas_that_are_none(run):
    """Of other kinds, shapes and sizes, not finite, or no tensors at all: nothing in them is run."""

    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {run}/owned",)

    folder = run / "alphas"
    save_file({"normal": torch.ones(2, dtype=torch.int64)}, folder / "epoch-001.safetensors")
    (folder / "epoch-002.safetensors").write_bytes(pickle.dumps(Evil()))
    save_file({"normal": torch.full((14, 8), float("nan"))}, folder / "epoch-003.safetensors")
    (folder / "epoch-004.safetensors").write_bytes(save({"normal": torch.zeros(MOST_ALPHA + 1, 1)}))
    found = read_run(run)
    assert found.alphas == {}
    assert found.notes == ("the alphas of epoch 1, 2, 3, 4 cannot be read",)
    assert not (run / "owned").exists()


def test_numbers_and_texts_that_are_none(run):
    odd = '{"epoch": 5, "val_loss": NaN, "train_loss": 1e999, "seconds": %s, "genotype": "\\ud800(", "x": %s}'
    with (run / "metrics.jsonl").open("a") as file:
        file.write(odd % ("9" * 400, "[" * 20 + "]" * 20) + "\n")
        file.write("[" * 10**5 + "\n[1]\n{}\n" + '{"epoch": true}\n{"epoch": -1}\n\x00\xff\n')
    found = read_run(run)
    assert found.epochs == (1, 2, 3, 4, 5)
    assert (found.values("val_loss")[4], found.values("train_loss")[4], found.values("seconds")[4]) == (
        None,
    ) * 3
    assert found.genotypes[4] is None
    assert "the genotype of epoch 5 cannot be read" in found.notes


def test_files_that_are_too_large(run, monkeypatch):
    monkeypatch.setitem(fastnas.report.read.MOST_BYTES, "metrics.jsonl", 10)
    found = read_run(run)
    assert found.rows == ()
    assert "bytes, which no run writes" in found.notes[0]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("[]", "no readable configuration"),
        ("{", "no readable configuration"),
        ('{"config": 3}', "no readable configuration"),
        ('{"command": "evil", "config": {"a": 1}}', "'evil' makes no runs"),
    ],
)
def test_no_configuration(tmp_path, content, says):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(fastnas.FastnasError, match=says):
        read_run(tmp_path)


@pytest.mark.parametrize("name", ["nothing", "\0", "a" * 5000])
def test_no_run(tmp_path, name):
    with pytest.raises(fastnas.FastnasError):
        read_run(tmp_path / name)


def test_configurations_with_odd_values(run):
    """A space, layers and primitives that no search can have: its curves are there, its alphas are not named."""
    for options in (
        {"space": ["x"]},
        {"space": "darts", "layers": 10**9},
        {"primitives": [3], "space": "nope"},
    ):
        edit(
            run / "config.json",
            lambda content, more=options: {**content, "config": {**content["config"], **more}},
        )
        found = read_run(run)
        assert found.space is None
        assert found.epochs == (1, 2, 3, 4)


def test_a_sweep_stands_for_its_runs(tmp_path):
    for seed in (0, 1):
        write_search(tmp_path / f"sweep/trials/seed-{seed}", seed=seed, epochs=1)
    (tmp_path / "sweep/sweep.yaml").write_text("name: x")
    assert [run.name for run in runs_of([tmp_path / "sweep"])] == ["seed-0", "seed-1"]


def test_a_sweep_that_has_not_begun(tmp_path):
    (tmp_path / "sweep.yaml").write_text("name: x")
    with pytest.raises(fastnas.FastnasError, match="has begun yet"):
        runs_of([tmp_path])


def test_runs_are_told_apart(tmp_path):
    write_search(tmp_path / "a/run", epochs=1)
    write_search(tmp_path / "b/run", epochs=1)
    names = [run.name for run in runs_of([tmp_path / "a/run", tmp_path / "b/run"])]
    assert names == [str(tmp_path / "a/run"), str(tmp_path / "b/run")]
    with pytest.raises(fastnas.FastnasError, match="named twice"):
        runs_of([tmp_path / "a/run", tmp_path / "a/run"])


def test_numbers_by_dots():
    assert number({"a": {"b": 2}}, "a.b") == 2.0
    assert number({"a": True}, "a") is None
    assert number({"a": 1}, "a.b") is None
