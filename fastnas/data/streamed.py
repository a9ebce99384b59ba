"""Image folders too large for the memory: read, cropped and jittered by worker processes as they are needed."""

from __future__ import annotations

import math
import signal
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageEnhance
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from fastnas.data.batches import Batch
from fastnas.data.folder import EIGHT_BIT_MODES, FORMATS, check_resized, list_images
from fastnas.data.shard import WHOLE, Shard
from fastnas.errors import FastnasError, UnreadableError

# Of ImageNet's training images, scaled to 0..1, as everybody rounds them.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)

SCALE = (0.08, 1.0)  # share of the image's area that a random crop takes
RATIO = (3 / 4, 4 / 3)  # of its width to its height
JITTER = 0.4  # brightness, contrast and saturation are multiplied by 1 - JITTER to 1 + JITTER
HUE_JITTER = 0.2  # of the circle, to either side
RESIZED = 256 / 224  # shorter side, in units of the square cut out of a test image

Part = tuple[int, list[int]]  # epoch, indices of one batch


class StreamedImages(Dataset[Any]):
    """The images of ``root/<class>/*``, classes and images sorted by name, each decoded when it is asked for.

    Training images are cropped, flipped and jittered as DARTS does for ImageNet (torchvision's RandomResizedCrop,
    RandomHorizontalFlip, ColorJitter(0.4, 0.4, 0.4, 0.2), in this order), by random numbers that depend on (seed,
    epoch, image) alone. Test images are resized so that the shorter side is 256/224 of ``image_size``, and cropped at
    the centre.

    Args:
        root: the folder that holds one folder for each class.
        image_size: S, the side of the squares that come out.
        train: training images, else test images.
        seed: of their order and augmentation.
        flip, jitter: whether training images are mirrored and jittered.

    Raises:
        FastnasError: no classes, or a class without images.
    """

    def __init__(
        self,
        root: Path,
        image_size: int,
        *,
        train: bool,
        seed: int = 0,
        flip: bool = True,
        jitter: bool = True,
    ) -> None:
        self.classes, self.files = list_images(root)
        self.image_size, self.train, self.seed, self.flip, self.jitter = image_size, train, seed, flip, jitter

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, part: Part) -> tuple[Tensor, Tensor] | str:
        """A batch, uint8 (B, 3, S, S) and int64 (B,); or what is wrong: an exception would come with its traceback."""
        epoch, indices = part
        try:
            images = [torch.from_numpy(self._image(epoch, i)) for i in indices]
        except FastnasError as error:
            return str(error)
        labels = torch.tensor([self.files[i][1] for i in indices], dtype=torch.int64)
        if not images:  # a shard of a batch of fewer images than shards
            return torch.empty(0, 3, self.image_size, self.image_size, dtype=torch.uint8), labels
        return torch.stack(images).permute(0, 3, 1, 2), labels

    def batches(
        self,
        batch_size: int,
        *,
        epoch: int,
        device: torch.device,
        workers: int,
        limit: int | None = None,
        shard: Shard = WHOLE,
        skip: int = 0,
    ) -> Iterator[Batch]:
        """All images once: (x float32 (B, 3, S, S), normalised, channels last; y int64 (B,)) on ``device``.

        Args:
            batch_size: B; the last batch may be smaller.
            epoch: training images are shuffled and augmented anew in each.
            workers: processes that read ahead; 0: none but this one.
            limit: only so many images, the first ones of the order.
            shard: which part of every batch is read.
            skip: leave out so many batches at the beginning.

        Raises:
            UnreadableError: an image that cannot be read, named.
        """
        loader = DataLoader(
            self,
            sampler=self._parts(batch_size, epoch, limit, shard)[skip:],
            batch_size=None,
            num_workers=workers,
            pin_memory=device.type == "cuda",
            worker_init_fn=_ignore_ctrl_c,
            generator=torch.Generator(),  # not the global one: nothing here draws from it
        )
        mean, scale = (torch.tensor(v, device=device).view(3, 1, 1) * 255 for v in (MEAN, STD))
        for batch in loader:
            if isinstance(batch, str):
                raise UnreadableError(batch)
            images, labels = (tensor.to(device, non_blocking=True) for tensor in batch)
            x = images.float().sub_(mean).div_(scale)
            yield x.contiguous(memory_format=torch.channels_last), labels

    def _parts(self, batch_size: int, epoch: int, limit: int | None, shard: Shard) -> list[Part]:
        if self.train:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            order = torch.randperm(len(self), generator=generator).tolist()[:limit]
        else:
            order = list(range(len(self)))
        counts = ((i, min(batch_size, len(order) - i)) for i in range(0, len(order), batch_size))
        return [(epoch, order[shard.of(count, i)]) for i, count in counts]

    def _image(self, epoch: int, index: int) -> np.ndarray:
        """uint8 (S, S, 3)."""
        file, _ = self.files[index]
        try:
            image = _opened(file)
            if not self.train:
                return np.array(_centre(image, self.image_size))
            draw = np.random.default_rng((self.seed, epoch, index))
            image = image.resize(
                (self.image_size, self.image_size),
                Image.Resampling.BILINEAR,
                box=random_box(image.size, draw),
            )
            if self.flip and draw.random() < 0.5:
                image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            return np.array(jittered(image, draw) if self.jitter else image)
        except Exception as error:  # Pillow's readers raise nearly anything on damaged bytes
            raise FastnasError(f"{file}: not a readable image ({type(error).__name__}: {error})") from error


def random_box(size: tuple[int, int], draw: np.random.Generator) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of a random part of an image (W, H), as RandomResizedCrop takes it.

    Its area is a share of 8 to 100% of the image's, its ratio 3:4 to 4:3, uniform on a logarithmic scale. After ten
    boxes that do not fit: the largest at the centre whose ratio is allowed.
    """
    width, height = size
    for _ in range(10):
        area = width * height * draw.uniform(*SCALE)
        ratio = math.exp(draw.uniform(math.log(RATIO[0]), math.log(RATIO[1])))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(draw.integers(width - w + 1)), int(draw.integers(height - h + 1))
            return left, top, left + w, top + h
    w = min(width, round(height * RATIO[1]))
    h = min(height, round(width / RATIO[0]))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def jittered(image: Image.Image, draw: np.random.Generator) -> Image.Image:
    """Brightness, contrast, saturation and hue changed at random, in a random order."""
    factors = draw.uniform(1 - JITTER, 1 + JITTER, 3)
    hue = draw.uniform(-HUE_JITTER, HUE_JITTER)
    for kind in draw.permutation(4):
        if kind == 3:
            image = turned(image, hue)
        else:
            enhance = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)[kind]
            image = enhance(image).enhance(factors[kind])
    return image


def turned(image: Image.Image, hue: float) -> Image.Image:
    """Every pixel's hue turned by ``hue``, a share of the circle."""
    channels = np.array(image.convert("HSV"))
    channels[..., 0] += np.uint8(round(hue * 255) % 256)  # which wraps around
    return Image.fromarray(channels, "HSV").convert("RGB")


def _opened(file: Path) -> Image.Image:
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(file, formats=FORMATS) as image:
            if image.mode not in EIGHT_BIT_MODES:
                raise ValueError(f"mode {image.mode} is not an 8-bit image: convert it to 8 bits")
            return image.convert("RGB")


def _centre(image: Image.Image, size: int) -> Image.Image:
    """The shorter side resized to 256/224 ``size``, then the ``size`` x ``size`` pixels at the centre."""
    short = round(RESIZED * size)
    width, height = (short * side // min(image.size) for side in image.size)
    check_resized(image.size, (width, height))
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = round((width - size) / 2), round((height - size) / 2)
    return image.crop((left, top, left + size, top + size))


def _ignore_ctrl_c(_: int) -> None:
    # The terminal sends it to the workers, too; the process that they work for ends them.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
