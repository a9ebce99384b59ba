"""What ``--tensorboard`` writes is what TensorBoard reads."""

import io
import json
import math
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.metadata import SESSION_START_INFO_TAG
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

import fastnas
from fastnas.retrain.images import ImageTrainer
from fastnas.runs.tensorboard import numbers
from fastnas.search import tensorboard
from fastnas.search.engine import Search
from fastnas.search.tensorboard import SearchBoard
from tests.interrupted import interrupted_in


@pytest.fixture
def undrawn(tiny, monkeypatch):
    """The same searches in half the time: their cells are not drawn."""
    monkeypatch.setattr(tensorboard, "drawn", lambda genotype: np.zeros((2, 2, 3), np.uint8))
    return tiny


def events(run):
    """All that TensorBoard has of a run."""
    found = EventAccumulator(
        str(run / "tensorboard"),
        size_guidance=dict.fromkeys(["scalars", "images", "histograms", "tensors"], 0),
    )
    return found.Reload()


def rows_of(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def check_scalars(run):
    """Every number of every row is there, at its epoch, once, and none else."""
    found, rows = events(run), rows_of(run)
    for tag in found.Tags()["scalars"]:
        wanted = {row["epoch"]: value for row in rows for name, value in numbers(row) if name == tag}
        got = [(event.step, event.value) for event in found.Scalars(tag)]
        assert [step for step, _ in got] == sorted(wanted), tag
        assert [value for _, value in got] == [np.float32(wanted[step]) for step, _ in got], tag
    names = {name for row in rows for name, _ in numbers(row)}
    assert set(found.Tags()["scalars"]) == names
    return found


def test_a_search(undrawn):
    result = undrawn(epochs=3, tensorboard=True, spectrum_every=2, arch_learning_rate=0.5)
    found = check_scalars(result.out)
    assert {"val_accuracy", "hessian_lambda_max"} <= set(found.Tags()["scalars"])
    assert [event.step for event in found.Scalars("hessian_lambda_max")] == [2]


def test_alpha_genotype_and_cells(tiny):
    """Alpha's weights after the softmax every epoch; the cells where they are others than before."""
    result = tiny(epochs=2, tensorboard=True, arch_learning_rate=0.5)
    found = events(result.out)
    for epoch in (1, 2):
        alphas = load_file(result.out / "alphas" / f"epoch-{epoch:03d}.safetensors")
        for name, alpha in alphas.items():
            histogram = next(e for e in found.Histograms(f"alpha/{name}") if e.step == epoch).histogram_value
            weights = torch.softmax(alpha, -1).double()
            assert histogram.num == weights.numel()
            assert histogram.sum == pytest.approx(len(alpha), rel=1e-5)
            assert (histogram.min, histogram.max) == (weights.min().item(), weights.max().item())
    genotypes = [row["genotype"] for row in result.metrics]
    changed = [i + 1 for i, text in enumerate(genotypes) if i == 0 or text != genotypes[i - 1]]
    assert len(changed) > 1
    texts = found.Tensors("genotype/text_summary")
    assert [event.step for event in texts] == changed
    assert texts[-1].tensor_proto.string_val[0].decode() == f"`{genotypes[changed[-1] - 1]}`"
    images = found.Images("cells")
    assert [event.step for event in images] == changed
    pixels = np.asarray(Image.open(io.BytesIO(images[0].encoded_image_string)))
    assert pixels.shape == (images[0].height, images[0].width, 3)
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 10  # something is drawn


def test_hyperparameters(undrawn):
    result = undrawn(epochs=1, tensorboard=True, seed=3)
    found = events(result.out)
    content = found.PluginTagToContent("hparams")[SESSION_START_INFO_TAG]
    options = HParamsPluginData.FromString(content).session_start_info.hparams
    assert options["method"].string_value == "idarts"
    assert options["seed"].number_value == 3
    assert options["learning_rate"].number_value == 0.025
    assert not {"out", "resume", "device", "tensorboard"} & set(options)
    assert "_hparams_/session_end_info" in found.PluginTagToContent("hparams")


def test_a_killed_epoch_is_not_there_twice(undrawn, tmp_path, monkeypatch):
    """It ended between its events and its checkpoint; the resumed run does it again."""
    add_epoch, out = SearchBoard.add_epoch, tmp_path / "run"

    def killed(self, row, *others):
        add_epoch(self, row, *others)
        if row["epoch"] == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(SearchBoard, "add_epoch", killed)
        with pytest.raises(KeyboardInterrupt):
            undrawn(epochs=4, tensorboard=True)
    assert [event.step for event in events(out).Scalars("val_loss")] == [1, 2, 3]
    fastnas.search(resume=out)
    assert len(list((out / "tensorboard").iterdir())) == 2
    check_scalars(out)


def test_a_half_written_event(undrawn, tmp_path):
    """A power cut in the middle of an event costs that event alone."""
    out = tmp_path / "run"
    with interrupted_in(Search, 3):
        undrawn(epochs=3, tensorboard=True)
    (file,) = (out / "tensorboard").iterdir()
    file.write_bytes(file.read_bytes()[:-20])
    fastnas.search(resume=out)
    assert [event.step for event in events(out).Scalars("val_loss")] == [1, 2, 3]


def test_asked_for_when_it_is_resumed(undrawn, tmp_path):
    """The epochs before are there, too."""
    out = tmp_path / "run"
    with interrupted_in(Search, 3):
        undrawn(epochs=3)
    fastnas.search(resume=out, tensorboard=True)
    check_scalars(out)


def test_a_run_that_is_done_is_left_alone(undrawn):
    out = undrawn(tensorboard=True).out
    before = {file.name: file.read_bytes() for file in (out / "tensorboard").iterdir()}
    fastnas.search(resume=out)
    assert {file.name: file.read_bytes() for file in (out / "tensorboard").iterdir()} == before


def test_the_search_is_the_same(undrawn, tmp_path):
    plain, watched = undrawn(), undrawn(tensorboard=True, out=tmp_path / "watched")
    assert all(torch.equal(plain.alphas[name], watched.alphas[name]) for name in plain.alphas)
    assert not (plain.out / "tensorboard").exists()


def test_without_tensorboard(undrawn, tmp_path, monkeypatch):
    """Said in a sentence before anything is made."""
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(
        fastnas.FastnasError, match=r"^--tensorboard needs .*: pip install tensorboard, or leave it out$"
    ):
        undrawn(tensorboard=True)
    assert not (tmp_path / "run").exists()


def test_a_retraining(undrawn, tmp_path):
    genotype = undrawn(epochs=1).out
    options = {"channels": 2, "layers": 3, "images": 64, "epochs": 3, "batch_size": 16, "threads": 1}
    out = tmp_path / "trained"
    with interrupted_in(ImageTrainer, 3):
        fastnas.retrain(genotype=genotype, out=out, tensorboard=True, device="cpu", **options)
    fastnas.retrain(resume=out)
    found = check_scalars(out)
    assert math.isfinite(found.Scalars("test_accuracy")[-1].value)
