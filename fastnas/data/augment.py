"""Random crop, flip and cutout of a whole batch at once, on the device where it lies."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fastnas.errors import FastnasError


@dataclass(frozen=True)
class Augment:
    """What is changed at random in each training image.

    Args:
        crop_padding: pad each side with this many black pixels and cut a window of the original size
            out at a random place; 0: no crop.
        flip: mirror every image left to right with probability 1/2.
        cutout: set a square of this side, in pixels, at a random place to the mean (DeVries and
            Taylor 2017); 0: none.

    Raises:
        FastnasError: a negative number of pixels.

    Example:
        >>> Augment(crop_padding=4, flip=True)
        Augment(crop_padding=4, flip=True, cutout=0)
    """

    crop_padding: int = 0
    flip: bool = False
    cutout: int = 0

    def __post_init__(self) -> None:
        for name in ("crop_padding", "cutout"):
            if getattr(self, name) < 0:
                raise FastnasError(f"{name} must be at least 0 pixels, got {getattr(self, name)}")


def default_augment(dataset_name: str) -> Augment:
    """The augmentation that a search uses unless it is told otherwise.

    CIFAR: crop with padding 4 and flip, as DARTS (Liu et al. 2019) and most others. Digits: crop
    with padding 1 of 8 pixels; a mirrored digit is another sign. Folder and npz: none, since only
    their owner knows what leaves a label true.

    Example:
        >>> default_augment("digits").crop_padding
        1
    """
    if dataset_name in ("cifar10", "cifar100"):
        return Augment(crop_padding=4, flip=True)
    return Augment(crop_padding=1) if dataset_name == "digits" else Augment()


def crop_and_flip(images: Tensor, top: Tensor, left: Tensor, flip: Tensor, padding: int) -> Tensor:
    """Cut a window out of every zero-padded image, and mirror some of the windows.

        out[b, c, i, j] = padded[b, c, top_b + i, left_b + (W - 1 - j if flip_b else j)]

    Args:
        images: uint8 (B, C, H, W). Padding is 0 before normalisation: black, as torchvision pads.
        top, left: int64 (B,), 0 to 2 * padding: the window's corner in the padded image.
        flip: bool (B,).
        padding: pixels on each side.

    Returns:
        uint8 (B, C, H, W), contiguous.

    Example:
        >>> import torch
        >>> one = torch.tensor([[[[1, 2], [3, 4]]]], dtype=torch.uint8)
        >>> at = torch.tensor([1])
        >>> crop_and_flip(one, at, torch.tensor([0]), torch.tensor([True]), 1).tolist()
        [[[[1, 0], [3, 0]]]]
    """
    count, channels, height, width = images.shape
    if padding:
        images = F.pad(images, (padding, padding, padding, padding))
    rows = top[:, None] + torch.arange(height, device=images.device)
    columns = torch.arange(width, device=images.device)
    columns = left[:, None] + torch.where(flip[:, None], width - 1 - columns, columns)
    # One gather on flat pixels: 2 to 5 times as fast on a CPU as an advanced index of four axes.
    flat = (rows[:, :, None] * (width + 2 * padding) + columns[:, None, :]).view(count, 1, height * width)
    pixels = images.flatten(2).gather(2, flat.expand(-1, channels, -1))
    return pixels.view(count, channels, height, width)


def cutout_(images: Tensor, row: Tensor, column: Tensor, length: int) -> Tensor:
    """Zero a square in each normalised image, in place; it is clipped at the borders.

        out[b, :, i, j] = 0  where  row_b - h <= i < row_b - h + length, and likewise for j,  h = length // 2

    For an even ``length`` this is the square of DARTS' code.

    Args:
        images: float32 (B, C, H, W), normalised, so that 0 is the mean.
        row, column: int64 (B,): the centre, any pixel of the image.
        length: the square's side in pixels.

    Returns:
        ``images``.

    Example:
        >>> import torch
        >>> cutout_(torch.ones(1, 1, 2, 3), torch.tensor([0]), torch.tensor([1]), 2).tolist()
        [[[[0.0, 0.0, 1.0], [1.0, 1.0, 1.0]]]]
    """
    height, width = images.shape[2:]
    half = length // 2
    rows = torch.arange(height, device=images.device) - (row[:, None] - half)
    columns = torch.arange(width, device=images.device) - (column[:, None] - half)
    inside_rows, inside_columns = (rows >= 0) & (rows < length), (columns >= 0) & (columns < length)
    inside = inside_rows[:, None, :, None] & inside_columns[:, None, None, :]
    return images.mul_((~inside).to(images.dtype))  # 13 times as fast on a CPU as masked_fill_
