"""A drawn cell in words, for those who do not see it."""

from __future__ import annotations

from fastnas.drawing.layout import label_text, short
from fastnas.drawing.weights import Weights
from fastnas.spaces.genotype import Graph


def state_names(graph: Graph) -> list[str]:
    """The states' labels, numbered where two are alike."""
    shown = [short(label) for label in graph.labels]
    return [f"{i} {name}" if shown.count(name) > 1 else name for i, name in enumerate(shown)]


def in_words(graph: Graph, weights: Weights) -> str:
    """One sentence a state that reads others."""
    names, sentences = state_names(graph), []
    for state, name in enumerate(names):
        reads = []
        for i, (source, target, label) in enumerate(graph.edges):
            if target == state:
                shown = label_text(label, weights.edges[i]) if label else ""
                reads.append(f"{shown} of {names[source]}" if shown else names[source])
        if reads:
            weight = "" if weights.nodes[state] is None else f" (weight {weights.nodes[state]:.2f})"
            sentences.append(f"{name}{weight} reads {', '.join(reads)}.")
    return " ".join(sentences) or "It has no edges."
