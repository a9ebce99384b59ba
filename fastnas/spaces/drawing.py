"""Genotypes as Graphviz graphs: text that ``dot`` turns into a picture."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from fastnas.spaces.genotype import CellString, Genotype
from fastnas.spaces.nasbench101 import CellMatrix
from fastnas.spaces.nasbench201 import EDGES

_STYLE = """  graph [rankdir=LR, bgcolor=white, color=white, labeljust=l, fontname="Helvetica", fontsize=16];
  graph [nodesep=0.35, ranksep=0.7, fontcolor="#22303c"];
  node [shape=box, style="rounded,filled", fontname="Helvetica", fontsize=13, color="#5b6b7b", fillcolor="#eef2f6"];
  edge [fontname="Helvetica", fontsize=11, color="#5b6b7b", fontcolor="#22303c", arrowsize=0.7];"""


def to_dot(genotype: Genotype | CellString | CellMatrix) -> str:
    """The cells as a Graphviz graph, edges labelled with their primitives; ``none`` is left out.

    In NAS-Bench-101's cells the nodes have the primitives, and what leads nowhere is left out.

    ``python -m fastnas.describe --genotype FILE --dot | dot -Tsvg -o cell.svg`` draws it.

    >>> print(to_dot(CellString(("none",) * 5 + ("skip_connect",))).splitlines()[-3])
        cell_2 -> cell_3 [label="skip_connect"];
    """
    if isinstance(genotype, Genotype):
        cells = [
            # dot stacks clusters from the bottom.
            _darts_cell("reduce", genotype.reduce, genotype.reduce_concat),
            _darts_cell("normal", genotype.normal, genotype.normal_concat),
        ]
    elif isinstance(genotype, CellMatrix):
        cells = [_matrix_cell(genotype.pruned())]
    else:
        edges = [(edge.source, edge.target, op) for edge, op in zip(EDGES, genotype.ops, strict=True)]
        cells = [_cluster("cell", ["input", "1", "2", "output"], edges)]
    return "\n".join(["digraph genotype {", _STYLE, *cells, "}"])


def _darts_cell(name: str, pairs: Sequence[tuple[str, int]], concat: Sequence[int]) -> str:
    nodes = len(pairs) // 2
    labels = ["c(k-2)", "c(k-1)", *map(str, range(nodes)), "c(k)"]
    edges = [(source, 2 + i // 2, op) for i, (op, source) in enumerate(pairs)]
    return _cluster(name, labels, [*edges, *((state, 2 + nodes, "") for state in concat)])


def _matrix_cell(cell: CellMatrix) -> str:
    edges = [
        (source, target, "")
        for source, row in enumerate(cell.matrix)
        for target, is_fed in enumerate(row)
        if is_fed
    ]
    return _cluster("cell", cell.operations, edges)


def _cluster(name: str, labels: Sequence[str], edges: Iterable[tuple[int, int, str]]) -> str:
    lines = [f"  subgraph cluster_{name} {{", f'    label="{name}";']
    lines += [f'    {name}_{i} [label="{label}"];' for i, label in enumerate(labels)]
    lines += [
        f'    {name}_{source} -> {name}_{target} [label="{op}"];'
        for source, target, op in edges
        if op != "none"
    ]
    return "\n".join([*lines, "  }"])
