"""Batches of images for the tests of the ops that take them, and what these ops' tests do alike."""

import numpy as np
import pytest
import torch

from fastnas.errors import FastnasError

# (B, C, H, W): around the vectors' 4 to 16 channels, images without neighbours, one image and more than a chunk of them
SHAPES = [
    (1, 1, 1, 1),
    (2, 5, 1, 1),
    (1, 17, 1, 9),
    (2, 16, 8, 1),
    (17, 5, 7, 9),
    (1, 40, 7, 9),
    (3, 17, 6, 5),
    (2, 1, 13, 4),
    (17, 16, 2, 3),
    (2, 8, 70, 3),  # a tile is not the whole image
]
EMPTY = [(0, 5, 3, 4), (2, 5, 0, 4), (2, 5, 4, 0)]


class Random:
    """Normal random numbers, images in channels-last memory."""

    def __init__(self, seed=0, dtype=torch.float32):
        self.generator, self.dtype = torch.Generator().manual_seed(seed), dtype

    def __call__(self, *size):
        return torch.randn(size, generator=self.generator, dtype=torch.float64).to(self.dtype)

    def images(self, *shape):
        return last(self(*shape))


def last(x):
    return x.contiguous(memory_format=torch.channels_last)


def in_slice(x, before=3, after=2):
    """The same as a slice of the channels of a wider channels-last tensor, between NaN."""
    count, channels, *size = x.shape
    wider = last(torch.full((count, before + channels + after, *size), torch.nan, dtype=x.dtype))
    wider[:, before : before + channels] = x
    return wider[:, before : before + channels]


LAYOUTS = {
    "sliced": in_slice,
    "contiguous": lambda x: x.contiguous(),
    "strided": lambda x: x.repeat_interleave(2, dim=3)[..., ::2],
    "every other channel": lambda x: last(x.repeat_interleave(2, dim=1))[:, ::2],
    "transposed": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    "expanded": lambda x: x[:1].expand(x.shape),
}


def squared(x):
    """x |x|: what a sum of products is computed of for the sum of their squares (``Known.spread``)."""
    return x * x.abs()


def assert_statistics_are_exact(statistics, outputs):
    """(K, 2, C) are the mean and biased variance of ``outputs`` to the last digits, whatever the mean."""
    for (mean, variance), out in zip(statistics, outputs, strict=True):
        eps = torch.finfo(out.dtype).eps
        exact = out.detach().numpy().astype(np.longdouble)
        exact_mean = exact.mean((0, 2, 3), keepdims=True)
        exact_variance = np.square(exact - exact_mean).mean((0, 2, 3))
        exact_mean = exact_mean.ravel()
        double = (
            out.dtype == torch.float64
        )  # sums are double in any case, so float32 shows none of their errors
        allowed = (4 if double else 2) * eps * np.abs(exact_mean) + 4 * eps * np.sqrt(exact_variance)
        assert (np.abs(mean.numpy() - exact_mean) <= allowed).all()
        # Of equal numbers the variance is 0 but for their distance to the rounded shift.
        allowed = 16 * eps * exact_variance + (eps * exact_mean) ** 2
        if double:
            # ... and the shift, the mean of an image's first pixels, may lie anywhere among the values.
            farthest = np.abs(exact - exact_mean.reshape(1, -1, 1, 1)).max((0, 2, 3))
            allowed += eps * np.abs(exact_mean) * np.sqrt(exact_variance) + 16 * eps * farthest**2
        assert (np.abs(variance.numpy() - exact_variance) <= allowed).all()


def allocated(function):
    """``(function(), bytes that torch allocated and gave away meanwhile)``."""
    with torch.profiler.profile(profile_memory=True) as profile:
        result = function()
    return result, sum(max(event.self_cpu_memory_usage, 0) for event in profile.events())


def assert_refused(sentence, function, *arguments, **named):
    with pytest.raises(FastnasError) as caught:
        function(*arguments, **named)
    assert str(caught.value) == sentence
