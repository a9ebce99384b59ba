"""The spaces as data: shapes, derivation, the sizes that papers report."""

import pytest
import torch

from fastnas import FastnasError
from fastnas.describe import describe
from fastnas.spaces import CellString, Genotype, family, make_network, make_space, read_genotype
from fastnas.spaces.genotype import DARTS_PRIMITIVES, NASBENCH201_PRIMITIVES


@pytest.mark.parametrize(
    ("space", "channels", "layers", "weights"),
    [
        ("darts", 16, 8, 1_930_618),
        ("nasbench201", 16, 5, 1_692_826),
        ("nasbench1shot1-1", 16, 9, 1_101_402),
        ("nasbench1shot1-2", 16, 9, 1_101_402),
        ("nasbench1shot1-3", 16, 9, 1_509_594),
    ],
)
def test_supernets_have_the_papers_weights(space, channels, layers, weights):
    assert describe(make_space(space, channels=channels, layers=layers)).parameters == weights


@pytest.mark.parametrize(("name", "weights"), [("DARTS_V1", 3_169_414), ("DARTS_V2", 3_349_342)])
def test_discrete_networks_have_the_papers_weights(name, weights):
    space = make_network("darts", read_genotype("darts", name), channels=36, layers=20)
    assert describe(space).parameters == weights


# Parameters and multiply-adds as the benchmark's table lists them (CIFAR-10, C = 16, N = 5).
@pytest.mark.parametrize(
    ("cell", "weights", "macs"),
    [
        (
            "|nor_conv_3x3~0|+|nor_conv_3x3~0|nor_conv_3x3~1|+|skip_connect~0|nor_conv_3x3~1|nor_conv_3x3~2|",
            1_288_506,
            184_730_240,
        ),
        (
            "|avg_pool_3x3~0|+|nor_conv_1x1~0|skip_connect~1|+|nor_conv_1x1~0|skip_connect~1|skip_connect~2|",
            129_306,
            None,
        ),
    ],
)
def test_nasbench201_networks_cost_what_its_table_says(cell, weights, macs):
    found = describe(make_network("nasbench201", CellString.parse(cell)))
    assert found.parameters == weights
    assert macs is None or found.macs == macs


def test_darts_shapes():
    space = make_space("darts", channels=16, layers=8)
    assert {alpha.name: alpha.shape for alpha in space.alphas} == {"normal": (14, 8), "reduce": (14, 8)}
    kinds = [stage.kind for stage in space.stages]
    assert kinds == ["stem", *["normal"] * 2, "reduce", *["normal"] * 2, "reduce", *["normal"] * 2, "head"]
    reduction = space.stages[3]
    assert [edge.stride for edge in reduction.edges] == [2, 2, 2, 2, 1, 2, 2, 1, 1, 2, 2, 1, 1, 1]
    assert {alpha.shape for alpha in make_space("nasbench201").alphas} == {(6, 5)}


def test_darts_derives_the_two_strongest_edges_of_each_node():
    alpha = torch.zeros(14, 8)
    alpha[:, 0] = 9.0  # none never counts, however strong
    expected = []
    row = 0
    for target in range(2, 6):
        first, second = target - 1, 0
        alpha[row + first, 4], alpha[row + second, 7] = 11.0, 10.0
        expected += [(DARTS_PRIMITIVES[4], first), (DARTS_PRIMITIVES[7], second)]
        row += target
    genotype = family("darts").derive({"normal": alpha, "reduce": torch.zeros(14, 8)})
    assert genotype.normal == tuple(expected)
    # All equal: the earliest states, the first primitive that is not none.
    assert genotype.reduce == (("max_pool_3x3", 0), ("max_pool_3x3", 1)) * 4
    assert genotype.normal_concat == (2, 3, 4, 5)


def test_darts_ranks_edges_after_the_softmax_over_all_primitives():
    alpha = torch.zeros(14, 8)
    alpha[2, 4], alpha[2, 0] = 3.0, 5.0  # strong, but none is stronger on that edge
    alpha[3, 5], alpha[4, 6] = 1.0, 1.1
    genotype = family("darts").derive({"normal": alpha, "reduce": alpha})
    assert genotype.normal[2:4] == (("dil_conv_3x3", 2), ("sep_conv_5x5", 1))


def test_nasbench201_derives_the_strongest_primitive_none_included():
    alpha = torch.eye(5).repeat(2, 1)[:6]
    genotype = family("nasbench201").derive({"cell": alpha})
    assert genotype.ops == (*NASBENCH201_PRIMITIVES, "none")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"name": "dart"}, "unknown space 'dart'; known are darts, nasbench201,"),
        ({"name": "darts", "channels": 3}, "channels must be even"),
        ({"name": "darts", "layers": 0}, "layers must be at least 1, got 0"),
        ({"name": "nasbench201", "classes": -1}, "classes must be at least 1"),
    ],
)
def test_an_impossible_space_is_one_sentence(arguments, sentence):
    with pytest.raises(FastnasError, match=sentence):
        make_space(**arguments)


def test_a_genotype_of_another_space_is_refused():
    cell = CellString(("none",) * 6)
    with pytest.raises(FastnasError, match="does not fit the space darts"):
        make_network("darts", cell)
    pairs = (("skip_connect", 0), ("none", 1))
    with pytest.raises(FastnasError, match="does not fit the space nasbench201"):
        make_network("nasbench201", Genotype(pairs, (2,), pairs, (2,)))
