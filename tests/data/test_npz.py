"""NumPy files: layouts, and every malformed case as one sentence."""

import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastnas.data import load_dataset
from fastnas.errors import FastnasError

PIXELS = np.random.default_rng(0).integers(0, 256, (5, 3, 8, 7), dtype=np.uint8)
LABELS = np.array([0, 2, 1, 0, 2])


def save(tmp_path: Path, compressed: bool = False, **arrays) -> Path:
    file = tmp_path / "data.npz"
    (np.savez_compressed if compressed else np.savez)(file, **arrays)
    return file


@pytest.mark.parametrize(
    ("images", "expected"),
    [
        (PIXELS, PIXELS),
        (PIXELS.transpose(0, 2, 3, 1), PIXELS),
        (np.asfortranarray(PIXELS), PIXELS),
        (PIXELS[:, :1], PIXELS[:, :1]),
        (PIXELS[:, :1].transpose(0, 2, 3, 1), PIXELS[:, :1]),
        (PIXELS[:, 0], PIXELS[:, :1]),
        (PIXELS[:, :, :3], PIXELS[:, :, :3]),
    ],
    ids=["NCHW", "NHWC", "fortran order", "N1HW", "NHW1", "NHW", "3 rows"],
)
@pytest.mark.parametrize("compressed", [False, True])
def test_reads_every_layout(
    tmp_path: Path, images: np.ndarray, expected: np.ndarray, compressed: bool
) -> None:
    data = load_dataset("npz", save(tmp_path, compressed, images=images, labels=LABELS))
    np.testing.assert_array_equal(data.images.numpy(), expected)
    assert data.images.is_contiguous()
    assert data.labels.tolist() == LABELS.tolist()
    assert data.classes == ("0", "1", "2")


@pytest.mark.parametrize("dtype", ["i1", "u1", ">i8", "<u8", "i4"])
@pytest.mark.parametrize("classes", [np.array(["a", "b", "c", "d"]), np.array([b"a", b"b", b"c", b"d"])])
def test_label_types_and_class_names(tmp_path: Path, dtype: str, classes: np.ndarray) -> None:
    data = load_dataset("npz", save(tmp_path, images=PIXELS, labels=LABELS.astype(dtype), classes=classes))
    assert data.labels.tolist() == LABELS.tolist()
    assert data.classes == ("a", "b", "c", "d")


GOOD = {"images": PIXELS, "labels": LABELS}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"images": None}, "the array 'images' is missing, found ['labels']"),
        ({"labels": None}, "the array 'labels' is missing, found ['images']"),
        ({"images": PIXELS.astype("f4")}, "images must be uint8, got float32"),
        ({"images": PIXELS.astype("u2")}, "images must be uint8, got uint16"),
        ({"images": PIXELS.astype("i1")}, "images must be uint8, got int8"),
        ({"images": PIXELS[0, 0]}, "images must have 3 or 4 axes, got shape (8, 7)"),
        (
            {"images": PIXELS[:, :, :, :3]},
            "images of shape (5, 3, 8, 3) could be (N, C, H, W) or (N, H, W, C)",
        ),
        ({"images": PIXELS[:, :2]}, "have no axis of 1 or 3 channels"),
        ({"images": PIXELS[:0], "labels": LABELS[:0]}, "there are no images: their shape is (0, 3, 8, 7)"),
        ({"labels": LABELS[1:]}, "labels must have shape (5,) as there are images, got (4,)"),
        ({"labels": LABELS[:, None]}, "labels must have shape (5,) as there are images, got (5, 1)"),
        ({"labels": np.int64(3)}, "labels must have shape (5,) as there are images, got ()"),
        ({"labels": LABELS.astype("f8")}, "labels must be integers, got float64"),
        ({"labels": LABELS > 0}, "labels must be integers, got bool"),
        ({"labels": LABELS - 1}, "labels must count from 0, got -1"),
        ({"labels": LABELS + 2**40}, "is too large without an array of classes"),
        ({"labels": LABELS.astype("u8") + 2**63}, "is too large without an array of classes"),
        ({"labels": LABELS * 0}, "at least two classes, found 1"),
        ({"classes": np.array(["a", "b"])}, "label 2 names none of the 2 classes"),
        ({"classes": np.array([["a", "b", "c"]])}, "classes must be a list of names, got shape (1, 3)"),
        ({"classes": np.arange(3)}, "classes must be text, got int64"),
    ],
)
def test_malformed_arrays(tmp_path: Path, change: dict, words: str) -> None:
    arrays = {k: v for k, v in (GOOD | change).items() if v is not None}
    file = save(tmp_path, **arrays)
    with pytest.raises(FastnasError) as caught:
        load_dataset("npz", file)
    assert words in str(caught.value)
    assert str(file) in str(caught.value)


class Bomb:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self):
        return os.system, (f"touch {self.canary}",)


@pytest.mark.parametrize("name", ["images", "labels", "classes"])
def test_object_arrays_are_refused_and_run_nothing(tmp_path: Path, name: str) -> None:
    canary = tmp_path / "canary"
    file = save(tmp_path, **(GOOD | {name: np.array([Bomb(canary)] * 5, dtype=object)}))
    with pytest.raises(FastnasError, match=f"{name} holds Python objects"):
        load_dataset("npz", file)
    assert not canary.exists()
    np.load(file, allow_pickle=True)[name]
    assert canary.exists()  # the attack is real


def test_a_member_that_is_a_bare_pickle(tmp_path: Path) -> None:
    canary, file = tmp_path / "canary", save(tmp_path, labels=LABELS)
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr("images.npy", pickle.dumps(Bomb(canary)))
    with pytest.raises(FastnasError, match="images cannot be read"):
        load_dataset("npz", file)
    assert not canary.exists()


def test_files_that_are_no_archive(tmp_path: Path) -> None:
    file = tmp_path / "data.npz"
    for content in (b"", b"text", save(tmp_path, **GOOD).read_bytes()[:-20]):
        file.write_bytes(content)
        with pytest.raises(FastnasError, match=r"data.npz: not a readable .npz file"):
            load_dataset("npz", file)
    np.save(tmp_path / "single.npy", PIXELS)
    with pytest.raises(FastnasError, match=r"single.npy: not a readable .npz file"):
        load_dataset("npz", tmp_path / "single.npy")
    with pytest.raises(FastnasError, match="not a readable"):
        load_dataset("npz", tmp_path)


def test_a_header_that_promises_more_than_there_is(tmp_path: Path) -> None:
    """Told from the header: an honest-looking 93 GiB must not be allocated first."""
    file = save(tmp_path, labels=LABELS)
    short = tmp_path / "short.npy"
    np.save(short, PIXELS)
    content = short.read_bytes().replace(b"(5, 3, 8, 7), }" + b" " * 8, b"(5, 3, 80000, 80000), }")
    assert len(content) == len(short.read_bytes())
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr("images.npy", content)
    with pytest.raises(FastnasError, match=r"needs 96000000000 bytes, but 840 are stored"):
        load_dataset("npz", file)


@pytest.mark.parametrize("repeats", [1, 2000], ids=["800 bytes", "1.7 MB"])
def test_a_flipped_pixel_fails_the_checksum(tmp_path: Path, repeats: int) -> None:
    pixels = PIXELS.repeat(repeats, 0)
    file = save(tmp_path, images=pixels, labels=LABELS.repeat(repeats))
    content = bytearray(file.read_bytes())
    place = content.find(pixels.tobytes())
    content[place + pixels.size - 1] ^= 1
    file.write_bytes(content)
    with pytest.raises(FastnasError, match=r"images cannot be read \(BadZipFile"):
        load_dataset("npz", file)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_flipped_bytes_never_escape(tmp_path: Path, data: st.DataObject) -> None:
    file = save(tmp_path, compressed=data.draw(st.booleans()), **GOOD, classes=np.array(["a", "b", "c"]))
    content = bytearray(file.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    file.write_bytes(content)
    try:
        found = load_dataset("npz", file)
    except FastnasError:
        return
    np.testing.assert_array_equal(found.images.numpy(), PIXELS)  # the checksum leaves no other outcome


@pytest.mark.parametrize(
    ("classes", "words"),
    [
        (np.zeros(1000, dtype="S1").view("V1"), "classes must be text"),
        (np.array([0x7FFFFFFF, 1, 2], dtype="<u4").view("<U1"), "classes cannot be read as text"),
    ],
)
def test_classes_that_are_no_text(tmp_path: Path, classes: np.ndarray, words: str) -> None:
    with pytest.raises(FastnasError, match=words):
        load_dataset("npz", save(tmp_path, images=PIXELS, labels=LABELS, classes=classes))


def test_text_without_letters_takes_no_memory(tmp_path: Path) -> None:
    """A header of a thousand million texts of no letter promises no byte, and would become a list of them."""
    file = save(tmp_path, images=PIXELS, labels=LABELS)
    header = repr({"descr": "|S0", "fortran_order": False, "shape": (10**9,)}).encode().ljust(117) + b"\n"
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr("classes.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
    with pytest.raises(FastnasError, match=r"classes must be text, got \|S0"):
        load_dataset("npz", file)
