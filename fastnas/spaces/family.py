"""The named spaces: each a family of supernets, of discrete networks and of genotypes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from torch import Tensor

from fastnas.errors import FastnasError
from fastnas.spaces import darts, nasbench1shot1, nasbench101, nasbench201
from fastnas.spaces.description import Space
from fastnas.spaces.genotype import CellString, Genotype
from fastnas.spaces.nasbench101 import CellMatrix
from fastnas.spaces.published import PUBLISHED

AnyGenotype: TypeAlias = Genotype | CellString | CellMatrix


class Sizes(NamedTuple):
    """How large a network of a space is."""

    channels: int
    layers: int


@dataclass(frozen=True)
class Family:
    """What a space name stands for.

    Attributes:
        supernet: (channels, layers, classes, image_channels) -> Space with architecture parameters.
        network: (genotype, channels, layers, classes, image_channels) -> Space without.
        derive: alphas by name -> genotype.
        genotype: class of its genotypes; its ``parse`` reads them from text.
        search: channels and layers that the papers search with.
        evaluation: channels and layers that they train a genotype's network with.
        small: channels and layers of a search on images as small as digits.
        published: genotypes of papers by name.
    """

    name: str
    supernet: Callable[[int, int, int, int], Space]
    network: Callable[[Any, int, int, int, int], Space]
    derive: Callable[[Mapping[str, Tensor]], AnyGenotype]
    genotype: type[AnyGenotype]
    search: Sizes
    evaluation: Sizes
    small: Sizes
    published: Mapping[str, AnyGenotype] = field(default_factory=dict)


SPACES = {
    "darts": Family(
        "darts",
        darts.supernet,
        darts.network,
        darts.derive,
        Genotype,
        search=Sizes(16, 8),
        evaluation=Sizes(36, 20),
        small=Sizes(4, 3),
        published=PUBLISHED,
    ),
    "nasbench201": Family(
        "nasbench201",
        nasbench201.supernet,
        nasbench201.network,
        nasbench201.derive,
        CellString,
        search=Sizes(16, 5),
        evaluation=Sizes(16, 5),
        small=Sizes(4, 1),
    ),
}
for _number in nasbench1shot1.PARENTS:
    _name = f"nasbench1shot1-{_number}"
    SPACES[_name] = Family(
        _name,
        partial(nasbench1shot1.supernet, _number),
        nasbench101.network,
        partial(nasbench1shot1.derive, _number),
        CellMatrix,
        search=Sizes(16, 9),
        evaluation=Sizes(128, 9),
        small=Sizes(4, 3),
    )


def family(name: str) -> Family:
    """The space called ``name``.

    Raises:
        FastnasError: there is none.
    """
    if name not in SPACES:
        raise FastnasError(f"unknown space {name!r}; known are {', '.join(SPACES)}")
    return SPACES[name]


def make_space(
    name: str,
    *,
    channels: int | None = None,
    layers: int | None = None,
    classes: int = 10,
    image_channels: int = 3,
) -> Space:
    """The supernet of the space ``name`` as data.

    Args:
        name: "darts" or "nasbench201".
        channels: C, the channels of the first cells; the papers' size if None.
        layers: the number of cells (darts) or of cells in each of the three stages (nasbench201).
        classes: outputs of the classifier.
        image_channels: channels of the images.

    Raises:
        FastnasError: an unknown name or an impossible size.

    >>> make_space("darts").alphas[0].shape
    (14, 8)
    """
    found = family(name)
    return found.supernet(*_sizes(found, found.search, channels, layers, classes, image_channels))


def make_network(
    name: str,
    genotype: AnyGenotype,
    *,
    channels: int | None = None,
    layers: int | None = None,
    classes: int = 10,
    image_channels: int = 3,
) -> Space:
    """The discrete network of ``genotype`` in the space ``name`` as data; arguments as in :func:`make_space`.

    Sizes that are None are those that the papers train a genotype's network with.

    Raises:
        FastnasError: an unknown name, an impossible size, or a genotype of another space.
    """
    found = family(name)
    if not isinstance(genotype, found.genotype):
        raise FastnasError(f"the genotype {genotype} does not fit the space {name}")
    return found.network(
        genotype, *_sizes(found, found.evaluation, channels, layers, classes, image_channels)
    )


def read_genotype(space: str, source: str | Path) -> AnyGenotype:
    """A genotype of ``space`` from a published name, a file (any of the field's formats) or the text itself.

    Raises:
        FastnasError: nothing of that name, an unreadable file, or not a genotype of this space.
    """
    found = family(space)
    text = str(source)
    for other in SPACES.values():
        if text in other.published:
            if other is not found:
                raise FastnasError(
                    f"genotype {text} is one of the space {other.name}; it does not fit {space}"
                )
            return found.published[text]
    path = Path(source)
    if _is_file(path) or not set(text) & set("({|"):
        if not _is_file(path):
            known = (
                f"the names known here are {', '.join(found.published)}"
                if found.published
                else "no names are known"
            )
            raise FastnasError(
                f"genotype {text!r}: no such file, and no such name; for space {space} {known}"
            )
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise FastnasError(f"genotype file {path}: cannot be read as text ({error})") from None
    try:
        return found.genotype.parse(text)
    except FastnasError as error:
        for other in SPACES.values():
            if other is not found and _fits(other, text):
                raise FastnasError(
                    f"this genotype does not fit the space {space}: it is one of {other.name}; say --space {other.name}"
                ) from None
        raise FastnasError(f"this genotype does not fit the space {space}: {error}") from None


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a genotype's text, too long for a name
        return False


def _fits(found: Family, text: str) -> bool:
    try:
        found.genotype.parse(text)
    except FastnasError:
        return False
    return True


def _sizes(
    found: Family, papers: Sizes, channels: int | None, layers: int | None, classes: int, image_channels: int
) -> tuple[int, int, int, int]:
    sizes = {
        "channels": papers.channels if channels is None else channels,
        "layers": papers.layers if layers is None else layers,
        "classes": classes,
        "image_channels": image_channels,
    }
    for what, value in sizes.items():
        if value < 1:
            raise FastnasError(f"space {found.name}: {what} must be at least 1, got {value}")
    return sizes["channels"], sizes["layers"], sizes["classes"], sizes["image_channels"]
