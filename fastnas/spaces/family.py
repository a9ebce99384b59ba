"""The named spaces: each a family of supernets, of discrete networks and of genotypes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal, NamedTuple

from torch import Tensor

from fastnas.errors import FastnasError
from fastnas.spaces import (
    choice,
    darts,
    nasbench1shot1,
    nasbench101,
    nasbench201,
    recurrent,
    robustdarts,
    s1,
    s2,
)
from fastnas.spaces.choice import Choice
from fastnas.spaces.counting import one_an_edge, two_edges_a_node
from fastnas.spaces.description import Space
from fastnas.spaces.genotype import (
    DARTS_PRIMITIVES,
    DISCRETE_PRIMITIVES,
    HOW_OWN,
    NASBENCH201_PRIMITIVES,
    AnyGenotype,
    CellString,
    Genotype,
    check_primitive,
    shorten,
)
from fastnas.spaces.nasbench101 import CellMatrix
from fastnas.spaces.published import PUBLISHED, PUBLISHED_IN_ROBUSTDARTS
from fastnas.spaces.recurrent import RecurrentGenotype
from fastnas.spaces.s2 import CellSequence


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
        networks: supernet -> how many discrete networks it holds; None: nobody counted.
        primitives: those on its edges, if others may be put there (``supernet`` and ``derive`` take them by the
            keyword ``primitives`` then); None: they are the space's own.
        choosable: the library's that may be put there; those of ``fastnas.register_primitive`` may, too.
        layers_of: genotype -> the layers that its network has; None: as many as one likes.
        reads: "images" or "text". Of a space that reads text ``channels`` are the units of its hidden state and
            ``classes`` the words of the vocabulary; ``layers`` and ``image_channels`` mean nothing.
        classes: outputs, if not said otherwise.
    """

    name: str
    supernet: Callable[..., Space]
    network: Callable[[Any, int, int, int, int], Space]
    derive: Callable[..., AnyGenotype]
    genotype: type[AnyGenotype]
    search: Sizes
    evaluation: Sizes
    small: Sizes
    published: Mapping[str, AnyGenotype] = field(default_factory=dict)
    networks: Callable[[Space], int] | None = None
    primitives: tuple[str, ...] | None = None
    choosable: tuple[str, ...] = DISCRETE_PRIMITIVES
    layers_of: Callable[[Any], int] | None = None
    reads: Literal["images", "text"] = "images"
    classes: int = 10

    @classmethod
    def of_supernet(
        cls,
        name: str,
        supernet: Callable[[int, int, int, int], Space],
        search: tuple[int, int],
        *,
        evaluation: tuple[int, int] | None = None,
        small: tuple[int, int] | None = None,
    ) -> Family:
        """The space of a supernet alone: on every edge the primitive that weighs most stays.

        Args:
            name: of the space.
            supernet: (channels, layers, classes, image_channels) -> Space. Its cells name their alpha, whose row i
                weighs edge i; alphas have the same names and shapes whatever the sizes.
            search, evaluation, small: channels and layers, as above; those of ``search`` if not given.
        """

        def named(*sizes: int) -> Space:
            return replace(supernet(*sizes), name=name)

        def network(genotype: Choice, *sizes: int) -> Space:
            return choice.network(named(*sizes), genotype)

        def derive(alphas: Mapping[str, Tensor]) -> Choice:
            return choice.derive(named(*search, 2, 1), alphas)

        return cls(
            name,
            named,
            network,
            derive,
            Choice,
            search=Sizes(*search),
            evaluation=Sizes(*(evaluation or search)),
            small=Sizes(*(small or search)),
            networks=one_an_edge,
        )

    def with_primitives(self, primitives: Sequence[str]) -> Family:
        """The same with ``primitives`` on its edges.

        Raises:
            FastnasError: its edges have their own, one is unknown or there twice, or ``none`` is alone.
        """
        if self.primitives is None:
            raise FastnasError(
                f"the edges of space {self.name} have their own primitives; leave out --primitives"
            )
        for primitive in primitives:
            check_primitive("--primitives", primitive, self.choosable)
        if not primitives or len(set(primitives)) < len(primitives):
            raise FastnasError(
                f"--primitives must list different primitives, got {' '.join(primitives) or 'none'}"
            )
        chosen = tuple(primitives)
        if chosen == ("none",):
            raise FastnasError("--primitives none alone lets nothing through; list another one, too")
        return replace(
            self,
            supernet=partial(self.supernet, primitives=chosen),
            derive=partial(self.derive, primitives=chosen),
            primitives=chosen,
        )


def _robustdarts(name: str, evaluation: Sizes) -> Family:
    return Family(
        f"robustdarts-{name}",
        partial(robustdarts.supernet, name),
        darts.network,
        partial(darts.derive, edges=robustdarts.SPACES[name]),
        Genotype,
        search=Sizes(16, 8),
        evaluation=evaluation,
        small=Sizes(4, 3),
        published=PUBLISHED_IN_ROBUSTDARTS[name],
        networks=two_edges_a_node,
    )


def _nasbench1shot1(number: int) -> Family:
    return Family(
        f"nasbench1shot1-{number}",
        partial(nasbench1shot1.supernet, number),
        nasbench101.network,
        partial(nasbench1shot1.derive, number),
        CellMatrix,
        search=Sizes(16, 9),
        evaluation=Sizes(128, 9),
        small=Sizes(4, 3),
    )


_FAMILIES = (
    Family(
        "darts",
        darts.supernet,
        darts.network,
        darts.derive,
        Genotype,
        search=Sizes(16, 8),
        evaluation=Sizes(36, 20),
        small=Sizes(4, 3),
        published=PUBLISHED,
        networks=two_edges_a_node,
        primitives=DARTS_PRIMITIVES,
    ),
    Family(
        "nasbench201",
        nasbench201.supernet,
        nasbench201.network,
        nasbench201.derive,
        CellString,
        search=Sizes(16, 5),
        evaluation=Sizes(16, 5),
        small=Sizes(4, 1),
        networks=one_an_edge,
        primitives=NASBENCH201_PRIMITIVES,
        choosable=NASBENCH201_PRIMITIVES,
    ),
    *map(_nasbench1shot1, nasbench1shot1.PARENTS),
    Family(
        "s1",
        s1.supernet,
        darts.network,
        s1.derive,
        Genotype,
        search=Sizes(36, 20),
        evaluation=Sizes(36, 20),
        small=Sizes(4, 3),
        networks=one_an_edge,
    ),
    Family(
        "s2",
        s2.supernet,
        s2.network,
        s2.derive,
        CellSequence,
        search=Sizes(36, 20),
        evaluation=Sizes(36, 20),
        small=Sizes(4, 3),
        networks=one_an_edge,
        primitives=s2.PRIMITIVES,
        layers_of=lambda genotype: len(genotype.cells),
    ),
    # The authors' networks of S2 and S4 are narrower.
    _robustdarts("s1", Sizes(36, 20)),
    _robustdarts("s2", Sizes(16, 20)),
    _robustdarts("s3", Sizes(36, 20)),
    _robustdarts("s4", Sizes(16, 20)),
    Family(
        "recurrent",
        recurrent.supernet,
        recurrent.network,
        recurrent.derive,
        RecurrentGenotype,
        search=Sizes(300, 1),
        evaluation=Sizes(850, 1),
        small=Sizes(300, 1),
        published=recurrent.PUBLISHED,
        networks=lambda space: recurrent.NETWORKS,
        reads="text",
        classes=recurrent.WORDS,
    ),
)
SPACES = {found.name: found for found in _FAMILIES}
"""Every space by its name; `register` adds one."""
_OWN = frozenset(SPACES)
# Beyond these a network's numbers do not fit 64 bits, or nobody waits for it to be built.
LARGEST = {"channels": 2**16, "layers": 1000, "classes": 2**24, "image_channels": 2**16}
SPACE_HELP = f"Search space: {', '.join(SPACES)}; or one of your own (docs/new-space.md)."


def register(added: Family) -> None:
    """Makes a space of your own known by its name, here and to every command of this process.

    Registered again, the newer one counts.

    Raises:
        FastnasError: the library has a space of that name.
    """
    if added.name in _OWN:
        raise FastnasError(f"the name {added.name!r} is a space of this library; choose another")
    SPACES[added.name] = added


def family(name: str, primitives: Sequence[str] | None = None) -> Family:
    """The space called ``name``, with ``primitives`` on its edges if they are given.

    Raises:
        FastnasError: there is none, or its edges do not take these primitives.
    """
    if name not in SPACES:
        raise FastnasError(f"unknown space {shorten(name)}; known are {', '.join(SPACES)}; {HOW_OWN}")
    return SPACES[name] if primitives is None else SPACES[name].with_primitives(primitives)


def make_space(
    name: str,
    *,
    channels: int | None = None,
    layers: int | None = None,
    classes: int | None = None,
    image_channels: int = 3,
    primitives: Sequence[str] | None = None,
) -> Space:
    """The supernet of the space ``name`` as data.

    Args:
        name: one of ``SPACES``.
        channels: C, the channels of the first cells; the papers' size if None.
        layers: the number of cells; of cells in each of the three stages (nasbench201).
        classes: outputs of the classifier; 10 if None, or the words of Penn Treebank.
        image_channels: channels of the images.
        primitives: those on every edge (darts, nasbench201, s2); the papers' if None.

    Raises:
        FastnasError: an unknown name or an impossible size.

    >>> make_space("darts").alphas[0].shape
    (14, 8)
    """
    found = family(name, primitives)
    return found.supernet(*_sizes(found, found.search, channels, layers, classes, image_channels))


def make_network(
    name: str,
    genotype: AnyGenotype,
    *,
    channels: int | None = None,
    layers: int | None = None,
    classes: int | None = None,
    image_channels: int = 3,
) -> Space:
    """The discrete network of ``genotype`` in the space ``name`` as data; arguments as in :func:`make_space`.

    Sizes that are None are those that the papers train a genotype's network with, or that it has itself.

    Raises:
        FastnasError: an unknown name, an impossible size, or a genotype of another space.
    """
    found = family(name)
    if not isinstance(genotype, found.genotype):
        raise FastnasError(f"the genotype {genotype} does not fit the space {name}")
    if layers is None and found.layers_of is not None:
        layers = found.layers_of(genotype)
    return found.network(
        genotype, *_sizes(found, found.evaluation, channels, layers, classes, image_channels)
    )


def _sizes(
    found: Family,
    papers: Sizes,
    channels: int | None,
    layers: int | None,
    classes: int | None,
    image_channels: int,
) -> tuple[int, int, int, int]:
    sizes = {
        "channels": papers.channels if channels is None else channels,
        "layers": papers.layers if layers is None else layers,
        "classes": found.classes if classes is None else classes,
        "image_channels": image_channels,
    }
    for what, value in sizes.items():
        if not 1 <= value <= LARGEST[what]:
            wanted = "at least 1" if value < 1 else f"at most {LARGEST[what]:,}"
            raise FastnasError(f"space {found.name}: {what} must be {wanted}, got {shorten(value)}")
    return sizes["channels"], sizes["layers"], sizes["classes"], sizes["image_channels"]
