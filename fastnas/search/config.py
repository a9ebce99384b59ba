"""The configuration of a search: typed dataclasses that the command line, Python and the run folder share."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from typing_extensions import Doc

from fastnas._paths import user_path
from fastnas.bilevel import method
from fastnas.bilevel.products import SCHEMES, WAYS
from fastnas.data import CORPORA, DATASETS, Augment, default_augment
from fastnas.errors import FastnasError
from fastnas.runs.options import Bounds, Options, check_below_one, check_bounds, check_choices, flag
from fastnas.runs.recipes import recipe_of, usual_recipe
from fastnas.runs.text import (
    OF_TEXT,
    TEXT_BOUNDS,
    TEXT_DEFAULTS,
    TextConfig,
    check_left_out,
    check_rates,
)
from fastnas.runs.watch import WatchConfig
from fastnas.search.early_stop import EarlyStop
from fastnas.spaces import family
from fastnas.spaces.family import SPACE_HELP, Sizes
from fastnas.supernet import BACKENDS

DTYPES = ("float32", "float64", "bf16")
GRAPHS = ("auto", "on", "off")
# As DARTS' authors search for convolutional cells, and for recurrent ones.
IMAGE_DEFAULTS: dict[str, Any] = {
    "batch_size": 64,
    "learning_rate": 0.025,
    "learning_rate_min": 0.001,
    "momentum": 0.9,
    "weight_decay": 3e-4,
    "grad_clip": 5.0,
    "arch_learning_rate": 3e-4,
}
SEARCH_ON_TEXT: dict[str, Any] = {
    "batch_size": 256,
    "learning_rate": 20.0,
    "momentum": 0.0,
    "weight_decay": 5e-7,
    "grad_clip": 0.25,
    "arch_learning_rate": 3e-3,
    "hidden_size": 300,
    **TEXT_DEFAULTS,
}
# What belongs to one kind of data alone, and its value where it is not given.
_OF_IMAGES: dict[str, Any] = {
    **dict.fromkeys(("primitives", "channels", "layers", "images", "image_size", "crop_padding", "flip")),
    **dict.fromkeys(("auxiliary", "drop_path", "cutout")),
    "consistency": False,
    "train_portion": 0.5,
    "recompute": False,
}
NOTHING_BETTER = ("exact", "exact", "exact")  # method, hvp, mixed_product


@dataclass(frozen=True)
class NetworkConfig:
    """The supernet."""

    space: Annotated[str, Doc(SPACE_HELP)] = "darts"
    primitives: tuple[str, ...] | None = None
    """Of every edge, for spaces that leave them open (darts, nasbench201, s2): the library's and your own; None: the
    paper's."""
    channels: int | None = None
    """C, channels of the first cells; None: the papers' (16, or 36), or 4 for digits."""
    layers: int | None = None
    """Number of cells (nasbench201: N, cells in each of the three stages); None: the papers', or few for digits."""
    consistency: bool = False
    """Search in what the genotype's network is then trained as (Amended-DARTS, section 4): as many channels and cells,
    cutout, drop-path and auxiliary head as python -m fastnas.retrain has for this data set. Each has a flag, too."""
    auxiliary: float | None = None
    """Weight of an auxiliary head's loss in the training loss L1; None: 0, no such head, or consistency's."""
    drop_path: float | None = None
    """Probability with which training drops a primitive's output, image by image, at the end; it rises linearly from 0.
    Cells are then computed as in plain PyTorch. None: 0, or consistency's."""
    backend: str = "fused"
    """Executor: fused (this library's ops) or reference (plain PyTorch)."""
    dtype: str = "float32"
    """Of weights, alpha and activations: float32 or float64; or bf16: float32, but for the activations of weight steps,
    which are bfloat16 (on a GPU). Hypergradients are computed in float32 then, too."""
    recompute: bool = False
    """Compute each cell's activations again in the backward pass instead of keeping them: two fifths of the memory for
    a fifth more time, and the same numbers."""


@dataclass(frozen=True)
class DataConfig:
    """The images, or the text."""

    dataset: str = "digits"
    """Data set: digits (scikit-learn's, nothing to download), cifar10, cifar100, folder or npz; or text: ptb."""
    data: Path | None = None
    """Where it lies: the folder of CIFAR's official binary or python files, an image folder, an .npz file; a folder
    with ptb.train.txt, ptb.valid.txt and ptb.test.txt."""
    images: int | None = None
    """Use only so many of its training images; None: all."""
    image_size: int | None = None
    """Resize and crop an image folder to squares of so many pixels; None: as they are."""
    train_portion: float = 0.5
    """Share of the images that the weights are trained on; alpha gets the rest."""
    batch_size: int | None = None
    """Images in a minibatch, of either split, or streams of text; None: 64, or 256 for text."""
    crop_padding: int | None = None
    """Random crops out of an image padded by so many pixels; None: 4 for CIFAR, 1 for digits, else 0."""
    flip: bool | None = None
    """Random horizontal flips; None: on for CIFAR, else off."""
    cutout: int | None = None
    """Side of a square set to zero at a random place; None: 0, off, or consistency's."""


@dataclass(frozen=True)
class HypergradientConfig:
    """How alpha's gradient is estimated."""

    method: str = "idarts"
    """Hypergradient: first-order, darts, amended, idarts, t1-t2, neumann, cg, nystroem, exact, reverse,
    truncated-reverse or idarts-release."""
    inner_steps: int | None = None
    """T, weight steps for each step of alpha; None: 1 for first-order, darts, amended and t1-t2, else 4."""
    neumann_terms: int = 2
    """K, terms of the Neumann series beyond the first (idarts)."""
    gamma: float | None = None
    """Step of the Neumann series (idarts, neumann); None: the current weight learning rate."""
    eta: float = 0.1
    """Amplitude of the amended term (amended)."""
    hvp: str = "difference"
    """How Hessian-vector products are taken: difference (of two gradients) or exact (no step, no kinks)."""
    mixed_product: str = "difference"
    """The same of the mixed product d2L1/dalpha dw . u, which ends every second-order estimate."""
    difference_scheme: str = "central"
    """Of the differences: central, or forward: half of the gradients, since all share the one at w."""
    difference_radius: float | Literal["auto"] = 0.01
    """r of the differences: the weights move by r in norm, to each side. Where ReLU and max-pool have kinks, another r
    is another estimate; see docs/audit.md. auto: measured after 12 weight steps, which are then undone, and kept."""
    tolerance: float = 1e-3
    """Residual, relative to |dL2/dw|, at which neumann and cg end."""
    solver_steps: int = 20
    """The most terms of neumann and steps of cg."""
    damping: float = 0.0
    """Added to the Hessian's diagonal (neumann, cg, nystroem; there 0 means 0.01)."""
    rank: int = 10
    """Columns of the Hessian that nystroem takes."""
    reverse_steps: int = 1
    """K, the weight steps that truncated-reverse goes back through."""
    audit_every: int | None = None
    """Compare the hypergradient with a better one after every so many epochs and log cosine and relative error; None or
    0: never. The search itself stays the same to the bit."""


@dataclass(frozen=True)
class OptimiserConfig:
    """Steps of the weights (SGD) and of alpha (Adam)."""

    epochs: int | None = None
    """Passes over the weights' split; None: 50, or 6 for digits."""
    learning_rate: float | None = None
    """Of the weights, at the start of the cosine schedule; None: 0.025, or 20 for text."""
    learning_rate_min: float | None = None
    """Of the weights, at its end; None: 0.001, or as at the start for text."""
    momentum: float | None = None
    """Of the weights; None: 0.9, or 0 for text."""
    weight_decay: float | None = None
    """Of the weights; None: 0.0003, or 5e-7 for text."""
    grad_clip: float | None = None
    """Largest norm of the weights' gradient; None: 5, or 0.25 for text."""
    arch_learning_rate: float | None = None
    """Of alpha; None: 0.0003, or 0.003 for text."""
    arch_weight_decay: float = 1e-3
    """Of alpha."""


@dataclass(frozen=True)
class CurvatureConfig:
    """What is measured of the curvature, and what follows from it."""

    spectrum_every: int | None = None
    """Measure the largest and the smallest eigenvalue of d2L1/dw2 and d2L2/dalpha2 after every so many epochs, about 80
    gradients each time; None or 0: never. The search itself stays the same to the bit. By exact products where the
    fused executor has them (on a CPU) or --hvp exact asks for them, else by differences, which are rough here."""
    early_stop: bool = False
    """End the search when the largest eigenvalue of d2L2/dalpha2 rises fast, with the architecture from before the
    rise (RobustDARTS); needs --spectrum-every."""


@dataclass(frozen=True)
class RunConfig:
    """Where and how it runs."""

    seed: int = 0
    """Of weights, alpha, splits, batches and augmentation."""
    device: str = "auto"
    """cpu, cuda, cuda:N, or auto: a GPU if there is one."""
    graphs: str = "auto"
    """CUDA graphs: on, off, or auto: on a GPU. The same numbers in less time. What cannot be captured is said, and the
    run goes on without."""
    threads: int | None = None
    """CPU threads; None: PyTorch's choice. Recorded: results are the same to the bit for the same number."""
    out: Path | None = None
    """Folder of the run, made new; None: runs/<date>-<time>-<space>-<method>-<dataset>."""
    checkpoint_seconds: float = 300.0
    """Write a checkpoint after every so many seconds, beside those at the end of every epoch and before Ctrl-C or
    SIGTERM ends the search; 0: after every step. The three newest are kept."""
    deterministic: bool = False
    """On a GPU, take algorithms that repeat to the bit alone; an operator that has none ends the run with its name. On
    a CPU runs repeat to the bit anyway."""
    detect_anomaly: bool = False
    """Look at what every operator computes, forward and backward, and end at the first NaN or infinity with the
    operator's name and place. The same numbers in more time, without CUDA graphs."""
    table: Path | None = None
    """A benchmark's table of the space's cells (python -m fastnas.tables): every row tells the accuracies of its
    epoch's cell and what the best one has more. The search itself stays the same to the bit."""
    resume: Path | None = None
    """Go on with the run in this folder, to the same end as if it had never stopped. (Bare, it means --out's.)"""


@dataclass(frozen=True)
class SearchConfig(Options):
    """A search, whole. Every field of the groups is a flag and a keyword of ``fastnas.search``."""

    network: NetworkConfig = field(default_factory=NetworkConfig)
    images: DataConfig = field(default_factory=DataConfig)
    hypergradient: HypergradientConfig = field(default_factory=HypergradientConfig)
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)
    curvature: CurvatureConfig = field(default_factory=CurvatureConfig)
    run: RunConfig = field(default_factory=RunConfig)
    text: TextConfig = field(default_factory=TextConfig)
    watch: WatchConfig = field(default_factory=WatchConfig)

    def resolved(self) -> SearchConfig:
        """The same with every default that depends on another field filled in, checked.

        Raises:
            FastnasError: a value that no search can have.
        """
        options = self.to_options()
        _check_names(options)
        _check_combinations(options)
        small = options["dataset"] == "digits"
        found = family(options["space"], options["primitives"])
        sizes = found.small if small else found.search
        augment = default_augment(options["dataset"])
        of_images = {
            **IMAGE_DEFAULTS,
            **(_as_retrained(options) if options["consistency"] else _as_searched(sizes)),
            "primitives": found.primitives,
            "crop_padding": augment.crop_padding,
            "flip": augment.flip,
        }
        rate = options["learning_rate"] or SEARCH_ON_TEXT["learning_rate"]
        of_text = {**SEARCH_ON_TEXT, "learning_rate_min": rate}
        defaults = {
            **(of_text if found.reads == "text" else of_images),
            "inner_steps": method(options["method"]).inner_steps,
            "epochs": 6 if small else 50,
            # Sums in another number of threads round differently: a resumed run takes the number of its start.
            "threads": torch.get_num_threads(),
        }
        for name, value in defaults.items():
            if options[name] is None:
                options[name] = value
        for name in ("data", "table"):
            if options[name] is not None:
                options[name] = str(user_path(flag(name), options[name]).absolute())
        _check_numbers(options)
        return SearchConfig.from_options(options)

    @property
    def augment(self) -> Augment:
        """The augmentation of a resolved configuration."""
        d = self.images
        return Augment(crop_padding=d.crop_padding or 0, flip=bool(d.flip), cutout=d.cutout or 0)

    @property
    def reads(self) -> str:
        """What its space reads, "images" or "text"."""
        return family(self.network.space).reads

    def differences(self, other: SearchConfig) -> list[str]:
        """As those of all options. A run from before a space let its primitives be chosen names none: its own."""
        found = super().differences(other)
        mine, its = self.network, other.network
        if mine.primitives is None and family(its.space).primitives == its.primitives:
            return [name for name in found if name != "primitives"]
        return found

    def free(self) -> frozenset[str]:
        """Names of the fields that do not change the search's numbers."""
        more = {"graphs", "recompute", "audit_every", "table"}
        return self.FREE | (more if self.curvature.early_stop else {*more, "spectrum_every"})


def _as_searched(sizes: Sizes) -> dict[str, Any]:
    """What the papers search with."""
    return {**sizes._asdict(), "auxiliary": 0.0, "drop_path": 0.0, "cutout": 0}


def _as_retrained(options: dict[str, Any]) -> dict[str, Any]:
    """What ``consistency`` takes from the recipe by which the data set's networks are trained."""
    space = options["space"]
    recipe = recipe_of(usual_recipe(space, options["dataset"])).options
    found = _as_searched(family(space).evaluation)
    return {name: recipe.get(name, value) for name, value in found.items()}


def weight_dtype(name: str) -> torch.dtype:
    """Of weights and alpha, for a ``--dtype``; bf16 is about activations alone."""
    found: torch.dtype = torch.float32 if name == "bf16" else getattr(torch, name)
    return found


def _check_names(options: dict[str, Any]) -> None:
    family(options["space"], options["primitives"])
    method(options["method"])
    choices = {
        "dataset": (*DATASETS, *CORPORA),
        "backend": BACKENDS,
        "dtype": DTYPES,
        "graphs": GRAPHS,
        "hvp": WAYS,
        "mixed_product": WAYS,
        "difference_scheme": SCHEMES,
    }
    check_choices(options, choices)
    _check_task(options)


def _check_task(options: dict[str, Any]) -> None:
    """Images for a space that reads them, text for one that reads text, and none of the other's options."""
    space, dataset = options["space"], options["dataset"]
    text = family(space).reads == "text"
    if text != (dataset in CORPORA):
        wanted = f"--dataset {CORPORA[0]}" if text else "a data set of images"
        raise FastnasError(
            f"space {space} reads {'text' if text else 'images'}, and {dataset} is {'images' if text else 'text'}; "
            f"take {wanted}, or another --space"
        )
    if text:
        check_left_out(options, _OF_IMAGES, "images", "text")
    else:
        check_left_out(options, OF_TEXT, "text", "images")


_BOUNDS: Bounds = {
    "channels": (1, True),
    "layers": (1, True),
    **TEXT_BOUNDS,
    "images": (2, True),
    "image_size": (1, True),
    "train_portion": (0, False),
    "batch_size": (1, True),
    "crop_padding": (0, True),
    "cutout": (0, True),
    "auxiliary": (0, True),
    "drop_path": (0, True),
    "inner_steps": (1, True),
    "neumann_terms": (0, True),
    "gamma": (0, False),
    "eta": (0, False),
    "difference_radius": (0, False),
    "tolerance": (0, False),
    "solver_steps": (1, True),
    "damping": (0, True),
    "rank": (1, True),
    "reverse_steps": (1, True),
    "audit_every": (0, True),
    "epochs": (1, True),
    "spectrum_every": (0, True),
    "learning_rate": (0, False),
    "learning_rate_min": (0, True),
    "momentum": (0, True),
    "weight_decay": (0, True),
    "grad_clip": (0, False),
    "arch_learning_rate": (0, False),
    "arch_weight_decay": (0, True),
    "seed": (0, True),
    "threads": (1, True),
    "checkpoint_seconds": (0, True),
}


def _check_combinations(options: dict[str, Any]) -> None:
    if options["recompute"] and options["backend"] != "fused":
        raise FastnasError(f"--recompute needs --backend fused, got --backend {options['backend']}")
    if (
        options["audit_every"]
        and (options["method"], options["hvp"], options["mixed_product"]) == NOTHING_BETTER
    ):
        raise FastnasError(
            "--audit-every has nothing better to compare --method exact with exact products with; leave it out"
        )


def _check_numbers(options: dict[str, Any]) -> None:
    check_bounds(options, _BOUNDS)
    if not options["train_portion"] < 1:
        raise FastnasError(
            f"--train-portion must be less than 1 (alpha gets the rest), got {options['train_portion']}"
        )
    if options["seed"] >= 2**32:
        raise FastnasError(f"--seed must be less than 2**32, got {options['seed']}")
    _check_early_stop(options)
    check_below_one(options, ("momentum", "drop_path"))
    check_rates(options)


def _check_early_stop(options: dict[str, Any]) -> None:
    if not options["early_stop"]:
        return
    every = options["spectrum_every"]
    if not every:
        raise FastnasError(
            "--early-stop needs --spectrum-every N, which measures what it watches; N = 1 is every epoch"
        )
    earliest = EarlyStop().earliest(every)
    if options["epochs"] < earliest:
        raise FastnasError(
            f"--early-stop with --spectrum-every {every} decides after epoch {earliest} at the earliest, but --epochs "
            f"is {options['epochs']}; take more epochs, or leave it out"
        )
