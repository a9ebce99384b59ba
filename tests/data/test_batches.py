"""Batches: what is in them, how they are drawn, that they repeat and resume to the bit."""

import itertools
import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fastnas.data import Augment, Batches, Dataset, Shard, channel_statistics, default_augment
from fastnas.errors import FastnasError

EVERYTHING = Augment(crop_padding=2, flip=True, cutout=4)


def random_data(
    count: int = 50, channels: int = 3, height: int = 8, width: int = 6, seed: int = 0
) -> Dataset:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(256, (count, channels, height, width), dtype=torch.uint8, generator=generator)
    return Dataset("npz", images, torch.arange(count), tuple(map(str, range(count))), "weight split")


def batches(data: Dataset, size: int = 8, seed: int = 0, augment: Augment = EVERYTHING, **kwargs) -> Batches:
    mean, std = channel_statistics(data)
    generator = torch.Generator().manual_seed(seed)
    return Batches(data, size, mean=mean, std=std, augment=augment, generator=generator, **kwargs)


def same(ours, theirs) -> bool:
    return all(torch.equal(a, c) and torch.equal(b, d) for (a, b), (c, d) in zip(ours, theirs, strict=True))


def normalised(data: Dataset) -> torch.Tensor:
    """The formula in float64."""
    mean, std = channel_statistics(data)
    return (data.images.double() / 255 - mean.view(-1, 1, 1)) / std.view(-1, 1, 1)


def test_statistics_are_the_formula() -> None:
    data = random_data(5000, 3, 5, 7)  # more than one chunk
    mean, std = channel_statistics(data)
    values = data.images.double() / 255
    torch.testing.assert_close(mean, values.mean((0, 2, 3)), rtol=1e-13, atol=0)
    torch.testing.assert_close(std, values.std((0, 2, 3), correction=0), rtol=1e-13, atol=0)
    assert mean.dtype == std.dtype == torch.float64


@pytest.mark.parametrize("value", range(0, 256, 15))
def test_a_constant_channel(value: int) -> None:
    data = random_data()
    data.images[:, 1] = value
    mean, std = channel_statistics(data)
    assert std[1] == 1
    assert mean[1] == pytest.approx(value / 255)
    x, _ = next(iter(Batches.evaluation(data, 50, mean=mean, std=std)))
    assert x[:, 1].abs().max() < 1e-7
    assert x[:, 0].std() > 0.9


def test_evaluation_is_every_image_in_order() -> None:
    data = random_data(50)
    mean, std = channel_statistics(data)
    found = Batches.evaluation(data, 8, mean=mean, std=std)
    assert len(found) == 7
    parts = list(found)
    assert [len(x) for x, _ in parts] == [8] * 6 + [2]
    assert torch.equal(torch.cat([y for _, y in parts]), data.labels)
    x = torch.cat([x for x, _ in parts])
    assert x.dtype == torch.float32
    # x * scale + shift: the two terms and the sum are each rounded once or twice in float32.
    terms = (data.images / 255 / std.view(-1, 1, 1)).abs() + (mean / std).abs().view(-1, 1, 1)
    assert ((x - normalised(data)).abs() <= 2 * torch.finfo(torch.float32).eps * terms).all()
    assert same(found, parts)  # a second pass
    assert len(Batches.evaluation(data, 64, mean=mean, std=std)) == 1


def test_normalised_weight_split_has_mean_0_and_std_1() -> None:
    data = random_data(400)
    x = torch.cat([x for x, _ in batches(data, 50, augment=Augment())])
    assert x.mean((0, 2, 3)).abs().max() < 1e-5
    assert (x.std((0, 2, 3), correction=0) - 1).abs().max() < 1e-5


@pytest.mark.parametrize("augment", [Augment(), Augment(crop_padding=2), Augment(flip=True), EVERYTHING])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_shapes_types_and_layout(augment: Augment, memory_format: torch.memory_format) -> None:
    found = batches(random_data(50), 8, augment=augment, memory_format=memory_format)
    assert len(found) == 6
    for x, y in found:
        assert x.shape == (8, 3, 8, 6)
        assert (x.dtype, y.dtype, y.shape) == (torch.float32, torch.int64, (8,))
        assert x.is_contiguous(memory_format=memory_format)
        assert x.is_contiguous() == (memory_format is torch.contiguous_format)


def test_the_layout_changes_no_value() -> None:
    data = random_data()
    assert same(batches(data), batches(data, memory_format=torch.channels_last))


@pytest.mark.parametrize("augment", [Augment(), EVERYTHING])
@pytest.mark.parametrize(
    ("count", "size", "drop_last"), [(50, 8, True), (50, 8, False), (48, 8, False), (5, 5, True)]
)
def test_a_pass_covers_each_image_once(augment: Augment, count: int, size: int, drop_last: bool) -> None:
    found = batches(random_data(count), size, augment=augment, drop_last=drop_last)
    labels = [y for _, y in found]
    assert len(labels) == len(found) == (count // size if drop_last else math.ceil(count / size))
    seen = torch.cat(labels).tolist()
    assert len(seen) == len(set(seen)) == (count // size * size if drop_last else count)
    assert seen != sorted(seen)


def test_each_image_is_a_window_of_its_own_padded_image() -> None:
    """Found by search over all windows, without knowing what was drawn."""
    data = random_data(40)
    padded = torch.nn.functional.pad(data.images, (2, 2, 2, 2))
    mean, std = channel_statistics(data)
    windows = Dataset(
        "npz",
        torch.stack([padded[..., y : y + 8, x : x + 6] for y in range(5) for x in range(5)], 1).flatten(0, 1),
        data.labels.repeat_interleave(25),
        data.classes,
    )
    candidates = next(iter(Batches.evaluation(windows, 1000, mean=mean, std=std)))[0].view(40, 25, 3, 8, 6)
    places, flips = set(), 0
    for x, y in itertools.islice(batches(data, augment=Augment(crop_padding=2, flip=True)).forever(), 20):
        for image, label in zip(x, y, strict=True):
            plain = [i for i, c in enumerate(candidates[label]) if torch.equal(image, c)]
            mirrored = [i for i, c in enumerate(candidates[label]) if torch.equal(image.flip(-1), c)]
            assert len(plain) + len(mirrored) == 1
            places.update(plain + mirrored)
            flips += len(mirrored)
    assert places == set(range(25))  # 160 draws miss one of 25 with probability 4 %: the seed is fixed
    assert 50 <= flips <= 110  # of 160, mean 80, standard deviation 6.3


def test_cutout_falls_on_normalised_images() -> None:
    data = random_data(200, height=12, width=12)
    data.images.clamp_(min=200)
    data.images[0, :, 0, 0] = 0  # keeps the statistics apart from the constant case
    whole = normalised(data)
    found = batches(data, 20, augment=Augment(cutout=4))
    for x, y in found:
        cut = (x == 0).all(1)
        area = cut.sum((1, 2))
        assert ((area >= 4) & (area <= 16)).all()
        assert set(area.tolist()) <= {a * b for a in (2, 3, 4) for b in (2, 3, 4)}
        kept = ~cut[:, None].expand_as(x)
        torch.testing.assert_close(x[kept].double(), whole[y][kept], rtol=0, atol=1e-4)


def test_every_pixel_is_equally_often_the_centre_of_a_window() -> None:
    """Chi-square of the drawn corners, flips and cutout centres against the uniform distribution."""
    data = Dataset(
        "npz", torch.zeros(20_000, 1, 8, 8, dtype=torch.uint8), torch.arange(20_000) % 2, ("a", "b")
    )
    data.images[0] = 1
    draws = batches(data, augment=EVERYTHING)._draw()
    for values, sides in (
        (draws.top, 5),
        (draws.left, 5),
        (draws.flip, 2),
        (draws.row, 8),
        (draws.column, 8),
    ):
        counts = torch.bincount(values.long(), minlength=sides).double()
        assert len(counts) == sides
        expected = len(data) / sides
        chi2 = ((counts - expected) ** 2 / expected).sum().item()
        assert chi2 < (sides - 1) + 5 * math.sqrt(2 * (sides - 1))  # five standard deviations
    independent = torch.corrcoef(
        torch.stack([draws.top, draws.left, draws.flip, draws.row, draws.column]).double()
    )
    assert (independent - torch.eye(5)).abs().max() < 0.04  # 1 / sqrt(20000) = 0.007


def test_a_seed_decides_everything() -> None:
    data = random_data()
    assert same(batches(data, seed=3), batches(data, seed=3))
    first, other = (next(iter(batches(data, seed=seed))) for seed in (3, 4))
    assert not torch.equal(first[0], other[0])


def test_nothing_else_moves_the_batches() -> None:
    data = random_data()
    expected = list(batches(data))
    torch.manual_seed(123)
    before = torch.get_rng_state()
    found = []
    for batch in batches(data):
        torch.rand(5)
        found.append(batch)
        torch.set_rng_state(before)
    assert same(found, expected)
    list(batches(data))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("drop_last", [True, False])
def test_shards_are_the_batches(drop_last: bool) -> None:
    """Of 50 images in batches of 8 the last has 2: two of four shards have nothing of it then."""
    data = random_data()
    shards = [batches(data, shard=Shard(rank, 4), drop_last=drop_last) for rank in range(4)]
    whole = batches(data, drop_last=drop_last)
    for _ in range(2):
        joined = [
            (torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts]))
            for parts in zip(*shards, strict=True)
        ]
        assert same(joined, whole)


def test_forever_reshuffles_and_is_the_passes_one_after_the_other() -> None:
    data = random_data()
    endless = list(itertools.islice(batches(data).forever(), 18))
    passes = batches(data)
    assert same(endless, [batch for _ in range(3) for batch in passes])
    first, second = (torch.cat([y for _, y in endless[i : i + 6]]) for i in (0, 6))
    assert first.tolist() != second.tolist()


@pytest.mark.parametrize("stop", [0, 1, 5, 6, 7, 12, 15])
def test_resumes_to_the_bit(stop: int) -> None:
    data = random_data()
    running = batches(data)
    stream = running.forever()
    for _ in range(stop):
        next(stream)
    state = running.state_dict()
    expected = list(itertools.islice(stream, 10))
    resumed = batches(data, seed=99)
    resumed.load_state_dict(state)
    again = resumed.state_dict()
    assert again["served"] == state["served"] == stop % 6
    assert torch.equal(again["generator"], state["generator"])
    assert same(itertools.islice(resumed.forever(), 10), expected)


def test_resuming_in_a_plain_loop_finishes_the_pass() -> None:
    data = random_data()
    running = batches(data)
    whole = list(running)
    following = list(running)
    interrupted = batches(data)
    for _ in itertools.islice(interrupted, 4):
        pass
    resumed = batches(data)
    resumed.load_state_dict(interrupted.state_dict())
    assert same(resumed, whole[4:])
    assert same(resumed, following)


def test_states_that_do_not_fit() -> None:
    found = batches(random_data())
    good = found.state_dict()
    with pytest.raises(FastnasError, match="cannot resume after 6 batches of a pass of 6"):
        found.load_state_dict(good | {"served": 6})
    with pytest.raises(FastnasError, match="does not fit this generator"):
        found.load_state_dict({"served": 0, "generator": torch.zeros(3, dtype=torch.uint8)})
    with pytest.raises(FastnasError, match="does not fit this generator"):
        found.load_state_dict({"served": 0})
    evaluation = Batches.evaluation(random_data(), 8, mean=[0.5] * 3, std=[0.5] * 3)
    with pytest.raises(FastnasError, match="evaluation batches have no state"):
        evaluation.state_dict()
    with pytest.raises(FastnasError, match="evaluation batches have no state"):
        evaluation.load_state_dict(good)


class _Operations(TorchDispatchMode):
    """Records the operators that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def test_a_batch_waits_for_nothing_and_loops_over_no_images() -> None:
    """No operator that would bring a value to the host, and as many operators for 4 images as for 40."""
    waiting = {
        "_local_scalar_dense",
        "nonzero",
        "masked_select",
        "item",
        "is_nonzero",
        "equal",
        "unique",
        "index",
    }
    counted = []
    for size in (4, 40):
        stream = batches(random_data(80), size, memory_format=torch.channels_last).forever()
        next(stream)
        with _Operations() as operations:
            next(stream)
        assert not waiting & set(operations.names)
        counted.append(operations.names)
    assert counted[0] == counted[1]


def test_images_are_not_changed() -> None:
    data = random_data()
    before = data.images.clone()
    for x, _ in batches(data):
        x.zero_()
    assert torch.equal(data.images, before)


@pytest.mark.parametrize("name", ["cifar10", "digits"])
def test_default_augmentation_fits_its_data(name: str) -> None:
    channels, side = {"cifar10": (3, 32), "digits": (1, 8)}[name]
    found = batches(random_data(20, channels, side, side), 10, augment=default_augment(name))
    assert next(iter(found))[0].shape == (10, channels, side, side)


def test_mistakes() -> None:
    data = random_data(32)
    good = {"mean": [0.5] * 3, "std": [0.5] * 3, "augment": Augment(), "generator": torch.Generator()}
    for size, change, words in [
        (64, {}, "batch size 64 is larger than the weight split of 32 images: choose a smaller --batch-size"),
        (0, {}, "batch size must be at least 1, got 0"),
        (8, {"mean": [0.5]}, "mean must hold 3 finite numbers, one a channel, got [0.5]"),
        (8, {"mean": [0.5, math.nan, 0.5]}, "mean must hold 3 finite numbers"),
        (8, {"std": torch.tensor([0.5, 0.0, 0.5])}, "std must be positive in every channel"),
        (
            8,
            {"augment": Augment(crop_padding=6)},
            "crop_padding 6 must be smaller than the images' shorter side of 6",
        ),
        (8, {"augment": Augment(cutout=6)}, "cutout 6 must be smaller than the images' shorter side of 6"),
        (8, {"generator": None, "augment": Augment(flip=True)}, "augmentation needs a generator"),
        (8, {"memory_format": torch.preserve_format}, "memory_format must be"),
    ]:
        with pytest.raises(FastnasError) as caught:
            Batches(data, size, **(good | change))
        assert words in str(caught.value)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_nothing_waits() -> None:
    data = random_data(64).to("cuda")
    mean, std = channel_statistics(data)
    with pytest.raises(FastnasError, match="the generator is on cpu but the images are on cuda"):
        Batches(data, 8, mean=mean, std=std, augment=EVERYTHING, generator=torch.Generator())

    def stream():
        generator = torch.Generator("cuda").manual_seed(0)
        return Batches(data, 8, mean=mean, std=std, augment=EVERYTHING, generator=generator).forever()

    expected = list(itertools.islice(stream(), 20))
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = list(itertools.islice(stream(), 20))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert same(found, expected)
    assert all(x.is_cuda and y.is_cuda for x, y in found)
