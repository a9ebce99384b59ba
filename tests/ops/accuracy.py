"""The tolerance rule of the op tests."""

import numpy as np
import torch
from torch import Tensor

ULPS = 4


def wide(tensor: Tensor) -> np.ndarray:
    """The tensor in numpy, in a type that tells its dtype's errors: longdouble for float64, else float64."""
    exact = tensor.detach().double().numpy()
    return exact.astype(np.longdouble) if tensor.dtype == torch.float64 else exact


def assert_as_accurate(ours: Tensor, plain: Tensor, exact: np.ndarray) -> None:
    """The error against ``exact`` is at most twice plain PyTorch's in the same dtype, plus a few ulp."""
    assert ours.dtype == plain.dtype
    assert ours.shape == plain.shape == exact.shape
    if exact.size == 0:
        return
    rounding = ULPS * torch.finfo(ours.dtype).eps * np.abs(exact).max()
    allowed = 2 * np.abs(wide(plain) - exact).max() + rounding
    assert np.abs(wide(ours) - exact).max() <= allowed
