"""Image folders: root/<class>/<image>, read with Pillow."""

from __future__ import annotations

import math
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from fastnas._paths import user_path
from fastnas._terminal import is_terminal
from fastnas.data.dataset import Dataset, part_name
from fastnas.errors import FastnasError

# By content, not by name: Pillow would hand a disguised EPS file to Ghostscript.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
EIGHT_BIT_MODES = (
    "1",
    "L",
    "LA",
    "La",
    "P",
    "PA",
    "RGB",
    "RGBA",
    "RGBa",
    "RGBX",
    "CMYK",
    "YCbCr",
    "LAB",
    "HSV",
)


@dataclass(frozen=True)
class _Entry:
    file: Path
    label: int
    mode: str
    size: tuple[int, int]  # (W, H), Pillow's order


def read_folder(root: Path, image_size: int | None, train: bool) -> Dataset:
    """Read ``root/<class>/*`` into memory, classes and images sorted by name.

    Every image becomes RGB (transparency is dropped, EXIF rotation is not applied, the first frame
    of an animation is taken), unless all of them are 8-bit greyscale: then there is one channel.
    Files and folders whose name starts with a dot are skipped in silence; files that are no images by name or
    lie beside the classes, and folders inside of a class, with a sentence.

    Args:
        root: the folder that holds one folder for each class.
        image_size: S: the shorter side is resized to S (bilinear, antialiased) and the centre (S, S)
            is cut out. None: all images must already have one size.
        train: what the result is called, "training set" or "test set".

    Raises:
        FastnasError: no classes, a class without images, an image that is broken, too large or of
            another size or depth: each named.
    """
    if image_size is not None and image_size < 1:
        raise FastnasError(f"image_size must be at least 1 pixel, got {image_size}")
    classes, files = list_images(root)
    entries = _scan(files)
    size = (image_size, image_size) if image_size is not None else _common_size(entries)
    mode = "L" if all(entry.mode == "L" for entry in entries) else "RGB"
    shape = (len(entries), 1 if mode == "L" else 3, size[1], size[0])
    try:
        images = torch.empty(shape, dtype=torch.uint8)
    except RuntimeError as error:
        raise FastnasError(
            f"{root}: {len(entries)} images of {size[0]} x {size[1]} need {np.prod(shape) / 2**30:.1f} GiB "
            f"of memory: choose a smaller --image-size"
        ) from error

    def decode(i: int) -> None:
        pixels = torch.from_numpy(_decode(entries[i], mode, image_size))
        images[i] = pixels.permute(2, 0, 1) if mode == "RGB" else pixels

    # Pillow decodes outside of the interpreter's lock.
    with ThreadPoolExecutor() as pool:
        for _ in tqdm(
            pool.map(decode, range(len(entries))),
            "reading images",
            len(entries),
            disable=not is_terminal(sys.stderr),
        ):
            pass
    labels = torch.tensor([entry.label for entry in entries])
    return Dataset("folder", images, labels, classes, part_name(train))


def read_image(path: str | Path, image_size: int | None = None, channels: int = 3) -> Tensor:
    """One image as a folder's are read: uint8 (C, H, W).

    Args:
        path: the file.
        image_size: S: the shorter side is resized to S and the centre (S, S) is cut out; None: as it is.
        channels: 3, or 1 for greyscale.

    Raises:
        FastnasError: the file is no image, or none of 8 bits.
    """
    if channels not in (1, 3):
        raise FastnasError(f"channels must be 1 or 3, got {channels}")
    (entry,) = _scan([(user_path("an image's path", path), 0)])
    pixels = torch.from_numpy(_decode(entry, "L" if channels == 1 else "RGB", image_size))
    return pixels[None] if channels == 1 else pixels.permute(2, 0, 1)


def list_images(root: Path) -> tuple[tuple[str, ...], list[tuple[Path, int]]]:
    try:
        return _walk(root)
    except OSError as error:
        raise FastnasError(f"{error.filename or root}: cannot be listed ({error.strerror})") from error


def _walk(root: Path) -> tuple[tuple[str, ...], list[tuple[Path, int]]]:
    beside = sorted(p for p in root.iterdir() if p.name[0] != ".")
    folders = [p for p in beside if p.is_dir()]
    if len(folders) < 2:
        raise FastnasError(
            f"{root}: expected one folder of images for each of at least two classes, found {len(folders)} folder(s)"
        )
    files: list[tuple[Path, int]] = []
    others = [p for p in beside if not p.is_dir()]
    for label, folder in enumerate(folders):
        found = sorted(p for p in folder.iterdir() if p.name[0] != ".")
        images = [p for p in found if p.suffix.lower() in SUFFIXES and p.is_file()]
        if not images:
            looked = f"{folder}: no image in this class folder (looked for {' '.join(SUFFIXES)})"
            if any(p.is_dir() for p in found):
                looked += ", but folders: name the one whose folders are the classes"
            raise FastnasError(looked)
        files += [(image, label) for image in images]
        others += sorted(set(found) - set(images))
    if others:
        first = repr(str(others[0].relative_to(root)))
        rest = f"{len(others):,} other files or folders are not, such as {first}"
        if len(others) == 1:
            rest = f"one other file or folder is not: {first}"
        tqdm.write(f"{str(root)!r}: {len(files):,} images are read, and {rest}", file=sys.stderr)
    return tuple(folder.name for folder in folders), files


def _scan(files: list[tuple[Path, int]]) -> list[_Entry]:
    """Read only the headers, so that everything is checked before memory is taken."""
    entries = []
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        for file, label in tqdm(
            files, "checking images", disable=not is_terminal(sys.stderr) if len(files) > 1 else True
        ):
            try:
                with Image.open(file, formats=FORMATS) as image:
                    entries.append(_Entry(file, label, image.mode, image.size))
            except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
                raise FastnasError(
                    f"{file}: refused, because the image claims more than {Image.MAX_IMAGE_PIXELS} pixels"
                ) from error
            except Exception as error:  # Pillow's readers raise nearly anything on damaged bytes
                raise FastnasError(
                    f"{file}: not a readable image ({type(error).__name__}: {error})"
                ) from error
            if entries[-1].mode not in EIGHT_BIT_MODES:
                raise FastnasError(
                    f"{file}: mode {entries[-1].mode} is not an 8-bit image: convert it to 8 bits"
                )
    return entries


def _common_size(entries: list[_Entry]) -> tuple[int, int]:
    first = entries[0]
    for entry in entries:
        if entry.size != first.size:
            raise FastnasError(
                f"{entry.file} is {entry.size[0]} x {entry.size[1]} pixels but {first.file} is "
                f"{first.size[0]} x {first.size[1]}: give an --image-size"
            )
    return first.size


def _decode(entry: _Entry, mode: str, image_size: int | None) -> np.ndarray:
    """The pixels: uint8 (H, W, 3), or (H, W) for mode L."""
    try:
        with Image.open(entry.file, formats=FORMATS) as file:
            if file.size != entry.size:
                raise ValueError("the file changed while it was read")
            image: Image.Image = file.convert(mode)
        if image_size is not None:
            image = _resize_and_crop(image, image_size)
        return np.array(image)  # a copy: np.asarray of an image is read-only
    except Exception as error:  # Pillow's readers raise nearly anything on damaged bytes
        raise FastnasError(f"{entry.file}: not a readable image ({type(error).__name__}: {error})") from error


def _resize_and_crop(image: Image.Image, target: int) -> Image.Image:
    width, height = image.size
    short = min(width, height)
    resized = (target * width // short, target * height // short)
    check_resized(image.size, resized)
    if resized != image.size:
        image = image.resize(resized, Image.Resampling.BILINEAR)
    left, top = round((resized[0] - target) / 2), round((resized[1] - target) / 2)
    return image.crop((left, top, left + target, top + target))


def check_resized(size: tuple[int, int], resized: tuple[int, int]) -> None:
    """Raises ValueError if an image of ``size``, perhaps a long and thin one, would become too large."""
    if Image.MAX_IMAGE_PIXELS is not None and math.prod(resized) > Image.MAX_IMAGE_PIXELS:
        raise ValueError(f"{size[0]} x {size[1]} would be resized to {resized[0]} x {resized[1]} pixels")
