"""scikit-learn's digits as a regression wants them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fastnas.data.digits import read_digits
from fastnas.errors import FastnasError


@dataclass(frozen=True)
class Split:
    """Pixels (N, 64), float64, and labels (N,)."""

    x: Tensor
    y: Tensor


def splits(*sizes: int, seed: int = 0) -> list[Split]:
    """Disjoint random parts of the digits, of these sizes, and what is left of them; pixels between -1/2 and 1/2.

    Raises:
        FastnasError: a size is not positive, or nothing would be left.
    """
    data = read_digits(train=True)
    if min(sizes) < 1 or sum(sizes) >= len(data.labels):
        wanted = " and ".join(str(size) for size in sizes)
        raise FastnasError(
            f"parts of {wanted} digits cannot be had: ask for at least 1 each and fewer than 1,797"
        )
    order = torch.randperm(len(data.labels), generator=torch.Generator().manual_seed(seed))
    pixels = data.images.flatten(1).double() / 255 - 0.5
    parts = order.split([*sizes, len(order) - sum(sizes)])
    return [Split(pixels[part], data.labels[part]) for part in parts]
