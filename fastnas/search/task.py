"""What a search is about: the batches of its two splits, its supernet, and how good that is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor

from fastnas.errors import FastnasError
from fastnas.runs.memory import is_out_of_memory
from fastnas.runs.options import filled
from fastnas.runs.ranks import ALONE, Ranks
from fastnas.search.config import SearchConfig
from fastnas.search.images import ImageTask
from fastnas.search.text import TextTask
from fastnas.supernet import Batch, Executor


class Stream(Protocol):
    """The batches of a split."""

    def __len__(self) -> int:
        """Batches in one pass."""
        ...

    def __iter__(self) -> Iterator[Batch]:
        """One pass."""
        ...

    def forever(self) -> Iterator[Batch]:
        """Pass after pass without end."""
        ...

    def begin(self, seed: int) -> None:
        """Make the next pass the first one of ``seed``."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Where the pass in progress stands: tensors and integers."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Make the next iteration go on where ``state`` was taken; FastnasError if it does not fit."""
        ...


class Task(Protocol):
    """What the loop asks; all the rest of a search is the same for images and text.

    Attributes:
        train, val: the weights' split and alpha's.
        size: how many targets an epoch has: images, or words.
        unit: what these are, in the plural; bar_unit: the same for the progress bar.
    """

    @property
    def train(self) -> Stream: ...

    @property
    def val(self) -> Stream: ...

    size: int
    unit: str
    bar_unit: str

    def check_inner_steps(self, inner_steps: int) -> None:
        """Raises a FastnasError if an epoch has fewer batches than an alpha step needs."""
        ...

    def supernet(self) -> Executor:
        """The network to search in; weights from torch's current random state."""
        ...

    def prepare(self, net: Executor, epoch: int) -> None:
        """What is another in epoch ``epoch`` (from 1) of the search."""
        ...

    def states(self, net: Executor) -> dict[str, Tensor]:
        """What batches of the streams "train" and "val" carry on to the next; see ``SearchStep``."""
        ...

    def size_flags(self) -> str:
        """The flags that say how large the supernet is, with their values."""
        ...

    def cast(self, batch: Batch) -> Batch:
        """A batch of a stream in the precision of the weights."""
        ...

    def first_batches(self, net: Executor) -> tuple[Batch, Batch]:
        """The first batch of either split, the same in every epoch."""
        ...

    def evaluate(self, net: Executor, check: Callable[[], None]) -> dict[str, Any]:
        """A row's entries about alpha's whole split, in evaluation mode; ``check`` may raise between two batches."""
        ...

    def metrics(self, train_loss: float, hits: float, found: dict[str, Any]) -> dict[str, Any]:
        """The row's entries of how good the network is: training loss, share of hits, and what ``evaluate`` found."""
        ...

    def shown(self, loss: float, hits: float) -> dict[str, str]:
        """What the progress bar shows of a step."""
        ...

    def shown_of(self, row: dict[str, Any]) -> dict[str, str]:
        """What it shows of the epoch before."""
        ...

    def line(self, row: dict[str, Any]) -> list[str]:
        """The same of an epoch for its line, a phrase for each split."""
        ...


def make_task(config: SearchConfig, device: torch.device, ranks: Ranks = ALONE) -> Task:
    """The task of a resolved configuration, its data read and on ``device``; batches are this rank's shards.

    Raises:
        FastnasError: a mistake in the data, or no memory for them.
    """
    ranks.check_divides(filled(config.images.batch_size))
    kind = TextTask if config.reads == "text" else ImageTask
    try:
        return kind(config, device, ranks=ranks)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise FastnasError(f"--dataset {config.images.dataset}: no memory for its data on {device}") from None
