"""Size, cost and shapes of a supernet, or of a genotype's discrete network."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fastnas.errors import FastnasError
from fastnas.spaces import SPACES, Space
from fastnas.spaces.genotype import shorten
from fastnas.spaces.recurrent import RecurrentSpace
from fastnas.supernet import build_supernet, own_primitives

LARGEST_IMAGE = 2**16


@dataclass(frozen=True)
class StageDescription:
    """One stage: what it is, its output for one image, its cost.

    ``macs`` counts the multiply-adds of convolutions and linear layers, for one image.
    """

    stage: int
    kind: str
    output: tuple[int, ...]
    parameters: int
    macs: int


@dataclass(frozen=True)
class Description:
    """A network described: weights without alpha, multiply-adds for one image, alpha's shapes, one row a stage.

    ``networks`` is how many discrete networks a supernet holds, as its paper counts them (None: nobody counted).
    """

    space: str
    parameters: int
    macs: int
    alpha: dict[str, tuple[int, int]]
    networks: int | None
    stages: tuple[StageDescription, ...]


def describe(space: Space, image_size: int | tuple[int, int] = 32) -> Description:
    """Counts the weights and multiply-adds of ``space`` on images of one size, without computing anything.

    With primitives of the user's own one image is computed, whose content does not matter.

    Args:
        space: from ``make_space`` or ``make_network``.
        image_size: side of the images, in pixels, or (height, width).

    Raises:
        FastnasError: the images are smaller than the network's reductions allow.

    >>> from fastnas.spaces import make_space
    >>> describe(make_space("darts", channels=16, layers=8)).parameters
    1930618
    """
    if isinstance(space, RecurrentSpace):
        return _describe_recurrent(space)
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    if not (min(height, width) >= 1 and max(height, width) <= LARGEST_IMAGE):
        raise FastnasError(f"--image-size must lie between 1 and {LARGEST_IMAGE}, got {shorten(image_size)}")
    # The user's own code may need numbers to compute with.
    with torch.device("cpu" if own_primitives(space) else "meta"):
        net = build_supernet(space, backend="reference").eval()
        images = torch.zeros(1, space.image_channels, height, width)
    costs: dict[nn.Module, int] = {}
    outputs: dict[nn.Module, tuple[int, ...]] = {}

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if isinstance(module, nn.Conv2d | nn.Linear):
            # Each output number is a dot product with one filter (one row).
            costs[module] = costs.get(module, 0) + output.numel() * module.weight[0].numel()
        outputs[module] = tuple(output.shape[1:])

    for module in net.modules():
        module.register_forward_hook(count)
    with torch.no_grad():
        net(images)
    rows = tuple(
        StageDescription(
            i,
            spec.kind,
            outputs[stage],
            sum(p.numel() for p in stage.parameters()),
            sum(costs.get(module, 0) for module in stage.modules()),
        )
        for i, (spec, stage) in enumerate(zip(space.stages, net.stages, strict=True))
    )
    return _description(space, rows)


def _description(space: Space, rows: tuple[StageDescription, ...]) -> Description:
    return Description(
        space.name,
        sum(row.parameters for row in rows),
        sum(row.macs for row in rows),
        {alpha.name: alpha.shape for alpha in space.alphas},
        _networks(space),
        rows,
    )


def _describe_recurrent(space: RecurrentSpace) -> Description:
    """One row each for embedding, cell and decoder; multiply-adds for one word."""
    units, words = space.units, space.words
    products = 4 * units**2, 2 * units**2  # of the entry, and of an edge
    rows = (
        StageDescription(0, "embedding", (units,), units * words, 0),
        StageDescription(
            1,
            "cell",
            (units,),
            products[0] + space.nodes * products[1],
            products[0] + len(space.edges) * products[1],
        ),
        StageDescription(2, "decoder", (words,), words, units * words),  # its matrix is the embedding's
    )
    return _description(space, rows)


def _networks(space: Space) -> int | None:
    family = SPACES.get(space.name)
    return (
        family.networks(space)
        if family is not None and family.networks is not None and space.alphas
        else None
    )


def table(found: Description) -> str:
    """The description for people."""
    lines = [f"{'stage':>5}  {'kind':<9} {'output':>16} {'parameters':>12} {'multiply-adds':>15}"]
    for row in found.stages:
        shape = " x ".join(map(str, row.output))
        lines.append(f"{row.stage:>5}  {row.kind:<9} {shape:>16} {row.parameters:>12,} {row.macs:>15,}")
    lines.append(f"{'':>5}  {'total':<9} {'':>16} {found.parameters:>12,} {found.macs:>15,}")
    for name, (rows, columns) in found.alpha.items():
        lines.append(f"alpha {name}: {rows} edges x {columns} primitives")
    if found.networks is not None:
        lines.append(f"networks: {_shown(found.networks)}")
    return "\n".join(lines)


def _shown(count: int) -> str:
    return f"{count:,}" if count < 10**6 else f"{count:.1e}".replace("e+", "e")
