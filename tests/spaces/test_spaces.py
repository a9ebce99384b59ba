"""The spaces as data: shapes, derivation, the sizes that papers report."""

import pytest
import torch

from fastnas import FastnasError
from fastnas.describe import describe
from fastnas.spaces import SPACES, CellString, Genotype, family, make_network, make_space, read_genotype
from fastnas.spaces.counting import edges_of_alphas
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


# Weights of a primitive at C channels, by its stride, in a supernet; all others have none.
WEIGHTS = {
    "sep_conv_3x3": lambda c, stride: 2 * (9 * c + c * c),
    "sep_conv_5x5": lambda c, stride: 2 * (25 * c + c * c),
    "dil_conv_3x3": lambda c, stride: 9 * c + c * c,
    "dil_conv_5x5": lambda c, stride: 25 * c + c * c,
    "skip_connect": lambda c, stride: c * c if stride == 2 else 0,
}


@pytest.mark.parametrize("name", ["s1", "s2", *(f"robustdarts-s{i}" for i in (1, 2, 3, 4))])
def test_supernets_in_darts_skeleton_have_the_weights_of_their_parts(name):
    """C = 16, 8 cells, reductions in layers 2 and 5: each sum written out, no description asked but for primitives."""
    space = make_space(name, channels=16, layers=8)
    edges = edges_of_alphas(space)
    total = 3 * 48 * 9 + 2 * 48  # the stem, with scale and shift
    behind, before, c = 48, 48, 16
    for layer in range(8):
        c *= 2 if layer in (2, 5) else 1
        total += (behind + before) * c
        kind = "reduce" if layer in (2, 5) else "normal"
        for edge in edges[f"cell_{layer:02d}" if name == "s2" else kind]:
            stride = 2 if kind == "reduce" and edge.source < 2 else 1
            total += sum(WEIGHTS[op](c, stride) for op in edge.primitives if op in WEIGHTS)
        behind, before = before, 4 * c
    assert describe(space).parameters == total + 256 * 10 + 10


@pytest.mark.parametrize(
    ("name", "weights"),
    # To the digit DARTS' own code, the others as far as their papers print them, in millions.
    [("DARTS_V1", 3_169_414), ("DARTS_V2", 3_349_342), ("PC_DARTS_cifar", 3.6), ("PDARTS", 3.4)],
)
def test_discrete_networks_have_the_papers_weights(name, weights):
    found = describe(make_network("darts", read_genotype("darts", name), channels=36, layers=20)).parameters
    assert found == weights or round(found / 1e6, 1) == weights


@pytest.mark.parametrize(
    ("name", "networks"),
    [
        ("nasbench201", "1.6e+04"),
        ("darts", "1.1e+18"),
        ("s1", "3.3e+13"),
        ("s2", "1.5e+48"),
        ("robustdarts-s1", "2.1e+09"),
        ("robustdarts-s3", "2.1e+09"),  # none is not chosen
    ],
)
def test_spaces_hold_the_papers_number_of_networks(name, networks):
    assert f"{family(name).networks(make_space(name)):.1e}" == networks


def test_the_fixed_edges_of_s1_and_s2():
    """Node i reads c_{k-2} and the state before it."""
    for name in ("s1", "s2"):
        for edges in edges_of_alphas(make_space(name, channels=4, layers=3)).values():
            pairs = [(edge.source, edge.target) for edge in edges]
            assert pairs == [(0, 2), (1, 2), (0, 3), (2, 3), (0, 4), (3, 4), (0, 5), (4, 5)]
    alphas = make_space("s2").alphas
    assert [alpha.shape for alpha in alphas] == [(8, 2)] * 20
    assert [alpha.name for alpha in alphas][:2] == ["cell_00", "cell_01"]
    wide = make_space("s2", primitives=[name for name in DARTS_PRIMITIVES if name != "none"])
    assert wide.alphas[19].shape == (8, 7)


def test_s1_derives_the_strongest_primitive_of_every_edge():
    alphas = {"normal": torch.eye(7).roll(1, 0).repeat(2, 1)[:8], "reduce": torch.eye(7).repeat(2, 1)[:8]}
    genotype = family("s1").derive(alphas)
    best = [DARTS_PRIMITIVES[k] for k in (7, 1, 2, 3, 4, 5, 6, 7)]
    assert genotype.normal == tuple(zip(best, (0, 1, 0, 2, 0, 3, 0, 4), strict=True))
    assert [op for op, _ in genotype.reduce] == [*DARTS_PRIMITIVES[1:], "max_pool_3x3"]


def test_s2_derives_every_cell_by_itself():
    alphas = {f"cell_{layer:02d}": torch.zeros(8, 2) for layer in range(4)}
    alphas["cell_02"][5, 1] = 1.0
    genotype = family("s2").derive(alphas)
    chosen = [[op for op, _ in cell] for cell in genotype.cells]
    assert chosen[0] == chosen[1] == chosen[3] == ["skip_connect"] * 8
    assert chosen[2] == ["skip_connect"] * 5 + ["sep_conv_3x3"] + ["skip_connect"] * 2
    assert genotype.reductions == (1, 2)
    assert genotype.skip_share() == 31 / 32
    other = family("s2", ("none", "noise")).derive(alphas)
    assert other.cells[2][4:6] == (("none", 0), ("noise", 3))


def test_an_s2_network_is_its_genotypes_cells():
    alphas = {f"cell_{layer:02d}": torch.randn(8, 2) for layer in range(4)}
    genotype = family("s2").derive(alphas)
    space = make_network("s2", genotype, channels=4)
    cells = space.stages[1:-1]
    assert [cell.kind for cell in cells] == ["normal", "reduce", "reduce", "normal"]
    for cell, pairs in zip(cells, genotype.cells, strict=True):
        assert [(edge.primitives[0], edge.source) for edge in cell.edges] == list(pairs)
    with pytest.raises(FastnasError, match="this genotype has 4 cells, not 5; leave out --layers"):
        make_network("s2", genotype, channels=4, layers=5)


@pytest.mark.parametrize("space", [f"robustdarts-s{i}" for i in (1, 2, 3, 4)])
def test_published_genotypes_of_reduced_spaces_lie_in_them(space):
    """Each edge has a primitive that its authors' list has there."""
    edges = edges_of_alphas(make_space(space))
    assert SPACES[space].published
    for genotype in SPACES[space].published.values():
        for kind in ("normal", "reduce"):
            known = {(e.source, e.target): e.primitives for e in edges[kind]}
            for i, (op, source) in enumerate(getattr(genotype, kind)):
                assert op in known[source, 2 + i // 2]


def test_reduced_spaces_derive_as_darts_does():
    """Two edges a node by their strongest primitive, none excluded, noise not; each column is its edge's primitive."""
    alpha = torch.zeros(14, 2)
    alpha[5, 1], alpha[7, 0] = 2.0, 1.0  # into the third node, from states 0 and 2
    genotype = family("robustdarts-s1").derive({"normal": alpha, "reduce": alpha})
    assert genotype.normal[4:6] == (("skip_connect", 0), ("skip_connect", 2))
    assert genotype.reduce[4:6] == (("avg_pool_3x3", 0), ("skip_connect", 2))
    strong = torch.tensor([[3.0, 0.0, 1.0]]).repeat(14, 1)
    assert {op for op, _ in family("robustdarts-s3").derive({"normal": strong, "reduce": strong}).normal} == {
        "sep_conv_3x3"
    }
    noisy = torch.tensor([[1.0, 0.0]]).repeat(14, 1)
    assert {op for op, _ in family("robustdarts-s4").derive({"normal": noisy, "reduce": noisy}).normal} == {
        "noise"
    }


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
        ({"name": "dart"}, "unknown space 'dart'; known are darts, nasbench201, .*, robustdarts-s4"),
        (
            {"name": "s2", "primitives": ("none", "sep_conv_9x9")},
            "unknown primitive 'sep_conv_9x9'; known are none",
        ),
        (
            {"name": "s2", "primitives": ("none,noise",)},
            "takes names with spaces between them, not commas: 'no",
        ),
        ({"name": "s2", "primitives": ("none", "none")}, "must list different primitives, got none none"),
        ({"name": "s2", "primitives": ()}, "must list different primitives, got none"),
        ({"name": "s1", "primitives": ("none",)}, "edges of space s1 have their own primitives"),
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
