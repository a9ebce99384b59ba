"""scikit-learn's handwritten digits: real images that need no file and no download."""

from __future__ import annotations

import torch

from fastnas.data.dataset import Dataset
from fastnas.errors import FastnasError


def read_digits(train: bool) -> Dataset:
    """The 1,797 digits, uint8 (1797, 1, 8, 8): round(255 v / 16) of the original v = 0..16.

    Raises:
        FastnasError: scikit-learn is missing, or the test set is asked for (there is none).
    """
    if not train:
        raise FastnasError("digits has no test set of its own: hold some of its images out with split")
    try:
        from sklearn.datasets import load_digits  # slow to import, and only this data set needs it
    except ImportError as error:
        raise FastnasError("the digits data set comes with scikit-learn: pip install scikit-learn") from error
    bunch = load_digits()
    values = torch.from_numpy(bunch.images).to(torch.int64)
    images = ((values * 255 + 8) // 16).to(torch.uint8).unsqueeze(1)
    labels = torch.from_numpy(bunch.target).to(torch.int64)
    return Dataset("digits", images, labels, tuple(str(c) for c in bunch.target_names), "training set")
