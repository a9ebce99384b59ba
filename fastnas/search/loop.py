"""The search: epochs of steps, each epoch measured, recorded and checkpointed."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastnas._terminal import size_of
from fastnas.bilevel import NotFiniteError
from fastnas.doctor import check_first_use
from fastnas.errors import FastnasError
from fastnas.runs.deterministic import deterministic, unrestricted
from fastnas.runs.interrupt import Interrupt, interrupt_flag
from fastnas.runs.memory import memory_told
from fastnas.runs.progress import Progress, say
from fastnas.runs.provenance import provenance
from fastnas.runs.ranks import Ranks, launched
from fastnas.runs.ranks_state import gathered, handed_out, other_ranks
from fastnas.runs.result import Result
from fastnas.runs.saving import Saving
from fastnas.runs.watch import watched
from fastnas.search.config import SearchConfig
from fastnas.search.curvature import ends_shown, observed
from fastnas.search.early_stop import EarlyStop, Stop
from fastnas.search.engine import Search, device_of
from fastnas.search.folder import RunFolder
from fastnas.search.memory import check_memory, without_memory
from fastnas.search.self_audit import audit_line
from fastnas.search.summary import beginning
from fastnas.search.table import open_table, table_shown
from fastnas.search.tensorboard import SearchBoard
from fastnas.spaces import family
from fastnas.spaces.family import AnyGenotype
from fastnas.tables import Table


@dataclass(frozen=True)
class SearchResult(Result):
    """What a search ends with.

    Attributes:
        genotype: the discrete cells of the last epoch, or of the one that an early stop went back to.
        alphas: its architecture parameters by name, (edges, primitives), before the softmax, on the CPU.
        metrics: one row an epoch, as in metrics.jsonl.
        out: the run's folder.
        config: the configuration, every default filled in.
        stop: where and why an early stop ended the search; None: none did.
        table: what ``--table`` named.
    """

    genotype: AnyGenotype
    alphas: dict[str, Tensor]
    metrics: list[dict[str, Any]]
    out: Path
    config: SearchConfig
    stop: Stop | None = None
    table: Table | None = None

    def _repr_html_(self) -> str:
        from fastnas.drawing.notebook import search_html

        return search_html(self)


def run_search(
    config: SearchConfig, *, progress: bool = True, arguments: Sequence[str] | None = None
) -> SearchResult:
    """Runs (or resumes) the search that ``config`` describes.

    Everything is checked, and the data read, before the run's folder is made. Ctrl-C or SIGTERM ends the search after
    the step in progress, behind a checkpoint, a second Ctrl-C at once; the run goes on from its newest checkpoint when
    it is resumed.

    Args:
        config: of the search.
        progress: show the bar and a line an epoch.
        arguments: the flags as they were typed, for the folder; None: there were none.

    Raises:
        FastnasError: a mistake in the configuration or the data.
        KeyboardInterrupt: Ctrl-C, or (``fastnas.errors.Terminated``) SIGTERM; it says how to resume, if there is
            something to resume.
    """
    ranks = launched()
    progress = progress and ranks.is_first
    config = ranks.agreed(config.resolved)
    ranks.check_alike(config.decisive())
    folder = RunFolder(Path(ranks.first(lambda: str(RunFolder.for_config(config).path))), ranks.size)
    live = ranks.agreed(lambda: watched(config.watch, ranks))
    if config.run.threads is not None:
        torch.set_num_threads(config.run.threads)
    with (
        live,
        interrupt_flag() as interrupt,
        deterministic(config.run.deterministic, ranks.agreed(lambda: device_of(config, ranks))) as device,
    ):
        search = ranks.agreed(lambda: _prepared(config, device, interrupt, ranks))
        measured = _measured(search, folder, progress)
        interrupt.defer(ranks)
        rows: list[dict[str, Any]] = []
        if config.run.resume is None:
            ranks.first(lambda: folder.start(config, measured, provenance(arguments, device)))
        with folder.resumable(config.run.detect_anomaly), memory_told(lambda: without_memory(search, folder)):
            if config.run.resume is not None:
                rows = _taken_up(search, folder, progress)
            if progress:
                say(beginning(search, folder.path, size_of(sys.stdout).columns))
            live.serve(folder.path, progress)
            stop = _epochs(search, folder, rows, progress)
            genotype, alphas = search.genotype(), search.alphas()
            if stop is not None:
                genotype, alphas = _gone_back(search, folder, stop)
    return SearchResult(genotype, alphas, rows, folder.path, config, stop, search.table)


def _prepared(config: SearchConfig, device: torch.device, interrupt: Interrupt, ranks: Ranks) -> Search:
    """The search of a resolved configuration; nothing is written."""
    table = open_table(config)
    with unrestricted():
        check_first_use(device)
    search = Search(config, device, interrupt, ranks=ranks)
    search.table = table
    check_memory(search)
    return search


def _measured(search: Search, folder: RunFolder, progress: bool) -> dict[str, float]:
    """What ``--difference-radius auto`` found, now or when the resumed run began; the search takes it."""
    hyper = search.config.hypergradient
    if hyper.difference_radius != "auto":
        return {}
    if search.config.run.resume is not None:
        search.take_radius(search.ranks.first(lambda: folder.measured("difference_radius")))
        return {}
    try:
        radius = search.best_radius()
    except NotFiniteError as error:
        raise FastnasError(
            f"--difference-radius auto, in a step before the first epoch: {error}; take a lower --learning-rate"
        ) from None
    search.take_radius(radius)
    if progress:
        say(f"difference radius {radius:g}, the nearest to the exact products here")
    return {"difference_radius": radius}


def _taken_up(search: Search, folder: RunFolder, progress: bool) -> list[dict[str, Any]]:
    """Puts the newest checkpoint into ``search``, if there is one yet; the rows of the epochs that it has done."""
    state = handed_out(lambda: folder.taken_up(search.config), search.ranks)
    if state is None:
        return []
    if progress and (sentence := other_ranks(state, search.ranks)):
        say(sentence, sys.stderr)
    search.ranks.agreed(lambda: search.take_up(state, str(folder.path)))
    return state.rows


def _gone_back(search: Search, folder: RunFolder, stop: Stop) -> tuple[AnyGenotype, dict[str, Tensor]]:
    """The architecture that an early stop went back to, which is the run's now."""
    config, ranks = search.config, search.ranks
    found: list[dict[str, Tensor]] = []

    def text() -> str:
        genotype, alphas = folder.go_back(stop.epoch, config.network.space)
        found.append(alphas)
        return str(genotype)

    genotype = ranks.first(text)
    alphas = found[0] if ranks.is_first else search.alphas()
    for name in sorted(alphas):
        ranks.hand_out_(alphas[name])
    return family(config.network.space, config.network.primitives).genotype.parse(genotype), alphas


def _epochs(search: Search, folder: RunFolder, rows: list[dict[str, Any]], progress: bool) -> Stop | None:
    """The epochs that are left, each saved in ``folder`` and added to ``rows``; what ended them early."""
    epochs, size = search.config.optimiser.epochs or 0, search.task.size
    options, ranks = search.config.to_options(), search.ranks

    def save() -> None:
        search.check_ranks()
        state = gathered(search.state(rows), ranks)
        if ranks.is_first:
            folder.checkpoints.write(state, options)

    saving = Saving(save, search.interrupt, search.config.run.checkpoint_seconds)
    rule = EarlyStop() if search.config.curvature.early_stop else None
    stop: Stop | None = None
    for row in rows:
        stop = stop or observed(rule, row)
    seen = search.done * size + (search.tally.seen if search.tally else 0)
    with (
        SearchBoard(
            search.config.watch.tensorboard and ranks.is_first, folder.path, search.config, rows
        ) as board,
        Progress(epochs * size, size, initial=seen, unit=search.task.bar_unit, shown=progress) as bar,
    ):
        for epoch in range(search.done + 1, epochs + 1):
            if stop is not None:
                break
            row = search.epoch(epoch, bar, saving)
            row = ranks.gather(row)[0]  # times and memory are the first rank's
            rows.append(row)
            if ranks.is_first:
                genotype, alphas = search.genotype(), search.alphas()
                folder.record(search.config, row, genotype, alphas)
                board.add_epoch(row, genotype, alphas)
            saving.now()
            stop = observed(rule, row)
            bar.tell(*_line(row, epochs, search))
        search.interrupt.check()
        if stop is not None and progress:
            say(str(stop))
        board.close(rows[-1] if rows else None)
    return stop


def _line(row: dict[str, Any], epochs: int, search: Search) -> tuple[list[str], ...]:
    """An epoch for people: the network, then the architecture, then what was asked for."""
    steps, warned = search.steps, row["hypergradient_warnings"]
    return (
        [f"epoch {row['epoch']}/{epochs}", *search.task.line(row), f"{row['seconds']:.1f} s"],
        [
            f"entropy {row['alpha_entropy']:.3f}",
            f"skip {row['skip_share']:.2f}",
            f"|hypergradient| {row['hypergradient_norm']:.2g}",
            *([f"warned {warned}/{steps} steps"] if warned else []),
        ],
        ends_shown(row),
        audit_line(row),
        table_shown(row),
    )
