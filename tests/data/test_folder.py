"""Image folders: what is read, and what is said of images that cannot be."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import EpsImagePlugin, Image

from fastnas.data import load_dataset
from fastnas.errors import FastnasError


def picture(seed: int, width: int = 6, height: int = 4, mode: str = "RGB") -> Image.Image:
    bands = len(Image.new(mode, (1, 1)).getbands())
    shape = (height, width) if bands == 1 else (height, width, bands)
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    return Image.fromarray(pixels, mode if bands == 1 else None)


def write(root: Path, images: dict[str, Image.Image]) -> Path:
    for name, image in images.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        image.save(root / name)
    return root


def two_classes(root: Path, **kwargs) -> Path:
    return write(root, {"cat/0.png": picture(0, **kwargs), "dog/0.png": picture(1, **kwargs)})


def test_reads_classes_and_pixels_in_name_order(tmp_path: Path) -> None:
    files = {"dog/b.png": 0, "dog/a.bmp": 1, "cat/10.webp": 2, "cat/2.PNG": 3, "ant/x.tiff": 4}
    for name, seed in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        options = {"lossless": True} if name.endswith("webp") else {}
        picture(seed).save(tmp_path / name, **options)
    (tmp_path / "cat/notes.txt").write_text("not an image by name")
    (tmp_path / "cat/._2.png").write_text("left by a file manager")
    (tmp_path / ".cache").mkdir()
    (tmp_path / "readme.md").write_text("beside the classes")
    data = load_dataset("folder", tmp_path)
    assert data.classes == ("ant", "cat", "dog")
    assert data.labels.tolist() == [0, 1, 1, 2, 2]
    assert data.images.shape == (5, 3, 4, 6)
    for image, seed in zip(data.images, [4, 2, 3, 1, 0], strict=True):
        np.testing.assert_array_equal(image.permute(1, 2, 0).numpy(), np.asarray(picture(seed)))


def test_what_is_passed_over_is_said(tmp_path: Path, capsys) -> None:
    two_classes(tmp_path)
    (tmp_path / "cat/.hidden").touch()
    load_dataset("folder", tmp_path)
    assert capsys.readouterr().err == ""
    (tmp_path / "loose.png").touch()
    load_dataset("folder", tmp_path)
    said = capsys.readouterr().err
    assert said == f"{str(tmp_path)!r}: 2 images are read, and one other file or folder is not: 'loose.png'\n"
    (tmp_path / "loose.png").unlink()
    (tmp_path / "dog/1.heic").touch()
    (tmp_path / "dog/sub\n").mkdir()
    assert len(load_dataset("folder", tmp_path)) == 2
    said = capsys.readouterr().err
    assert (
        said
        == f"{str(tmp_path)!r}: 2 images are read, and 2 other files or folders are not, such as 'dog/1.heic'\n"
    )


def test_jpeg_is_read(tmp_path: Path) -> None:
    write(
        tmp_path, {"a/0.jpg": Image.new("RGB", (8, 8), (200, 100, 50)), "b/0.jpeg": Image.new("RGB", (8, 8))}
    )
    data = load_dataset("folder", tmp_path)
    assert (data.images[0].float().mean((1, 2)) - torch.tensor([200.0, 100.0, 50.0])).abs().max() < 3


def test_all_greyscale_has_one_channel_and_a_mixture_three(tmp_path: Path) -> None:
    two_classes(tmp_path, mode="L")
    grey = load_dataset("folder", tmp_path)
    assert grey.images.shape == (2, 1, 4, 6)
    np.testing.assert_array_equal(grey.images[0, 0].numpy(), np.asarray(picture(0, mode="L")))
    write(tmp_path, {"dog/1.png": picture(2), "dog/2.png": picture(3, mode="RGBA")})
    mixed = load_dataset("folder", tmp_path)
    assert mixed.images.shape == (4, 3, 4, 6)
    for c in range(3):
        assert torch.equal(mixed.images[0, c], grey.images[0, 0])


@pytest.mark.parametrize("size", [(37, 20), (20, 37), (20, 20), (8, 13), (3, 2)])
def test_resizes_the_shorter_side_and_crops_the_centre(tmp_path: Path, size: tuple[int, int]) -> None:
    two_classes(tmp_path, width=size[0], height=size[1])
    data = load_dataset("folder", tmp_path, image_size=8)
    assert data.images.shape == (2, 3, 8, 8)
    short = min(size)
    resized = picture(0, *size).resize(
        (8 * size[0] // short, 8 * size[1] // short), Image.Resampling.BILINEAR
    )
    pixels = np.asarray(resized)
    top, left = (round((n - 8) / 2) for n in pixels.shape[:2])
    np.testing.assert_array_equal(
        data.images[0].permute(1, 2, 0).numpy(), pixels[top : top + 8, left : left + 8]
    )


def test_other_sizes_are_told_with_the_first_that_differs(tmp_path: Path) -> None:
    two_classes(tmp_path)
    write(tmp_path, {"cat/1.png": picture(2, width=7), "dog/1.png": picture(3, width=9)})
    with pytest.raises(
        FastnasError, match=r"cat/1.png is 7 x 4 pixels but .*cat/0.png is 6 x 4: give an --image-size"
    ):
        load_dataset("folder", tmp_path)


def encoded(format: str, side: int = 40) -> bytes:
    stream = io.BytesIO()
    picture(5, width=side, height=side).save(stream, format)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("empty.png", b""),
        ("text.png", b"this is no image"),
        ("half.png", encoded("PNG")[:700]),
        ("half.jpg", encoded("JPEG")[:400]),
        ("half.webp", encoded("WEBP")[:300]),
        ("header.bmp", encoded("BMP")[:60]),
    ],
)
@pytest.mark.parametrize("image_size", [None, 40])
def test_a_broken_image_is_named(tmp_path: Path, name: str, content: bytes, image_size: int | None) -> None:
    two_classes(tmp_path, width=40, height=40)
    (tmp_path / "dog" / name).write_bytes(content)
    with pytest.raises(FastnasError, match=f"dog/{name}: not a readable image"):
        load_dataset("folder", tmp_path, image_size=image_size)


def test_an_image_of_another_format_in_disguise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow tells formats by content and gives EPS to Ghostscript: only listed formats may be opened."""
    two_classes(tmp_path)
    picture(0).convert("RGB").save(tmp_path / "cat" / "1.eps")
    (tmp_path / "cat" / "1.eps").rename(tmp_path / "cat" / "1.png")
    with Image.open(tmp_path / "cat" / "1.png") as image:
        assert image.format == "EPS"  # what an unrestricted open would have taken it for
    ran = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *args: ran.append(args))
    with pytest.raises(FastnasError, match=r"cat/1.png: not a readable image"):
        load_dataset("folder", tmp_path)
    assert not ran


@pytest.mark.parametrize("factor", [1.5, 3])
def test_decompression_bombs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, factor: float) -> None:
    """Pillow warns above its limit and raises above twice the limit: both are refused."""
    two_classes(tmp_path, width=100, height=10)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", int(1000 / factor))
    with pytest.raises(FastnasError, match=r"cat/0.png: refused, because the image claims more than"):
        load_dataset("folder", tmp_path)


def test_a_bomb_that_only_resizing_would_set_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    two_classes(tmp_path, width=2000, height=1)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100_000)
    with pytest.raises(FastnasError, match=r"2000 x 1 would be resized to 64000 x 32 pixels"):
        load_dataset("folder", tmp_path, image_size=32)


def test_sixteen_bits_are_refused(tmp_path: Path) -> None:
    two_classes(tmp_path)
    Image.fromarray(np.full((4, 6), 40_000, np.uint16)).save(tmp_path / "dog" / "1.png")
    with pytest.raises(FastnasError, match=r"dog/1.png: mode I;16 is not an 8-bit image"):
        load_dataset("folder", tmp_path)


def test_folders_that_hold_nothing(tmp_path: Path) -> None:
    with pytest.raises(FastnasError, match=r"at least two classes, found 0 folder"):
        load_dataset("folder", tmp_path)
    write(tmp_path, {"cat/0.png": picture(0), "loose.png": picture(1)})
    with pytest.raises(FastnasError, match=r"at least two classes, found 1 folder"):
        load_dataset("folder", tmp_path)
    (tmp_path / "dog").mkdir()
    with pytest.raises(FastnasError, match=r"dog: no image in this class folder \([^)]*\)$"):
        load_dataset("folder", tmp_path)
    (tmp_path / "dog/terrier").mkdir()
    with pytest.raises(FastnasError, match="but folders: name the one whose folders are the classes"):
        load_dataset("folder", tmp_path)
    write(tmp_path, {"dog/0.png": picture(0)})
    with pytest.raises(FastnasError, match="image_size must be at least 1"):
        load_dataset("folder", tmp_path, image_size=0)


def test_no_progress_bar_without_a_terminal(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    load_dataset("folder", two_classes(tmp_path))
    assert capfd.readouterr() == ("", "")


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # Pillow mentions what it can read over
@pytest.mark.parametrize("format", ["PNG", "JPEG", "BMP", "GIF", "TIFF", "PPM"])
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_flipped_bytes_never_escape(tmp_path: Path, format: str, data: st.DataObject) -> None:
    two_classes(tmp_path)
    content = bytearray(encoded(format, side=5))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    (tmp_path / "dog" / "1.png").write_bytes(content)
    try:
        found = load_dataset("folder", tmp_path, image_size=4)
    except FastnasError as error:
        assert "dog/1.png" in str(error)  # noqa: PT017
        return
    assert found.images.shape == (3, 3, 4, 4)
