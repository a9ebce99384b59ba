"""Data sets in one NumPy file."""

from __future__ import annotations

import math
import sys
import zipfile
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from fastnas.data.dataset import Dataset, part_name
from fastnas.errors import FastnasError

CHANNELS = (1, 3)
MOST_CLASSES = 2**16  # where the labels alone say how many there are
_FORMAT = np.lib.format


def read_npz(path: Path, train: bool) -> Dataset:
    """Read ``images`` and ``labels``, and ``classes`` where present, from a ``.npz`` file.

    ``images`` is uint8: (N, H, W) greyscale, (N, H, W, C) or (N, C, H, W) with C in {1, 3}. Four
    axes are told apart by which of axis 1 and axis 3 has 1 or 3 entries; both is refused as ambiguous.
    ``labels`` holds N integers from 0; ``classes`` the names as text, else they are "0", "1", ...

    Args:
        path: the file, as `numpy.savez` or `numpy.savez_compressed` write it.
        train: what the result is called, "training set" or "test set".

    Raises:
        FastnasError: not such a file, an array that is missing, damaged or of the wrong type or
            shape, or labels out of range. Arrays of Python objects are never unpickled.
    """
    try:
        archive = zipfile.ZipFile(path)
    except Exception as error:
        raise FastnasError(f"{path}: not a readable .npz file ({type(error).__name__}: {error})") from error
    with archive:
        names = {name.removesuffix(".npy") for name in archive.namelist()}
        for name in ("images", "labels"):
            if name not in names:
                raise FastnasError(f"{path}: the array {name!r} is missing, found {sorted(names)[:8]}")
        labels = read_array(path, archive, "labels", "iu", "integers")
        images = read_array(path, archive, "images", "u", "uint8", itemsize=1)
        classes = read_array(path, archive, "classes", "US", "text") if "classes" in names else None
    pixels = _channel_first(path, images)
    if labels.shape != images.shape[:1]:
        raise FastnasError(
            f"{path}: labels must have shape ({len(images)},) as there are images, got {labels.shape}"
        )
    if images.size == 0:
        raise FastnasError(f"{path}: there are no images: their shape is {images.shape}")
    names_of_classes = _class_names(path, labels, classes)
    return Dataset(
        "npz",
        torch.from_numpy(np.array(pixels, order="C")),
        torch.from_numpy(labels.astype(np.int64)),
        names_of_classes,
        part_name(train),
    )


def read_array(
    path: Path, archive: zipfile.ZipFile, name: str, kinds: str, wanted: str, itemsize: int | None = None
) -> np.ndarray:
    """One array; its header is checked before memory is taken for it."""
    member = f"{name}.npy" if f"{name}.npy" in archive.namelist() else name
    try:
        with archive.open(member) as file:
            shape, dtype = _header(file)
            stored = archive.getinfo(member).file_size - file.tell()
    except Exception as error:  # a damaged archive can raise nearly anything
        raise FastnasError(f"{path}: {name} cannot be read ({type(error).__name__}: {error})") from error
    if dtype.hasobject:
        raise FastnasError(
            f"{path}: {name} holds Python objects, which could run code, and is refused: store {wanted}"
        )
    # Of text without letters there could be any number in no byte.
    if dtype.kind not in kinds or not dtype.itemsize or itemsize not in (None, dtype.itemsize):
        raise FastnasError(f"{path}: {name} must be {wanted}, got {dtype}")
    promised = math.prod(shape) * dtype.itemsize
    if promised != stored:
        raise FastnasError(f"{path}: {name} of shape {shape} needs {promised} bytes, but {stored} are stored")
    try:
        with archive.open(member) as file:
            return _FORMAT.read_array(file, allow_pickle=False)
    except Exception as error:
        raise FastnasError(f"{path}: {name} cannot be read ({type(error).__name__}: {error})") from error


def texts(path: Path, name: str, found: np.ndarray) -> list[str]:
    """The texts of an array (N,) of kind "U" or "S".

    Raises:
        FastnasError: a letter that Unicode does not have.
    """
    if found.dtype.kind == "U":
        letters = np.ascontiguousarray(found).view(np.dtype("u4").newbyteorder(found.dtype.byteorder))
        if (letters > sys.maxunicode).any():  # Python's strings are not made for these
            raise FastnasError(f"{path}: {name} cannot be read as text, it has letters that Unicode has not")
    return [one.decode("utf-8", "replace") if isinstance(one, bytes) else one for one in found.tolist()]


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    version = _FORMAT.read_magic(file)
    readers = {(1, 0): _FORMAT.read_array_header_1_0, (2, 0): _FORMAT.read_array_header_2_0}
    if version not in readers:
        raise ValueError(f"format version {version}")
    shape, _fortran, dtype = readers[version](file)
    return shape, dtype


def _channel_first(path: Path, images: np.ndarray) -> np.ndarray:
    if images.ndim == 3:
        return images[:, None]
    if images.ndim != 4:
        raise FastnasError(f"{path}: images must have 3 or 4 axes, got shape {images.shape}")
    first, last = images.shape[1] in CHANNELS, images.shape[3] in CHANNELS
    if first and last:
        raise FastnasError(
            f"{path}: images of shape {images.shape} could be (N, C, H, W) or (N, H, W, C): "
            f"store images of one channel as (N, H, W), or larger ones"
        )
    if not first and not last:
        raise FastnasError(
            f"{path}: images of shape {images.shape} have no axis of 1 or 3 channels at place 1 or 3"
        )
    return images if first else images.transpose(0, 3, 1, 2)


def _class_names(path: Path, labels: np.ndarray, classes: np.ndarray | None) -> tuple[str, ...]:
    low, high = int(labels.min()), int(labels.max())
    if low < 0:
        raise FastnasError(f"{path}: labels must count from 0, got {low}")
    if classes is None:
        if high >= MOST_CLASSES:
            raise FastnasError(f"{path}: label {high} is too large without an array of classes: count from 0")
        names = [str(i) for i in range(high + 1)]
    else:
        if classes.ndim != 1:
            raise FastnasError(f"{path}: classes must be a list of names, got shape {classes.shape}")
        names = texts(path, "classes", classes)
        if high >= len(names):
            raise FastnasError(f"{path}: label {high} names none of the {len(names)} classes")
    if len(names) < 2:
        raise FastnasError(f"{path}: a search needs at least two classes, found {len(names)}")
    return tuple(names)
