"""The command line of ``python -m fastnas.describe``."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from typing_extensions import Doc

from fastnas._command import clear_errors
from fastnas._imports import IMPORT_HELP, take_imports
from fastnas.describe.network import describe, table
from fastnas.drawing import draw
from fastnas.drawing.stored import stored_alphas
from fastnas.errors import FastnasError
from fastnas.spaces import SPACES, Space, find_genotype, make_network, make_space, to_dot
from fastnas.spaces.family import SPACE_HELP

DESCRIPTION = f"""Parameters, multiply-adds and shapes of a supernet, or of the discrete network of a genotype.
{IMPORT_HELP}"""
_PUBLISHED = list(dict.fromkeys(name for family in SPACES.values() for name in family.published))
_GENOTYPE_HELP = f"""Describe this discrete network instead of the supernet: the folder of a search, a file, a published
name ({", ".join(_PUBLISHED)}) or the genotype itself."""


@dataclass(frozen=True)
class DescribeConfig:
    """What to describe."""

    space: Annotated[str | None, Doc(f"{SPACE_HELP} None: the genotype's, or darts.")] = None
    primitives: tuple[str, ...] | None = None
    """Of every edge of the supernet, for spaces that leave them open (darts, nasbench201, s2); None: the paper's."""
    channels: int | None = None
    """C, channels of the first cells (recurrent: units); None: the papers', of the supernet or of the network. A
    retraining's folder says all of its network's sizes."""
    layers: int | None = None
    """Number of cells (nasbench201: N, cells in each of the three stages); None: the papers'."""
    genotype: Annotated[str | None, Doc(_GENOTYPE_HELP)] = None
    classes: int | None = None
    """Outputs of the classifier (recurrent: words); None: 10, or 10,000 words."""
    image_size: int | None = None
    """Side of the images, in pixels; None: 32."""
    image_channels: int | None = None
    """Channels of the images; None: 3."""
    memory: bool = False
    """Forecast the peak memory of a search's step, by the flags of ``python -m fastnas.search``; with --genotype of
    a retraining, by those of ``python -m fastnas.retrain``. --memory --help lists them."""
    json: bool = False
    """Print JSON."""
    dot: bool = False
    """Print the genotype's cells as a Graphviz graph: ``... --dot | dot -Tsvg -o cell.svg`` draws them."""
    draw: Path | None = None
    """Draw the genotype's cells into this file, .svg, .png or .pdf; a search's folder with what its alpha weighs."""


@clear_errors()
def main(arguments: list[str] | None = None) -> None:
    """Parses the flags and prints the description."""
    arguments = take_imports(sys.argv[1:] if arguments is None else arguments)
    if "--memory" in arguments:
        from fastnas.describe.memory import describe_memory  # here: it brings searches and retrainings along

        describe_memory([argument for argument in arguments if argument != "--memory"])
        return
    config = tyro.cli(
        DescribeConfig,
        prog="python -m fastnas.describe",
        description=DESCRIPTION,
        args=arguments,
    )
    if config.dot or config.draw is not None:
        _drawn(config)
        return
    found = describe(*_network(config))
    print(json.dumps(asdict(found), indent=2) if config.json else table(found))


def _drawn(config: DescribeConfig) -> None:
    """Prints or writes the genotype's drawing."""
    flag = "--dot" if config.dot else "--draw"
    given = {"--dot": config.dot, "--draw": config.draw is not None, "--json": config.json}
    both = [name for name, there in given.items() if there]
    if len(both) > 1:
        raise FastnasError(f"{both[0]} and {both[1]} exclude each other: choose one")
    if config.genotype is None:
        raise FastnasError(f"{flag} draws a genotype: name one with --genotype")
    genotype = find_genotype(config.genotype, config.space).genotype
    if config.draw is None:
        print(to_dot(genotype))
        return
    alphas, space = stored_alphas(Path(config.genotype)) or (None, None)
    draw(genotype, config.draw, alphas=alphas, space=space)
    print(config.draw)


def _network(config: DescribeConfig) -> tuple[Space, int | tuple[int, int]]:
    """What is to be described, and the size of its images."""
    sizes: dict[str, Any] = {"channels": config.channels, "layers": config.layers, "classes": config.classes}
    given = [*sizes.values(), config.image_channels, config.image_size, config.space, config.primitives]
    if config.genotype is not None and given == [None] * len(given):
        from fastnas.retrain.network import trained_network

        trained = trained_network(Path(config.genotype))
        if trained is not None:
            return trained
    sizes["image_channels"] = 3 if config.image_channels is None else config.image_channels
    size = 32 if config.image_size is None else config.image_size
    return _space(config, sizes), size


def _space(config: DescribeConfig, sizes: dict[str, Any]) -> Space:
    if config.genotype is None:
        return make_space(config.space or "darts", primitives=config.primitives, **sizes)
    if config.primitives is not None:
        raise FastnasError("--primitives is for a supernet: the genotype has its own; leave one of them out")
    found = find_genotype(config.genotype, config.space)
    return make_network(found.space, found.genotype, **sizes)
