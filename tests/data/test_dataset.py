"""The data set itself, its split in two, and the one entry that reads them all."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastnas.data import DATASETS, Dataset, load_dataset, read_corpus, split
from fastnas.errors import FastnasError


def numbered(count: int, name: str = "npz") -> Dataset:
    """Images that carry their own index: pixel values (index // 256, index % 256)."""
    index = torch.arange(count)
    images = torch.stack([index // 256, index % 256], 1).to(torch.uint8).view(count, 1, 1, 2)
    return Dataset(name, images, index % 2, ("even", "odd"))


def numbers(data: Dataset) -> list[int]:
    pixels = data.images.long().view(len(data), 2)
    assert torch.equal(data.labels, pixels[:, 1] % 2)  # labels travel with their images
    return (pixels[:, 0] * 256 + pixels[:, 1]).tolist()


def test_digits_are_scikit_learns() -> None:
    from sklearn.datasets import load_digits

    data, original = load_dataset("digits"), load_digits()
    assert data.images.shape == (1797, 1, 8, 8)
    assert (data.channels, data.size, len(data), len(data.classes)) == (1, (8, 8), 1797, 10)
    assert data.images.min() == 0
    assert data.images.max() == 255
    exact = torch.from_numpy(original.images) * 255 / 16
    assert (data.images[:, 0] - exact).abs().max() <= 0.5
    assert data.labels.tolist() == original.target.tolist()


def test_scikit_learn_is_imported_only_for_digits() -> None:
    code = "import sys, fastnas.data; assert 'sklearn' not in sys.modules, 'imported'"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        (
            {"name": "imagenet"},
            "unknown data set 'imagenet': choose one of digits, cifar10, cifar100, folder, npz",
        ),
        ({"name": "cifar10"}, "cifar10 is read from files: give their place with --data"),
        ({"name": "folder"}, "folder is read from files: give their place with --data"),
        ({"name": "npz", "path": "/nowhere/x.npz"}, "npz: --data '/nowhere/x.npz' does not exist"),
        ({"name": "cifar100", "path": Path("/nowhere")}, "cifar100: --data '/nowhere' does not exist"),
        ({"name": "cifar10", "path": __file__}, "is a file, and a folder is needed"),
        ({"name": "digits", "path": "x"}, "digits comes with scikit-learn and takes no --data"),
        ({"name": "digits", "path": "x", "image_size": 8}, "say what that is with --dataset"),
        ({"name": "digits", "train": False}, "digits has no test set of its own"),
        (
            {"name": "digits", "image_size": 8},
            "image_size resizes the images of a folder, not those of digits",
        ),
    ],
)
def test_mistakes_in_the_call(kwargs: dict, words: str) -> None:
    with pytest.raises(FastnasError) as caught:
        load_dataset(**kwargs)
    assert words in str(caught.value)


def test_every_name_is_known() -> None:
    for name in DATASETS:
        if name != "digits":
            with pytest.raises(FastnasError, match="--data"):
                load_dataset(name)


U8 = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
TWO = torch.tensor([0, 1])


@pytest.mark.parametrize(
    ("images", "labels", "words"),
    [
        (U8.float(), TWO, "images must be uint8 (N, C, H, W), got float32 (2, 3, 4, 4)"),
        (U8[0], TWO, "images must be uint8 (N, C, H, W), got uint8 (3, 4, 4)"),
        (U8, TWO.int(), "labels must be int64 (2,), got int32 (2,)"),
        (U8, TWO[:1], "labels must be int64 (2,), got int64 (1,)"),
        (U8[:0], TWO[:0], "holds no pixel"),
        (U8, TWO + 1, "label 2 names none of the 2 classes"),
        (U8, TWO - 1, "label -1 names none of the 2 classes"),
    ],
)
def test_a_dataset_checks_itself(images: torch.Tensor, labels: torch.Tensor, words: str) -> None:
    with pytest.raises(FastnasError) as caught:
        Dataset("mine", images, labels, ("a", "b"))
    assert words in str(caught.value)


def test_subset_and_to() -> None:
    data = numbered(300)
    assert numbers(data.subset([299, 0, 7])) == [299, 0, 7]
    assert numbers(data.subset(range(3))) == [0, 1, 2]
    assert numbers(data.subset(torch.tensor([5], dtype=torch.int32))) == [5]
    assert numbers(data.to("cpu")) == numbers(data)
    for wrong in ([300], [-1], [], [[1]]):
        with pytest.raises(FastnasError):
            data.subset(wrong)


@given(
    count=st.integers(2, 400),
    portion=st.floats(0.01, 0.99),
    seed=st.integers(0, 2**31),
    name=st.sampled_from(["cifar10", "cifar100", "npz", "digits"]),
    data=st.data(),
)
def test_split_is_a_partition(count: int, portion: float, seed: int, name: str, data: st.DataObject) -> None:
    limit = data.draw(st.none() | st.integers(2, count))
    used = count if limit is None else limit
    whole = numbered(count, name)
    cut = int(portion * used)
    if cut == 0:
        with pytest.raises(FastnasError, match="leaves the weight split empty"):
            split(whole, portion, limit=limit, seed=seed)
        return
    weights, architecture = (numbers(d) for d in split(whole, portion, limit=limit, seed=seed))
    assert len(weights) == cut
    assert len(architecture) == used - cut
    together = weights + architecture
    assert len(set(together)) == used
    if name.startswith("cifar"):
        assert together == list(range(used))  # DARTS: indices[:split], indices[split:]
    else:
        # A limit takes the first of the same order, so more images never change the ones before.
        everything = [numbers(d) for d in split(whole, 0.5, seed=seed)]
        assert together == (everything[0] + everything[1])[:used]


def test_split_is_decided_by_the_seed() -> None:
    data = numbered(200)
    one, again, other = (numbers(split(data, 0.5, seed=seed)[0]) for seed in (1, 1, 2))
    assert one == again
    assert one != other
    assert one != sorted(one)
    assert [d.part for d in split(data, 0.5, seed=0)] == ["weight split", "architecture split"]


def test_a_data_set_sorted_by_class_has_all_classes_in_both_halves() -> None:
    labels = torch.arange(10).repeat_interleave(50)
    data = Dataset("folder", torch.zeros(500, 1, 1, 1, dtype=torch.uint8), labels, tuple("0123456789"))
    for half in split(data, 0.5, seed=0):
        assert half.labels.bincount(minlength=10).min() > 10


@pytest.mark.parametrize(
    ("portion", "limit", "words"),
    [
        (0, None, "train_portion must lie between 0 and 1, got 0"),
        (1.0, None, "train_portion must lie between 0 and 1, got 1.0"),
        (float("nan"), None, "train_portion must lie between 0 and 1"),
        (0.5, 1, "--images must lie between 2 and the 100 images"),
        (0.5, 101, "--images must lie between 2 and the 100 images"),
        (0.4, 2, "leaves the weight split empty"),
    ],
)
def test_mistakes_in_a_split(portion: float, limit: int | None, words: str) -> None:
    with pytest.raises(FastnasError, match=words):
        split(numbered(100), portion, limit=limit, seed=0)


@pytest.mark.parametrize("name", ["~nobody-of-this-name/x", "x" * 5000, "a\0b", "~\0"])
@pytest.mark.parametrize("dataset", ["npz", "folder", "cifar10", "ptb"])
def test_a_path_that_cannot_be_one(name: str, dataset: str) -> None:
    with pytest.raises(FastnasError, match="--data") as caught:
        read_corpus(dataset, name) if dataset == "ptb" else load_dataset(dataset, name)
    assert str(caught.value).isprintable()
