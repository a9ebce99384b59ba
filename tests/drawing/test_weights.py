"""What is written on an edge is the softmax weight of just that primitive on just that edge."""

import pytest
import torch

from fastnas.drawing import weights_of
from fastnas.errors import FastnasError
from fastnas.spaces import SPACES, CellMatrix, Choice, Space, make_space, read_genotype
from fastnas.spaces.darts import supernet
from fastnas.spaces.genotype import DARTS_PRIMITIVES
from fastnas.spaces.nasbench101 import NASBENCH101_PRIMITIVES


def random_alphas(space, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {alpha.name: torch.randn(alpha.shape, generator=generator) for alpha in space.alphas}


def found_weights(name, seed=0, **sizes):
    """The space, its softmax weights by name, the graphs of a derived cell and their weights."""
    space = make_space(name, **sizes)
    alphas = random_alphas(space, seed)
    genotype = SPACES[name].derive(alphas)
    weights = weights_of(space, genotype, alphas)
    return {key: alpha.softmax(-1) for key, alpha in alphas.items()}, genotype, weights


@pytest.mark.parametrize(
    ("name", "inputs", "columns"),
    [
        ("darts", 2, DARTS_PRIMITIVES),
        ("robustdarts-s3", 2, ("none", "skip_connect", "sep_conv_3x3")),
        ("nasbench201", 1, ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")),
        ("recurrent", 1, ("none", "tanh", "relu", "sigmoid", "identity")),
    ],
)
def test_cells_with_all_edges(name, inputs, columns):
    """Row i is edge i by target, then source: those into node t begin behind t (t - 1) / 2 others, less the inputs'."""
    rows, genotype, weights = found_weights(name)
    for graph, found in zip(genotype.graphs(), weights, strict=True):
        alpha = rows[graph.name if len(rows) > 1 else "cell"]
        for (source, target, label), weight in zip(graph.edges, found.edges, strict=True):
            row = target * (target - 1) // 2 - inputs * (inputs - 1) // 2 + source
            assert weight == (pytest.approx(float(alpha[row, columns.index(label)])) if label else None)
        assert set(found.nodes) == {None}


@pytest.mark.parametrize("name", ["s1", "s2"])
def test_cells_with_fixed_edges(name):
    """Two edges a node, the first of them from c(k-2); in S2 each cell has an alpha, in the order of the graphs."""
    rows, genotype, weights = found_weights(name, layers=5)
    assert [graph.name for graph in genotype.graphs()] == (
        ["normal", "reduce"]
        if name == "s1"
        else ["cell_0", "cell_1_reduce", "cell_2", "cell_3_reduce", "cell_4"]
    )
    for alpha, found in zip(rows.values(), weights, strict=True):
        assert found.edges[:8] == pytest.approx(alpha.max(-1).values.tolist())
        assert found.edges[8:] == (None,) * 4


def test_a_column_may_be_another_primitive_on_each_edge():
    rows, _, weights = found_weights("robustdarts-s1")
    for kind, found in zip(("normal", "reduce"), weights, strict=True):
        strongest = rows[kind].max(-1).values.tolist()
        assert all(min(abs(weight - s) for s in strongest) < 1e-6 for weight in found.edges[:8])
    published = read_genotype("robustdarts-s1", "DARTS_S1_cifar10_1127860_1")
    space = make_space("robustdarts-s1")
    normal, _ = weights_of(space, published, random_alphas(space))
    alpha = rows["normal"]
    assert published.normal[:2] == (("skip_connect", 1), ("skip_connect", 0))
    assert normal.edges[:2] == pytest.approx([float(alpha[1, 0]), float(alpha[0, 0])])
    assert published.normal[7] == (
        "dil_conv_3x3",
        3,
    )  # of skip_connect dil_conv_3x3 into node 3; of two dilated ones, the first
    assert normal.edges[7] == pytest.approx(float(alpha[12, 0]))


def test_parents_and_primitives_of_a_pruned_cell():
    """Vertex 2 is not read: vertices 3, 4 and 5 are drawn as 2, 3 and 4."""
    matrix = [
        [0, 1, 1, 1, 0, 0],
        [0, 0, 0, 1, 0, 0],
        [0] * 6,
        [0, 0, 0, 0, 1, 1],
        [0, 0, 0, 0, 0, 1],
        [0] * 6,
    ]
    primitives = NASBENCH101_PRIMITIVES
    operations = ("input", *(primitives[k] for k in (0, 1, 2, 1)), "output")
    space = make_space("nasbench1shot1-1")
    alphas = random_alphas(space)
    rows = {key: alpha.softmax(-1) for key, alpha in alphas.items()}
    cell = CellMatrix(tuple(map(tuple, matrix)), operations)
    (graph,), (found,) = cell.graphs(), weights_of(space, cell, alphas)
    assert [edge[:2] for edge in graph.edges] == [(0, 1), (0, 2), (1, 2), (2, 3), (2, 4), (3, 4)]
    wanted = [rows["parents_3"][0, 0], rows["parents_3"][0, 1], rows["parents_4"][0, 3]]
    wanted += [rows["output"][0, 3], rows["output"][0, 4]]
    assert found.edges[0] is None  # vertex 1 has no choice
    assert found.edges[1:] == pytest.approx(list(map(float, wanted)))
    assert found.nodes[0] is found.nodes[4] is None
    assert found.nodes[1:4] == pytest.approx(
        [float(rows["operations"][v - 1, k]) for v, k in ((1, 0), (3, 2), (4, 1))]
    )


def test_what_nothing_weighs_has_none():
    """A published cell may have primitives that the supernet mixes not."""
    space = make_space("darts")
    _, reduce = weights_of(space, read_genotype("darts", "NASNet"), random_alphas(space))
    assert reduce.edges[1] is None  # sep_conv_7x7
    assert reduce.edges[0] is not None


def test_a_space_of_ones_own():
    """Its alphas and graphs have their names."""
    darts = supernet(4, 3, 10)
    space = Space("mine", 3, darts.stages, tuple(reversed(darts.alphas)))
    alphas = random_alphas(space)
    choice = Choice("mine", {"reduce": ((0, 2, "none"),), "normal": ((1, 2, "skip_connect"),)})
    first, second = weights_of(space, choice, alphas)
    assert first.edges == pytest.approx([float(alphas["reduce"].softmax(-1)[0, 0])])
    assert second.edges == pytest.approx([float(alphas["normal"].softmax(-1)[1, 3])])


def test_alphas_of_another_space_are_refused():
    genotype = read_genotype("darts", "DARTS_V2")
    space = make_space("darts")
    with pytest.raises(
        FastnasError, match=r"space darts: 'normal' must have the shape \(14, 8\) and is missing"
    ):
        weights_of(space, genotype, {})
    with pytest.raises(
        FastnasError, match=r"'reduce' must have the shape \(14, 8\) and has the shape \(8, 7\)"
    ):
        weights_of(space, genotype, {"normal": torch.zeros(14, 8), "reduce": torch.zeros(8, 7)})
