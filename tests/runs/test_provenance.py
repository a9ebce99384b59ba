"""What a run's folder says of where it comes from, and of every epoch."""

import json
import platform
from datetime import datetime, timedelta, timezone

import torch
from safetensors.torch import load_file

import fastnas
from fastnas.build_info import build_info
from fastnas.retrain.__main__ import main as retrain
from fastnas.search.__main__ import main as search
from tests.checkpoints import forget, sealed

TINY = ["--images=40", "--batch-size=8", "--epochs=1", "--channels=2", "--layers=1", "--threads=1"]
SEARCH = {
    "channels": 2,
    "layers": 1,
    "images": 32,
    "batch_size": 8,
    "epochs": 3,
    "method": "first-order",
    "threads": 1,
    "device": "cpu",
}


def origin(out):
    return json.loads((out / "config.json").read_text())["provenance"]


def epochs(out):
    """Numbers of the epochs of which there are alphas, and genotypes."""
    return [
        sorted(int(file.stem[-3:]) for file in (out / name).iterdir()) for name in ("alphas", "genotypes")
    ]


def test_a_run_says_where_it_comes_from(tmp_path, monkeypatch):
    monkeypatch.setattr("fastnas.report.write_report", lambda runs: runs[0])  # its own tests draw it
    begin = datetime.now(timezone.utc) - timedelta(seconds=1)
    for main, flags in (
        (search, ["--method=first-order"]),
        (retrain, ["--genotype=DARTS_V2", "--auxiliary=0"]),
    ):
        out = tmp_path / main.__module__
        typed = [*TINY, *flags, "--device", "cpu", "--out", str(out)]
        main(typed)
        found = origin(out)
        assert begin <= datetime.fromisoformat(found.pop("started")) <= datetime.now(timezone.utc)
        assert found.pop("platform").startswith(platform.system())
        assert found.pop("device")
        assert found == {
            "arguments": typed,
            "python": platform.python_version(),
            "commit": build_info().commit,
            "threads": 1,
        }
        main(["--resume", str(out)])  # what it was begun by stays
        assert origin(out)["arguments"] == typed


def test_alpha_is_kept_after_every_epoch_and_what_a_checkpoint_does_not_have_goes(tmp_path):
    out = tmp_path / "run"
    result = fastnas.search(**SEARCH, out=out)
    assert origin(out)["arguments"] is None
    assert epochs(out) == [[1, 2, 3], [1, 2, 3]]
    kept = load_file(out / "alphas" / "epoch-003.safetensors")
    assert kept.keys() == result.alphas.keys()
    assert all(torch.equal(kept[name], result.alphas[name]) for name in kept)
    before = {file: file.read_bytes() for file in out.glob("*/epoch-*")}
    (newest,) = (file for file in sealed(out) if file.stem.startswith("00003"))
    for file in (newest, newest.with_suffix(".safetensors")):
        file.unlink()
    (out / "alphas" / "epoch-004.safetensors").write_bytes(b"of another life")
    fastnas.search(resume=out)
    assert {file: file.read_bytes() for file in out.glob("*/epoch-*")} == before


def test_a_folder_of_before_is_gone_on_with(tmp_path):
    """One that has neither provenance nor alphas."""
    out = tmp_path / "run"
    fastnas.search(**SEARCH, out=out)
    forget(out)
    content = json.loads((out / "config.json").read_text())
    del content["provenance"]
    (out / "config.json").write_text(json.dumps(content))
    for file in (out / "alphas").iterdir():
        file.unlink()
    (out / "alphas").rmdir()
    assert len(fastnas.search(resume=out).metrics) == 3
    assert epochs(out) == [[1, 2, 3], [1, 2, 3]]
