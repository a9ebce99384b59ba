"""A retraining: epochs of a trainer, each recorded and checkpointed, and the result at the end."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from fastnas._devices import named_device
from fastnas._version import __version__
from fastnas.retrain.config import RetrainConfig
from fastnas.retrain.folder import RetrainFolder
from fastnas.retrain.images import ImageTrainer
from fastnas.retrain.text import TextTrainer
from fastnas.retrain.trainer import Trainer
from fastnas.runs.interrupt import Interrupt, interrupt_flag
from fastnas.spaces import family, read_genotype
from fastnas.spaces.family import AnyGenotype


@dataclass(frozen=True)
class RetrainResult:
    """What a retraining ends with.

    Attributes:
        result: as in result.json.
        metrics: one row an epoch, as in metrics.jsonl.
        genotype: what was trained.
        out: the run's folder.
        config: the configuration, every default filled in.
    """

    result: dict[str, Any]
    metrics: list[dict[str, Any]]
    genotype: AnyGenotype
    out: Path
    config: RetrainConfig


def run_retrain(config: RetrainConfig, *, progress: bool = True) -> RetrainResult:
    """Runs (or resumes) the retraining that ``config`` describes.

    Everything is checked, and the data read, before the run's folder is made. Ctrl-C ends it after the step in
    progress, a second one at once; the run goes on from its newest checkpoint when it is resumed.

    Raises:
        FastnasError: a mistake in the configuration or the data.
        KeyboardInterrupt: Ctrl-C; it says how to resume, if there is something to resume.
    """
    config = config.resolved()
    folder = RetrainFolder.for_config(config)
    if config.run.threads is not None:
        torch.set_num_threads(config.run.threads)
    # A resumed run trains what it began with, whatever has become of the file that named it.
    source = folder.genotype_file if config.run.resume is not None else config.network.genotype
    genotype = read_genotype(config.space, str(source))
    with interrupt_flag() as interrupt:
        trainer = trainer_of(config, genotype, named_device(config.run.device), interrupt)
        interrupt.defer()
        done: int = 0
        rows: list[dict[str, Any]] = []
        if config.run.resume is None:
            folder.start(config, genotype, trainer.reads)
        else:
            done, rows = folder.restore(trainer, config)
        with folder.resumable():
            _epochs(trainer, config, folder, done, rows, progress, interrupt)
            result = result_of(trainer, config, genotype, rows)
            folder.finish(trainer, result)
    return RetrainResult(result, rows, genotype, folder.path, config)


def trainer_of(
    config: RetrainConfig, genotype: AnyGenotype, device: torch.device, interrupt: Interrupt
) -> Trainer:
    """What trains ``genotype`` by a resolved configuration: its data set decides."""
    if family(config.space).reads == "text":
        return TextTrainer(config, genotype, device, interrupt)
    return ImageTrainer(config, genotype, device, interrupt)


def _epochs(
    trainer: Trainer,
    config: RetrainConfig,
    folder: RetrainFolder,
    done: int,
    rows: list[dict[str, Any]],
    progress: bool,
    interrupt: Interrupt,
) -> None:
    """The epochs after the first ``done``, each saved in ``folder`` and added to ``rows``."""
    epochs, size = config.epochs, trainer.size
    with tqdm(
        total=epochs * size,
        initial=done * size,
        unit=trainer.unit,
        dynamic_ncols=True,
        # None: no bar where the output is no terminal, but a row an epoch still.
        disable=None if progress else True,
    ) as bar:
        for epoch in range(done + 1, epochs + 1):
            bar.set_description(f"epoch {epoch}/{epochs}")
            row = trainer.epoch(epoch, bar)
            rows.append(row)
            folder.save(trainer, config, row)
            if progress:
                tqdm.write(
                    f"epoch {epoch}/{epochs}  {trainer.line(row)}  {row['seconds']:.1f} s", file=sys.stdout
                )
        interrupt.check()


def result_of(
    trainer: Trainer, config: RetrainConfig, genotype: AnyGenotype, rows: list[dict[str, Any]]
) -> dict[str, Any]:
    """What result.json holds."""
    device = trainer.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    return {
        **trainer.result(rows),
        "parameters": trainer.parameters,
        "epochs": len(rows),
        "seconds": sum(row["seconds"] for row in rows),
        "recipe": config.network.recipe,
        "space": config.space,
        "genotype": str(genotype),
        "dataset": config.images.dataset,
        "seed": config.run.seed,
        "device": name,
        "fastnas": __version__,
        "torch": torch.__version__,
    }
