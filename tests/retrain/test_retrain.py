"""Whole retrainings on real images: what they leave behind, that they repeat and resume to the bit."""

import dataclasses
import json
import math
import signal

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from tqdm import tqdm

import fastnas
from fastnas import FastnasError
from fastnas.data import load_dataset
from fastnas.describe import describe
from fastnas.retrain import RetrainConfig, retrain, sources
from fastnas.retrain.config import RetrainTextConfig
from fastnas.retrain.images import ImageTrainer
from fastnas.retrain.network import network_of
from fastnas.runs.guard import Guard
from fastnas.runs.interrupt import Interrupt
from fastnas.runs.recipes import RECIPES
from fastnas.runs.saving import Saving
from fastnas.spaces import CellSequence, find_genotype
from fastnas.supernet import build_supernet
from tests.retrain.conftest import TINY


def never():
    """No checkpoint is written."""
    return Saving(lambda: None, Interrupt(), math.inf)


TIMES = {"seconds", "images_per_second", "peak_memory_bytes"}


def timeless(rows):
    return [{name: value for name, value in row.items() if name not in TIMES} for row in rows]


def trainer(**options):
    config = RetrainConfig.from_options({**TINY, **options}).resolved()
    return ImageTrainer(config, find_genotype(TINY["genotype"]).genotype, torch.device("cpu"), Interrupt())


def test_the_run_folder_holds_everything(tiny):
    found = tiny()
    config = json.loads((found.out / "config.json").read_text())["config"]
    assert (config["recipe"], config["space"], config["cutout"], config["schedule"]) == (
        "digits",
        "darts",
        0,
        "cosine",
    )
    rows = [json.loads(line) for line in (found.out / "metrics.jsonl").read_text().splitlines()]
    assert rows == found.metrics
    assert [row["epoch"] for row in rows] == [1, 2]
    assert [row["drop_path"] for row in rows] == pytest.approx([0, 0.15])
    assert find_genotype(found.out).genotype == find_genotype("DARTS_V2").genotype == found.genotype
    result = json.loads((found.out / "result.json").read_text())
    assert result == found.result
    assert result["test_accuracy"] == rows[-1]["test_accuracy"]
    assert result["best_test_accuracy"] == max(row["test_accuracy"] for row in rows)
    assert result["test_images"] == 12
    space = network_of(found.config, found.genotype, 10, 1)
    assert (result["parameters"], result["multiply_adds"]) == (
        describe(space).parameters,
        describe(space, 8).macs,
    )


def test_the_saved_network_scores_what_the_result_says(tiny):
    """Rebuilt from the folder alone, on the images that no epoch trained on."""
    found = tiny(epochs=3, images=200)
    net = build_supernet(network_of(found.config, found.genotype, 10, 1), backend="reference").eval()
    saved = load_file(found.out / "network.safetensors")
    for name, tensor in {**net.weights.tensors, **net.running.tensors}.items():
        tensor.data.copy_(saved[name])
    order = torch.randperm(1797, generator=torch.Generator().manual_seed(0))[:200]
    digits = load_dataset("digits")
    scaled = digits.images[order].double() / 255
    x = (scaled[160:] - scaled[:160].mean()) / scaled[:160].std(correction=0)
    right = net(x.float()).argmax(1) == digits.labels[order[160:]]
    assert right.double().mean().item() == pytest.approx(found.result["test_accuracy"])


def test_a_retraining_repeats_to_the_bit(tiny, tmp_path):
    first, second = tiny(out=tmp_path / "a"), tiny(out=tmp_path / "b")
    assert timeless(first.metrics) == timeless(second.metrics)
    assert (first.out / "network.safetensors").read_bytes() == (
        second.out / "network.safetensors"
    ).read_bytes()
    assert timeless(tiny(out=tmp_path / "c", seed=1).metrics) != timeless(first.metrics)


@pytest.fixture
def ctrl_c():
    """Ctrl-C counts, as on a terminal: a process in the background may have been started to ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c")
def test_a_resumed_retraining_ends_as_if_it_had_never_stopped(tiny, tmp_path, monkeypatch):
    whole = tiny(out=tmp_path / "whole", epochs=3)
    step, steps = ImageTrainer.step, []

    def pressed(self, *arguments):
        steps.append(1)
        if len(steps) == 5:  # in the second of three epochs of three steps
            signal.raise_signal(signal.SIGINT)
        return step(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(ImageTrainer, "step", pressed)
        with pytest.raises(KeyboardInterrupt, match=r"to go on: python -m fastnas.retrain --resume .*run"):
            tiny(epochs=3)
    assert len(steps) == 5  # the step in progress was the last one
    resumed = retrain(resume=tmp_path / "run")
    assert timeless(resumed.metrics) == timeless(whole.metrics)
    for file in ("network.safetensors", "genotype.json"):
        assert (resumed.out / file).read_bytes() == (whole.out / file).read_bytes()
    again = retrain(resume=tmp_path / "run")  # of a finished run: its result once more
    assert again.result == resumed.result


@pytest.mark.parametrize("nesterov", [False, True])
def test_a_step_is_torchs_sgd_on_the_smoothed_loss(nesterov):
    """Both heads' losses, clipping, weight decay and momentum, in float64, three steps."""
    options = {
        "nesterov": nesterov,
        "dtype": "float64",
        "label_smoothing": 0.1,
        "drop_path": 0.0,
        "grad_clip": 0.5,
    }
    found = trainer(**options)
    net = build_supernet(found.space, backend="reference", dtype=torch.float64)
    net.weights.flat.copy_(found.net.weights.flat)
    sgd = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=3e-4, nesterov=nesterov)
    for _, batch in zip(range(3), found.source.train(1), strict=False):
        x, labels = batch[0].double(), batch[1]
        logits = net(x)
        target = 0.9 * F.one_hot(labels, 10) + 0.01
        loss = -(target * logits.log_softmax(1)).sum(1).mean()
        sgd.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(net.parameters(), 0.5)
        assert norm > 0.5
        sgd.step()
        its_loss, _ = found.step((x, labels), 0.1)
        torch.testing.assert_close(its_loss, loss.detach())
        torch.testing.assert_close(found.net.weights.flat, net.weights.flat)


def test_the_auxiliary_loss_is_added_with_its_weight(monkeypatch):
    digits = load_dataset("digits")
    large = F.interpolate(digits.images[:24].float(), 32).byte()
    monkeypatch.setattr(
        sources,
        "load_dataset",
        lambda *_, **__: type(digits)("digits", large, digits.labels[:24], digits.classes),
    )
    found = trainer(auxiliary=0.4, images=None, batch_size=8, dtype="float64", drop_path=0.0, layers=3)
    x, labels = next(iter(found.source.train(1)))
    x = x.double()
    logits, auxiliary = found.net.heads(x)
    wanted = F.cross_entropy(logits, labels) + 0.4 * F.cross_entropy(auxiliary, labels)
    expected = torch.autograd.grad(wanted, list(found.net.weights.tensors.values()))
    seen = []
    move = Guard.move
    monkeypatch.setattr(
        Guard, "move", lambda self, loss, grad: (seen.append(grad), move(self, loss, grad))[1]
    )
    found.step((x, labels), 0.1)
    torch.testing.assert_close(seen[0], torch.cat([grad.flatten() for grad in expected]))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (
            {"dataset": "cifar10"},
            {
                "recipe": "cifar", "channels": 36, "layers": 20, "epochs": 600, "batch_size": 96, "auxiliary": 0.4,
                "cutout": 16, "drop_path": 0.2, "learning_rate": 0.025, "weight_decay": 3e-4, "grad_clip": 5.0,
                "schedule": "cosine", "crop_padding": 4, "flip": True, "label_smoothing": 0.0, "nesterov": False,
            },
        ),
        (
            {"dataset": "imagenet"},
            {
                "recipe": "imagenet", "channels": 48, "layers": 14, "epochs": 250, "batch_size": 1024,
                "learning_rate": 0.5, "weight_decay": 3e-5, "label_smoothing": 0.1, "auxiliary": 0.4,
                "schedule": "linear", "warm_up_epochs": 5, "image_size": 224, "flip": True, "drop_path": 0.0,
            },
        ),
        (
            {"dataset": "imagenet", "batch_size": 128, "learning_rate": 0.1},
            {"batch_size": 128, "learning_rate": 0.1, "warm_up_epochs": 0},
        ),
        (
            {"dataset": "cifar10", "genotype": "|none~0|+|none~0|none~1|+|nor_conv_3x3~0|none~1|none~2|"},
            {
                "recipe": "nasbench201", "space": "nasbench201", "channels": 16, "layers": 5, "epochs": 200,
                "batch_size": 256, "learning_rate": 0.1, "nesterov": True, "weight_decay": 5e-4, "grad_clip": 0.0,
                "schedule": "cosine-steps", "cutout": 0, "auxiliary": 0.0, "drop_path": 0.0, "flip": True,
            },
        ),
        ({"dataset": "cifar10", "recipe": "nasbench201-12"}, {"epochs": 12, "channels": 36, "nesterov": True}),
        ({"recipe": "cifar", "epochs": 3, "cutout": 2}, {"epochs": 3, "cutout": 2, "batch_size": 96}),
    ],
)  # fmt: skip
def test_a_recipe_fills_in_what_is_not_given(options, expected):
    found = RetrainConfig.from_options({"genotype": "DARTS_V2", **options}).resolved().to_options()
    assert {name: found[name] for name in expected} == expected


def test_a_genotype_that_lists_all_cells_says_how_many_layers_there_are():
    cell = (("skip_connect", 0), ("sep_conv_3x3", 1))
    sequence = CellSequence((cell,) * 4, ((2,),) * 4, (1, 2))
    options = RetrainConfig.from_options({"genotype": str(sequence)}).resolved().to_options()
    assert (options["space"], options["layers"], options["channels"]) == ("s2", 4, 8)


@pytest.mark.parametrize("name", [name for name in RECIPES if name != "ptb"])
def test_every_recipe_leaves_nothing_open(name):
    options = RetrainConfig.from_options({"genotype": "DARTS_V2", "recipe": name}).resolved().to_options()
    of_text = {field.name for field in dataclasses.fields(RetrainTextConfig)}
    open_ = {key for key, value in options.items() if value is None} - of_text
    assert open_ == {"data", "test_data", "images", "image_size", "out", "resume"}


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"genotype": None}, "--genotype is needed"),
        ({"genotype": "/nowhere"}, "genotype '/nowhere': no such file"),
        (
            {"space": "nasbench201"},
            "genotype DARTS_V2 is one of the space darts; it does not fit nasbench201",
        ),
        ({"recipe": "cifar100"}, "unknown recipe 'cifar100'; known are cifar, imagenet"),
        ({"dataset": "mnist"}, "unknown dataset 'mnist'"),
        ({"schedule": "step"}, "unknown schedule 'step'"),
        ({"dtype": "fp16"}, "unknown dtype 'fp16'"),
        ({"epochs": 0}, "--epochs must be at least 1, got 0"),
        ({"drop_path": 1.0}, "--drop-path must be less than 1, got 1.0"),
        ({"nesterov": True, "momentum": 0.0}, "--nesterov needs --momentum"),
        ({"test_data": "x"}, "--test-data is for folder and npz"),
        ({"auxiliary": 0.4, "layers": 3}, "the auxiliary head needs images of 8x8 behind its cell, got 2x2"),
        ({"batch_size": 47}, "--batch-size 47 leaves one of the 48 training images for a batch of its own"),
        ({"batch_size": 500}, "--batch-size 500 is more than the 48 training images"),
        ({"dataset": "imagenet"}, "imagenet is read from a folder with train/ and val/ in it"),
    ],
)
def test_a_mistake_is_one_sentence(tiny, tmp_path, options, sentence):
    with pytest.raises(FastnasError) as error:
        tiny(**options)
    assert str(error.value).startswith(sentence)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run" / "config.json").exists()


def test_an_empty_folder_and_a_searchs_folder_are_told_apart(tiny, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(FastnasError, match=r"the folder .*empty is no run, or has no genotype yet"):
        tiny(genotype=str(tmp_path / "empty"))
    with pytest.raises(FastnasError, match=r"no run to resume in .*empty"):
        retrain(resume=tmp_path / "empty")
    search = fastnas.search(
        channels=2,
        layers=1,
        images=64,
        batch_size=8,
        epochs=1,
        threads=1,
        device="cpu",
        out=tmp_path / "search",
    )
    with pytest.raises(
        FastnasError, match=r"the run in .*search is one of fastnas.search, not of fastnas.retrain"
    ):
        retrain(resume=search.out)
    found = tiny(genotype=str(search.out))
    assert found.genotype == search.genotype
    with pytest.raises(FastnasError, match="already holds a run"):
        tiny()


def test_another_configuration_is_not_resumed(tiny, tmp_path):
    tiny(epochs=1)
    with pytest.raises(FastnasError, match="has another configuration: it differs in label_smoothing"):
        retrain(resume=tmp_path / "run", label_smoothing=0.2)


def test_a_loss_that_is_not_finite_ends_it(tiny):
    with pytest.raises(
        FastnasError, match=r"epoch 1, step 2: NaN or infinity in the loss, first in .*start again"
    ):
        tiny(learning_rate=1e30)


def test_whole_batches_run_compiled_and_the_last_one_of_a_pass_as_it_is(monkeypatch):
    """With torch.compile's place taken by a record of what it was asked for, and of the batches."""
    sizes, asked = [], []

    def stand_in(function, **options):
        asked.append(options)

        def compiled(images):
            sizes.append(len(images))
            return function(images)

        return compiled

    monkeypatch.setattr(torch, "compile", stand_in)
    found = trainer(compile="on", batch_size=20, images=60)  # 48 to train on, 12 to test on
    with tqdm(disable=True) as bar:
        row = found.epoch(1, bar, never())
    assert asked == [{"dynamic": False}]
    assert sizes == [20, 20]
    trainer(compile="auto")
    assert len(asked) == 1  # not on a CPU
    with tqdm(disable=True) as bar:
        plain = trainer(compile="off", batch_size=20, images=60).epoch(1, bar, never())
    assert timeless([plain]) == timeless([row])


def test_bf16_trains():
    """Activations narrow, weights not."""
    wide, narrow = trainer(drop_path=0.0), trainer(drop_path=0.0, dtype="bf16")
    batch = next(iter(wide.source.train(1)))
    losses = [each.step(batch, 0.0)[0] for each in (wide, narrow)]
    assert losses[0] != losses[1]
    torch.testing.assert_close(*losses, rtol=0.02, atol=0.0)
    assert narrow.net.weights.flat.dtype == torch.float32
