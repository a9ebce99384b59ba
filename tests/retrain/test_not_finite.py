"""A retraining that meets a NaN or an infinity ends with what and where it was, and goes on from before."""

import pytest
import torch

from fastnas.bilevel import NotFiniteError
from fastnas.retrain import retrain
from fastnas.retrain.images import ImageTrainer
from fastnas.retrain.text import TextTrainer
from tests.corpora import write_corpus
from tests.retrain import test_text
from tests.retrain.conftest import TINY

TEXT = {**test_text.TINY, "epochs": 2, "bptt": 20}


def rows(result):
    return [
        {k: v for k, v in row.items() if "second" not in k and "memory" not in k} for row in result.metrics
    ]


def of_images(trainer, batch, *rest):
    images = batch[0].clone()
    images[1, 0, 2, 2] = torch.inf
    return ((images, batch[1]), *rest)


def of_statistics(trainer, *batch):
    trainer.net.running.flat[-1] = torch.nan
    return batch


def of_hidden(trainer, words, hidden, *rest):
    return (words, torch.full_like(hidden, torch.nan), *rest)


def of_weights(trainer, *batch):
    trainer.net.weights.flat[-1] = torch.nan
    return batch


PLANTS = [
    (ImageTrainer, of_images, "loss, and before the step in the images"),
    (ImageTrainer, of_statistics, "statistics, and before the step in the statistic "),
    (TextTrainer, of_hidden, "loss, and before the step in the hidden state"),
    (TextTrainer, of_weights, "loss, and before the step in the weights nodes"),
]


@pytest.mark.parametrize(("trainer", "plant", "place"), PLANTS, ids=lambda x: getattr(x, "__name__", ""))
def test_what_is_planted_is_named_and_the_checkpoint_before_it_goes_on(
    trainer, plant, place, tmp_path, monkeypatch
):
    options = TINY if trainer is ImageTrainer else {**TEXT, "data": write_corpus(tmp_path / "text")}
    inner, steps = trainer.step, []

    def step(self, *arguments):
        steps.append(self.notices.epoch)
        if steps.count(2) == 2:
            arguments = plant(self, *arguments)
        return inner(self, *arguments)

    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "step", step)
        with pytest.raises(
            NotFiniteError, match=f"^epoch 2, step 2: NaN or infinity in the {place}"
        ) as caught:
            retrain(**{**options, "out": out})
    (newest,) = (out / "checkpoints").glob("*.safetensors")
    assert f"; {newest} is from before: " in str(caught.value)
    whole = retrain(**{**options, "out": tmp_path / "whole"})
    assert rows(retrain(resume=out, detect_anomaly=True)) == rows(whole)


def test_an_anomaly_is_detected_in_the_middle_of_the_network(tmp_path, monkeypatch):
    inner = ImageTrainer.step

    def step(self, *arguments):
        self.net.weights["stages.1.preprocess.0.1.weight"].data.fill_(3e38)
        return inner(self, *arguments)

    monkeypatch.setattr(ImageTrainer, "step", step)
    place = r"stages\.1\.preprocess\.0\.1 \(forward pass\), so the step was not made"
    for detect, where in ((True, "infinity"), (False, "infinity in the loss,")):
        with pytest.raises(
            NotFiniteError, match=f"{where} first in the output of aten::convolution in {place}"
        ):
            retrain(**{**TINY, "out": tmp_path / str(detect), "detect_anomaly": detect})
