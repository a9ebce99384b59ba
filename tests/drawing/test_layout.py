"""Nothing in a drawn cell overlaps: no labels, no nodes, and no edge runs through either."""

import pytest
import torch

from fastnas.drawing import Weights, cell_svg
from fastnas.spaces import SPACES, family
from tests.drawing.geometry import faults, read

PUBLISHED = [(space, name) for space in SPACES for name in SPACES[space].published]
CELLS = 200


def check(graph, weighted, portrait):
    labels = [edge[2] for edge in graph.edges]
    shown = [bool(label) or (weighted and not any(labels)) for label in labels]
    edges = tuple(0.25 if weighted and show else None for show in shown)
    weights = Weights(edges, (None,) * len(graph.labels))
    states = sorted({end for source, target, _ in graph.edges for end in (source, target)})
    drawn = read(cell_svg(graph, weights, ident="a", portrait=portrait))
    assert len(drawn.nodes) == len(states)
    assert len(drawn.paths) == len(graph.edges)
    assert list(drawn.labels) == [i for i, show in enumerate(shown) if show]
    assert not faults(graph, drawn, states)
    return drawn


def random_cells(space, count):
    found = family(space)
    supernet = found.supernet(*found.small, 10, 3)
    generator = torch.Generator().manual_seed(0)
    cells = []
    while len(cells) < count:
        alphas = {alpha.name: torch.randn(alpha.shape, generator=generator) for alpha in supernet.alphas}
        cells += found.derive(alphas).graphs()
    return cells[:count]


@pytest.mark.parametrize(("space", "name"), PUBLISHED)
def test_published_cells(space, name):
    for graph in SPACES[space].published[name].graphs():
        for weighted in (False, True):
            check(graph, weighted, portrait=False)
            assert check(graph, weighted, portrait=True).size[0] <= 360


@pytest.mark.parametrize("space", list(SPACES))
def test_random_cells(space):
    for i, graph in enumerate(random_cells(space, CELLS)):
        check(graph, weighted=i % 3 > 0, portrait=i % 2 > 0)
