"""Genotypes: the field's formats, read back what is written, nothing evaluated."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastnas import FastnasError
from fastnas.spaces import (
    SPACES,
    CellSequence,
    CellString,
    Choice,
    Genotype,
    find_genotype,
    read_genotype,
    to_dot,
)
from fastnas.spaces.genotype import DISCRETE_PRIMITIVES, NASBENCH201_PRIMITIVES
from fastnas.spaces.published import PUBLISHED

SOURCE = (
    "Genotype(normal=[('sep_conv_3x3', 1), ('skip_connect', 0)], normal_concat={concat}, "
    "reduce=[('max_pool_3x3', 0), ('none', 1)], reduce_concat={concat})"
)


@st.composite
def cells(draw):
    nodes = draw(st.integers(1, 6))
    pairs = [
        (draw(st.sampled_from(DISCRETE_PRIMITIVES)), draw(st.integers(0, 1 + i // 2)))
        for i in range(2 * nodes)
    ]
    states = st.lists(st.integers(0, 1 + nodes), unique=True, min_size=1)
    return tuple(pairs), tuple(draw(states))


@st.composite
def genotypes(draw):
    return Genotype(*draw(cells()), *draw(cells()))


@st.composite
def sequences(draw):
    found = draw(st.lists(cells(), min_size=1, max_size=4))
    reductions = draw(st.lists(st.integers(0, len(found) - 1), unique=True))
    return CellSequence(
        tuple(pairs for pairs, _ in found), tuple(concat for _, concat in found), tuple(reductions)
    )


@given(genotypes())
def test_what_is_printed_reads_back(genotype):
    assert Genotype.parse(str(genotype)) == genotype
    assert Genotype.parse(json.dumps(genotype.to_json())) == genotype


@given(sequences())
def test_a_sequence_of_cells_reads_back(sequence):
    assert CellSequence.parse(str(sequence)) == sequence
    assert CellSequence.parse(f"NAME = {sequence}") == sequence
    assert CellSequence.parse(json.dumps(sequence.to_json())) == sequence
    drawn = to_dot(sequence)
    assert drawn.count("subgraph") == len(sequence.cells)
    assert drawn.count("_reduce {") == len(sequence.reductions)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("CellSequence(cells=[], concats=[], reductions=[])", "needs a concat for each cell, got 0 for 0"),
        ("CellSequence(cells=[[('none', 0), ('none', 1)]], concats=[], reductions=[])", "got 0 for 1"),
        (
            "CellSequence(cells=[[('none', 0)]], concats=[[2]], reductions=[])",
            "cell 0 needs two edges a node",
        ),
        (
            "CellSequence(cells=[[('none', 0), ('none', 1)]], concats=[[2]], reductions=[1])",
            "cells from 0 to 0",
        ),
        ("CellSequence(cells=3, concats=[[2]], reductions=[1])", "not a sequence of cells"),
        ("Genotype(cells=[], concats=[], reductions=[])", "not a sequence of cells"),
        (
            '{"cells": [[["none", 0], ["none", true]]], "concats": [[2]], "reductions": []}',
            "cell 0 must be a list",
        ),
    ],
)
def test_a_bad_sequence_is_one_sentence(text, sentence):
    with pytest.raises(FastnasError, match=sentence):
        CellSequence.parse(text)


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        '{"space": "mine", "edges": [1]}',
        '{"space": "mine", "edges": {}}',
        '{"space": "mine", "edges": {"cell": []}}',
        '{"space": "mine", "edges": {"cell": [[0, 1000000000000, "none"]]}}',
        '{"space": "mine", "edges": {"cell": [[1, 0, "none"]]}}',
        '{"space": "mine", "edges": {"cell": [[0, 1, 2]]}}',
    ],
)
def test_a_bad_choice_is_one_sentence(text):
    with pytest.raises(FastnasError, match="not a choice of primitives"):
        Choice.parse(text)


def test_the_space_of_a_genotype_is_found(tmp_path):
    """From its published name, the run's folder, its JSON, or else from its format."""
    assert find_genotype("DARTS_S4_cifar10_1127865_1").space == "robustdarts-s4"
    darts = PUBLISHED["DARTS_V1"]
    assert find_genotype(str(darts)) == ("darts", darts)
    run = tmp_path / "run"
    run.mkdir()
    with pytest.raises(FastnasError, match=r"is no run, or has no genotype yet: .*genotype.json is missing"):
        find_genotype(run)
    (run / "genotype.json").write_text(json.dumps({**darts.to_json(), "space": "s1"}))
    assert find_genotype(run) == find_genotype(run / "genotype.json") == ("s1", darts)
    assert find_genotype(run, "darts") == ("darts", darts)  # the same format, the same network
    with pytest.raises(
        FastnasError, match="does not fit the space nasbench201: it is one of s1; say --space s1"
    ):
        find_genotype(run, "nasbench201")
    with pytest.raises(FastnasError, match=f"of none of the spaces {', '.join(SPACES)}"):
        find_genotype('{"space": "gone"}')
    assert read_genotype(None, run) == darts


@given(st.lists(st.sampled_from(NASBENCH201_PRIMITIVES), min_size=6, max_size=6))
def test_a_cell_string_reads_back(ops):
    cell = CellString(tuple(ops))
    assert CellString.parse(str(cell)) == cell
    assert CellString.parse(f"Structure(4 nodes with {cell})") == cell  # as its authors' code prints it
    assert CellString.parse(json.dumps(cell.to_json())) == cell


@pytest.mark.parametrize("concat", ["[2]", "range(2, 3)", "(2,)", "list(range(2, 3))"])
@pytest.mark.parametrize("prefix", ["", "DARTS = "])
def test_dots_of_the_source_format(concat, prefix):
    genotype = Genotype.parse(prefix + SOURCE.format(concat=concat))
    assert genotype.normal == (("sep_conv_3x3", 1), ("skip_connect", 0))
    assert genotype.normal_concat == genotype.reduce_concat == (2,)
    assert genotype.skip_share() == 1 / 4


def test_darts_prints_as_darts_does():
    assert str(PUBLISHED["DARTS_V2"]).startswith(
        "Genotype(normal=[('sep_conv_3x3', 0), ('sep_conv_3x3', 1), ('sep_conv_3x3', 0)"
    )


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "not a DARTS genotype"),
        ("{}", "not a DARTS genotype"),
        ("[1, 2]", "not a DARTS genotype"),
        ("Genotype(__import__('os').system('true'), [2], [], [2])", "not a DARTS genotype"),
        (SOURCE.format(concat="range(10**9)"), "not a DARTS genotype"),
        (SOURCE.format(concat="range(0, 2**40)"), "not a DARTS genotype"),
        (SOURCE.format(concat="3"), "normal_concat must be a list"),
        (
            SOURCE.format(concat="[0x" + "f" * 5000 + "]"),
            "normal_concat must be a list of states, got a list that is too",
        ),
        (SOURCE.format(concat="[2]").replace(", 1)", ", 0x" + "f" * 5000 + ")"), "normal must be a list"),
        (SOURCE.format(concat="[3]"), "normal_concat must list different states from 0 to 2"),
        (SOURCE.format(concat="[2, 2]"), "must list different states"),
        (
            SOURCE.format(concat="[2]").replace("sep_conv_3x3", "sep_conv_9x9"),
            "unknown primitive 'sep_conv_9x9'",
        ),
        (
            SOURCE.format(concat="[2]").replace("'sep_conv_3x3', 1", "'sep_conv_3x3', 2"),
            "may read states 0 to 1",
        ),
        (SOURCE.format(concat="[2]").replace(", ('none', 1)", ""), "reduce needs two edges a node, got 1"),
        (SOURCE.format(concat="[2]").replace("('none', 1)", "3"), "list of \\(primitive, state\\) pairs"),
        ("(" * 5000, "not a DARTS genotype"),
        ("[" * 100000, "not a DARTS genotype"),
    ],
)
def test_a_bad_genotype_is_one_sentence(text, sentence):
    with pytest.raises(FastnasError, match=sentence) as caught:
        Genotype.parse(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "|none~0|",
        "|none~0|+|none~0|none~1|+|none~0|none~1|none~1|",
        "{}",
        "|a~0|+|a~0|a~1|+|a~0|a~1|a~2|",
    ],
)
def test_a_bad_cell_string_is_one_sentence(text):
    with pytest.raises(FastnasError, match="NAS-Bench-201"):
        CellString.parse(text)


def test_genotypes_from_names_and_files(tmp_path):
    assert read_genotype("darts", "DARTS_V1") == PUBLISHED["DARTS_V1"]
    file = tmp_path / "cell.txt"
    file.write_text(SOURCE.format(concat="[2]"))
    assert read_genotype("darts", file).normal_concat == (2,)
    odd = tmp_path / "a (run)"
    odd.write_text(file.read_text())
    assert read_genotype("darts", odd).normal_concat == (2,)
    file.write_bytes(b"\xff\xfe\x00")
    for source, sentence in [
        (file, "cannot be read as text"),
        (tmp_path / "absent", "no such file"),
        ("DARTS_V3", "DARTS_V1, DARTS_V2"),
        ("|none~0|+|none~0|none~1|+|none~0|none~1|none~2|", "say --space nasbench201"),
    ]:
        with pytest.raises(FastnasError, match=sentence):
            read_genotype("darts", source)
    with pytest.raises(FastnasError, match="does not fit nasbench201"):
        read_genotype("nasbench201", "DARTS_V1")


def test_a_file_that_is_no_genotype_by_its_size_is_not_read(tmp_path):
    file = tmp_path / "weights"
    with file.open("wb") as stream:
        stream.truncate(2**40)
    with pytest.raises(FastnasError, match=r"no genotype takes 1,099,511,627,776 bytes"):
        read_genotype("darts", file)


def test_odd_literals_are_not_warned_of(recwarn):
    with pytest.raises(FastnasError):
        Genotype.parse("Genotype(1if 2else 3, '\\d')")
    assert not recwarn.list
