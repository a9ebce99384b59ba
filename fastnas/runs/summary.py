"""What a run says when it begins and when it has ended, so that it fits one screen."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from tqdm import tqdm

from fastnas._devices import device_name
from fastnas._terminal import is_terminal, size_of, wrapped
from fastnas.errors import FastnasError
from fastnas.runs.memory import shown
from fastnas.runs.ranks import Ranks
from fastnas.spaces.family import AnyGenotype

LABEL, NARROW = 10, 60  # columns


def entry(label: str, text: str) -> str:
    """A line of the summary.

    >>> entry("run", "runs/found")
    'run:      runs/found'
    """
    return f"{f'{label}:':<{LABEL}}{text}"


def on_screen(entries: Sequence[str], genotype: AnyGenotype) -> str:
    """The lines of a summary, wrapped on a terminal, below a drawing of the cells if the screen has room for it.

    Args:
        entries: of :func:`entry`; in a file each stays a line.
        genotype: what is drawn.
    """
    size = size_of(sys.stdout)
    if is_terminal(sys.stdout):
        indent = " " * (LABEL if size.columns >= NARROW else 2)
        entries = [wrapped(line, size.columns - 1, indent) for line in entries]
    text = "\n".join(entries)
    room = size.lines - text.count("\n") - 3  # the text's last line, a blank one above all, the prompt
    drawing = _drawing(genotype, size.columns - 1, room)
    if not drawing:
        return f"\n{text}"
    apart = "\n" if drawing.count("\n") + 1 < room else ""
    return f"\n{drawing}\n{apart}{text}"


def _drawing(genotype: AnyGenotype, width: int, lines: int) -> str:
    """The cells in at most so many lines, "" where they do not fit."""
    from fastnas.drawing import text_drawing  # here: matplotlib is not to be waited for before a run begins

    drawn = text_drawing(genotype, width, lines=lines) if lines > 0 else ""
    cut = any(len(line) == width for line in drawn.splitlines())
    return "" if cut or drawn.count("\n") >= lines else drawn


def duration(seconds: float) -> str:
    """A time for people.

    >>> duration(12.34), duration(4000)
    ('12.3 s', '1:06:40')
    """
    return f"{seconds:.1f} s" if seconds < 100 else str(tqdm.format_interval(seconds))


def run_took(rows: Sequence[dict[str, float]]) -> str:
    """Time and memory of all epochs."""
    seconds = duration(sum(row["seconds"] for row in rows))
    memory = shown(max(row["peak_memory_bytes"] for row in rows))
    return f"{seconds} in {counted(len(rows), 'epoch')}, peak memory {memory}"


def counted(count: int, what: str) -> str:
    """A number and what it is of.

    >>> counted(1, "epoch"), counted(5000, "weight")
    ('1 epoch', '5,000 weights')
    """
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def where(device: torch.device, ranks: Ranks) -> str:
    """What a run is computed on."""
    own = counted(torch.get_num_threads(), "thread") if device.type == "cpu" else device_name(device)
    found = f"{device.type}, {own}" if device.type == "cpu" else own
    return f"{ranks.size} processes on {found}" if ranks.size > 1 else found


def stands(done: int, epochs: int, *, begun: bool) -> list[str]:
    """What a run says, if it is resumed, of where it goes on, or that it has nothing left to do.

    Args:
        done: whole epochs.
        epochs: of the run.
        begun: whether the next one is.

    >>> stands(50, 50, begun=False), stands(1, 1, begun=False)
    (['the run is finished: its 50 epochs are done'], ['the run is finished: its one epoch is done'])
    >>> stands(0, 2, begun=False), stands(0, 2, begun=True), stands(1, 2, begun=False)
    ([], ['goes on in epoch 1'], ['goes on in epoch 2'])
    """
    if done >= epochs:
        all_done = "its one epoch is done" if epochs == 1 else f"its {epochs} epochs are done"
        return [f"the run is finished: {all_done}"]
    return [f"goes on in epoch {done + 1}"] if done or begun else []


def report_of(run: Path) -> Path | None:
    """Writes the report of a run that has ended. One that fails is a sentence on the standard error, and no more."""
    try:
        from fastnas.report import write_report

        return write_report([run])
    except Exception as error:  # what the run found is there, whatever becomes of its picture
        reason = str(error) if isinstance(error, FastnasError) else f"{type(error).__name__}: {error}"
        print(f"no report was written: {' '.join(reason.split())[:500]}", file=sys.stderr)
        return None
