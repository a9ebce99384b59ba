"""A network as data: stages, cells, edges and the primitives on them. Nothing here says how it is executed.

A :class:`Space` is a list of stages, each reading the output of earlier ones by index:

``Stem`` -> (``Cell`` | ``MatrixCell`` | ``Residual`` | ``Pool``)... -> ``Head``

The same description serves a supernet (several primitives an edge, mixed by architecture parameters) and the
discrete network of a genotype (one primitive an edge, no architecture parameters).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

Preprocess: TypeAlias = Literal["identity", "relu_conv_bn", "factorized_reduce", "conv_bn_relu"]


@dataclass(frozen=True)
class Mixing:
    """What weighs an edge's primitives: primitive k by ``softmax(alpha)[row, column + k]``, softmax over the columns.

    Edges may share a row: one of several sources is chosen where each is a column, and its edge has one primitive.
    """

    alpha: str
    row: int
    column: int = 0


@dataclass(frozen=True)
class Edge:
    """From state ``source`` to state ``target`` of a cell, with the primitives that may sit on it.

    ``mixing`` says what weighs them; None: a row of the cell's ``alpha``, or nothing if it has none.
    """

    source: int
    target: int
    primitives: tuple[str, ...]
    stride: int = 1
    mixing: Mixing | None = None


@dataclass(frozen=True)
class Input:
    """One input state of a cell: the output of stage ``stage`` after ``preprocess``."""

    stage: int
    preprocess: Preprocess = "identity"


@dataclass(frozen=True)
class Stem:
    """3x3 convolution of the image to ``channels``, BatchNorm, and ReLU if ``rectified``.

    With several ``strides`` as many such convolutions, ReLU between them, each but the last to half of its next one's
    channels.
    """

    channels: int
    kind: str = "stem"
    rectified: bool = False
    strides: tuple[int, ...] = (1,)

    @property
    def out_channels(self) -> int:
        return self.channels


@dataclass(frozen=True)
class Cell:
    """States 0..len(inputs)-1 are the inputs; every further state is the sum of the edges that enter it.

    ``output`` lists the states that are concatenated along the channels. ``alpha`` names the architecture
    parameter whose row i weighs the primitives of edge i, unless the edge says otherwise; what nothing weighs counts
    once, as everything in a discrete network.
    ``affine`` and ``normalise_pools`` are the two things in which a supernet's primitives differ from a discrete
    network's in DARTS: BatchNorms without scale and shift, and a BatchNorm behind each pooling.
    """

    kind: str
    inputs: tuple[Input, ...]
    edges: tuple[Edge, ...]
    channels: int
    output: tuple[int, ...]
    alpha: str | None
    affine: bool
    normalise_pools: bool

    @property
    def out_channels(self) -> int:
        return self.channels * len(self.output)

    @property
    def states(self) -> int:
        """The number of states, inputs included."""
        return max([len(self.inputs) - 1, *self.output, *(edge.target for edge in self.edges)]) + 1

    @property
    def mixing(self) -> tuple[Mixing | None, ...]:
        """What weighs the primitives of each edge; None: nothing."""
        if self.alpha is None:
            return tuple(edge.mixing for edge in self.edges)
        return tuple(edge.mixing or Mixing(self.alpha, row) for row, edge in enumerate(self.edges))

    @property
    def is_mixed(self) -> bool:
        """Whether architecture parameters weigh anything in it: whether it is a supernet's."""
        return any(self.mixing)


@dataclass(frozen=True)
class MatrixCell:
    """NAS-Bench-101's discrete cell: an operation on each vertex of a graph, of which vertex 0 is the input.

    Attributes:
        matrix: upper triangular; row i has a 1 in column j where vertex i feeds vertex j. The last one is the output.
        operations: of the vertices between.
        channels: of the output, which the vertices that feed it share out.
    """

    matrix: tuple[tuple[int, ...], ...]
    operations: tuple[str, ...]
    channels: int
    kind: str = "cell"

    @property
    def out_channels(self) -> int:
        return self.channels


@dataclass(frozen=True)
class Residual:
    """The basic residual block between NAS-Bench-201's stages: two 3x3 convolutions, the first with stride 2."""

    channels: int
    stride: int = 2
    kind: str = "residual"

    @property
    def out_channels(self) -> int:
        return self.channels


@dataclass(frozen=True)
class Pool:
    """Halves the images by a 2x2 max pooling; an odd side counts as one more. ``channels`` stay what they are."""

    channels: int
    kind: str = "pool"

    @property
    def out_channels(self) -> int:
        return self.channels


@dataclass(frozen=True)
class Head:
    """Global average pool and linear classifier.

    Before it, BatchNorm and ReLU if ``normalise``; ReLU, a 1x1 convolution to ``projection`` channels and BatchNorm
    without scale and shift if that is not None.
    """

    classes: int
    normalise: bool = False
    kind: str = "head"
    projection: int | None = None

    @property
    def out_channels(self) -> int:
        return self.classes


Stage: TypeAlias = Stem | Cell | MatrixCell | Residual | Pool | Head


@dataclass(frozen=True)
class Auxiliary:
    """DARTS' auxiliary head, which classifies the output of ``stage`` in training alone.

    ReLU, 5x5 average pooling, 1x1 convolution to 128 channels, 2x2 to 768, the linear classifier; BatchNorm and ReLU
    behind the convolutions, behind the second ReLU alone unless ``normalise_last``.
    """

    stage: int
    classes: int
    pool_stride: int
    normalise_last: bool


@dataclass(frozen=True)
class Alpha:
    """An architecture parameter: one row a choice, one column an option: mostly an edge, and a primitive on it."""

    name: str
    rows: int
    primitives: tuple[str, ...]

    @property
    def shape(self) -> tuple[int, int]:
        return self.rows, len(self.primitives)


@dataclass(frozen=True)
class Space:
    """A whole network as data. ``alphas`` is empty for a discrete network, ``auxiliary`` None without such a head."""

    name: str
    image_channels: int
    stages: tuple[Stage, ...]
    alphas: tuple[Alpha, ...] = ()
    auxiliary: Auxiliary | None = None

    @property
    def classes(self) -> int:
        return self.stages[-1].out_channels

    def _repr_html_(self) -> str:
        from fastnas.drawing.notebook import space_html  # here: it reads families of spaces

        return space_html(self)

    def in_channels(self, stage: int) -> int:
        """Channels that enter ``stage`` from the stage before it (the image's, for the stem)."""
        return self.image_channels if stage == 0 else self.stages[stage - 1].out_channels


def dense_edges(inputs: int, nodes: int, primitives: Sequence[str], stride: int = 1) -> tuple[Edge, ...]:
    """Every earlier state to every node, by target then source; ``stride`` holds for edges out of an input."""
    return tuple(
        Edge(source, target, tuple(primitives), stride if source < inputs else 1)
        for target in range(inputs, inputs + nodes)
        for source in range(target)
    )
