"""The recipes of the papers: named sets of defaults, each overridden by its flag."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fastnas.errors import FastnasError
from fastnas.runs.text import TEXT_DEFAULTS


@dataclass(frozen=True)
class Recipe:
    """How a genotype's network is trained, as somebody published it.

    Attributes:
        source: where it is written down.
        options: option -> value. Sizes that are not among them are the space's (``Family.evaluation``).
    """

    source: str
    options: Mapping[str, Any]


_PLAIN = {
    "auxiliary": 0.0,
    "drop_path": 0.0,
    "cutout": 0,
    "momentum": 0.9,
    "nesterov": False,
    "grad_clip": 5.0,
    "label_smoothing": 0.0,
    "schedule": "cosine",
    "warm_up_epochs": 0,
}
_NASBENCH201 = {
    **_PLAIN,
    "epochs": 200,
    "batch_size": 256,
    "learning_rate": 0.1,
    "nesterov": True,
    "weight_decay": 5e-4,
    "grad_clip": 0.0,
    "schedule": "cosine-steps",
}

RECIPES = {
    "cifar": Recipe(
        "DARTS (Liu et al. 2019, appendix A.2, and its cnn/train.py)",
        {
            **_PLAIN,
            "epochs": 600,
            "batch_size": 96,
            "auxiliary": 0.4,
            "drop_path": 0.2,
            "cutout": 16,
            "learning_rate": 0.025,
            "weight_decay": 3e-4,
        },
    ),
    "imagenet": Recipe(
        "PC-DARTS (Xu et al. 2020, section 4.3, and its train_imagenet.py); iDARTS and Amended-DARTS train so",
        {
            **_PLAIN,
            "channels": 48,
            "layers": 14,
            "epochs": 250,
            "batch_size": 1024,
            "auxiliary": 0.4,
            "learning_rate": 0.5,
            "weight_decay": 3e-5,
            "label_smoothing": 0.1,
            "schedule": "linear",
            "warm_up_epochs": 5,
        },
    ),
    "nasbench201": Recipe(
        "NAS-Bench-201 (Dong and Yang 2020, table 2): what its 200-epoch accuracies were trained by",
        _NASBENCH201,
    ),
    "nasbench201-12": Recipe(
        "NAS-Bench-201 in 12 epochs: what its 12-epoch accuracies were trained by",
        {**_NASBENCH201, "epochs": 12},
    ),
    "ptb": Recipe(
        "DARTS (Liu et al. 2019, appendix A.2.2, and its rnn/train.py, in the 3,600 epochs that its authors say)",
        {
            **TEXT_DEFAULTS,
            "hidden_size": 850,
            "patience": 5,
            "epochs": 3600,
            "batch_size": 64,
            "learning_rate": 20.0,
            "momentum": 0.0,
            "nesterov": False,
            "weight_decay": 8e-7,
            "grad_clip": 0.25,
        },
    ),
    "digits": Recipe(
        "no paper's: a network that learns scikit-learn's digits in seconds",
        {
            **_PLAIN,
            "channels": 8,
            "layers": 3,
            "epochs": 15,
            "batch_size": 64,
            "drop_path": 0.1,
            "learning_rate": 0.025,
            "weight_decay": 3e-4,
        },
    ),
}


def recipe_of(name: str) -> Recipe:
    """The recipe called ``name``.

    Raises:
        FastnasError: there is none.
    """
    if name not in RECIPES:
        raise FastnasError(f"unknown recipe {name!r}; known are {', '.join(RECIPES)}")
    return RECIPES[name]


def usual_recipe(space: str, dataset: str) -> str:
    """The recipe that a data set is trained by unless another is named."""
    if dataset in ("digits", "imagenet", "ptb"):
        return dataset
    return "nasbench201" if space == "nasbench201" else "cifar"
