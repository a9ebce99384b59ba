"""Images that are read as they are needed: crops, jitter, order, workers, broken files."""

import colorsys

import numpy as np
import pytest
import torch
from PIL import Image

from fastnas import FastnasError
from fastnas.data import Shard
from fastnas.data.streamed import MEAN, STD, StreamedImages, jittered, random_box, turned
from fastnas.errors import UnreadableError

CPU = torch.device("cpu")


@pytest.fixture
def root(tmp_path):
    """Two classes of three noisy images of different sizes."""
    draw = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for i, (width, height) in enumerate([(30, 20), (20, 40), (16, 16)]):
            pixels = draw.integers(0, 256, (height, width, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{i}.png")
    return tmp_path


def passed(images, epoch=1, batch_size=4, workers=0, **options):
    batches = list(images.batches(batch_size, epoch=epoch, device=CPU, workers=workers, **options))
    return torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])


def test_test_images_are_resized_cropped_at_the_centre_and_normalised(root):
    images = StreamedImages(root, 14, train=False)
    assert (images.classes, len(images)) == (("cat", "dog"), 6)
    x, y = passed(images)
    assert y.tolist() == [0, 0, 0, 1, 1, 1]
    assert x.is_contiguous(memory_format=torch.channels_last)
    with Image.open(root / "cat" / "0.png") as image:  # 30 x 20: the shorter side becomes 16 = 14 * 256 / 224
        wanted = np.array(image.resize((24, 16), Image.Resampling.BILINEAR).crop((5, 1, 19, 15)))
    expected = (
        torch.from_numpy(wanted).permute(2, 0, 1) / 255 - torch.tensor(MEAN).view(3, 1, 1)
    ) / torch.tensor(STD).view(3, 1, 1)
    torch.testing.assert_close(x[0], expected)


def test_what_an_epoch_sees_depends_on_seed_and_epoch_alone(root):
    images = StreamedImages(root, 8, train=True, seed=3)
    x, y = passed(images)
    for same in (passed(images, workers=2), passed(StreamedImages(root, 8, train=True, seed=3))):
        assert torch.equal(same[0], x)
        assert torch.equal(same[1], y)
    assert sorted(y.tolist()) == [0, 0, 0, 1, 1, 1]
    assert not torch.equal(passed(images, epoch=2)[0], x)
    assert not torch.equal(passed(StreamedImages(root, 8, train=True, seed=4))[0], x)
    assert len(passed(images, limit=3)[1]) == 3


@pytest.mark.parametrize("train", [True, False])
def test_shards_are_the_batches(root, train):
    """Three shards of 6 images in batches of 4: the last batch leaves one of them nothing."""
    images = StreamedImages(root, 8, train=train, seed=3)
    shards = [images.batches(4, epoch=1, device=CPU, workers=0, shard=Shard(rank, 3)) for rank in range(3)]
    whole = list(images.batches(4, epoch=1, device=CPU, workers=0))
    for parts, (x, y) in zip(zip(*shards, strict=True), whole, strict=True):
        assert torch.equal(torch.cat([part for part, _ in parts]), x)
        assert torch.equal(torch.cat([labels for _, labels in parts]), y)


def test_nothing_draws_from_the_global_generators(root):
    state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    passed(StreamedImages(root, 8, train=True), workers=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert (np.random.get_state()[1] == numpy_state).all()  # noqa: NPY002


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_image_is_one_sentence(root, workers):
    (root / "dog" / "1.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    with pytest.raises(FastnasError) as error:
        passed(StreamedImages(root, 8, train=True), workers=workers)
    assert str(error.value).startswith(f"{root}/dog/1.png: not a readable image (")
    assert "\n" not in str(error.value)


def test_random_boxes_have_the_areas_and_ratios_of_inception(root):
    draw = np.random.default_rng(0)
    boxes = np.array([random_box((400, 300), draw) for _ in range(2000)])
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    assert (boxes >= 0).all()
    assert (boxes[:, 2] <= 400).all()
    assert (boxes[:, 3] <= 300).all()
    shares, ratios = width * height / 120_000, width / height
    assert 0.079 < shares.min() < 0.1
    assert shares.max() > 0.95
    assert 0.74 < ratios.min() < 0.76
    assert 1.32 < ratios.max() < 1.35
    # Shares s and ratios r, log r, are uniform where the box fits: s r <= 400^2 / 120,000 and s / r <= 300^2 / 120,000.
    share, ratio = np.meshgrid(np.linspace(0.08, 1, 500), np.geomspace(3 / 4, 4 / 3, 500))
    fits = (share * ratio <= 4 / 3) & (share / ratio <= 3 / 4)
    assert abs(shares.mean() - share[fits].mean()) < 4 * share[fits].std() / 2000**0.5


def test_an_image_that_no_box_fits_is_cropped_at_the_centre():
    assert random_box((1000, 10), np.random.default_rng(0)) == (493, 0, 506, 10)
    assert random_box((10, 1000), np.random.default_rng(0)) == (0, 493, 10, 506)


def test_the_hue_turns_by_a_share_of_the_circle():
    red = Image.fromarray(np.full((1, 1, 3), (255, 0, 0), dtype=np.uint8))
    for hue in (0.2, -0.2):
        expected = [255 * channel for channel in colorsys.hsv_to_rgb(hue % 1, 1, 1)]
        assert np.array(turned(red, hue))[0, 0] == pytest.approx(expected, abs=6)  # hues are bytes


def test_jitter_changes_brightness_by_at_most_two_fifths_on_grey():
    """On grey saturation and hue change nothing, and contrast nothing where all pixels are alike."""
    grey = Image.fromarray(np.full((4, 4, 3), 100, dtype=np.uint8))
    values = [np.array(jittered(grey, np.random.default_rng(seed))).mean() for seed in range(200)]
    assert 59 <= min(values) < 64
    assert 136 < max(values) <= 141


def test_a_bomb_that_only_resizing_would_set_off(root):
    """A file of a few hundred bytes, of 1 x 60,000 pixels, would become 256 x 15,360,000."""
    Image.new("RGB", (1, 60_000)).save(root / "dog" / "1.png")
    with pytest.raises(
        UnreadableError, match=r"dog/1.png: .*1 x 60000 would be resized to 256 x 15360000 pixels"
    ):
        passed(StreamedImages(root, 224, train=False))
