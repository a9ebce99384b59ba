"""A labelled set of images held as two tensors, and its split in two for a bilevel search."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fastnas.errors import FastnasError

# Their official order is already random, and published searches split them in that order.
IN_FILE_ORDER = ("cifar10", "cifar100")


@dataclass(frozen=True, eq=False)
class Dataset:
    """Labelled images of one size, whole in memory and on one device.

    Args:
        name: the name that `load_dataset` knows it by.
        images: uint8 (N, C, H, W), 0 to 255.
        labels: int64 (N,), indices into ``classes``, on the device of ``images``.
        classes: the classes' names.
        part: what error messages call these images ("training set", "weight split").

    Raises:
        FastnasError: a tensor has the wrong type, shape or device, or a label names no class.

    Example:
        >>> import torch
        >>> images = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
        >>> data = Dataset("mine", images, torch.tensor([0, 1, 0, 1]), ("cat", "dog"))
        >>> len(data), data.channels, data.size, len(data.subset([2, 3]))
        (4, 3, (8, 8), 2)
    """

    name: str
    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    part: str = "data set"

    def __post_init__(self) -> None:
        images, labels = self.images, self.labels
        if images.dtype != torch.uint8 or images.ndim != 4:
            raise FastnasError(f"{self.name}: images must be uint8 (N, C, H, W), got {_describe(images)}")
        if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
            raise FastnasError(f"{self.name}: labels must be int64 ({len(images)},), got {_describe(labels)}")
        if labels.device != images.device:
            raise FastnasError(
                f"{self.name}: images are on {images.device} but labels on {labels.device}; move both to one"
            )
        if images.numel() == 0:
            raise FastnasError(
                f"{self.name}: the {self.part} holds no pixel: its shape is {tuple(images.shape)}"
            )
        low, high = (int(x) for x in labels.aminmax())
        if low < 0 or high >= len(self.classes):
            raise FastnasError(
                f"{self.name}: label {low if low < 0 else high} names none of the {len(self.classes)} classes"
            )

    def __len__(self) -> int:
        return len(self.images)

    @property
    def channels(self) -> int:
        """C, the number of colour channels."""
        return self.images.shape[1]

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) in pixels."""
        return self.images.shape[2], self.images.shape[3]

    def to(self, device: torch.device | str) -> Dataset:
        """The same data on ``device``."""
        return replace(self, images=self.images.to(device), labels=self.labels.to(device))

    def subset(self, indices: Tensor | Sequence[int] | range, part: str | None = None) -> Dataset:
        """The images at ``indices`` (int64, each in 0..N-1), in that order, as a copy."""
        index = torch.as_tensor(indices if isinstance(indices, Tensor) else list(indices), dtype=torch.int64)
        index = index.to(self.images.device)
        if index.ndim != 1 or len(index) == 0:
            raise FastnasError(
                f"{self.name}: a subset needs a list of at least one index, got {_describe(index)}"
            )
        low, high = (int(x) for x in index.aminmax())
        if low < 0 or high >= len(self):
            raise FastnasError(
                f"{self.name}: index {low if low < 0 else high} is outside of the {len(self)} images"
            )
        return replace(
            self,
            images=self.images.index_select(0, index),
            labels=self.labels.index_select(0, index),
            part=self.part if part is None else part,
        )


def split(
    dataset: Dataset, train_portion: float, *, limit: int | None = None, seed: int
) -> tuple[Dataset, Dataset]:
    """The two disjoint halves of a bilevel search: (weight split, architecture split).

        weight split       = order[: floor(train_portion * N)]      the inner problem, L1
        architecture split = order[floor(train_portion * N) :]      the outer problem, L2

    as in the code of DARTS (Liu et al. 2019, section 3.1: half of CIFAR-10's training images each).
    ``order`` is the file order for CIFAR-10 and CIFAR-100, which come shuffled, so that a split is
    the published one whatever the seed; every other data set may be sorted by class and is shuffled
    with ``seed``.

    Args:
        dataset: the training images.
        train_portion: the weight split's share, in (0, 1).
        limit: use only the first ``limit`` images of ``order`` (N is then ``limit``).
        seed: of the shuffle.

    Raises:
        FastnasError: a portion or limit out of range, or a split that would be empty.

    Example:
        >>> from fastnas.data import load_dataset
        >>> weights, architecture = split(load_dataset("digits"), 0.5, seed=0)
        >>> len(weights), len(architecture), weights.part
        (898, 899, 'weight split')
    """
    if not (isinstance(train_portion, (int, float)) and 0 < train_portion < 1):
        raise FastnasError(f"train_portion must lie between 0 and 1, got {train_portion}")
    total = len(dataset)
    if limit is not None:
        if not 2 <= limit <= total:
            raise FastnasError(
                f"--images must lie between 2 and the {total} images of {dataset.name}'s {dataset.part}, got {limit}"
            )
        total = limit
    cut = math.floor(train_portion * total)
    if cut == 0 or cut == total:
        empty = "weight" if cut == 0 else "architecture"
        raise FastnasError(
            f"train_portion {train_portion} of {total} images leaves the {empty} split empty: "
            f"choose a portion nearer to 0.5 or more images"
        )
    order = order_of(dataset, seed)[:total]
    return dataset.subset(order[:cut], "weight split"), dataset.subset(order[cut:], "architecture split")


def order_of(dataset: Dataset, seed: int) -> Tensor:
    """The order in which ``split`` takes a data set's images, int64 (N,): the file's where that is already random."""
    if dataset.name in IN_FILE_ORDER:
        return torch.arange(len(dataset))
    # On the CPU whatever the device, so that the split is the same everywhere.
    return torch.randperm(len(dataset), generator=torch.Generator().manual_seed(seed))


def part_name(train: bool) -> str:
    """What messages call a set as it was published."""
    return "training set" if train else "test set"


def _describe(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"
