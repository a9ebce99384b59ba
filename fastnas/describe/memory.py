"""``python -m fastnas.describe --memory``: what a search's or a retraining's steps will take."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import tyro

from fastnas._devices import named_device
from fastnas.data import CORPORA, Corpus, Dataset, load_dataset, read_corpus
from fastnas.data.batches import Batch
from fastnas.errors import FastnasError
from fastnas.retrain.config import NO_TEST_SET, RetrainConfig
from fastnas.retrain.images import ImageTrainer
from fastnas.retrain.memory import retrain_forecast
from fastnas.retrain.text import TextTrainer
from fastnas.runs.interrupt import Interrupt
from fastnas.runs.memory import Forecast, bytes_of, free_memory, memory_told, shown
from fastnas.runs.options import filled
from fastnas.search.config import SearchConfig
from fastnas.search.engine import Search, device_of
from fastnas.search.images import ImageTask
from fastnas.search.memory import can_recompute, search_forecast
from fastnas.search.task import Task
from fastnas.search.text import TextTask
from fastnas.spaces import family, read_genotype

DESCRIPTION = """Forecasts the peak memory of a search's step, or with --genotype of a retraining's, and the largest
batch that fits, from steps on a few images. Takes the flags of python -m fastnas.search, or of python -m
fastnas.retrain."""
STUB = 8  # images or streams in a batch of the data set that stands for the true one
# Training images, test images, channels, side, classes.
PUBLISHED = {"cifar10": (50_000, 10_000, 3, 32, 10), "cifar100": (50_000, 10_000, 3, 32, 100)}
IMAGENET = (0, 0, 3, 224, 1000)  # read as it is needed
WORDS = {"ptb": ((929_589, 73_760, 82_430), 10_000)}


@dataclass(frozen=True)
class Asked:
    """What is asked of the forecast."""

    memory_limit: str | None = None
    """What the largest batch is to fit, as 24GiB; None: what is free on the device now."""
    image_channels: int | None = None
    """Channels of the images; None: the data set's."""
    classes: int | None = None
    """Outputs of the classifier (text: words); None: the data set's."""
    json: bool = False
    """Print JSON."""


@dataclass(frozen=True)
class OfSearch:
    """A search's forecast."""

    run: SearchConfig = field(default_factory=SearchConfig)
    asked: Asked = field(default_factory=Asked)


@dataclass(frozen=True)
class OfRetraining:
    """A retraining's forecast."""

    run: RetrainConfig = field(default_factory=RetrainConfig)
    asked: Asked = field(default_factory=Asked)


@dataclass(frozen=True)
class Shape:
    """What the forecast must know of a data set.

    Attributes:
        train, test: images of the published sets; 0: not known, or not held.
        channels, size: of the images, (height, width).
        classes: of the classifier, or words.
        text: words of the training, validation and test text.
    """

    train: int = 0
    test: int = 0
    channels: int = 3
    size: tuple[int, int] = (32, 32)
    classes: int = 10
    text: tuple[int, int, int] = (0, 0, 0)


def describe_memory(arguments: list[str]) -> None:
    """Parses the flags and prints the forecast."""
    retraining = any(argument.split("=")[0] == "--genotype" for argument in arguments)
    wanted: type[OfSearch] | type[OfRetraining] = OfRetraining if retraining else OfSearch
    found = tyro.cli(
        wanted,
        prog="python -m fastnas.describe --memory",
        description=DESCRIPTION,
        args=arguments,
        config=(tyro.conf.OmitArgPrefixes,),
    )
    config, asked = found.run, found.asked
    if config.run.resume is not None:
        raise FastnasError("--memory forecasts a new run: give its flags in place of --resume")
    limit = None if asked.memory_limit is None else bytes_of(asked.memory_limit)
    with memory_told(lambda: "there is no memory here for a step on a few images; take a smaller network"):
        title, device, forecast, lighter = (
            _of_retraining(config, asked) if isinstance(config, RetrainConfig) else _of_search(config, asked)
        )
    limit = free_memory(device) if limit is None else limit
    print(
        json.dumps(_plain(forecast, lighter, limit), indent=2)
        if asked.json
        else _table(title, forecast, lighter, limit)
    )


Forecasts = tuple[str, torch.device, Forecast, Forecast | None]


def _of_search(config: SearchConfig, asked: Asked) -> Forecasts:
    config = config.resolved()
    device, shape, images = device_of(config), shape_of(config, asked), config.images
    stub = SearchConfig.from_options(
        {**config.to_options(), "batch_size": STUB, "images": None, "train_portion": 0.5}
    )
    search = Search(stub, device, Interrupt(), _stub_task(stub, device, shape))
    if config.reads == "text":
        words = (
            sum(shape.text)
            + shape.text[1]
            + (sum(shape.text[:2]) if device.type == "cpu" else -shape.text[2])
        )
        data = 8 * words
    else:
        held = shape.train if images.images is None else min(images.images, shape.train or images.images)
        data = _bytes(shape, held + (shape.train if device.type == "cpu" else 0))
    batch = filled(images.batch_size)
    forecast = replace(search_forecast(search, data), batch=batch)
    lighter = None
    if can_recompute(search):
        lighter = replace(search_forecast(search, data, recompute=True), batch=batch)
    title = f"a search step: {config.hypergradient.method} in {config.network.space}"
    return title, device, forecast, lighter


def _of_retraining(config: RetrainConfig, asked: Asked) -> Forecasts:
    config = config.resolved()
    device, shape = named_device(config.run.device), shape_of(config, asked)
    genotype = read_genotype(config.space, str(config.network.genotype))
    trainer: ImageTrainer | TextTrainer
    if family(config.space).reads == "text":
        stub = RetrainConfig.from_options({**config.to_options(), "batch_size": STUB})
        trainer = TextTrainer(
            stub, genotype, device, Interrupt(), _stub_corpus(filled(config.text.bptt), shape)
        )
        data = 8 * (sum(shape.text) + shape.text[2])
    else:
        train, test = _parts(config, shape)
        trainer = ImageTrainer(config, genotype, device, Interrupt(), ShapeSource(shape, train, test))
        data = _bytes(shape, train + test if shape.train else 0)
    forecast = replace(retrain_forecast(trainer, data), batch=filled(config.images.batch_size))
    return f"a training step of {config.space}", device, forecast, None


def _parts(config: RetrainConfig, shape: Shape) -> tuple[int, int]:
    """Training and test images; as if there were two batches where their number is not known."""
    images = config.images
    if not shape.train:
        return 2 * filled(images.batch_size), 0
    train = shape.train if images.images is None else min(shape.train, images.images)
    if images.dataset in NO_TEST_SET and images.test_data is None:
        kept = int((1 - images.test_portion) * train)
        return kept, train - kept
    return train, shape.test


def shape_of(config: SearchConfig | RetrainConfig, asked: Asked) -> Shape:
    """The shape of a resolved configuration's data set: published, read, or given.

    Raises:
        FastnasError: it is neither.
    """
    images = config.images
    name = images.dataset
    if name in CORPORA:
        shape = _shape_of_text(config)
    elif name == "imagenet" or (images.data is None and name in PUBLISHED):
        train, test, channels, side, classes = PUBLISHED.get(name, IMAGENET)
        shape = Shape(train, test, channels, (side, side), classes)
    elif images.data is not None or name == "digits":
        data = load_dataset(name, images.data, image_size=images.image_size)
        shape = Shape(len(data), 0, data.channels, data.size, len(data.classes))
    elif images.image_size is None or asked.classes is None:
        raise FastnasError(f"{name}: give its place with --data, or --image-size and --classes")
    else:
        shape = Shape(train=images.images or 0)
    if images.image_size is not None:
        shape = replace(shape, size=(images.image_size, images.image_size))
    given = {"channels": asked.image_channels, "classes": asked.classes}
    for option, value in given.items():
        if value is not None and value < 1:
            raise FastnasError(
                f"--{'image-' * (option == 'channels')}{option} must be at least 1, got {value}"
            )
    return replace(shape, **{option: value for option, value in given.items() if value is not None})  # type: ignore[arg-type]


def _shape_of_text(config: SearchConfig | RetrainConfig) -> Shape:
    name, place = config.images.dataset, config.images.data
    if place is None:
        text, words = WORDS[name]
        return Shape(text=text, classes=words)
    corpus = read_corpus(name, place)
    return Shape(text=(len(corpus.train), len(corpus.valid), len(corpus.test)), classes=len(corpus.words))


def _bytes(shape: Shape, images: int) -> int:
    """Of images as bytes and their labels."""
    height, width = shape.size
    return images * (shape.channels * height * width + 8)


def _stub_task(config: SearchConfig, device: torch.device, shape: Shape) -> Task:
    """The search's task on blank data of that shape, just enough for a step."""
    steps = config.hypergradient.inner_steps or 1
    if config.reads == "text":
        return TextTask(config, device, _stub_corpus(filled(config.text.bptt) * (steps + 1), shape))
    count = 2 * STUB * steps
    images = torch.zeros(count, shape.channels, *shape.size, dtype=torch.uint8)
    classes = tuple(map(str, range(shape.classes)))
    return ImageTask(config, device, Dataset("blank", images, torch.zeros(count, dtype=torch.int64), classes))


def _stub_corpus(rows: int, shape: Shape) -> Corpus:
    text = torch.zeros(2 * STUB * (rows + 2), dtype=torch.int64)
    return Corpus("blank", tuple(map(str, range(shape.classes))), text, text, text)


class ShapeSource:
    """A retraining's images of which nothing but the shape is known (``fastnas.retrain.sources.Source``)."""

    def __init__(self, shape: Shape, train: int, test: int) -> None:
        self.classes, self.channels, self.size = shape.classes, shape.channels, shape.size
        self.train_images, self.test_images = train, test
        self.names: tuple[str, ...] = ()
        self.mean: tuple[float, ...] = ()
        self.std: tuple[float, ...] = ()

    def train(self, epoch: int, skip: int = 0) -> Iterator[Batch]:
        """No images."""
        return iter(())

    def test(self) -> Iterator[Batch]:
        """No images."""
        return iter(())


def _parts_of(forecast: Forecast) -> dict[str, float]:
    fixed, each = forecast.growth.parts(forecast.batch)
    parts = {
        **forecast.resident,
        "gradients, vectors and what else does not grow": fixed,
        f"{forecast.batch} {forecast.unit} of {shown(each)}": each * forecast.batch,
    }
    beside = forecast.beside.peak(forecast.batch)
    return parts | ({"kept by CUDA graphs, and an evaluation": beside} if beside else {})


def _plain(forecast: Forecast, lighter: Forecast | None, limit: int | None) -> dict[str, Any]:
    fixed, each = forecast.growth.parts(forecast.batch)
    found: dict[str, Any] = {
        "batch": forecast.batch,
        "unit": forecast.unit,
        "peak_bytes": forecast.peak(),
        "resident_bytes": dict(forecast.resident),
        "fixed_bytes": round(fixed),
        "bytes_each": round(each),
        "beside_bytes": round(forecast.beside.peak(forecast.batch)),
        "limit_bytes": limit,
        "largest_batch": None if limit is None else forecast.largest(limit),
    }
    if lighter is not None:
        found["recompute"] = _plain(lighter, None, limit)
    return found


def _table(title: str, forecast: Forecast, lighter: Forecast | None, limit: int | None) -> str:
    rows = {**_parts_of(forecast), "peak": forecast.peak()}
    width = max(map(len, rows))
    lines = [f"peak memory of {title}, {forecast.batch} {forecast.unit} in a batch"]
    lines += [f"  {part:<{width}}  {shown(size):>10}" for part, size in rows.items() if size]
    if limit is not None:
        lines.append(f"largest batch in {shown(limit)}, a tenth left free: {forecast.largest(limit):,}")
    if lighter is not None:
        more = "" if limit is None else f", largest batch {lighter.largest(limit):,}"
        lines.append(f"with --recompute: peak {shown(lighter.peak())}{more}")
    return "\n".join(lines)
