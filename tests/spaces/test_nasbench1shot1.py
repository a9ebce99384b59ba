"""NAS-Bench-101's cells and NAS-Bench-1Shot1's spaces of them."""

import json

import pytest
import torch

from fastnas import FastnasError
from fastnas.describe import describe
from fastnas.spaces import CellMatrix, family, make_network, make_space, read_genotype, to_dot

NAMES = {"i": "input", "3": "conv3x3-bn-relu", "1": "conv1x1-bn-relu", "m": "maxpool3x3", "o": "output"}


def cell(rows, operations):
    """Of rows as "0110 0011 ..." and operations as "i3o"."""
    matrix = tuple(tuple(map(int, row)) for row in rows.split())
    return CellMatrix(matrix, tuple(NAMES[letter] for letter in operations))


# As the benchmark's table lists them (C = 128, 9 cells): the first one of its file, and its documentation's example.
@pytest.mark.parametrize(
    ("genotype", "weights"),
    [
        (cell("0100110 0010000 0001001 0000010 0000010 0000001 0000000", "i3m331o"), 8_555_530),
        (cell("0111010 0000001 0000001 0000100 0000001 0000001 0000000", "i1333mo"), 2_694_282),
    ],
)
def test_nasbench101_networks_have_the_tables_weights(genotype, weights):
    assert describe(make_network("nasbench1shot1-1", genotype)).parameters == weights


@pytest.mark.parametrize(
    ("number", "blocks", "choosing"), [(1, 4, (3, 4)), (2, 4, (2, 3, 4)), (3, 5, (2, 3, 4, 5))]
)
def test_alpha_has_a_row_for_each_choice(number, blocks, choosing):
    alphas = {a.name: a.shape for a in make_space(f"nasbench1shot1-{number}").alphas}
    expected = {"operations": (blocks, 3), "output": (1, blocks + 1)}
    assert alphas == expected | {f"parents_{node}": (1, node) for node in choosing}


def test_images_halve_before_the_second_and_third_stack():
    found = describe(make_space("nasbench1shot1-3", channels=16, layers=9))
    kinds = [row.kind for row in found.stages]
    assert kinds == ["stem", *["cell"] * 3, "pool", *["cell"] * 3, "pool", *["cell"] * 3, "head"]
    assert [found.stages[i].output for i in (0, 3, 7, 11)] == [
        (16, 32, 32),
        (80, 32, 32),
        (160, 16, 16),
        (320, 8, 8),
    ]


def test_derivation_by_hand():
    """The strongest parents, of space 2's nodes 3 and 4 two, of its output three, and primitives; ties: the earlier."""
    alphas = {
        "operations": torch.tensor([[0.0, 1, 0], [0, 0, 1], [1, 0, 0], [0, 0, 0]]),
        "output": torch.tensor([[1.0, 0, 3, 2, -1]]),
        "parents_2": torch.tensor([[0.0, 1]]),
        "parents_3": torch.tensor([[2.0, 0, 1]]),
        "parents_4": torch.zeros(1, 4),
    }
    found = family("nasbench1shot1-2").derive(alphas)
    assert found == cell("010111 001010 000101 000001 000000 000000", "i31mmo")
    assert found.pruned() == cell("01011 00100 00011 00001 00000", "i31mo")
    assert found.skip_share() == 1 / 3


@pytest.mark.parametrize("number", [1, 2, 3])
def test_what_has_no_choice_is_taken_and_every_node_has_its_parents(number):
    torch.manual_seed(number)
    space = family(f"nasbench1shot1-{number}")
    parents = {1: [0, 1, 2, 2, 2, 2], 2: [0, 1, 1, 2, 2, 3], 3: [0, 1, 1, 1, 2, 2, 2]}[number]
    shapes = {a.name: a.shape for a in make_space(space.name).alphas}
    for _ in range(20):
        found = space.derive({name: torch.randn(shape) for name, shape in shapes.items()})
        assert [sum(column) for column in zip(*found.matrix, strict=True)] == parents


def test_a_cell_is_read_as_it_is_written(tmp_path):
    genotype = cell("0110 0011 0001 0000", "i3mo")
    assert CellMatrix.parse(str(genotype)) == CellMatrix.parse(json.dumps(genotype.to_json())) == genotype
    path = tmp_path / "cell.json"
    path.write_text(
        json.dumps({"module_adjacency": genotype.matrix, "module_operations": genotype.operations})
    )
    assert (
        read_genotype("nasbench1shot1-3", path)
        == read_genotype("nasbench1shot1-1", str(genotype))
        == genotype
    )


def test_pruning_leaves_out_what_leads_nowhere():
    """Vertex 1 is not read, vertex 3 reads nothing."""
    assert cell("01101 00000 00001 00001 00000", "i13mo").pruned() == cell("011 001 000", "i3o")


def test_a_drawing_has_primitives_in_its_nodes_and_no_loose_ends():
    text = to_dot(cell("01101 00000 00001 00001 00000", "i13mo"))
    assert 'cell_1 [label="conv3x3-bn-relu"];' in text
    assert [line.split(" [")[0].strip() for line in text.splitlines() if "->" in line] == [
        "cell_0 -> cell_1",
        "cell_0 -> cell_2",
        "cell_1 -> cell_2",
    ]


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: cell("01 00 00", "io"), "must be square, with 2 to 7 rows, got 3 of"),
        (lambda: cell("010 000 010", "i3o"), "ones above its diagonal only, got 1 in row 2, column 1"),
        (lambda: CellMatrix(((0, 2), (0, 0)), ("input", "output")), "got 2 in row 0, column 1"),
        (lambda: cell("011 001 000", "i3"), "3 operations are needed, from 'input' to 'output'"),
        (lambda: CellMatrix(((0, 1), (0, 0)), ("input", "input")), "from 'input' to 'output'"),
        (
            lambda: CellMatrix(((0, 1, 0), (0, 0, 1), (0, 0, 0)), ("input", "conv", "output")),
            "unknown operation 'conv'; known are maxpool3x3, conv3x3-bn-relu, conv1x1-bn-relu",
        ),
        (lambda: cell("010 000 000", "i3o"), "no way leads from the input to the output"),
        (lambda: cell("01111 00111 00011 00001 00000", "i333o"), "9 edges at most, got 10"),
        (lambda: CellMatrix.parse("[1]"), "not a NAS-Bench-101 cell: expected"),
        (lambda: CellMatrix.parse('{"matrix": [["0"]], "operations": []}'), "not a NAS-Bench-101 cell"),
        (lambda: CellMatrix.parse('{"matrix": 3, "operations": ["input"]}'), "not a NAS-Bench-101 cell"),
        (lambda: read_genotype("darts", str(cell("01 00", "io"))), "it is one of nasbench1shot1-1"),
    ],
)
def test_a_cell_that_is_none_is_one_sentence(make, sentence):
    with pytest.raises(FastnasError, match=sentence):
        make()
