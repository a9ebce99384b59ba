"""Batched augmentation against a plain loop over images."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastnas.data import Augment, default_augment
from fastnas.data.augment import crop_and_flip, cutout_
from fastnas.errors import FastnasError


def crop_and_flip_loop(images, top, left, flip, padding):
    """One image at a time, as torchvision's RandomCrop(padding) and RandomHorizontalFlip do it."""
    height, width = images.shape[2:]
    out = []
    for image, y, x, mirrored in zip(images.numpy(), top.tolist(), left.tolist(), flip.tolist(), strict=True):
        padded = np.pad(image, ((0, 0), (padding, padding), (padding, padding)))
        window = padded[:, y : y + height, x : x + width]
        out.append(window[:, :, ::-1] if mirrored else window)
    return torch.from_numpy(np.stack(out))


def cutout_loop(images, row, column, length):
    """DARTS' Cutout on one image at a time (its squares have even sides)."""
    height, width = images.shape[2:]
    out = images.clone()
    for image, y, x in zip(out, row.tolist(), column.tolist(), strict=True):
        y1, y2 = np.clip(y - length // 2, 0, height), np.clip(y + length // 2, 0, height)
        x1, x2 = np.clip(x - length // 2, 0, width), np.clip(x + length // 2, 0, width)
        image[:, y1:y2, x1:x2] = 0.0
    return out


@settings(deadline=None)
@given(
    count=st.integers(1, 5),
    channels=st.integers(1, 4),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    padding=st.integers(0, 5),
    seed=st.integers(0, 2**31),
)
def test_crop_and_flip_is_the_loop(count, channels, height, width, padding, seed) -> None:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(256, (count, channels, height, width), dtype=torch.uint8, generator=generator)
    top, left = torch.randint(2 * padding + 1, (2, count), generator=generator)
    flip = torch.randint(2, (count,), generator=generator).bool()
    before = images.clone()
    found = crop_and_flip(images, top, left, flip, padding)
    assert found.dtype == torch.uint8
    assert found.is_contiguous()
    assert torch.equal(found, crop_and_flip_loop(images, top, left, flip, padding))
    assert torch.equal(images, before)


@settings(deadline=None)
@given(
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    half=st.integers(0, 6),
    seed=st.integers(0, 2**31),
    channels_last=st.booleans(),
)
def test_cutout_is_darts(height, width, half, seed, channels_last) -> None:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(4, 3, height, width, generator=generator)
    if channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    row = torch.randint(height, (4,), generator=generator)
    column = torch.randint(width, (4,), generator=generator)
    expected = cutout_loop(images, row, column, 2 * half)
    found = cutout_(images, row, column, 2 * half)
    assert found is images
    assert torch.equal(found, expected)


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5])
def test_cutout_area_away_from_the_border(length: int) -> None:
    images = cutout_(torch.ones(1, 2, 12, 12), torch.tensor([6]), torch.tensor([5]), length)
    assert (images == 0).sum() == 2 * length**2
    rows, columns = ((images[0, 0] == 0).any(d).nonzero().flatten().tolist() for d in (1, 0))
    half = length // 2  # an odd square lies evenly around its centre
    assert rows == list(range(6 - half, 6 - half + length))
    assert columns == list(range(5 - half, 5 - half + length))


def test_cutout_at_the_corner_is_clipped() -> None:
    images = cutout_(torch.ones(1, 1, 12, 12), torch.tensor([0]), torch.tensor([11]), 6)
    assert (images == 0).sum() == 3 * 4
    assert not images[0, 0, :3, 8:].any()


def test_defaults() -> None:
    assert default_augment("cifar10") == default_augment("cifar100") == Augment(4, True, 0)
    assert default_augment("digits") == Augment(1, False, 0)
    assert default_augment("folder") == default_augment("npz") == Augment(0, False, 0)


@pytest.mark.parametrize("name", ["crop_padding", "cutout"])
def test_negative_pixels(name: str) -> None:
    with pytest.raises(FastnasError, match=f"{name} must be at least 0 pixels, got -1"):
        Augment(**{name: -1})
