"""What a run trains: images or text, behind one protocol."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from tqdm import tqdm


class Trainer(Protocol):
    """Data, network and optimiser of a retraining on one device.

    Attributes:
        device: where they are.
        size: units of one epoch, for the progress bar.
        unit: what they are called there.
        parameters: weights of the network as the papers count them.
        reads: what the data say of the network: classes, image_channels and image_size (height, width), or words.
    """

    device: torch.device
    size: int
    unit: str
    parameters: int
    reads: dict[str, Any]

    def epoch(self, epoch: int, bar: tqdm[Any]) -> dict[str, Any]:
        """Epoch ``epoch`` (from 1) and a test after it; its row of metrics, plain values.

        Every row has "epoch", "train_loss", "test_loss" and "seconds". KeyboardInterrupt comes between two steps.
        Random numbers that do not depend on (seed, epoch) alone come from torch's global state, which is kept.

        Raises:
            FastnasError: the loss is not finite any more.
        """
        ...

    def line(self, row: Mapping[str, Any]) -> str:
        """The row in one line for people, without its epoch's number."""
        ...

    def state(self) -> dict[str, Tensor]:
        """Every tensor that moves, by name: what a checkpoint holds."""
        ...

    def load(self, path: Path, tensors: Mapping[str, Tensor]) -> None:
        """Puts back what ``state`` gave, as the checkpoint ``path`` holds it.

        Raises:
            FastnasError: the tensors do not fit.
        """
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
