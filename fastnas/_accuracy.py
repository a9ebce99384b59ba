"""How wrong a result may be: twice plain PyTorch's own error in that precision, and a few roundings."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

ULPS = 4
ULPS_FLOAT64 = 256


def wide(tensor: Tensor) -> np.ndarray:
    """The tensor in numpy, in a type that tells its dtype's errors: longdouble for float64, else float64."""
    exact = tensor.detach().double().cpu().numpy()
    return exact.astype(np.longdouble) if tensor.dtype == torch.float64 else exact


def largest(array: np.ndarray) -> float:
    """The largest absolute value, 0 of none; NaN where there is one."""
    return float(np.abs(array).max()) if array.size else 0.0


def tolerance(dtype: torch.dtype, plain_error: float, value: float, spread: float) -> float:
    """The largest error that a result of ``dtype`` may have.

    Args:
        dtype: of the result.
        plain_error: the largest error of plain PyTorch in the same precision.
        value: the largest exact value.
        spread: what roundings of an accumulation scatter by, in units of the accumulator's eps: the root of the sum
            of the squares of what is added up. Where terms cancel it is far above the value itself.
    """
    # The ulps are those of the result and of the accumulation in float32 or wider.
    accumulator = torch.promote_types(dtype, torch.float32)
    rounding = torch.finfo(dtype).eps * value + torch.finfo(accumulator).eps * spread
    return 2 * plain_error + ULPS * rounding


def tolerance_float64(value: float, spread: float) -> float:
    """The same against a computation in float64 that is no more exact: some hundred ulp of both at most."""
    return ULPS_FLOAT64 * torch.finfo(torch.float64).eps * (value + spread)
