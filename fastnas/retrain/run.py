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
from fastnas.retrain.trainer import Tally, Trainer
from fastnas.runs.checkpoint import Moment, State, put_back, put_back_random_states, random_states
from fastnas.runs.deterministic import deterministic
from fastnas.runs.interrupt import Interrupt, interrupt_flag
from fastnas.runs.saving import Saving
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

    Everything is checked, and the data read, before the run's folder is made. Ctrl-C or SIGTERM ends it after the
    step in progress, behind a checkpoint, a second Ctrl-C at once; the run goes on from its newest checkpoint when it
    is resumed.

    Raises:
        FastnasError: a mistake in the configuration or the data.
        KeyboardInterrupt: Ctrl-C; it says how to resume, if there is something to resume.
    """
    config = config.resolved()
    folder = RetrainFolder.for_config(config)
    if config.run.threads is not None:
        torch.set_num_threads(config.run.threads)
    if config.run.resume is not None:
        folder.fill()
    # A resumed run trains what it began with, whatever has become of the file that named it.
    source = folder.genotype_file if config.run.resume is not None else config.network.genotype
    genotype = read_genotype(config.space, str(source))
    with (
        interrupt_flag() as interrupt,
        deterministic(config.run.deterministic, named_device(config.run.device)) as device,
    ):
        trainer = trainer_of(config, genotype, device, interrupt)
        interrupt.defer()
        rows: list[dict[str, Any]] = []
        if config.run.resume is None:
            folder.start(config, genotype, trainer.reads)
        with folder.resumable():
            if config.run.resume is not None:
                rows = _taken_up(trainer, config, folder)
            _epochs(trainer, config, folder, rows, progress, interrupt)
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


def _taken_up(trainer: Trainer, config: RetrainConfig, folder: RetrainFolder) -> list[dict[str, Any]]:
    """Puts the newest checkpoint into ``trainer``, if there is one yet; the rows of the epochs that it has done."""
    state = folder.taken_up(config)
    if state is None:
        return []
    put_back(str(folder.path), state.tensors, trainer.tensors())
    put_back_random_states(state.tensors, trainer.device)
    if state.moment.step:
        trainer.tally = Tally.of(state, trainer.device)
    return state.rows


def state_of(trainer: Trainer, rows: list[dict[str, Any]]) -> State:
    """The whole state of a retraining between two steps; ``rows`` are those of the epochs done.

    Raises:
        FastnasError: a step before was not finite.
    """
    tensors, numbers, tally = {**trainer.tensors(), **random_states(trainer.device)}, {}, trainer.tally
    steps = 0 if tally is None else tally.steps
    if tally is not None and steps:
        trainer.notices.finish()
        tensors |= {f"epoch.{name}": tensor for name, tensor in tally.tensors.items()}
        numbers = tally.numbers()
    return State(
        Moment(len(rows), steps),
        {name: tensor.detach().cpu() for name, tensor in tensors.items()},
        rows,
        numbers,
    )


def _epochs(
    trainer: Trainer,
    config: RetrainConfig,
    folder: RetrainFolder,
    rows: list[dict[str, Any]],
    progress: bool,
    interrupt: Interrupt,
) -> None:
    """The epochs that are left, each saved in ``folder`` and added to ``rows``."""
    epochs, size, options = config.epochs, trainer.size, config.to_options()
    saving = Saving(
        lambda: folder.checkpoints.write(state_of(trainer, rows), options),
        interrupt,
        config.run.checkpoint_seconds,
    )
    with tqdm(
        total=epochs * size,
        initial=len(rows) * size + (trainer.tally.seen if trainer.tally else 0),
        unit=trainer.unit,
        dynamic_ncols=True,
        # None: no bar where the output is no terminal, but a row an epoch still.
        disable=None if progress else True,
    ) as bar:
        for epoch in range(len(rows) + 1, epochs + 1):
            bar.set_description(f"epoch {epoch}/{epochs}")
            row = trainer.epoch(epoch, bar, saving)
            rows.append(row)
            folder.add_row(row)
            saving.now()
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
