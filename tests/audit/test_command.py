"""Mistakes are one sentence and leave nothing behind; a run's folder is audited where its checkpoint left it."""

import json
import subprocess
import sys

import pytest

import fastnas
from fastnas.audit.__main__ import main
from fastnas.runs.checkpoint import sealed as seal
from tests.audit.conftest import TINY
from tests.checkpoints import forget, newest

RUN = {
    "space": "nasbench201",
    "channels": 2,
    "layers": 1,
    "images": 64,
    "batch_size": 8,
    "epochs": 1,
    "inner_steps": 2,
    "threads": 1,
    "device": "cpu",
    "method": "t1-t2",
    "difference_radius": "auto",
}


@pytest.fixture
def run(tmp_path):
    """The folder of a search of one epoch."""
    return fastnas.search(**RUN, out=tmp_path / "run").out


def refused(capsys, *arguments):
    """The sentence and the status that the command ended with."""
    with pytest.raises(SystemExit) as stop:
        main(list(map(str, arguments)))
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("error: ")
    assert shown.err.count("\n") == 1, shown.err
    return shown.err, stop.value.code


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--space=dart"], "unknown space 'dart'"),
        (["--checkpoint=/nowhere"], "--checkpoint /nowhere is no folder of a run"),
        (["--dtype=bf16", "--device=cpu"], "--dtype bf16 needs a GPU"),
        (["--minibatches=0"], "--minibatches must be at least 1, got 0"),
        (["--warm-up-steps=-1"], "--warm-up-steps must be at least 0, got -1"),
        (["--reference-damping=nan"], "--reference-damping must be a finite number"),
        (["--difference-radius=0"], "--difference-radius must be a finite number greater than 0"),
        (["--dataset=cifar10", "--data=/nowhere"], "/nowhere"),
    ],
)
def test_a_mistake_is_one_sentence_and_leaves_nothing(arguments, sentence, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    error, status = refused(capsys, *arguments)
    assert sentence in error
    assert status == 2
    assert not any(tmp_path.rglob("*.*"))


def test_an_out_that_cannot_be_written_is_one_sentence(tmp_path, capsys):
    (tmp_path / "file").write_text("x")
    error, status = refused(capsys, *TINY, f"--out={tmp_path / 'file'}")
    assert "is a file; name a folder" in error
    assert status == 2
    error, status = refused(capsys, *TINY, f"--out={tmp_path / 'file' / 'below'}")
    assert "Not a directory" in error
    assert status == 1
    assert (tmp_path / "file").read_text() == "x"


def test_a_folder_without_a_run_or_a_checkpoint(run, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    error, _ = refused(capsys, f"--checkpoint={tmp_path / 'empty'}")
    assert "there is no config.json in it" in error
    forget(run)
    error, _ = refused(capsys, f"--checkpoint={run}")
    assert "has no checkpoint yet" in error


def test_a_checkpoint_of_another_version_or_another_run(run, capsys):
    file = newest(run)
    content = json.loads(file.with_suffix(".json").read_text())
    del content["sha256"]
    file.with_suffix(".json").write_text(seal({**content, "format": "fastnas-search-999", "fastnas": "9.9"}))
    error, status = refused(capsys, f"--checkpoint={run}")
    assert "was written by fastnas 9.9, in a format that this one" in error
    assert status == 2
    file.with_suffix(".json").write_text(seal(content))
    file.write_bytes(b"cut short")
    assert "is damaged: 9 bytes where" in refused(capsys, f"--checkpoint={run}")[0]
    config = json.loads((run / "config.json").read_text())
    config["config"]["invented_later"] = 1
    (run / "config.json").write_text(json.dumps(config))
    error, _ = refused(capsys, f"--checkpoint={run}")
    assert (
        f"the run in {run} cannot be read, by this version at least: {run / 'config.json'}: "
        "unknown option 'invented_later'" in error
    )


def test_a_run_is_audited_as_it_is(run, capsys):
    """Its network, its weights; another estimator's constants may be asked about, another network may not."""
    error, _ = refused(capsys, f"--checkpoint={run}", "--channels=4")
    assert "another configuration: it differs in channels" in error
    before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    main([f"--checkpoint={run}", "--quick", "--minibatches=1", "--neumann-terms=1", "--json"])
    result = json.loads(capsys.readouterr().out)
    assert result["config"]["channels"] == 2
    assert result["config"]["neumann_terms"] == 1
    # The run measured its radius when it began.
    measured = json.loads((run / "config.json").read_text())["measured"]["difference_radius"]
    assert result["configured_products"] == f"r = {measured:.3g}"
    assert result["state"]["epoch"] == 1
    assert result["state"]["weight_steps"] == 2
    assert {row["gradients"] for row in result["estimators"] if row["method"] == "idarts"} >= {5}
    assert json.loads((run / "audit" / "audit.json").read_text()) == result
    for file, content in before.items():
        assert file.read_bytes() == content
    # The run goes on as if nothing had been looked at.
    assert fastnas.search(resume=run).metrics[0]["epoch"] == 1


def test_it_says_beforehand_what_it_will_cost(tmp_path):
    """In a process of its own."""
    command = [sys.executable, "-m", "fastnas.audit", *TINY, "--minibatches=1", f"--out={tmp_path}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    first, *_ = done.stderr.splitlines()
    assert first.startswith("audit: at most ")
    assert "gradients of" in first
    assert "USDT" not in done.stderr
    assert sorted(file.name for file in tmp_path.iterdir()) == ["audit.json", "audit.svg", "audit.txt"]
    assert done.stdout == f"{(tmp_path / 'audit.txt').read_text()}\naudit:    {tmp_path}\n"
