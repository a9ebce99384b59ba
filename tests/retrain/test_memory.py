"""No memory left in a retraining's step: one sentence, with what fits."""

import pytest
import torch

from fastnas.errors import FastnasError
from fastnas.retrain import memory, retrain
from fastnas.retrain.images import ImageTrainer
from fastnas.retrain.text import TextTrainer
from tests.corpora import write_corpus


def plant(monkeypatch, trainer, size_of, most):
    """From now on a step of ``trainer`` on more than ``most`` finds no memory; the sizes that were tried."""
    step, tried = trainer.step, []

    def planted(self, *batch):
        tried.append(size_of(batch))
        if tried[-1] > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has ...")
        return step(self, *batch)

    monkeypatch.setattr(trainer, "step", planted)
    return tried


def sentence(call):
    with pytest.raises(FastnasError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_images(tiny, monkeypatch, tmp_path):
    tried = plant(monkeypatch, ImageTrainer, lambda batch: len(batch[0][1]), 9)
    told = sentence(tiny)
    assert told == (
        "no memory left on cpu at --batch-size 20: begin a new run with --batch-size 9, which fits, "
        f"or go on where more memory is free by python -m fastnas.retrain --resume {tmp_path / 'run'}"
    )
    assert tried == [20, 10, 5, 7, 8, 9]
    monkeypatch.undo()
    assert len(tiny(resume=tmp_path / "run").metrics) == 2


def test_nothing_fits(tiny, monkeypatch):
    plant(monkeypatch, ImageTrainer, lambda batch: len(batch[0][1]), 1)
    assert sentence(tiny).startswith(
        "no memory left on cpu at --batch-size 20, nor at 2; take a smaller network"
    )


def test_several_processes_try_nothing(tiny, monkeypatch):
    tried = plant(monkeypatch, ImageTrainer, lambda batch: len(batch[0][1]), 9)
    monkeypatch.setattr(memory, "is_distributed", lambda: True)
    assert "begin a new run with a smaller one, or go on where" in sentence(tiny)
    assert tried == [20]


def test_text(monkeypatch, tmp_path):
    """The streams that fit are found with the longest window."""
    plant(monkeypatch, TextTrainer, lambda batch: batch[0].shape[1], 2)
    options = {"hidden_size": 4, "batch_size": 4, "bptt": 7, "epochs": 1, "threads": 1, "device": "cpu"}
    data = write_corpus(tmp_path / "text")
    told = sentence(
        lambda: retrain(genotype="DARTS_V2", dataset="ptb", data=data, out=tmp_path / "run", **options)
    )
    assert "at --batch-size 4: begin a new run with --batch-size 2, which fits" in told
