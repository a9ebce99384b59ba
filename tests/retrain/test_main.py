"""The command line of a retraining."""

import json
import subprocess
import sys

import pytest

import fastnas
from fastnas import describe
from fastnas.retrain.__main__ import main
from fastnas.spaces import read_genotype

TINY = [
    "--genotype=DARTS_V2", "--channels=2", "--layers=1", "--images=60", "--batch-size=20", "--epochs=1",
    "--device=cpu", "--threads=1",
]  # fmt: skip


def test_it_trains_resumes_and_its_folder_can_be_described(tmp_path, capsys):
    out = tmp_path / "run"
    main([*TINY, f"--out={out}"])
    shown = capsys.readouterr().out
    result = json.loads((out / "result.json").read_text())
    assert "epoch 1/1  train loss" in shown
    assert f"test:     accuracy {100 * result['test_accuracy']:.2f}%" in shown
    assert f"run:      {out}" in shown
    assert f"report:   {out / 'report.html'}" in shown
    main([f"--out={out}", "--resume"])
    assert "epoch 1/1" not in capsys.readouterr().out
    describe.main([f"--genotype={out}", "--json"])
    described = json.loads(capsys.readouterr().out)
    assert (described["parameters"], described["macs"]) == (result["parameters"], result["multiply_adds"])
    describe.main([f"--genotype={out}", "--channels=4", "--json"])  # what is given counts
    assert json.loads(capsys.readouterr().out)["parameters"] > 100 * result["parameters"]
    config = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps({**config, "reads": {"classes": 10}}))
    with pytest.raises(SystemExit):
        describe.main([f"--genotype={out}"])
    assert "config.json does not say what the network reads" in capsys.readouterr().err


def test_it_says_where_the_search_has_seen_the_test(tmp_path, capsys):
    search = {"channels": 2, "layers": 1, "batch_size": 20, "inner_steps": 1, "epochs": 1, "device": "cpu"}
    flags = [*[flag for flag in TINY if "genotype" not in flag and "images" not in flag], "--images=100"]
    for images, seed, said in ((100, 0, True), (80, 0, False), (80, 1, True)):
        run = tmp_path / f"{images}-{seed}"
        fastnas.search(**search, images=images, seed=seed, out=run)
        main([*flags, f"--genotype={run}", f"--out={run}-trained"])
        shown = " ".join(capsys.readouterr().out.split())
        assert ("a search with --images 80 --seed 0 draws just the others" in shown) is said


def test_what_a_search_returns_is_taken_as_it_is(tmp_path):
    out = tmp_path / "run"
    options = {"channels": 2, "layers": 1, "images": 60, "batch_size": 20, "epochs": 1, "device": "cpu"}
    genotype = read_genotype("darts", "DARTS_V2")
    first = fastnas.retrain(genotype=genotype, space="darts", out=out, **options)
    assert (
        fastnas.retrain(genotype=out, out=tmp_path / "again", **options).genotype
        == first.genotype
        == genotype
    )


def test_describe_is_not_imported_with_the_package():
    """Python would warn when `python -m fastnas.describe` runs it a second time."""
    code = "import sys, fastnas; assert 'fastnas.retrain' in sys.modules; assert 'fastnas.describe' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "--genotype is needed: the folder of a search"),
        (["--genotype=DARTS_V3"], "genotype 'DARTS_V3': no such file, and no such name"),
        (["--genotype=DARTS_V2", "--dataset=cifar10", "--data=/nowhere"], "/nowhere"),
        (["--resume=/nowhere"], "no run to resume in /nowhere"),
        (["--resume"], "--resume needs the folder"),
    ],
)
def test_a_mistake_is_one_sentence_and_status_2(arguments, sentence, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    shown = capsys.readouterr()
    assert stop.value.code == 2
    assert shown.err.startswith("error: ")
    assert sentence in shown.err
    assert shown.err.count("\n") == 1
    assert not any(tmp_path.iterdir())
