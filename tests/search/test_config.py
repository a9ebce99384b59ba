"""The configuration: flat options and groups, defaults that depend on others, mistakes told in a sentence."""

import json

import pytest

from fastnas import FastnasError
from fastnas.search import SearchConfig


def resolved(**options):
    return SearchConfig.from_options(options).resolved()


def test_options_survive_json():
    config = resolved(dataset="digits", out="runs/x", gamma=1)
    text = json.dumps(config.to_options())
    assert SearchConfig.from_options(json.loads(text)) == config
    assert config.hypergradient.gamma == 1.0


def test_defaults_follow_space_dataset_and_method():
    small = resolved().to_options()
    assert (small["channels"], small["layers"], small["inner_steps"], small["flip"]) == (4, 3, 4, False)
    large = resolved(dataset="cifar10", data="cifar", method="darts").to_options()
    assert (large["channels"], large["layers"], large["epochs"], large["inner_steps"]) == (16, 8, 50, 1)
    assert (large["crop_padding"], large["flip"]) == (4, True)
    assert resolved(dataset="cifar10", space="nasbench201").network.layers == 5
    assert resolved(channels=6).network.channels == 6


def test_what_the_papers_recipe_says():
    o = resolved(dataset="cifar10").to_options()
    assert (o["learning_rate"], o["learning_rate_min"], o["momentum"], o["weight_decay"]) == (
        0.025,
        0.001,
        0.9,
        3e-4,
    )
    assert (o["grad_clip"], o["arch_learning_rate"], o["arch_weight_decay"]) == (5.0, 3e-4, 1e-3)
    assert (o["difference_radius"], o["train_portion"], o["batch_size"]) == (0.01, 0.5, 64)


def test_differences_name_what_would_change_the_trajectory():
    a = resolved()
    assert a.differences(resolved(device="cpu", threads=1, out="x")) == []
    assert a.differences(resolved(seed=1, channels=8)) == ["channels", "seed"]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"space": "dart"}, "unknown space 'dart'"),
        ({"method": "darts2"}, "unknown .*method 'darts2'.*first-order, darts, amended, idarts, t1-t2"),
        ({"dataset": "mnist"}, "unknown dataset 'mnist'; known are digits"),
        ({"backend": "cpp"}, "unknown backend 'cpp'"),
        ({"dtype": "float16"}, "unknown dtype 'float16'"),
        ({"chanels": 4}, "unknown option 'chanels'; known are .*channels"),
        ({"epochs": "3"}, "option epochs must be int or None, got '3'"),
        ({"epochs": True}, "option epochs must be int or None, got True"),
        ({"epochs": 0}, "--epochs must be at least 1, got 0"),
        ({"difference_radius": 0}, "--difference-radius must be a finite number greater than 0"),
        ({"learning_rate": float("nan")}, "--learning-rate must be a finite number greater than 0, got nan"),
        ({"train_portion": 1.0}, "--train-portion must be less than 1"),
        ({"momentum": 1.0}, "--momentum must be less than 1"),
        ({"seed": -1}, "--seed must be at least 0"),
        ({"seed": 10**400}, "--seed must be at most"),
        ({"channels": -(10**400)}, "--channels must be at least 1"),
        ({"eta": 10**400}, "option eta must be float"),
        (
            {"data": "~nobody-of-this-name/x", "dataset": "npz"},
            "--data '~nobody-of-this-name/x' cannot be looked",
        ),
        ({"seed": 2**32}, "--seed must be less than"),
    ],
)
def test_a_mistake_is_one_sentence(options, sentence):
    with pytest.raises(FastnasError, match=sentence) as caught:
        resolved(**options)
    assert "\n" not in str(caught.value)
