"""The tolerance rule of the op tests."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fastnas._accuracy import ULPS, largest, tolerance, tolerance_float64, wide

__all__ = ["ULPS", "Exact", "Known", "assert_agrees", "assert_as_accurate", "wide"]


class Exact:
    """A sum computed exactly enough, from the terms that it adds up along ``axis``.

    ``spread`` is the root of the sum of the terms' squares: what roundings of an accumulation scatter by, in
    units of the accumulator's eps. Where terms cancel it is far above the sum itself.
    """

    def __init__(self, terms: np.ndarray, axis: int | tuple[int, ...] | None = None) -> None:
        self.value = terms.sum(axis) if axis != () else terms
        self.spread = np.sqrt((terms**2).sum(axis)) if axis != () else np.abs(terms)


@dataclass
class Known:
    """As ``Exact``, where value and spread are computed elsewhere, in float64."""

    value: np.ndarray
    spread: np.ndarray


def assert_as_accurate(ours: Tensor, plain: Tensor, exact: Exact | Known) -> None:
    """The error against ``exact`` is at most twice plain PyTorch's in the same dtype, plus a few ulp.

    The ulps are those of the result in its dtype and of the accumulation in float32 or wider.
    """
    value = exact.value
    assert ours.dtype == plain.dtype
    assert ours.shape == plain.shape == value.shape
    if value.size == 0:
        return
    plain_error = largest(wide(plain) - value)
    assert largest(wide(ours) - value) <= tolerance(
        ours.dtype, plain_error, largest(value), largest(exact.spread)
    )


def assert_agrees(ours: Tensor, plain: Tensor, exact: Tensor, spread: Tensor) -> None:
    """``assert_as_accurate`` with a float64 computation as the truth, which tells float32's errors.

    Two computations in float64 differ by the errors of both: some hundred ulp at most.
    """
    known = Known(wide(exact), wide(spread))
    if ours.dtype == torch.float32:
        return assert_as_accurate(ours, plain, known)
    assert ours.dtype == exact.dtype
    assert ours.shape == exact.shape
    allowed = tolerance_float64(largest(known.value), largest(known.spread))
    assert largest(wide(ours) - known.value) <= allowed
