"""Where a retraining's images come from: held in memory on the device, or read from a folder as they are needed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import torch

from fastnas.data import WHOLE, Batches, Dataset, Shard, channel_statistics, load_dataset, split
from fastnas.data.batches import Batch
from fastnas.data.dataset import order_of
from fastnas.data.streamed import MEAN, STD, StreamedImages
from fastnas.errors import FastnasError
from fastnas.retrain.config import NO_TEST_SET, RetrainConfig

FORMAT = torch.channels_last


class Source(Protocol):
    """Training and test images.

    Attributes:
        classes, channels: how many there are.
        names: of the classes.
        mean, std: of each channel of values scaled to 0..1, by which images are normalised.
        size: (H, W) in pixels.
        train_images, test_images: how many there are.
    """

    classes: int
    channels: int
    names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: tuple[int, int]
    train_images: int
    test_images: int

    def train(self, epoch: int, skip: int = 0) -> Iterator[Batch]:
        """The training images in an order and an augmentation that depend on seed and epoch alone.

        Args:
            epoch: from 1.
            skip: leave out so many batches at the beginning.
        """
        ...

    def test(self) -> Iterator[Batch]:
        """The test images, as they are."""
        ...


class Held:
    """A data set whole on the device (``fastnas.data.Batches``); normalised by its training images' statistics."""

    def __init__(self, config: RetrainConfig, device: torch.device, shard: Shard) -> None:
        train, test = parts(config)
        mean, std = channel_statistics(train)
        train, test = train.to(device), test.to(device)
        size = config.images.batch_size or 1
        self._seed = config.run.seed
        self._train = Batches(
            train,
            size,
            mean=mean,
            std=std,
            augment=config.augment,
            generator=torch.Generator(device),
            drop_last=False,
            memory_format=FORMAT,
            shard=shard,
        )
        self._test = Batches.evaluation(test, size, mean=mean, std=std, memory_format=FORMAT, shard=shard)
        self.classes, self.channels, self.size = len(train.classes), train.channels, train.size
        self.names, self.mean, self.std = train.classes, tuple(mean.tolist()), tuple(std.tolist())
        self.train_images, self.test_images = len(train), len(test)

    def train(self, epoch: int, skip: int = 0) -> Iterator[Batch]:
        """One pass over the training images, behind the first ``skip`` batches."""
        self._train.begin(self._seed * 1_000_003 + epoch, skip)
        return iter(self._train)

    def test(self) -> Iterator[Batch]:
        """One pass over the test images."""
        return iter(self._test)


class Streamed:
    """ImageNet: the folders ``train`` and ``val`` of ``--data`` (``fastnas.data.streamed``)."""

    def __init__(self, config: RetrainConfig, device: torch.device, shard: Shard) -> None:
        images = config.images
        root = _folder(config)
        side = images.image_size or 1
        self._config, self._device, self._shard = config, device, shard
        self._train = StreamedImages(
            root / "train", side, train=True, seed=config.run.seed, flip=bool(images.flip)
        )
        self._test = StreamedImages(root / "val", side, train=False)
        if self._train.classes != self._test.classes:
            raise FastnasError(f"{root}: train and val must have the same class folders")
        self.classes, self.channels, self.size = len(self._train.classes), 3, (side, side)
        self.names = self._train.classes
        self.mean: tuple[float, ...] = MEAN
        self.std: tuple[float, ...] = STD
        self.train_images = min(len(self._train), images.images or len(self._train))
        self.test_images = len(self._test)

    def train(self, epoch: int, skip: int = 0) -> Iterator[Batch]:
        """One pass over the training images, behind the first ``skip`` batches."""
        return self._batches(self._train, epoch, self.train_images, skip)

    def test(self) -> Iterator[Batch]:
        """One pass over the test images."""
        return self._batches(self._test, 0, None)

    def _batches(
        self, images: StreamedImages, epoch: int, limit: int | None, skip: int = 0
    ) -> Iterator[Batch]:
        wanted = self._config.images
        return images.batches(
            wanted.batch_size or 1,
            epoch=epoch,
            device=self._device,
            workers=wanted.workers,
            limit=limit,
            skip=skip,
            shard=self._shard,
        )


def source_of(config: RetrainConfig, device: torch.device, shard: Shard = WHOLE) -> Source:
    """The images of a resolved configuration, this shard of every batch."""
    return (Streamed if config.images.dataset == "imagenet" else Held)(config, device, shard)


def _folder(config: RetrainConfig) -> Path:
    if config.images.data is None:
        raise FastnasError(
            "imagenet is read from a folder with train/ and val/ in it: give its place with --data"
        )
    root = config.images.data
    for part in ("train", "val"):
        if not (root / part).is_dir():
            raise FastnasError(f"imagenet: --data {root} must hold a folder {part} of class folders")
    return root


def parts(config: RetrainConfig) -> tuple[Dataset, Dataset]:
    """Training and test images; where there is no test set, some are held out."""
    images, seed = config.images, config.run.seed
    whole = load_dataset(images.dataset, images.data, image_size=images.image_size)
    if images.dataset in NO_TEST_SET and images.test_data is None:
        train, test = split(whole, 1 - images.test_portion, limit=images.images, seed=seed)
        return replace(train, part="training part"), replace(test, part="held-out part")
    place = images.data if images.test_data is None else images.test_data
    test = load_dataset(images.dataset, place, train=False, image_size=images.image_size)
    if test.images.shape[1:] != whole.images.shape[1:] or test.classes != whole.classes:
        raise FastnasError(
            f"{images.dataset}: the test images must have the training images' size, channels and classes"
        )
    if images.images is not None and images.images > len(whole):
        raise FastnasError(f"--images must be at most the {len(whole)} training images, got {images.images}")
    # A folder is sorted by class: its first images would be of the first classes alone.
    return whole.subset(order_of(whole, seed)[: images.images]) if images.images else whole, test
