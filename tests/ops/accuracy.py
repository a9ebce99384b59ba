"""The tolerance rule of the op tests."""

import numpy as np
import torch
from torch import Tensor

ULPS = 4


def wide(tensor: Tensor) -> np.ndarray:
    """The tensor in numpy, in a type that tells its dtype's errors: longdouble for float64, else float64."""
    exact = tensor.detach().double().cpu().numpy()
    return exact.astype(np.longdouble) if tensor.dtype == torch.float64 else exact


class Exact:
    """A sum computed exactly enough, from the terms that it adds up along ``axis``.

    ``spread`` is the root of the sum of the terms' squares: what roundings of an accumulation scatter by, in
    units of the accumulator's eps. Where terms cancel it is far above the sum itself.
    """

    def __init__(self, terms: np.ndarray, axis: int | tuple[int, ...] | None = None) -> None:
        self.value = terms.sum(axis) if axis != () else terms
        self.spread = np.sqrt((terms**2).sum(axis)) if axis != () else np.abs(terms)


def assert_as_accurate(ours: Tensor, plain: Tensor, exact: Exact) -> None:
    """The error against ``exact`` is at most twice plain PyTorch's in the same dtype, plus a few ulp.

    The ulps are those of the result in its dtype and of the accumulation in float32 or wider.
    """
    value = exact.value
    assert ours.dtype == plain.dtype
    assert ours.shape == plain.shape == value.shape
    if value.size == 0:
        return
    accumulator = torch.promote_types(ours.dtype, torch.float32)
    rounding = torch.finfo(ours.dtype).eps * np.abs(value).max()
    rounding += torch.finfo(accumulator).eps * exact.spread.max()
    allowed = 2 * np.abs(wide(plain) - value).max() + ULPS * rounding
    assert np.abs(wide(ours) - value).max() <= allowed
