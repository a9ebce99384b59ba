"""What a run trains: images or text, behind one protocol."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor
from tqdm import tqdm

from fastnas.runs.checkpoint import State
from fastnas.runs.notices import Notices
from fastnas.runs.ranks import Ranks
from fastnas.runs.saving import Saving
from fastnas.supernet import Executor


@dataclass
class Tally:
    """What the steps of an epoch in progress add up to; tensors stay on the device until somebody reads them.

    Attributes:
        tensors: sums and what else an epoch carries from step to step, by name.
        steps: done so far.
        seen: images or words in them.
        since: when the epoch began, on the clock of ``time.perf_counter``; time in which no process worked on it does
            not count.
    """

    tensors: dict[str, Tensor]
    steps: int = 0
    seen: int = 0
    since: float = field(default_factory=time.perf_counter)

    @property
    def seconds(self) -> float:
        """Since the epoch began."""
        return time.perf_counter() - self.since

    def numbers(self) -> dict[str, float]:
        """Those that are no tensors, for a checkpoint; the steps are its moment."""
        return {"seen": self.seen, "seconds": self.seconds}

    @classmethod
    def of(cls, state: State, device: torch.device) -> Tally:
        """What a checkpoint holds of it, its tensors as epoch.NAME."""
        found = {
            name.removeprefix("epoch."): tensor.to(device)
            for name, tensor in state.tensors.items()
            if name.startswith("epoch.")
        }
        numbers = state.numbers
        return cls(found, state.moment.step, int(numbers["seen"]), time.perf_counter() - numbers["seconds"])


class Trainer(Protocol):
    """Data, network and optimiser of a retraining on one device.

    Attributes:
        device: where they are.
        size: units of one epoch, for the progress bar.
        unit: what they are called there.
        parameters: weights of the network as the papers count them.
        tally: of the epoch in progress; None between two.
        net: the network.
        ranks: the processes of a data-parallel retraining.
        notices: of its steps.
        reads: what the data say of the network: classes, image_channels and image_size (height, width), or words.
    """

    device: torch.device
    size: int
    unit: str
    parameters: int
    tally: Tally | None
    ranks: Ranks
    notices: Notices
    reads: dict[str, Any]

    @property
    def net(self) -> Executor: ...

    def epoch(self, epoch: int, bar: tqdm[Any], saving: Saving) -> dict[str, Any]:
        """Epoch ``epoch`` (from 1), what is left of it, and a test after it; its row of metrics, plain values.

        Every row has "epoch", "train_loss", "test_loss" and "seconds". Between two steps ``saving`` is told.
        Random numbers that do not depend on (seed, epoch) alone come from torch's global state, which is kept.

        Raises:
            NotFiniteError: a step was not finite, or the loss of the test is not.
        """
        ...

    def line(self, row: Mapping[str, Any]) -> list[str]:
        """The row for people, phrase by phrase, without its epoch's number."""
        ...

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor that moves, by name, live."""
        ...

    def weights(self) -> dict[str, Tensor]:
        """The network for ``network.safetensors``: weights and running statistics by name."""
        ...

    def result(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """What the result file says of the trained network beside what it says of every run; plain values.

        Args:
            rows: of all epochs.
        """
        ...
