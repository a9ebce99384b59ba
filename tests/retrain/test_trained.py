"""A trained network is read back with its classes and its normalisation."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import fastnas
from fastnas.data import load_dataset, read_image
from fastnas.errors import FastnasError

OPTIONS = {
    "genotype": "DARTS_V2", "dataset": "folder", "image_size": 8, "channels": 2, "layers": 1, "epochs": 2,
    "batch_size": 10, "auxiliary": 0, "drop_path": 0, "cutout": 0, "device": "cpu", "threads": 1,
}  # fmt: skip


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Folders of training and test images: dark and light squares of 8 pixels, in colours, and some broader ones."""
    root, random = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for part, count in (("train", 20), ("test", 10)):
        for name, low in (("dark", 0), ("light", 128)):
            (root / part / name).mkdir(parents=True)
            for i in range(count):
                pixels = random.integers(low, low + 128, (8, 8 + i % 3, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / part / name / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def trained(images, tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "net"
    return fastnas.retrain(**OPTIONS, data=images / "train", test_data=images / "test", out=out)


def test_it_classifies_as_the_training_said(trained, images):
    net = fastnas.load_network(trained.out)
    assert (net.classes, net.channels, net.image_size, net.training) == (("dark", "light"), 3, (8, 8), False)
    test = load_dataset("folder", images / "test", train=False, image_size=8)
    with torch.no_grad():
        logits = net(test.images)
        loss = torch.nn.functional.cross_entropy(logits, test.labels).item()
    assert (logits.argmax(1) == test.labels).double().mean().item() == trained.result["test_accuracy"]
    assert loss == pytest.approx(trained.metrics[-1]["test_loss"], rel=1e-5)


@pytest.mark.parametrize(
    "batch",
    [
        torch.zeros(1, 3, 8, 8),
        torch.zeros(3, 8, 8, dtype=torch.uint8),
        torch.zeros(1, 1, 8, 8, dtype=torch.uint8),
    ],
    ids=["floats", "no batch", "grey"],
)
def test_other_images_are_refused(trained, batch):
    """Floats from 0 to 1 would be normalised twice, and the answers wrong in silence."""
    net = fastnas.load_network(trained.out)
    with pytest.raises(FastnasError, match=r"takes uint8 images \(B, 3, H, W\).* got torch\."):
        net(batch)


def test_one_image_is_read_as_a_folder_reads_it(images):
    whole = load_dataset("folder", images / "test", image_size=8)
    assert torch.equal(read_image(images / "test/dark/0.png", 8), whole.images[0])
    assert read_image(images / "test/dark/1.png").shape == (3, 8, 9)
    grey = np.asarray(Image.open(images / "test/dark/1.png").convert("L"))
    assert torch.equal(read_image(images / "test/dark/1.png", channels=1)[0], torch.tensor(grey))
    with pytest.raises(FastnasError, match="channels must be 1 or 3, got 4"):
        read_image(images / "test/dark/0.png", channels=4)


def test_a_part_of_a_folder_has_all_classes(images, tmp_path):
    """Its files are sorted by class."""
    found = fastnas.retrain(
        **{**OPTIONS, "epochs": 1},
        images=20,
        data=images / "train",
        test_data=images / "test",
        out=tmp_path / "run",
    )
    assert 0.1 < found.metrics[0]["train_accuracy"] < 1
    (mean,) = {json.loads((found.out / "config.json").read_text())["reads"]["mean"][0]}
    assert 0.35 < mean < 0.65  # dark images alone have 0.25


def test_what_cannot_be_read_is_one_sentence(trained, tmp_path):
    with pytest.raises(FastnasError, match="is no folder of a retraining: name the one that --out named"):
        fastnas.load_network(tmp_path)
    for name in ("config.json", "genotype.json"):
        (tmp_path / name).write_text((trained.out / name).read_text())
    with pytest.raises(FastnasError, match="the training has not ended; go on by python -m"):
        fastnas.load_network(tmp_path)
    tensors = load_file(trained.out / "network.safetensors")
    save_file(dict(list(tensors.items())[1:]), tmp_path / "network.safetensors")
    with pytest.raises(FastnasError, match=r"does not hold this network \(.*\); train again"):
        fastnas.load_network(tmp_path)
    (tmp_path / "network.safetensors").write_bytes(b"nothing")
    with pytest.raises(FastnasError, match=r"does not hold this network \(.*\); train again"):
        fastnas.load_network(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    for reads in ({"std": [1.0]}, {"mean": None}, {"class_names": ["dark"]}):
        edited = {**content, "reads": {**content["reads"], **reads}}
        (tmp_path / "config.json").write_text(json.dumps(edited))
        with pytest.raises(
            FastnasError, match="does not say how images are normalised and what the classes are"
        ):
            fastnas.load_network(tmp_path)
