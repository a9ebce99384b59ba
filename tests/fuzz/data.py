"""Targets: data sets, of images and of text."""

import io
import pickle
import warnings
from dataclasses import replace

import numpy as np
import torch
from PIL import Image

from fastnas.data import cifar, load_dataset, read_corpus
from fastnas.data.cifar import CIFAR10, CIFAR100, PIXELS
from fastnas.data.folder import SUFFIXES
from fastnas.data.plain_pickle import load_plain_dict
from fastnas.data.streamed import StreamedImages
from fastnas.errors import FastnasError
from tests.data import python2_pickle
from tests.fuzz import pickles
from tests.fuzz.target import Target, place, text

SMALL = 2  # images in a file of CIFAR
LIMIT = 2**20
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")


def plain_pickle(content: bytes) -> None:
    """A pickle of plain data."""
    load_plain_dict(place("plain.pickle", content), LIMIT, 100_000)


def cifar_python(content: bytes) -> None:
    """A file of the python version, and the same bytes as its file of names."""
    layout = replace(CIFAR100, train_images=SMALL)
    file = place("cifar/train", content)
    place("cifar/meta", content)
    _both(
        lambda: cifar._read_python(layout, file, SMALL), lambda: cifar.read_cifar(layout, file.parent, True)
    )


def cifar_binary(content: bytes) -> None:
    """A file of the binary version; what follows its images is the file of names."""
    size = SMALL * (1 + PIXELS)
    layout = replace(CIFAR10, test_images=SMALL)
    file = place("cifar-bin/test_batch.bin", content[:size])
    place("cifar-bin/batches.meta.txt", content[size:])
    cifar.read_cifar(layout, file.parent, False)


def npz(content: bytes) -> None:
    """Images, labels and classes in a NumPy file."""
    load_dataset("npz", place("data.npz", content))


def corpus(content: bytes) -> None:
    """The three texts, one after the other with NUL between."""
    parts = content.split(b"\0", 2)
    for name, part in zip(("train", "valid", "test"), (*parts, b"", b""), strict=False):
        place(f"text/{name}.txt", part)
    read_corpus("ptb", place("text/train.txt").parent)


def image_folder(content: bytes) -> None:
    """A folder in memory; the damaged image is one of two."""
    data = load_dataset("folder", _images(content), image_size=4)
    assert data.images.shape[2:] == (4, 4)


def image_folder_unsized(content: bytes) -> None:
    """A folder in memory, its images as they are."""
    load_dataset("folder", _images(content))


def streamed_images(content: bytes) -> None:
    """Images that are read as they are needed, to train and to test on."""
    root = _images(content)
    _both(*(lambda train=train: _stream(root, train) for train in (True, False)))


def paths(content: bytes) -> None:
    """A path that need not be one, as every data set gets it."""
    name = text(content)
    _both(
        *(lambda dataset=dataset: load_dataset(dataset, name) for dataset in ("npz", "folder", "cifar10")),  # type: ignore[misc]
        lambda: read_corpus("ptb", name),
    )


def _both(*reads) -> None:
    """All of them; the first refusal is raised at the end."""
    refusals = []
    for read in reads:
        try:
            read()
        except FastnasError as error:
            refusals.append(error)
    if refusals:
        raise refusals[0]


def _images(content: bytes):
    root = place("images/good/0.png").parents[1]
    if not (root / "good/0.png").exists():
        place("images/good/0.png", _picture("PNG", "RGB"))
    place("images/odd/0.png", content)
    return root


def _stream(root, train: bool) -> None:
    images = StreamedImages(root, 8, train=train)
    for x, _ in images.batches(2, epoch=1, device=torch.device("cpu"), workers=0):
        assert x.shape[1:] == (3, 8, 8)


def _picture(form: str, mode: str, side: tuple[int, int] = (5, 4)) -> bytes:
    stream = io.BytesIO()
    shape = (side[1], side[0], 3)
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        Image.fromarray(pixels).convert(mode).save(stream, form)
    return stream.getvalue()


def _pictures() -> list[bytes]:
    kinds = [(form, "RGB") for form in FORMATS] + [
        ("PNG", "L"),
        ("PNG", "P"),
        ("TIFF", "CMYK"),
        ("TIFF", "I;16"),
        ("GIF", "P"),
    ]
    return [_picture(*kind) for kind in kinds] + [
        _picture("PNG", "RGB", (1, 60_000)),
        _picture("BMP", "L", (3, 2000)),
    ]


def _pickles() -> list[bytes]:
    pixels = np.arange(SMALL * PIXELS, dtype=np.uint32).astype(np.uint8).reshape(SMALL, PIXELS)
    names = [f"class {i}" for i in range(100)]
    content = {"data": pixels, "fine_labels": [0, 99], "coarse_labels": [19, 0], "fine_label_names": names}
    return [python2_pickle.dumps(content), *(pickle.dumps(content, protocol) for protocol in (2, 4))]


def _small_pickles() -> list[bytes]:
    content = {"data": np.arange(6, dtype=np.uint8).reshape(2, 3), "labels": [1, 2], "names": ["a", b"b"]}
    plain = [python2_pickle.dumps({**content, "names": ["a"]}), *(pickle.dumps(content, p) for p in range(5))]
    return [*plain, *pickles.payloads().values()]


def _binary() -> list[bytes]:
    records = b"".join(bytes([label]) + bytes(range(256)) * 12 for label in (0, 9))
    return [records, records + "\n".join(f"class {i}" for i in range(10)).encode()]


def _arrays() -> list[bytes]:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, 5, 4), dtype=np.uint8)
    names = np.array(["cat", "dog"])
    found = []
    for save in (np.savez, np.savez_compressed):
        for arrays in (
            {"images": pixels, "labels": np.array([0, 1])},
            {"images": pixels[:, 0], "labels": np.array([1, 0], np.uint8), "classes": names},
            {"images": pixels, "labels": np.array([0, 1]), "classes": names.astype("S")},
        ):
            stream = io.BytesIO()
            save(stream, **arrays)
            found.append(stream.getvalue())
    return found


_NPZ = (
    *(
        b"'|O'",
        b"'<U0'",
        b"'|S0'",
        b"'<U1'",
        b"'<f8'",
        b"'>u8'",
        b"(2, 3, 5, 4)",
        b"(10000000000, 1)",
        b"True",
    ),
    *(
        b"images.npy",
        b"labels.npy",
        b"classes.npy",
        b"\x93NUMPY\x01\x00",
        b"\x93NUMPY\x03\x00",
        b"PK\x05\x06",
        b"\xff" * 8,
    ),
)
_IMAGES = (
    *(
        b"\x89PNG\r\n\x1a\n",
        b"IHDR",
        b"IDAT",
        b"IEND",
        b"acTL",
        b"iCCP",
        b"zTXt",
        b"eXIf",
        b"\xff\xd8\xff\xe0",
        b"\xff\xdb",
    ),
    *(
        b"GIF89a",
        b"BM",
        b"RIFF",
        b"WEBPVP8X",
        b"II*\x00",
        b"MM\x00*",
        b"P6 ",
        b"P5 ",
        b"65535",
        b"%!PS-Adobe",
        b"\xff" * 4,
    ),
    *(b"\x00" * 4, b"\x00\x00\x80\x00", b"\x7f\xff\xff\xff", b"\x00\x01\x00\x00"),
)
TARGETS = (
    Target("plain-pickle", plain_pickle, _small_pickles, pickles.TOKENS),
    Target("cifar-python", cifar_python, _pickles, pickles.TOKENS),
    Target("cifar-binary", cifar_binary, _binary, (b"\x00", b"\xff", b"\x0a", b"\n")),
    Target("npz", npz, _arrays, _NPZ),
    Target(
        "text",
        corpus,
        lambda: [b"a b c\n\n d\0a b\0c d\n", "ä \u2028 b\n\0ä\0b".encode()],
        (b"\0", b"\xff", b"\n", b"<eos>"),
    ),
    Target("image-folder", image_folder, _pictures, _IMAGES),
    Target("image-folder-unsized", image_folder_unsized, _pictures, _IMAGES),
    Target("streamed-images", streamed_images, _pictures, _IMAGES),
    Target(
        "data-path",
        paths,
        lambda: [
            b"/tmp",
            b"~/x",
            b"~nobody-of-this-name/x",
            b"a\0b",
            b"x" * 5000,
            b"\xed\xa0\x80",
            b"/dev/null",
            b"/dev/null/x",
        ],
        (b"~", b"/", b"\0", b"..", b"x" * 300, b"\n", *(suffix.encode() for suffix in SUFFIXES)),
    ),
)
