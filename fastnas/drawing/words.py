"""A drawn cell in words, for those who do not see it."""

from __future__ import annotations

from collections import Counter

from fastnas.drawing.layout import DIGITS, label_text, short
from fastnas.drawing.weights import Weights
from fastnas.spaces.genotype import Graph


def state_names(graph: Graph) -> list[str]:
    """The states' labels, numbered where two are alike."""
    shown = [short(label) for label in graph.labels]
    times = Counter(shown)
    return [f"{i} {name}" if times[name] > 1 else name for i, name in enumerate(shown)]


def in_words(graph: Graph, weights: Weights) -> str:
    """One sentence a state that reads others."""
    names = state_names(graph)
    reads: dict[int, list[str]] = {}
    for i, (source, target, label) in enumerate(graph.edges):
        shown = label_text(label, weights.edges[i])
        reads.setdefault(target, []).append(f"{shown} of {names[source]}" if shown else names[source])
    sentences = []
    for state in sorted(reads):
        weight = "" if weights.nodes[state] is None else f" (weight {weights.nodes[state]:.{DIGITS}f})"
        sentences.append(f"{names[state]}{weight} reads {', '.join(reads[state])}.")
    return " ".join(sentences) or "It has no edges."
