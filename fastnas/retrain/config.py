"""The configuration of a retraining: typed dataclasses that the command line, Python and the run folder share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from fastnas._paths import user_path
from fastnas.data import CORPORA, DATASETS, Augment, default_augment
from fastnas.errors import FastnasError
from fastnas.runs.options import Bounds, Options, check_below_one, check_bounds, check_choices, flag
from fastnas.runs.recipes import recipe_of, usual_recipe
from fastnas.runs.schedule import LARGE_BATCH, SCHEDULES
from fastnas.runs.text import OF_TEXT, TEXT_BOUNDS, TextConfig, check_left_out, check_rates
from fastnas.runs.watch import WatchConfig
from fastnas.spaces import CellSequence, family, find_genotype

IMAGE_SETS = (*DATASETS, "imagenet")
DTYPES = ("float32", "float64", "bf16")
COMPILE = ("auto", "on", "off")
NO_TEST_SET = ("digits", "folder", "npz")


@dataclass(frozen=True)
class NetworkConfig:
    """What is trained."""

    genotype: str | Path | None = None
    """The folder of a search or a retraining, a file, a published name (DARTS_V1, DARTS_V2, NASNet, AmoebaNet) or the
    genotype itself."""
    space: str | None = None
    """Search space of the genotype; None: what the genotype says."""
    recipe: str | None = None
    """Defaults of the options below: cifar, imagenet, nasbench201, nasbench201-12, ptb or digits; None: by data set and
    space. Each option that is None is the recipe's."""
    channels: int | None = None
    """C, channels of the first cells."""
    layers: int | None = None
    """Number of cells (nasbench201: N, cells in each of the three stages)."""
    auxiliary: float | None = None
    """Weight of the auxiliary head's loss; 0: no such head."""
    drop_path: float | None = None
    """Probability, at the end, with which an edge's output is dropped; it rises linearly from 0. 0 is off."""


@dataclass(frozen=True)
class DataConfig:
    """The images, or the text."""

    dataset: str = "digits"
    """Data set: digits (scikit-learn's, nothing to download), cifar10, cifar100, imagenet, folder or npz; text: ptb."""
    data: Path | None = None
    """Where it lies: the folder of CIFAR's official binary or python files; of imagenet, with one folder for each class
    in train/ and in val/, read as they are needed; an image folder or .npz file of training images, kept in memory."""
    test_data: Path | None = None
    """The test images of folder and npz; None: a part of the training images is held out."""
    test_portion: float = 0.2
    """Share of the images that are held out where there is no test set (digits, folder, npz), drawn by the seed."""
    images: int | None = None
    """Use only so many images; where a part is held out for the test, it is a part of these. None: all."""
    image_size: int | None = None
    """Resize and crop an image folder to squares of so many pixels; None: as they are, or 224 for imagenet."""
    batch_size: int | None = None
    """Images in a minibatch, or streams of text."""
    crop_padding: int | None = None
    """Random crops out of an image padded by so many pixels; None: 4 for CIFAR, 1 for digits, else 0."""
    flip: bool | None = None
    """Random horizontal flips; None: on for CIFAR and imagenet, else off."""
    cutout: int | None = None
    """Side of a square set to zero at a random place; 0 is off."""
    workers: int = 4
    """Processes that read images of imagenet; 0: none but this one."""


@dataclass(frozen=True)
class OptimiserConfig:
    """SGD and its schedule."""

    epochs: int | None = None
    """Passes over the training images."""
    learning_rate: float | None = None
    """At the start, after the warm-up."""
    schedule: str | None = None
    """Of the learning rate, to zero: cosine (a value an epoch), cosine-steps (a value a step) or linear (with PC-DARTS'
    end)."""
    warm_up_epochs: int | None = None
    """Epochs in which the learning rate rises linearly to the schedule's; None: the recipe's in batches of more than
    256, else 0."""
    momentum: float | None = None
    """Of SGD."""
    nesterov: bool | None = None
    """Nesterov's momentum."""
    weight_decay: float | None = None
    """Of all weights."""
    grad_clip: float | None = None
    """Largest norm of the gradient; 0: no clipping."""
    label_smoothing: float | None = None
    """Share of the target that goes to all classes alike."""


@dataclass(frozen=True)
class RetrainTextConfig(TextConfig):
    """A retraining on text alone (ptb). None: the recipe's."""

    patience: int | None = None
    """The weights are averaged over steps from the epoch on in which the validation loss is above the lowest of all but
    the last so many epochs; None: 5."""


@dataclass(frozen=True)
class RunConfig:
    """Where and how it runs."""

    seed: int = 0
    """Of weights, batches, augmentation and drop-path."""
    device: str = "auto"
    """cpu, cuda, cuda:N, or auto: a GPU if there is one."""
    dtype: str = "float32"
    """Of weights and activations: float32 or float64; or bf16: float32, but for the activations."""
    compile: str = "auto"
    """torch.compile: on, off, or auto: on a GPU."""
    threads: int | None = None
    """CPU threads; None: PyTorch's choice. Recorded: results are the same to the bit for the same number."""
    checkpoint_seconds: float = 300.0
    """Write a checkpoint after every so many seconds, beside those at the end of every epoch and before Ctrl-C or
    SIGTERM ends the training; 0: after every step. The three newest are kept."""
    deterministic: bool = False
    """On a GPU, take algorithms that repeat to the bit alone; an operator that has none ends the run with its name. On
    a CPU runs repeat to the bit anyway."""
    detect_anomaly: bool = False
    """Look at what every operator computes, forward and backward, and end at the first NaN or infinity with the
    operator's name and place. The same numbers in more time, without CUDA graphs or torch.compile."""
    out: Path | None = None
    """Folder of the run, made new; None: runs/<date>-<time>-retrain-<space>-<dataset>."""
    resume: Path | None = None
    """Go on with the run in this folder, to the same end as if it had never stopped. (Bare, it means --out's.)"""


@dataclass(frozen=True)
class RetrainConfig(Options):
    """A retraining, whole. Every field of the groups is a flag and a keyword of ``fastnas.retrain``."""

    FREE = Options.FREE | {"workers"}

    network: NetworkConfig = field(default_factory=NetworkConfig)
    images: DataConfig = field(default_factory=DataConfig)
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)
    run: RunConfig = field(default_factory=RunConfig)
    text: RetrainTextConfig = field(default_factory=RetrainTextConfig)
    watch: WatchConfig = field(default_factory=WatchConfig)

    def resolved(self) -> RetrainConfig:
        """The same with every default that depends on another field filled in, checked.

        Raises:
            FastnasError: a value that no retraining can have.
        """
        options = self.to_options()
        if options["genotype"] is None:
            raise FastnasError(
                "--genotype is needed: the folder of a search, a file or a published name such as DARTS_V2"
            )
        check_choices(options, {"dataset": (*IMAGE_SETS, *CORPORA), "dtype": DTYPES, "compile": COMPILE})
        # A resumed run has its own copy of the genotype, whatever has become of the one that it was given.
        if options["resume"] is None and (options["space"] is None or options["layers"] is None):
            # A name may be one of a cell for images and one of a recurrent cell.
            of_text = "recurrent" if options["dataset"] in CORPORA else None
            found = find_genotype(options["genotype"], options["space"] or of_text)
            options["space"] = found.space
            if isinstance(found.genotype, CellSequence):  # which lists all cells of its network
                options["layers"] = options["layers"] or len(found.genotype.cells)
        _check_task(options)
        if options["recipe"] is None:
            options["recipe"] = usual_recipe(options["space"], options["dataset"])
        recipe = recipe_of(options["recipe"]).options
        if ("bptt" in recipe) != (options["dataset"] in CORPORA):
            raise FastnasError(
                f"--recipe {options['recipe']} is for {'text' if 'bptt' in recipe else 'images'}, and "
                f"{options['dataset']} is not; take another, or leave it out"
            )
        if (
            options["warm_up_epochs"] is None
            and (options["batch_size"] or recipe["batch_size"]) <= LARGE_BATCH
        ):
            options["warm_up_epochs"] = 0
        for name, value in {**self._defaults(options), **recipe}.items():
            if options[name] is None:
                options[name] = value
        for name in ("data", "test_data", "genotype"):
            if options[name] is not None and (name != "genotype" or _exists(options[name])):
                options[name] = str(user_path(flag(name), options[name]).absolute())
        _check(options)
        return RetrainConfig.from_options(options)

    def _defaults(self, options: Mapping[str, Any]) -> dict[str, Any]:
        found = family(options["space"])
        if found.reads == "text":
            return {"threads": torch.get_num_threads()}
        augment = default_augment(options["dataset"])
        return {
            "channels": found.evaluation.channels,
            "layers": found.evaluation.layers,
            "crop_padding": augment.crop_padding,
            "flip": augment.flip or options["dataset"] == "imagenet",
            "image_size": 224 if options["dataset"] == "imagenet" else None,
            # Sums in another number of threads round differently: a resumed run takes the number of its start.
            "threads": torch.get_num_threads(),
        }

    @property
    def augment(self) -> Augment:
        """The augmentation of a resolved configuration."""
        d = self.images
        return Augment(crop_padding=d.crop_padding or 0, flip=bool(d.flip), cutout=d.cutout or 0)

    @property
    def space(self) -> str:
        """The space of a resolved configuration."""
        return self.network.space or ""

    @property
    def epochs(self) -> int:
        """The epochs of a resolved configuration."""
        return self.optimiser.epochs or 0


def _exists(source: str) -> bool:
    try:
        return Path(source).expanduser().exists()
    except (OSError, RuntimeError, ValueError):  # a genotype's text, too long for a name
        return False


# What belongs to images alone, and its value where it is not given.
_OF_IMAGES: dict[str, Any] = {
    **dict.fromkeys(("channels", "layers", "auxiliary", "drop_path", "test_data", "images", "image_size")),
    **dict.fromkeys(("crop_padding", "flip", "cutout", "schedule", "label_smoothing")),
    "test_portion": 0.2,
}


def _check_task(options: Mapping[str, Any]) -> None:
    """Images for a genotype of a space that reads them, text for one that reads text; none of the other's options."""
    text = family(options["space"]).reads == "text"
    if text != (options["dataset"] in CORPORA):
        raise FastnasError(
            f"a genotype of space {options['space']} reads {'text' if text else 'images'}, and {options['dataset']} is "
            f"{'images' if text else 'text'}; take another --dataset"
        )
    if text:
        check_left_out(options, _OF_IMAGES, "images", "text")
    else:
        check_left_out(options, {**OF_TEXT, "patience": None}, "text", "images")


_BOUNDS: Bounds = {
    **TEXT_BOUNDS,
    "patience": (1, True),
    "channels": (1, True),
    "layers": (1, True),
    "auxiliary": (0, True),
    "drop_path": (0, True),
    "test_portion": (0, False),
    "images": (2, True),
    "image_size": (1, True),
    "batch_size": (1, True),
    "crop_padding": (0, True),
    "cutout": (0, True),
    "workers": (0, True),
    "epochs": (1, True),
    "learning_rate": (0, False),
    "warm_up_epochs": (0, True),
    "momentum": (0, True),
    "weight_decay": (0, True),
    "grad_clip": (0, True),
    "label_smoothing": (0, True),
    "seed": (0, True),
    "threads": (1, True),
    "checkpoint_seconds": (0, True),
}
_BELOW_ONE = ("drop_path", "test_portion", "momentum", "label_smoothing")


def _check(options: Mapping[str, Any]) -> None:
    if options["schedule"] is not None:
        check_choices(options, {"schedule": SCHEDULES})
    check_bounds(options, _BOUNDS)
    check_rates(options)
    check_below_one(options, _BELOW_ONE)
    if options["seed"] >= 2**32:
        raise FastnasError(f"--seed must be less than 2**32, got {options['seed']}")
    if options["test_data"] is not None and options["dataset"] not in ("folder", "npz"):
        raise FastnasError(
            f"--test-data is for folder and npz; the data set {options['dataset']} brings its own, or holds images out"
        )
    if options["nesterov"] and not options["momentum"]:
        raise FastnasError("--nesterov needs --momentum, got 0")
