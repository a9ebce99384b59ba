"""CIFAR-10 and CIFAR-100: both official layouts, at a small scale and at the official sizes."""

import os
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fastnas.data import cifar, load_dataset
from fastnas.data.cifar import CIFAR10, CIFAR100, PIXELS, Layout
from fastnas.errors import FastnasError
from tests.data import python2_pickle

SMALL = 6  # images per file
NAMES = {"cifar10": CIFAR10, "cifar100": CIFAR100}


@pytest.fixture(autouse=True)
def small_files(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of a few images in place of 10,000 or 50,000."""
    if "official_size" in request.node.name:
        return
    for constant in ("CIFAR10", "CIFAR100"):
        layout = replace(getattr(cifar, constant), train_images=SMALL, test_images=SMALL)
        monkeypatch.setattr(cifar, constant, layout)


def contents(layout: Layout, train: bool) -> tuple[np.ndarray, list[np.ndarray]]:
    """All pixels (N, 3072) and, for each kind of label, all numbers (N,)."""
    count = SMALL * len(layout.files(train))
    random = np.random.default_rng(train)
    pixels = random.integers(0, 256, (count, PIXELS), dtype=np.uint8)
    return pixels, [random.integers(0, classes, count, dtype=np.uint8) for _, classes in layout.labels]


def write_binary(layout: Layout, root: Path) -> Path:
    folder = root / layout.binary_folder
    folder.mkdir()
    for train in (True, False):
        pixels, labels = contents(layout, train)
        records = np.concatenate([np.stack(labels, 1), pixels], 1)
        for name, part in zip(layout.files(train), np.split(records, len(layout.files(train))), strict=True):
            (folder / f"{name}.bin").write_bytes(part.tobytes())
    text = "".join(f"class {i}\n" for i in range(layout.classes)) + "\n"  # the official file ends so
    (folder / layout.binary_names).write_text(text)
    return folder


def write_python(layout: Layout, root: Path, dumps=python2_pickle.dumps) -> Path:
    folder = root / layout.python_folder
    folder.mkdir()
    for train in (True, False):
        pixels, labels = contents(layout, train)
        files = layout.files(train)
        for i, name in enumerate(files):
            part = slice(i * SMALL, (i + 1) * SMALL)
            content: dict[str, object] = {
                "batch_label": name,
                "data": pixels[part],
                "filenames": ["x.png"] * SMALL,
            }
            for (key, _), numbers in zip(layout.labels, labels, strict=True):
                content[key] = numbers[part].tolist()
            (folder / name).write_bytes(dumps(content))
    file, key = layout.python_names
    names = [f"class {i}" for i in range(layout.classes)]
    (folder / file).write_bytes(dumps({key: names, "num_vis": 3072}))
    return folder


def python3_dumps(content: dict) -> bytes:
    """As a Python 3 program that keeps Python 2's byte keys would write it again."""
    return pickle.dumps({key.encode(): value for key, value in content.items()}, protocol=2)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("inside", [True, False], ids=["folder itself", "folder above"])
@pytest.mark.parametrize("version", ["binary", "python 2", "python 3"])
def test_reads_every_layout(tmp_path: Path, name: str, train: bool, inside: bool, version: str) -> None:
    layout = NAMES[name]
    if version == "binary":
        folder = write_binary(layout, tmp_path)
    else:
        folder = write_python(
            layout, tmp_path, python2_pickle.dumps if version == "python 2" else python3_dumps
        )
    data = load_dataset(name, folder if inside else str(tmp_path), train=train)
    pixels, labels = contents(layout, train)
    assert data.images.shape == (len(pixels), 3, 32, 32)
    np.testing.assert_array_equal(data.images.numpy().reshape(-1, PIXELS), pixels)
    np.testing.assert_array_equal(data.labels.numpy(), labels[-1])  # CIFAR-100: the fine ones
    assert data.classes == tuple(f"class {i}" for i in range(layout.classes))
    assert data.part == ("training set" if train else "test set")
    data.images.add_(1)  # writable memory of its own


@pytest.mark.parametrize("write", [write_binary, write_python])
@pytest.mark.parametrize("name", NAMES)
def test_a_renamed_folder_without_class_names(tmp_path: Path, name: str, write) -> None:
    layout = NAMES[name]
    folder = write(layout, tmp_path).rename(tmp_path / "renamed")
    for file in (layout.binary_names, layout.python_names[0]):
        (folder / file).unlink(missing_ok=True)
    data = load_dataset(name, folder)
    assert data.classes == tuple(str(i) for i in range(layout.classes))


def test_binary_is_read_where_both_lie(tmp_path: Path) -> None:
    folder = write_python(CIFAR10, tmp_path)
    write_binary(CIFAR10, tmp_path)
    (folder / "data_batch_1").write_bytes(b"")
    assert len(load_dataset("cifar10", tmp_path)) == 5 * SMALL


@pytest.mark.parametrize("write", [write_binary, write_python])
@pytest.mark.parametrize("number", [1, 3, 5])
def test_a_missing_batch_is_named(tmp_path: Path, write, number: int) -> None:
    file = next(write(CIFAR10, tmp_path).glob(f"data_batch_{number}*"))
    file.unlink()
    with pytest.raises(FastnasError, match="is missing") as caught:
        load_dataset("cifar10", tmp_path)
    assert str(file) in str(caught.value)
    assert len(load_dataset("cifar10", tmp_path, train=False)) == SMALL  # its file is there


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("change", ["truncated", "empty", "oversized"])
def test_wrong_sizes_are_told_in_bytes(tmp_path: Path, name: str, change: str) -> None:
    layout = NAMES[name]
    file = write_binary(layout, tmp_path) / f"{layout.train_files[-1]}.bin"
    whole = file.read_bytes()
    file.write_bytes({"truncated": whole[:-1], "empty": b"", "oversized": whole + b"x"}[change])
    with pytest.raises(FastnasError) as caught:
        load_dataset(name, tmp_path)
    expected = SMALL * (len(layout.labels) + PIXELS)
    assert f"{file}: expected {expected} bytes" in str(caught.value)
    assert f"found {file.stat().st_size} bytes" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "column", "words"),
    [
        ("cifar10", 0, "image 2 has label 255, but CIFAR-10's labels go from 0 to 9"),
        ("cifar100", 0, "image 2 has label 255, but CIFAR-100's coarse_labels go from 0 to 19"),
        ("cifar100", 1, "image 2 has label 255, but CIFAR-100's fine_labels go from 0 to 99"),
    ],
)
def test_a_label_out_of_range(tmp_path: Path, name: str, column: int, words: str) -> None:
    layout = NAMES[name]
    file = write_binary(layout, tmp_path) / f"{layout.train_files[0]}.bin"
    content = bytearray(file.read_bytes())
    content[2 * (len(layout.labels) + PIXELS) + column] = 255
    file.write_bytes(content)
    with pytest.raises(FastnasError, match=words) as caught:
        load_dataset(name, tmp_path)
    assert str(file) in str(caught.value)


GOOD = np.zeros((SMALL, PIXELS), np.uint8)
LABELS = [0] * SMALL


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"labels": LABELS}, r"'data' must be uint8 \(6, 3072\), found nothing"),
        ({"data": GOOD[:5], "labels": LABELS}, r"found uint8 \(5, 3072\)"),
        ({"data": GOOD.astype("i4"), "labels": LABELS}, r"found int32 \(6, 3072\)"),
        ({"data": "text", "labels": LABELS}, "found a bytes"),
        ({"data": GOOD}, "'labels' must hold 6 integers, found nothing"),
        ({"data": GOOD, "labels": LABELS[1:]}, r"found int64 \(5,\)"),
        ({"data": GOOD, "labels": [*LABELS[1:], "3"]}, "found a list of 6"),
        ({"data": GOOD, "labels": [*LABELS[1:], True]}, "found a list of 6"),
        ({"data": GOOD, "labels": [*LABELS[1:], 10]}, "image 5 has label 10"),
        ({"data": GOOD, "labels": [-1, *LABELS[1:]]}, "image 0 has label -1"),
    ],
)
def test_a_pickle_with_wrong_contents(tmp_path: Path, content: dict, words: str) -> None:
    file = write_python(CIFAR10, tmp_path) / "data_batch_2"
    file.write_bytes(python2_pickle.dumps(content))
    with pytest.raises(FastnasError, match=words) as caught:
        load_dataset("cifar10", tmp_path)
    assert str(file) in str(caught.value)


@pytest.mark.parametrize("file", ["data_batch_4", "batches.meta"])
def test_a_malicious_pickle_is_refused_by_the_loader(tmp_path: Path, file: str) -> None:
    folder = write_python(CIFAR10, tmp_path)
    canary = tmp_path / "canary"
    (folder / file).write_bytes(python2_pickle.call("os", "system", f"touch {canary}"))
    with pytest.raises(FastnasError, match=r"asks for os\.system") as caught:
        load_dataset("cifar10", tmp_path)
    assert str(folder / file) in str(caught.value)
    assert not canary.exists()


@pytest.mark.parametrize("change", ["truncated", "empty", "oversized"])
def test_a_damaged_pickle(tmp_path: Path, change: str) -> None:
    file = write_python(CIFAR10, tmp_path) / "data_batch_5"
    whole = file.read_bytes()
    file.write_bytes({"truncated": whole[:-9], "empty": b"", "oversized": whole + bytes(2**21)}[change])
    with pytest.raises(FastnasError) as caught:
        load_dataset("cifar10", tmp_path)
    assert str(file) in str(caught.value)
    assert f"{file.stat().st_size} bytes" in str(caught.value)


def test_wrong_class_names(tmp_path: Path) -> None:
    folder = write_binary(CIFAR10, tmp_path)
    (folder / "batches.meta.txt").write_text("cat\ndog\n")
    with pytest.raises(FastnasError, match=r"batches.meta.txt: expected 10 class names, found 2"):
        load_dataset("cifar10", tmp_path)
    (folder / "batches.meta.txt").write_bytes(b"\xff\xfe\xfd")
    with pytest.raises(FastnasError, match="class names cannot be read"):
        load_dataset("cifar10", tmp_path)
    folder = write_python(CIFAR100, tmp_path)
    (folder / "meta").write_bytes(python2_pickle.dumps({"fine_label_names": [1, 2]}))
    with pytest.raises(FastnasError, match="'fine_label_names' must be a list of names, found a list of 2"):
        load_dataset("cifar100", tmp_path)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(
        FastnasError, match=r"no CIFAR-10 at --data .*cifar-10-batches-bin or cifar-10-batches-py"
    ):
        load_dataset("cifar10", tmp_path)
    write_binary(CIFAR100, tmp_path)
    with pytest.raises(FastnasError, match="no CIFAR-10 at --data"):
        load_dataset("cifar10", tmp_path)
    (tmp_path / CIFAR10.python_folder).mkdir()
    with pytest.raises(FastnasError, match="data_batch_1 is missing"):
        load_dataset("cifar10", tmp_path)


@pytest.mark.parametrize("name", NAMES)
def test_official_size_of_the_binary_version(tmp_path: Path, name: str) -> None:
    """Sparse files of the official sizes: 30,730,000 and 153,700,000 bytes, all zero but for one record."""
    layout = NAMES[name]
    folder = tmp_path / layout.binary_folder
    folder.mkdir()
    size = {"cifar10": 30_730_000, "cifar100": 153_700_000}[name]
    record = len(layout.labels) + PIXELS
    for file in layout.train_files:
        with (folder / f"{file}.bin").open("wb") as stream:
            stream.truncate(size)
    with (folder / f"{layout.train_files[-1]}.bin").open("rb+") as stream:
        stream.seek(-record, os.SEEK_END)
        stream.write(bytes([7] * len(layout.labels) + [9] * PIXELS))
    data = load_dataset(name, tmp_path)
    assert len(data) == 50_000
    assert data.labels.nonzero().tolist() == [[49_999]]
    assert torch.equal(data.images[-1], torch.full((3, 32, 32), 9, dtype=torch.uint8))
    assert not data.images[:-1].any()
