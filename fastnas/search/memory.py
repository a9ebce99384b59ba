"""Peak memory of a search: a forecast from a few small steps, and what to say where there is not enough."""

from __future__ import annotations

import copy
import os
import sys
from collections.abc import Callable, Hashable, Iterator
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor
from tqdm import tqdm

from fastnas.errors import FastnasError
from fastnas.runs.memory import (
    OFF,
    Forecast,
    Growth,
    free_cache,
    free_memory,
    is_distributed,
    is_out_of_memory,
    largest_that_runs,
    let_go,
    measured_growth,
    runs,
    shown,
)
from fastnas.runs.options import filled
from fastnas.search.config import SearchConfig
from fastnas.search.folder import RunFolder
from fastnas.search.step import SearchStep
from fastnas.search.task import Task
from fastnas.supernet import Batch, Graphs, eagerly
from fastnas.supernet.fused import FusedSupernet
from fastnas.supernet.graphs import Body, Outputs


class Searched(Protocol):
    """What is asked of a ``Search``."""

    config: SearchConfig
    device: torch.device
    task: Task
    step: SearchStep
    inner_steps: int


def search_forecast(search: Searched, data: int | None = None, *, recompute: bool | None = None) -> Forecast:
    """The peak memory of the search's steps, from copies of it on a few images; the search stays as it is.

    Args:
        search: before its first step, or between two.
        data: bytes of the data set on the device; None: what the two splits take.
        recompute: forecast with, or without it; None: as the search has it.
    """
    probe = copy.deepcopy(search.step)
    kept = _Kept() if search.step.graphs is not None else None
    probe.graphs = kept
    if isinstance(probe.net, FusedSupernet) and recompute is not None:
        probe.net.recompute = recompute
    _shorten(probe)
    # One weight step takes the memory of many, but where they are recorded; their batches are all there.
    recorded = probe.method.recorded_steps(probe.settings, search.inner_steps)
    taken = search.inner_steps if recorded else 1
    begun = dict(probe.states)  # kept: what was there before is not to be released while memory is watched
    batches = search.task.first_batches(probe.net)
    devices = [search.device] if search.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        growth = measured_growth(
            lambda size: run_step(probe, batches, size, search.inner_steps, taken), search.device
        )
        beside = Growth(((0, 0),)) if kept is None else _beside(probe, batches, kept, search.device)
    del begun
    return Forecast(
        filled(search.config.images.batch_size),
        "streams" if search.config.reads == "text" else "images",
        resident_parts(search.step) | {"data set": _data(search.task) if data is None else data},
        growth,
        beside,
    )


def run_step(
    step: SearchStep, batches: tuple[Batch, Batch], size: int, inner_steps: int, taken: int | None = None
) -> None:
    """A step on batches of ``size``, made out of one of either split; only ``taken`` of its weight steps."""
    step.states = {name: _of_size(state, size, 0) for name, state in step.states.items()}
    train = [resized(batches[0], size) for _ in range(inner_steps)]
    step(train[:taken], resized(batches[1], size), float(step.settings.learning_rate))


def resized(batch: Batch, size: int) -> Batch:
    """``batch`` cut to ``size`` images (streams), or filled up by repeating them; without its hidden state."""
    if len(batch) == 2:
        return _of_size(batch[0], size, 0), _of_size(batch[1], size, 0)
    words, _, targets = batch
    return _of_size(words, size, 1), _of_size(targets.view_as(words), size, 1).reshape(-1)


def _of_size(tensor: Tensor, size: int, dim: int) -> Tensor:
    index = torch.arange(size, device=tensor.device) % tensor.shape[dim]
    return tensor.index_select(dim, index)


def _shorten(step: SearchStep) -> None:
    """One term of a series is enough, or two steps of a solver: the others take the same memory."""
    step.settings = replace(step.settings, neumann_terms=min(step.settings.neumann_terms, 1))
    if step.method.waits:  # for a residual or a curvature, to decide whether it goes on
        step.settings = replace(step.settings, limit=2, tolerance=1e-9, gamma=1e-3, damping=100.0)


def resident_parts(step: SearchStep) -> dict[str, int]:
    """What a search holds from step to step, by part, in bytes."""
    net = step.net
    momentum = step.weight_optimiser.momentum_buffer
    return {
        "weights": _bytes([net.weights.flat]),
        "their momentum": _bytes([] if momentum is None else [momentum]),
        "alpha and Adam's state": _bytes([net.alphas.flat, *step.alpha_optimiser.state().values()]),
        "running statistics": _bytes([net.running.flat]),
    }


def _data(task: Task) -> int:
    tensors: list[Tensor] = []
    for part in (task.train, task.val):
        dataset = getattr(part, "dataset", None)
        tensors += [part.text] if dataset is None else [dataset.images, dataset.labels]  # type: ignore[attr-defined]
    return _bytes(tensors)


def _bytes(tensors: Iterator[Tensor] | list[Tensor] | Outputs) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


class _Kept(Graphs):
    """Runs everything as it is, and counts what CUDA graphs of it would keep: a batch, and each function's outputs."""

    def __init__(self) -> None:
        self.allowed = True
        self.outputs: dict[Hashable, int] = {}
        self.batch: dict[int, int] = {}  # by its size, which is that of the targets

    def run(
        self, name: str, body: Body, batch: Batch, *, of: Hashable = None, keep_random_state: bool = False
    ) -> Outputs:
        """``body(*batch)``."""
        outputs = eagerly(body, batch, keep_random_state=keep_random_state)
        self.outputs[name, of] = _bytes(outputs)
        self.batch[len(batch[-1])] = _bytes(batch)
        return outputs


def _beside(step: SearchStep, batches: tuple[Batch, Batch], kept: _Kept, device: torch.device) -> Growth:
    """What CUDA graphs keep, and the passes of an evaluation, which find the graphs' memory taken."""
    outputs, (targets, bytes_) = sum(kept.outputs.values()), max(kept.batch.items())
    each = bytes_ * len(resized(batches[0], 1)[-1]) / targets

    @torch.no_grad()
    def evaluate(size: int) -> None:
        step.net.eval()
        step.net(resized(batches[1], size)[0])
        step.net.train()

    if len(batches[1]) > 2:  # ten streams of text, whatever the batch
        return Growth(((outputs, each),))
    passes = measured_growth(evaluate, device)
    return Growth(tuple((fixed + outputs, slope + each) for fixed, slope in passes.lines))


# ---------------------------------------------------------------------------- too little


def check_memory(search: Searched) -> None:
    """On a GPU: whether the search's steps fit what is free there.

    What a forecast does not see, gaps between the allocator's blocks and libraries' scratch, is needed on top: what
    does not fit by it does not fit. On a CPU the steps of the forecast would cost too much, and nothing that is free is
    promised. ``FASTNAS_MEMORY_CHECK=0`` leaves the check out.

    Raises:
        FastnasError: they do not, with the largest batch that does.
    """
    if search.device.type != "cuda" or os.environ.get(OFF) == "0" or is_distributed():
        return
    try:
        if (free := free_memory(search.device)) is not None:
            check_fits(search, free)
    except RuntimeError as error:  # a profiler of the caller's, say: no reason to end a search that might run
        tqdm.write(f"peak memory is not forecast: {str(error).splitlines()[0]}", file=sys.stderr)


def check_fits(search: Searched, free: int) -> None:
    """Raises a FastnasError if a step would need more than ``free`` bytes beside what the search already holds."""
    config, batch = search.config, filled(search.config.images.batch_size)
    try:
        forecast = search_forecast(search)
        needed = forecast.growth.peak(batch)
        if needed <= free:
            return
        ways = []
        if can_recompute(search):
            less = search_forecast(search, recompute=True)
            if less.growth.peak(batch) <= free:
                ways.append(f"take --recompute, with which it is {shown(less.growth.peak(batch))}")
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        let_go(error)
        raise FastnasError(_hopeless(search, f"not even a step on a few {config.reads}")) from None
    largest = forecast.largest(free, resident=False)
    if config.run.resume is not None:
        ways.append("go on where more is free: a resumed run keeps its batch")
    elif largest:
        ways.append(f"take --batch-size {largest}, the largest that fits")
    if not ways:
        raise FastnasError(_hopeless(search, "not even the smallest batch"))
    raise FastnasError(
        f"--batch-size {batch} needs about {shown(needed)} on {search.device} for a step, and {shown(free)} are free: "
        f"{', or '.join(ways)}"
    )


def can_recompute(search: Searched) -> bool:
    """Whether ``--recompute`` is left to be taken: cells that keep their activations."""
    net = search.step.net
    return isinstance(net, FusedSupernet) and net.has_fused_cells and not net.recompute


def _hopeless(search: Searched, what: str) -> str:
    return (
        f"{search.task.size_flags()}: {what} fits the memory that is free on {search.device}; take a smaller supernet, "
        "or a device with more"
    )


def without_memory(search: Searched, folder: RunFolder) -> str:
    """What to say when a step found no memory: what was tried, and what fits.

    What fits is found by trying, on what is free once the failed step has been let go.
    """
    batch = filled(search.config.images.batch_size)
    told = f"no memory left on {search.device} at --batch-size {batch}"
    command = folder.resume_command()
    if is_distributed():  # a step that one process tries alone would wait for the others for ever
        return f"{told}: go on by {command} --recompute, or begin a new run with a smaller one"
    search.step.graphs = None
    free_cache()  # of the graphs' memory
    batches = search.task.first_batches(search.step.net)

    def run(size: int) -> None:
        run_step(search.step, batches, size, search.inner_steps)

    first = f"go on where more memory is free by {command}"
    if can_recompute(search) and _runs_recomputing(search, lambda: run(batch)):
        first = f"go on by {command} --recompute, which fits and changes no number"
    largest = largest_that_runs(run, batch)
    if not largest:
        return f"{told}, nor at 2 ({search.task.size_flags()}): {first}, or take a smaller supernet"
    return f"{told}: {first}, or begin a new run with --batch-size {largest}, which fits"


def _runs_recomputing(search: Searched, step: Callable[[], object]) -> bool:
    net = search.step.net
    assert isinstance(net, FusedSupernet)
    net.recompute = True
    try:
        return runs(step)
    finally:
        net.recompute = False
