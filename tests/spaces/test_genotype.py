"""Genotypes: the field's formats, read back what is written, nothing evaluated."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastnas import FastnasError
from fastnas.spaces import CellString, Genotype, read_genotype
from fastnas.spaces.genotype import DISCRETE_PRIMITIVES, NASBENCH201_PRIMITIVES
from fastnas.spaces.published import PUBLISHED

SOURCE = (
    "Genotype(normal=[('sep_conv_3x3', 1), ('skip_connect', 0)], normal_concat={concat}, "
    "reduce=[('max_pool_3x3', 0), ('none', 1)], reduce_concat={concat})"
)


@st.composite
def genotypes(draw):
    def cell():
        nodes = draw(st.integers(1, 6))
        pairs = [
            (draw(st.sampled_from(DISCRETE_PRIMITIVES)), draw(st.integers(0, 1 + i // 2)))
            for i in range(2 * nodes)
        ]
        states = st.lists(st.integers(0, 1 + nodes), unique=True, min_size=1)
        return tuple(pairs), tuple(draw(states))

    return Genotype(*cell(), *cell())


@given(genotypes())
def test_what_is_printed_reads_back(genotype):
    assert Genotype.parse(str(genotype)) == genotype
    assert Genotype.parse(json.dumps(genotype.to_json())) == genotype


@given(st.lists(st.sampled_from(NASBENCH201_PRIMITIVES), min_size=6, max_size=6))
def test_a_cell_string_reads_back(ops):
    cell = CellString(tuple(ops))
    assert CellString.parse(str(cell)) == cell
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
