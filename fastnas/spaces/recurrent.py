"""DARTS' recurrent space (Liu et al. 2019, section 3.1): a cell of eight nodes, each behind one earlier state."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from fastnas.errors import FastnasError
from fastnas.spaces.description import Alpha, Edge, Space, dense_edges
from fastnas.spaces.genotype import (
    Drawable,
    Graph,
    Pair,
    call_fields,
    json_object,
    read_integers,
    read_pairs,
    share,
    shorten,
)

NODES = 8
PRIMITIVES = ("none", "tanh", "relu", "sigmoid", "identity")
WORDS = 10_000  # of Penn Treebank
NETWORKS = math.factorial(NODES) * (len(PRIMITIVES) - 1) ** NODES


class Dropout(NamedTuple):
    """Probabilities of being dropped; each mask holds for all time steps of a batch (variational dropout).

    Attributes:
        output: of the cell's output, before the decoder.
        state: of every state, before the product that leads to a node.
        input: of the cell's input.
        embedding: of the embedded words.
        words: of whole words.
    """

    output: float = 0.75
    state: float = 0.25
    input: float = 0.75
    embedding: float = 0.2
    words: float = 0.0


DROPOUT = Dropout()


@dataclass(frozen=True)
class RecurrentSpace(Space):
    """A language model as data: embedding, a recurrent cell, and a decoder that has the embedding's weights.

    State 0 of the cell is made out of input and hidden state; state i is the sum of the edges that enter it. An edge
    of primitive f is the highway update ``s + c (f(h) - s)`` of its source s, with (c, h) = s W_i, c behind a sigmoid.

    Attributes:
        units: of embedding and hidden state.
        words: of the vocabulary.
        edges: of the cell, by target then source; states count from 0.
        output: the states whose mean is the cell's output and hidden state.
        normalise: a BatchNorm behind each state, as a supernet has and a discrete network has not.
        dropout: in training.
        slowness: weight of the training loss's term |h_t - h_(t-1)|^2, averaged (temporal activation regularisation).
    """

    units: int = 300
    words: int = WORDS
    edges: tuple[Edge, ...] = ()
    output: tuple[int, ...] = ()
    normalise: bool = True
    dropout: Dropout = DROPOUT
    slowness: float = 1e-3

    @property
    def classes(self) -> int:
        return self.words

    @property
    def nodes(self) -> int:
        """The number of nodes: of states but the first."""
        return max(edge.target for edge in self.edges)


def supernet(
    units: int,
    layers: int = 1,
    words: int = WORDS,
    image_channels: int = 0,
    *,
    dropout: Dropout = DROPOUT,
    slowness: float = 1e-3,
) -> RecurrentSpace:
    """The supernet: all five primitives on each of 36 edges.

    Args:
        units: of embedding and hidden state.
        layers, image_channels: of no meaning here.
        words: of the vocabulary.
        dropout, slowness: in training, as in :class:`RecurrentSpace`.
    """
    edges = dense_edges(1, NODES, PRIMITIVES)
    return RecurrentSpace(
        "recurrent",
        image_channels,
        (),
        (Alpha("cell", len(edges), PRIMITIVES),),
        units=units,
        words=words,
        edges=edges,
        output=tuple(range(1, NODES + 1)),
        dropout=dropout,
        slowness=slowness,
    )


def network(
    genotype: RecurrentGenotype,
    units: int,
    layers: int = 1,
    words: int = WORDS,
    image_channels: int = 0,
    *,
    dropout: Dropout = DROPOUT,
    slowness: float = 1e-3,
) -> RecurrentSpace:
    """The discrete network of ``genotype``; arguments as in :func:`supernet`."""
    return RecurrentSpace(
        "recurrent",
        image_channels,
        (),
        units=units,
        words=words,
        edges=tuple(
            Edge(source, i, (primitive,)) for i, (primitive, source) in enumerate(genotype.recurrent, start=1)
        ),
        output=genotype.concat,
        normalise=False,
        dropout=dropout,
        slowness=slowness,
    )


@dataclass(frozen=True)
class RecurrentGenotype(Drawable):
    """DARTS' recurrent cell: for each node its (primitive, source state); the output is the mean of ``concat``.

    >>> str(RecurrentGenotype((("tanh", 0), ("relu", 1)), (1, 2)))
    "Genotype(recurrent=[('tanh', 0), ('relu', 1)], concat=[1, 2])"
    """

    recurrent: tuple[Pair, ...]
    concat: tuple[int, ...]

    def __post_init__(self) -> None:
        known = PRIMITIVES[1:]
        for node, (primitive, source) in enumerate(self.recurrent, start=1):
            if primitive not in known:
                raise FastnasError(
                    f"genotype: unknown primitive {primitive!r} in recurrent; known are {', '.join(known)}"
                )
            if not 0 <= source < node:
                raise FastnasError(
                    f"genotype: node {node} of recurrent reads state {source}; it may read states 0 to {node - 1}"
                )
        last = len(self.recurrent)
        if (
            not self.concat
            or len(set(self.concat)) < len(self.concat)
            or not all(0 <= i <= last for i in self.concat)
        ):
            raise FastnasError(
                f"genotype: concat must list different states from 0 to {last}, got {list(self.concat)}"
            )

    def __str__(self) -> str:
        return f"Genotype(recurrent={list(self.recurrent)}, concat={list(self.concat)})"

    def to_json(self) -> dict[str, Any]:
        """Plain data for ``json.dump``; :meth:`parse` reads it back."""
        return {
            "space": "recurrent",
            "recurrent": [list(pair) for pair in self.recurrent],
            "concat": list(self.concat),
        }

    def skip_share(self) -> float:
        """The share of identity among the nodes."""
        return share("identity", [primitive for primitive, _ in self.recurrent])

    def graphs(self) -> tuple[Graph, ...]:
        """The cell as a graph."""
        nodes = len(self.recurrent)
        edges = [(source, i, primitive) for i, (primitive, source) in enumerate(self.recurrent, start=1)]
        labels = ("x(t), h(t-1)", *map(str, range(1, nodes + 1)), "h(t)")
        return (Graph("recurrent", labels, (*edges, *((state, nodes + 1, "") for state in self.concat))),)

    @classmethod
    def parse(cls, text: str) -> RecurrentGenotype:
        """From DARTS' source format (lists or ``range``, with or without ``NAME =``) or from JSON.

        Raises:
            FastnasError: it is neither, or the cell is not valid.
        """
        names = ("recurrent", "concat")
        fields = json_object(text) or call_fields("Genotype", names, text)
        if fields is None or not set(names) <= fields.keys():
            raise FastnasError(
                "not a recurrent genotype: expected Genotype(recurrent=[('tanh', 0), ...], concat=range(1, 9)) or the "
                f"same as JSON, got {shorten(text)}"
            )
        return cls(read_pairs("recurrent", fields["recurrent"]), read_integers("concat", fields["concat"]))


def derive(alphas: Mapping[str, Tensor]) -> RecurrentGenotype:
    """The genotype of alpha: each node reads the source whose strongest primitive but ``none`` weighs most.

    Liu et al. 2019, section 2.4 with k = 1. Ties go to the earlier state and primitive.

    Args:
        alphas: "cell", (36, 5) float, before the softmax.
    """
    weights = alphas["cell"].detach().softmax(-1)[:, 1:]  # without "none"
    pairs = []
    for rows in weights.split([i for i in range(1, NODES + 1)]):
        source, primitive = divmod(int(rows.reshape(-1).argmax()), rows.shape[1])
        pairs.append((PRIMITIVES[1 + primitive], source))
    return RecurrentGenotype(tuple(pairs), tuple(range(1, NODES + 1)))


# DARTS_V1 and DARTS_V2: Liu et al. 2019, found by first and second order. ENAS: Pham et al. 2018. All three as in
# DARTS' genotypes.py.
_TEXTS = {
    "DARTS_V1": "Genotype(recurrent=[('relu', 0), ('relu', 1), ('tanh', 2), ('relu', 3), ('relu', 4), "
    "('identity', 1), ('relu', 5), ('relu', 1)], concat=range(1, 9))",
    "DARTS_V2": "Genotype(recurrent=[('sigmoid', 0), ('relu', 1), ('relu', 1), ('identity', 1), ('tanh', 2), "
    "('sigmoid', 5), ('tanh', 3), ('relu', 5)], concat=range(1, 9))",
    "ENAS": "Genotype(recurrent=[('tanh', 0), ('tanh', 1), ('relu', 1), ('tanh', 3), ('tanh', 3), ('relu', 3), "
    "('relu', 4), ('relu', 7), ('relu', 8), ('relu', 8), ('relu', 8)], concat=[2, 5, 6, 9, 10, 11])",
}

PUBLISHED = {name: RecurrentGenotype.parse(text) for name, text in _TEXTS.items()}
