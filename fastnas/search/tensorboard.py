"""A search's event files for TensorBoard: its numbers, alpha's weights, its cells."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from torch import Tensor

from fastnas.runs.tensorboard import Board
from fastnas.spaces.genotype import AnyGenotype

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class SearchBoard(Board):
    """What a search writes for TensorBoard; nothing, if it is not asked for."""

    _genotype = ""

    def add_epoch(self, row: Mapping[str, Any], genotype: AnyGenotype, alphas: Mapping[str, Tensor]) -> None:
        """Writes an epoch: its numbers, alpha's softmax weights, and the genotype where it is another one."""

        def more(writer: SummaryWriter) -> None:
            for name, alpha in alphas.items():
                writer.add_histogram(f"alpha/{name}", alpha.softmax(-1), row["epoch"])
            if str(genotype) != self._genotype:
                self._genotype = str(genotype)
                writer.add_text("genotype", f"`{genotype}`", row["epoch"])
                if genotype.graphs():  # what draws a space of one's own may be left out there
                    writer.add_image("cells", drawn(genotype), row["epoch"], dataformats="HWC")

        self.add(row, more)


def drawn(genotype: AnyGenotype) -> np.ndarray:
    """A genotype's cells as an image, (height, width, 3), uint8."""
    from fastnas.drawing import draw  # here: matplotlib takes half a second
    from fastnas.drawing.figure import rendered

    with Image.open(io.BytesIO(rendered(draw(genotype), "png"))) as image:
        return np.asarray(image.convert("RGB").reduce(2))  # sharp enough, and a quarter of the file
