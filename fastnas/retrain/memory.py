"""Peak memory of a retraining: a forecast from a few small steps, and what to say where there is not enough."""

from __future__ import annotations

import torch

from fastnas.retrain.config import RetrainConfig
from fastnas.retrain.folder import RetrainFolder
from fastnas.retrain.images import ImageTrainer
from fastnas.retrain.sources import FORMAT
from fastnas.retrain.text import LONGEST, TextTrainer
from fastnas.retrain.trainer import Trainer
from fastnas.runs.memory import (
    Forecast,
    is_distributed,
    largest_that_runs,
    measured_growth,
)
from fastnas.runs.options import filled
from fastnas.supernet import pinned


def retrain_forecast(trainer: ImageTrainer | TextTrainer, data: int) -> Forecast:
    """The peak memory of the trainer's steps, from steps on a few images of zeros, which move its weights.

    Args:
        trainer: what is trained; torch.compile is left out.
        data: bytes of the data set on the device.
    """
    with pinned(tf32=True):  # cuDNN's trials take what memory there is
        growth = measured_growth(lambda size: run_step(trainer, size), trainer.device)
    state = {name: tensor.numel() * tensor.element_size() for name, tensor in trainer.tensors().items()}
    named = {"weights": "weights", "running": "running statistics", "sgd.momentum_buffer": "their momentum"}
    resident = {text: state.pop(name) for name, text in named.items() if name in state}
    if state:
        resident["their mean and the best of them"] = sum(state.values())
    unit = "streams" if isinstance(trainer, TextTrainer) else "images"
    return Forecast(filled(trainer.config.images.batch_size), unit, resident | {"data set": data}, growth)


def run_step(trainer: Trainer, size: int) -> None:
    """A step on ``size`` images of zeros, or on so many streams of the longest window there is."""
    if isinstance(trainer, TextTrainer):
        length = filled(trainer.config.text.bptt) + LONGEST
        words = torch.zeros(length, size, dtype=torch.int64, device=trainer.device)
        trainer.step(words, trainer.net.initial_state(size), words.reshape(-1).clone(), 0.0)
        return
    assert isinstance(trainer, ImageTrainer)
    shape = (size, trainer.source.channels, *trainer.source.size)
    images = torch.zeros(shape, dtype=trainer.dtype, device=trainer.device).contiguous(memory_format=FORMAT)
    trainer.step((images, torch.zeros(size, dtype=torch.int64, device=trainer.device)), 0.0)


def without_memory(trainer: Trainer, config: RetrainConfig, folder: RetrainFolder) -> str:
    """What to say when a step found no memory: what was tried, and what fits."""
    batch = filled(config.images.batch_size)
    told = f"no memory left on {trainer.device} at --batch-size {batch}"
    # A step that one process tries alone would wait for the others for ever.
    largest = None if is_distributed() else largest_that_runs(lambda size: run_step(trainer, size), batch)
    if largest == 0:
        return f"{told}, nor at 2; take a smaller network, or a device with more"
    which = "a smaller one" if largest is None else f"--batch-size {largest}, which fits"
    told += f": begin a new run with {which}"
    return f"{told}, or go on where more memory is free by {folder.resume_command()}"
