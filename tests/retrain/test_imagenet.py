"""The ImageNet recipe on a folder of made-up images: the folder's form, its network, resume."""

import signal
from functools import partial

import numpy as np
import pytest
from PIL import Image

from fastnas import FastnasError
from fastnas.errors import Terminated
from fastnas.retrain import retrain
from fastnas.retrain.images import ImageTrainer
from tests.runs.lives import same

TINY = {
    "genotype": "DARTS_V2",
    "dataset": "imagenet",
    "channels": 2,
    "layers": 1,
    "image_size": 112,  # 7 x 7 behind the only cell, as 224 has behind all
    "batch_size": 4,
    "epochs": 2,
    "workers": 0,
    "threads": 1,
    "device": "cpu",
}


@pytest.fixture
def folder(tmp_path):
    """Six training and three test images of two classes."""
    draw = np.random.default_rng(0)
    for part, count in (("train", 3), ("val", 2)):
        for label, name in enumerate(("dark", "light")):
            (tmp_path / "data" / part / name).mkdir(parents=True)
            for i in range(count):
                pixels = draw.integers(128 * label, 128 * label + 128, (40, 50, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "data" / part / name / f"{i}.jpg")
    return tmp_path / "data"


def test_a_broken_image_is_named_and_mended_the_run_ends_as_without_it(folder, tmp_path):
    whole = retrain(**TINY, data=folder, out=tmp_path / "whole")
    assert [row["learning_rate"] for row in whole.metrics] == [0.5, 0.5]  # two epochs of PC-DARTS' schedule
    assert whole.result["test_images"] == 4
    assert "test_top5" not in whole.result  # of two classes
    image = folder / "val" / "dark" / "1.jpg"
    kept = image.read_bytes()
    image.write_bytes(b"broken")
    with pytest.raises(
        FastnasError, match=r"1.jpg: not a readable image .*; once that is mended, go on by: python"
    ):
        retrain(**TINY, data=folder, out=tmp_path / "part")
    image.write_bytes(kept)
    resumed = retrain(resume=tmp_path / "part", workers=1)
    saved = [(run.out / "network.safetensors").read_bytes() for run in (whole, resumed)]
    assert saved[0] == saved[1]


def test_a_run_that_ends_at_any_step_goes_on_to_the_same(folder, tmp_path, monkeypatch):
    """In the middle of an epoch, too, whichever number of processes reads the images."""
    options = {**TINY, "data": folder, "drop_path": 0.3, "schedule": "cosine-steps"}
    retrain(**options, out=tmp_path / "whole")
    step, stops = ImageTrainer.step, 0

    def terminated(self, *arguments):
        signal.raise_signal(signal.SIGTERM)
        return step(self, *arguments)

    monkeypatch.setattr(ImageTrainer, "step", terminated)
    run = partial(retrain, **options, out=tmp_path / "run")
    while True:
        try:
            run()
            break
        except Terminated:
            stops += 1
            run = partial(retrain, resume=tmp_path / "run", workers=stops % 2)
    assert stops == 4  # two epochs of two batches
    assert same(tmp_path / "run", tmp_path / "whole")


@pytest.mark.parametrize(
    ("remove", "sentence"),
    [
        ("val", "must hold a folder val of class folders"),
        ("val/light", "expected one folder of images for each"),
    ],
)
def test_a_folder_of_another_form_is_one_sentence(folder, tmp_path, remove, sentence):
    (folder / remove).rename(tmp_path / "moved")
    with pytest.raises(FastnasError, match=sentence):
        retrain(**TINY, data=folder, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_train_and_val_have_the_same_classes(folder, tmp_path):
    (folder / "val" / "light").rename(folder / "val" / "grey")
    with pytest.raises(FastnasError, match="train and val must have the same class folders"):
        retrain(**TINY, data=folder, out=tmp_path / "run")
