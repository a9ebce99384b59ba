"""CIFAR-10 and CIFAR-100 in the two layouts in which they are published (Krizhevsky 2009).

Binary: records of one label byte (CIFAR-100: coarse, then fine) and 3072 pixel bytes, 3 x 32 x 32,
channel first. Python: pickled dictionaries with the same pixels as a uint8 array (N, 3072).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastnas.data.dataset import Dataset, part_name
from fastnas.data.plain_pickle import load_plain_dict
from fastnas.errors import FastnasError

PIXELS = 3 * 32 * 32
# A pickle also holds file names, and Python 3's protocol 2 spends up to 2 bytes on a pixel.
PICKLE_ROOM = 4
# Opcodes for each image: its labels and its name take six at the most, 10,000 are for everything else.
STEPS = 20
MORE_STEPS = 10_000


@dataclass(frozen=True)
class Layout:
    """Where one of the two data sets keeps what."""

    name: str
    title: str
    binary_folder: str
    python_folder: str
    train_files: tuple[str, ...]
    test_files: tuple[str, ...]
    train_images: int  # per file
    test_images: int
    labels: tuple[tuple[str, int], ...]  # (key, number of classes) in the record's order; the last is used
    binary_names: str
    python_names: tuple[str, str]  # file, key

    @property
    def classes(self) -> int:
        return self.labels[-1][1]

    def files(self, train: bool) -> tuple[str, ...]:
        return self.train_files if train else self.test_files

    def images(self, train: bool) -> int:
        return self.train_images if train else self.test_images


CIFAR10 = Layout(
    name="cifar10",
    title="CIFAR-10",
    binary_folder="cifar-10-batches-bin",
    python_folder="cifar-10-batches-py",
    train_files=tuple(f"data_batch_{i}" for i in range(1, 6)),
    test_files=("test_batch",),
    train_images=10_000,
    test_images=10_000,
    labels=(("labels", 10),),
    binary_names="batches.meta.txt",
    python_names=("batches.meta", "label_names"),
)
CIFAR100 = Layout(
    name="cifar100",
    title="CIFAR-100",
    binary_folder="cifar-100-binary",
    python_folder="cifar-100-python",
    train_files=("train",),
    test_files=("test",),
    train_images=50_000,
    test_images=10_000,
    labels=(("coarse_labels", 20), ("fine_labels", 100)),
    binary_names="fine_label_names.txt",
    python_names=("meta", "fine_label_names"),
)


def read_cifar(layout: Layout, path: Path, train: bool) -> Dataset:
    """Read CIFAR-10 or CIFAR-100 in its official order, whichever version lies at ``path``.

    Args:
        layout: ``CIFAR10`` or ``CIFAR100`` (its fine labels are used).
        path: the folder that holds the official folder, or that folder itself. Where both versions
            lie there the binary one is read.
        train: the training set, else the test set.

    Raises:
        FastnasError: a file is missing, has the wrong size or is damaged, or a label is out of range.
    """
    folder, binary = _locate(layout, path)
    names = [f"{name}.bin" if binary else name for name in layout.files(train)]
    files = [folder / name for name in names]
    for file in files:
        if not file.is_file():
            raise FastnasError(f"{layout.title} is incomplete: {file} is missing")
        if binary:
            _check_size(layout, file, layout.images(train))
    count = layout.images(train)
    images = torch.empty(count * len(files), 3, 32, 32, dtype=torch.uint8)
    labels = torch.empty(count * len(files), dtype=torch.int64)
    for i, file in enumerate(files):
        pixels, numbers = (_read_binary if binary else _read_python)(layout, file, count)
        part = slice(i * count, (i + 1) * count)
        images.numpy()[part] = pixels.reshape(count, 3, 32, 32)
        labels.numpy()[part] = numbers
    classes = _binary_classes(layout, folder) if binary else _python_classes(layout, folder)
    return Dataset(layout.name, images, labels, classes, part_name(train))


def _locate(layout: Layout, path: Path) -> tuple[Path, bool]:
    """The official folder, and whether it is the binary version."""
    for name, binary in ((layout.binary_folder, True), (layout.python_folder, False)):
        if (path / name).is_dir():
            return path / name, binary
    # The folder itself, perhaps renamed: known by its name or by any of its files.
    files = layout.train_files + layout.test_files
    for name, suffix in ((layout.binary_folder, ".bin"), (layout.python_folder, "")):
        if path.resolve().name == name or any((path / (file + suffix)).is_file() for file in files):
            return path, suffix == ".bin"
    raise FastnasError(
        f"no {layout.title} at --data {str(path)!r}: expected the folder {layout.binary_folder} "
        f"or {layout.python_folder} there"
    )


def _check_size(layout: Layout, file: Path, count: int) -> None:
    expected = count * (len(layout.labels) + PIXELS)
    found = file.stat().st_size
    if found != expected:
        raise FastnasError(
            f"{file}: expected {expected} bytes ({count} images of {layout.title}), found {found} bytes"
        )


def _read_binary(layout: Layout, file: Path, count: int) -> tuple[np.ndarray, np.ndarray]:
    heads = len(layout.labels)
    try:
        content = file.read_bytes()
    except OSError as error:
        raise FastnasError(f"{file}: cannot be read ({error.strerror})") from error
    records = np.frombuffer(content, np.uint8).reshape(count, heads + PIXELS)
    for column, (key, classes) in enumerate(layout.labels):
        _check_labels(layout, file, key, records[:, column], classes)
    return records[:, heads:], records[:, heads - 1]


def _read_python(layout: Layout, file: Path, count: int) -> tuple[np.ndarray, np.ndarray]:
    content = load_plain_dict(
        file, limit=PICKLE_ROOM * count * PIXELS + 2**20, steps=STEPS * count + MORE_STEPS
    )
    pixels = content.get("data")
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.shape != (count, PIXELS):
        raise FastnasError(f"{file}: 'data' must be uint8 ({count}, {PIXELS}), found {_describe(pixels)}")
    for key, classes in layout.labels:
        numbers = _label_array(file, key, content.get(key), count)
        _check_labels(layout, file, key, numbers, classes)
    return pixels, numbers


def _label_array(file: Path, key: str, value: Any, count: int) -> np.ndarray:
    """The labels of a pickle, which the official files keep as a list of ints."""
    if isinstance(value, list) and all(type(v) is int and abs(v) < 2**31 for v in value):
        value = np.array(value, dtype=np.int64)
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "iu" or value.shape != (count,):
        raise FastnasError(f"{file}: {key!r} must hold {count} integers, found {_describe(value)}")
    return value


def _check_labels(layout: Layout, file: Path, key: str, numbers: np.ndarray, classes: int) -> None:
    wrong = np.flatnonzero((numbers < 0) | (numbers >= classes))
    if len(wrong):
        raise FastnasError(
            f"{file}: image {wrong[0]} has label {numbers[wrong[0]]}, "
            f"but {layout.title}'s {key} go from 0 to {classes - 1}"
        )


def _binary_classes(layout: Layout, folder: Path) -> tuple[str, ...]:
    file = folder / layout.binary_names
    if not file.is_file():
        return tuple(str(i) for i in range(layout.classes))
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise FastnasError(f"{file}: the class names cannot be read ({error})") from error
    return _check_classes(layout, file, [line.strip() for line in lines if line.strip()])


def _python_classes(layout: Layout, folder: Path) -> tuple[str, ...]:
    file = folder / layout.python_names[0]
    if not file.is_file():
        return tuple(str(i) for i in range(layout.classes))
    names = load_plain_dict(file, limit=2**20, steps=MORE_STEPS).get(layout.python_names[1])
    if not isinstance(names, list) or not all(isinstance(n, (str, bytes)) for n in names):
        raise FastnasError(
            f"{file}: {layout.python_names[1]!r} must be a list of names, found {_describe(names)}"
        )
    return _check_classes(
        layout, file, [n.decode("utf-8", "replace") if isinstance(n, bytes) else n for n in names]
    )


def _check_classes(layout: Layout, file: Path, names: list[str]) -> tuple[str, ...]:
    if len(names) != layout.classes:
        raise FastnasError(f"{file}: expected {layout.classes} class names, found {len(names)}")
    return tuple(names)


def _describe(value: object) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {value.shape}"
    if isinstance(value, (list, tuple)):
        return f"a {type(value).__name__} of {len(value)}"
    return "nothing" if value is None else f"a {type(value).__name__}"
