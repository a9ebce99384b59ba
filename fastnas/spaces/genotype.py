"""Genotypes, the discrete cells that a search ends with, in the field's own formats.

:class:`Genotype` is DARTS' (normal and reduction cell, any number of nodes); :class:`CellString` is
NAS-Bench-201's architecture string. All are read without evaluating anything. What every space's genotype can do is
:class:`AnyGenotype`.
"""

from __future__ import annotations

import ast
import json
import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

from fastnas.errors import FastnasError

# What published genotypes of the DARTS family use; the search itself mixes the first eight.
DARTS_PRIMITIVES = (
    "none",
    "max_pool_3x3",
    "avg_pool_3x3",
    "skip_connect",
    "sep_conv_3x3",
    "sep_conv_5x5",
    "dil_conv_3x3",
    "dil_conv_5x5",
)
DISCRETE_PRIMITIVES = (*DARTS_PRIMITIVES, "sep_conv_7x7", "conv_7x1_1x7", "noise")
NASBENCH201_PRIMITIVES = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
HOW_OWN = "one of your own is registered first, on a command line by --import FILE"
_WORD = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")  # what a primitive of one's own may be called
_NAMED: ContextVar[frozenset[str]] = ContextVar("_NAMED", default=frozenset())
OWN_PRIMITIVES: dict[str, None] = {}  # names that fastnas.register_primitive has added, in their order

MOST_STATES = 10_000  # of a cell: far more than any has, and no more than can be drawn

Pair = tuple[str, int]


class Graph(NamedTuple):
    """A cell to be drawn: its states' labels, and its edges as (source, target, label), "" being unlabelled."""

    name: str
    labels: tuple[str, ...]
    edges: tuple[tuple[int, int, str], ...]


@runtime_checkable
class AnyGenotype(Protocol):
    """What every space's genotype can do; ``str()`` gives its text format."""

    def to_json(self) -> dict[str, Any]:
        """Plain data for ``json.dump``, its space's name under "space"; ``parse`` reads it back."""

    def skip_share(self) -> float:
        """The share of skip_connect among all of its edges."""

    def graphs(self) -> tuple[Graph, ...]:
        """Its cells as graphs."""

    @classmethod
    def parse(cls, text: str) -> AnyGenotype:
        """From text or JSON.

        Raises:
            FastnasError: it is neither.
        """


class Drawable:
    """A genotype that a notebook shows as a drawing."""

    def _repr_svg_(self) -> str | None:
        from fastnas.drawing.notebook import genotype_svg  # here: it reads spaces

        return genotype_svg(self)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Genotype(Drawable):
    """DARTS' pair of cells: for each node two (primitive, source state), states 0 and 1 being the cell's inputs.

    Liu et al. 2019, section 2.4. ``str()`` gives the format of DARTS' genotypes.py:

    >>> str(Genotype((("skip_connect", 0), ("none", 1)), (2,), (("none", 0), ("none", 1)), (2,)))[:44]
    "Genotype(normal=[('skip_connect', 0), ('none"
    """

    normal: tuple[Pair, ...]
    normal_concat: tuple[int, ...]
    reduce: tuple[Pair, ...]
    reduce_concat: tuple[int, ...]

    def __post_init__(self) -> None:
        for cell in ("normal", "reduce"):
            check_cell(cell, getattr(self, cell), getattr(self, f"{cell}_concat"))

    def __str__(self) -> str:
        return (
            f"Genotype(normal={list(self.normal)}, normal_concat={list(self.normal_concat)}, "
            f"reduce={list(self.reduce)}, reduce_concat={list(self.reduce_concat)})"
        )

    def to_json(self) -> dict[str, Any]:
        """Plain data for ``json.dump``; :meth:`parse` reads it back."""
        return {
            "space": "darts",
            "normal": [list(pair) for pair in self.normal],
            "normal_concat": list(self.normal_concat),
            "reduce": [list(pair) for pair in self.reduce],
            "reduce_concat": list(self.reduce_concat),
        }

    def skip_share(self) -> float:
        """The share of skip_connect among all edges of both cells."""
        return share("skip_connect", [op for op, _ in self.normal + self.reduce])

    def graphs(self) -> tuple[Graph, ...]:
        """Both cells as graphs, the normal one first."""
        return (
            cell_graph("normal", self.normal, self.normal_concat),
            cell_graph("reduce", self.reduce, self.reduce_concat),
        )

    @classmethod
    def parse(cls, text: str) -> Genotype:
        """From DARTS' source format (lists or ``range``, with or without ``NAME =``) or from JSON.

        Raises:
            FastnasError: it is neither, or the cells are not valid.
        """
        names = ("normal", "normal_concat", "reduce", "reduce_concat")
        fields = json_object(text) or call_fields("Genotype", names, text)
        if fields is None or not set(names) <= fields.keys():
            raise FastnasError(
                "not a DARTS genotype: expected Genotype(normal=[('sep_conv_3x3', 0), ...], normal_concat=[...], "
                f"reduce=[...], reduce_concat=[...]) or the same as JSON, got {shorten(text)}"
            )
        return cls(
            read_pairs("normal", fields["normal"]),
            read_integers("normal_concat", fields["normal_concat"]),
            read_pairs("reduce", fields["reduce"]),
            read_integers("reduce_concat", fields["reduce_concat"]),
        )


@dataclass(frozen=True)
class CellString(Drawable):
    """NAS-Bench-201's cell (Dong and Yang 2020): one primitive on each edge, by target node then source.

    >>> cell = CellString.parse("|none~0|+|nor_conv_3x3~0|skip_connect~1|+|none~0|none~1|avg_pool_3x3~2|")
    >>> cell.ops
    ('none', 'nor_conv_3x3', 'skip_connect', 'none', 'none', 'avg_pool_3x3')
    >>> str(cell)
    '|none~0|+|nor_conv_3x3~0|skip_connect~1|+|none~0|none~1|avg_pool_3x3~2|'
    """

    ops: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(self.ops) != 6:
            raise FastnasError(f"a NAS-Bench-201 cell has 6 edges, got {len(self.ops)}")
        for op in self.ops:
            check_primitive("NAS-Bench-201 cell", op, NASBENCH201_PRIMITIVES)

    def __str__(self) -> str:
        ops = iter(self.ops)
        nodes = ["".join(f"|{next(ops)}~{source}" for source in range(target)) for target in (1, 2, 3)]
        return "|+".join(nodes) + "|"

    def to_json(self) -> dict[str, Any]:
        """Plain data for ``json.dump``; :meth:`parse` reads it back."""
        return {"space": "nasbench201", "arch": str(self)}

    def skip_share(self) -> float:
        """The share of skip_connect among the six edges."""
        return share("skip_connect", self.ops)

    def graphs(self) -> tuple[Graph, ...]:
        """The cell as a graph."""
        ends = [(source, target) for target in (1, 2, 3) for source in range(target)]
        edges = tuple((source, target, op) for (source, target), op in zip(ends, self.ops, strict=True))
        return (Graph("cell", ("input", "1", "2", "output"), edges),)

    @classmethod
    def parse(cls, text: str) -> CellString:
        """From the official string, perhaps as ``Structure(4 nodes with |...|)``, or JSON ``{"arch": "|...|"}``.

        Raises:
            FastnasError: it is neither, or a primitive is unknown.
        """
        fields = json_object(text)
        arch = fields.get("arch") if fields else text.strip()
        if printed := re.fullmatch(r"Structure\(\d+ nodes with (.+)\)", str(arch)):
            arch = printed[1]
        found = re.fullmatch(
            r"\|([^|~]+)~0\|\+\|([^|~]+)~0\|([^|~]+)~1\|\+\|([^|~]+)~0\|([^|~]+)~1\|([^|~]+)~2\|", str(arch)
        )
        if found is None:
            raise FastnasError(
                "not a NAS-Bench-201 architecture string: expected |op~0|+|op~0|op~1|+|op~0|op~1|op~2|, "
                f"got {shorten(text)}"
            )
        return cls(found.groups())


def cell_graph(name: str, pairs: Sequence[Pair], concat: Sequence[int]) -> Graph:
    """A cell of DARTS' kind as a graph."""
    nodes = len(pairs) // 2
    labels = ("c(k-2)", "c(k-1)", *map(str, range(nodes)), "c(k)")
    edges = [(source, 2 + i // 2, op) for i, (op, source) in enumerate(pairs)]
    return Graph(name, labels, (*edges, *((state, 2 + nodes, "") for state in concat)))


def check_cell(cell: str, pairs: Sequence[Pair], concat: Sequence[int]) -> None:
    """Raises FastnasError if this is no cell of DARTS' kind, which messages call ``cell``."""
    if not pairs or len(pairs) % 2:
        raise FastnasError(f"genotype: {cell} needs two edges a node, got {len(pairs)} edges")
    for i, (op, source) in enumerate(pairs):
        check_primitive("genotype", op, DISCRETE_PRIMITIVES, f" in {cell}")
        if not 0 <= source < 2 + i // 2:
            raise FastnasError(
                f"genotype: edge {i} of {cell} enters node {2 + i // 2} and reads state {source}; "
                f"it may read states 0 to {1 + i // 2}"
            )
    last = 1 + len(pairs) // 2
    if not concat or len(set(concat)) != len(concat) or not all(0 <= state <= last for state in concat):
        raise FastnasError(
            f"genotype: {cell}_concat must list different states from 0 to {last}, got {list(concat)}"
        )


def check_primitive(what: str, name: str, known: Sequence[str], where: str = "") -> None:
    """Raises FastnasError if ``name`` is neither one of ``known`` nor a primitive of the user's own."""
    if name not in known and name not in OWN_PRIMITIVES and name not in _NAMED.get():
        if what == "--primitives" and "," in name:
            raise FastnasError(
                f"--primitives takes names with spaces between them, not commas: {shorten(name)}"
            )
        raise FastnasError(
            f"{what}: unknown primitive {name!r}{where}; known are {', '.join((*known, *OWN_PRIMITIVES))}; {HOW_OWN}"
        )


def is_word(name: Any) -> bool:
    """Whether a primitive of a user's own may be called so."""
    return isinstance(name, str) and _WORD.fullmatch(name) is not None


@contextmanager
def named_primitives(names: Any) -> Iterator[None]:
    """Within it genotypes and spaces may have these primitives, too, which are nothing but names: to draw, not to run.

    Args:
        names: a list of words; whatever else comes from a file is left out.
    """
    words = filter(is_word, names if isinstance(names, list | tuple) else ())
    before = _NAMED.set(_NAMED.get() | frozenset(words))
    try:
        yield
    finally:
        _NAMED.reset(before)


def json_object(text: str) -> dict[str, Any] | None:
    """The JSON object that ``text`` is; None if it is not one."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def call_fields(function: str, names: Sequence[str], text: str) -> dict[str, Any] | None:
    """The arguments of ``[NAME =] function(...)`` by name, literals and ``range`` only; None if it is not one."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what Python thinks of the style of "1if"
            body = ast.parse(text.strip()).body
        if len(body) != 1 or not isinstance(body[0], ast.Expr | ast.Assign):
            return None
        call = body[0].value
        if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == function):
            return None
        fields = dict(zip(names, call.args, strict=False))
        fields.update({keyword.arg or "": keyword.value for keyword in call.keywords})
        return {name: _literal(node) for name, node in fields.items()}
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return None


def _literal(node: ast.expr) -> Any:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        if node.func.id == "range" and not node.keywords:
            bounds = [ast.literal_eval(argument) for argument in node.args]
            if any(not isinstance(bound, int) or abs(bound) > 1000 for bound in bounds):
                raise ValueError("range")
            return list(range(*bounds))
        if node.func.id == "list" and len(node.args) == 1:
            return _literal(node.args[0])
    return ast.literal_eval(node)


def read_pairs(name: str, value: Any) -> tuple[Pair, ...]:
    """``value``, which came from a file, as the field ``name`` of (primitive, state) pairs."""
    try:
        pairs = [(op, source) for op, source in value]
    except (TypeError, ValueError):
        pairs = []
    if not pairs or not all(isinstance(op, str) and is_integer(source) for op, source in pairs):
        raise FastnasError(
            f"genotype: {name} must be a list of (primitive, state) pairs, got {shorten(value)}"
        )
    return tuple(pairs)


def read_integers(name: str, value: Any) -> tuple[int, ...]:
    """``value``, which came from a file, as the field ``name`` of states."""
    if (
        not isinstance(value, Iterable)
        or isinstance(value, str)
        or not all(map(is_integer, value := list(value)))
    ):
        raise FastnasError(f"genotype: {name} must be a list of states, got {shorten(value)}")
    return tuple(value)


def is_integer(value: Any) -> bool:
    """Whether ``value``, which came from a file, is a whole number that may count states, and not true or false."""
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) <= MOST_STATES


def share(name: str, ops: Sequence[str]) -> float:
    """The share of ``name`` among ``ops``."""
    return sum(op == name for op in ops) / len(ops)


def shorten(value: Any) -> str:
    """``value`` as a message shows it."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # a number of thousands of digits; lists within lists
        return f"a {type(value).__name__} that is too large to show"
    return text if len(text) <= 80 else text[:77] + "..."
