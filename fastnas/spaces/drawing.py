"""Genotypes as Graphviz graphs: text that ``dot`` turns into a picture."""

from __future__ import annotations

from fastnas.spaces.genotype import AnyGenotype, Graph

_STYLE = """  graph [rankdir=LR, bgcolor=white, color=white, labeljust=l, fontname="Helvetica", fontsize=16];
  graph [nodesep=0.35, ranksep=0.7, fontcolor="#22303c"];
  node [shape=box, style="rounded,filled", fontname="Helvetica", fontsize=13, color="#5b6b7b", fillcolor="#eef2f6"];
  edge [fontname="Helvetica", fontsize=11, color="#5b6b7b", fontcolor="#22303c", arrowsize=0.7];"""


def to_dot(genotype: AnyGenotype) -> str:
    """The cells as a Graphviz graph, edges labelled with their primitives; ``none`` is left out.

    In NAS-Bench-101's cells the nodes have the primitives, and what leads nowhere is left out.

    ``python -m fastnas.describe --genotype FILE --dot | dot -Tsvg -o cell.svg`` draws it.

    >>> from fastnas.spaces import CellString
    >>> print(to_dot(CellString(("none",) * 5 + ("skip_connect",))).splitlines()[-3])
        cell_2 -> cell_3 [label="skip_connect"];
    """
    graphs = reversed(genotype.graphs())  # dot stacks them from the bottom
    return "\n".join(["digraph genotype {", _STYLE, *map(_cluster, graphs), "}"])


def _cluster(graph: Graph) -> str:
    name = graph.name
    lines = [f"  subgraph cluster_{name} {{", f'    label="{name}";']
    lines += [f'    {name}_{i} [label="{label}"];' for i, label in enumerate(graph.labels)]
    lines += [
        f'    {name}_{source} -> {name}_{target} [label="{op}"];'
        for source, target, op in graph.edges
        if op != "none"
    ]
    return "\n".join([*lines, "  }"])
