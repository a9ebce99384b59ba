"""A retraining: epochs of a trainer, each recorded and checkpointed, and the result at the end."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fastnas._terminal import size_of, wrapped
from fastnas._version import __version__
from fastnas.retrain.config import RetrainConfig
from fastnas.retrain.folder import RetrainFolder
from fastnas.retrain.images import ImageTrainer
from fastnas.retrain.memory import without_memory
from fastnas.retrain.seen import seen_by_the_search
from fastnas.retrain.summary import beginning
from fastnas.retrain.text import TextTrainer
from fastnas.retrain.trainer import Tally, Trainer
from fastnas.runs.checkpoint import Moment, State, put_back, put_back_random_states, random_states
from fastnas.runs.deterministic import deterministic
from fastnas.runs.interrupt import Interrupt, interrupt_flag
from fastnas.runs.memory import memory_told
from fastnas.runs.progress import Progress, say
from fastnas.runs.provenance import provenance
from fastnas.runs.ranks import ALONE, Ranks, launched
from fastnas.runs.ranks_state import gathered, handed_out, other_ranks, own_part
from fastnas.runs.result import Result
from fastnas.runs.saving import Saving
from fastnas.runs.tensorboard import Board
from fastnas.runs.watch import watched
from fastnas.spaces import family, read_genotype
from fastnas.spaces.family import AnyGenotype


@dataclass(frozen=True)
class RetrainResult(Result):
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

    def _repr_html_(self) -> str:
        from fastnas.drawing.notebook import retrain_html

        return retrain_html(self)


def run_retrain(
    config: RetrainConfig, *, progress: bool = True, arguments: Sequence[str] | None = None
) -> RetrainResult:
    """Runs (or resumes) the retraining that ``config`` describes.

    Everything is checked, and the data read, before the run's folder is made. Ctrl-C or SIGTERM ends it after the
    step in progress, behind a checkpoint, a second Ctrl-C at once; the run goes on from its newest checkpoint when it
    is resumed.

    Args:
        config: of the retraining.
        progress: show the bar and a line an epoch.
        arguments: the flags as they were typed, for the folder; None: there were none.

    Raises:
        FastnasError: a mistake in the configuration or the data.
        KeyboardInterrupt: Ctrl-C; it says how to resume, if there is something to resume.
    """
    ranks = launched()
    progress = progress and ranks.is_first
    config = ranks.agreed(config.resolved)
    ranks.check_alike(config.decisive())
    folder = RetrainFolder(Path(ranks.first(lambda: str(RetrainFolder.for_config(config).path))), ranks.size)
    live = ranks.agreed(lambda: watched(config.watch, ranks))
    if config.run.threads is not None:
        torch.set_num_threads(config.run.threads)
    if config.run.resume is not None:
        ranks.first(folder.fill)
    # A resumed run trains what it began with, whatever has become of the file that named it.
    source = folder.genotype_file if config.run.resume is not None else config.network.genotype
    genotype = ranks.agreed(lambda: read_genotype(config.space, str(source)))
    with (
        live,
        interrupt_flag() as interrupt,
        deterministic(
            config.run.deterministic, ranks.agreed(lambda: ranks.device(config.run.device))
        ) as device,
    ):
        trainer = ranks.agreed(lambda: trainer_of(config, genotype, device, interrupt, ranks))
        interrupt.defer(ranks)
        rows: list[dict[str, Any]] = []
        if config.run.resume is None:
            origin = provenance(arguments, device)
            ranks.first(lambda: folder.start(config, genotype, trainer.reads, origin))
        with (
            folder.resumable(config.run.detect_anomaly),
            memory_told(lambda: without_memory(trainer, config, folder)),
        ):
            if config.run.resume is not None:
                rows = _taken_up(trainer, config, folder, progress)
            live.serve(folder.path, progress)
            if progress:
                width = size_of(sys.stdout).columns
                say(beginning(trainer, config, folder.path, len(rows), width))
                if isinstance(trainer, ImageTrainer) and (
                    seen := seen_by_the_search(config, trainer.source.train_images)
                ):
                    say(wrapped(seen, width, "  "))
            _epochs(trainer, config, folder, rows, progress, interrupt)
            ranks.average_(trainer.net.running.flat)
            result = result_of(trainer, config, genotype, rows)
            if ranks.is_first:
                folder.finish(trainer, result)
    return RetrainResult(result, rows, genotype, folder.path, config)


def trainer_of(
    config: RetrainConfig,
    genotype: AnyGenotype,
    device: torch.device,
    interrupt: Interrupt,
    ranks: Ranks = ALONE,
) -> Trainer:
    """What trains ``genotype`` by a resolved configuration: its data set decides."""
    if family(config.space).reads == "text":
        return TextTrainer(config, genotype, device, interrupt, ranks=ranks)
    return ImageTrainer(config, genotype, device, interrupt, ranks=ranks)


def _taken_up(
    trainer: Trainer, config: RetrainConfig, folder: RetrainFolder, progress: bool
) -> list[dict[str, Any]]:
    """Puts the newest checkpoint into ``trainer``, if there is one yet; the rows of the epochs that it has done."""
    ranks = trainer.ranks
    state = handed_out(lambda: folder.taken_up(config), ranks)
    if state is None:
        return []
    if progress and (sentence := other_ranks(state, ranks)):
        say(sentence, sys.stderr)
    whole = state
    state = ranks.agreed(lambda: own_part(whole, ranks))
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
    epochs, size, options, ranks = config.epochs, trainer.size, config.to_options(), trainer.ranks

    def save() -> None:
        own = state_of(trainer, rows)
        ranks.check_same({"weights": trainer.net.weights.flat}, f"at {own.moment}")
        state = gathered(own, ranks)
        if ranks.is_first:
            folder.checkpoints.write(state, options)

    saving = Saving(save, interrupt, config.run.checkpoint_seconds)
    seen = len(rows) * size + (trainer.tally.seen if trainer.tally else 0)
    with (
        Board(config.watch.tensorboard and ranks.is_first, folder.path, config, rows) as board,
        Progress(epochs * size, size, initial=seen, unit=trainer.unit, shown=progress) as bar,
    ):
        for epoch in range(len(rows) + 1, epochs + 1):
            bar.set_description(f"epoch {epoch}/{epochs}")
            row = trainer.epoch(epoch, bar, saving)
            row = ranks.gather(row)[0]  # times and memory are the first rank's
            rows.append(row)
            if ranks.is_first:
                folder.add_row(row)
                board.add(row)
            saving.now()
            bar.tell([f"epoch {epoch}/{epochs}", *trainer.line(row), f"{row['seconds']:.1f} s"])
        interrupt.check()
        board.close(rows[-1] if rows else None)


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
