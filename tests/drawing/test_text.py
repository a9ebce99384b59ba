"""Cells drawn with characters."""

import io
import sys
from pathlib import Path

import pytest

from fastnas.drawing import text_drawing, weights_of
from fastnas.spaces import SPACES, CellMatrix, CellString, make_space, read_genotype
from tests.drawing.test_weights import random_alphas

DARTS_V2 = """\
normal                           reduce
c(k-2) ── sep_conv_3x3 ─┬─▸ 0    c(k-2) ── max_pool_3x3 ─┬─▸ 0
c(k-1) ── sep_conv_3x3 ─┘        c(k-1) ── max_pool_3x3 ─┘
c(k-2) ── sep_conv_3x3 ─┬─▸ 1    0 ─────── skip_connect ─┬─▸ 1
c(k-1) ── sep_conv_3x3 ─┘        c(k-1) ── max_pool_3x3 ─┘
c(k-1) ── sep_conv_3x3 ─┬─▸ 2    c(k-2) ── max_pool_3x3 ─┬─▸ 2
c(k-2) ── skip_connect ─┘        0 ─────── skip_connect ─┘
c(k-2) ── skip_connect ─┬─▸ 3    0 ─────── skip_connect ─┬─▸ 3
0 ─────── dil_conv_3x3 ─┘        c(k-1) ── max_pool_3x3 ─┘
0, 1, 2, 3 ──▸ c(k)              0, 1, 2, 3 ──▸ c(k)"""


def test_two_cells_side_by_side():
    assert text_drawing(read_genotype("darts", "DARTS_V2"), unicode=True) == DARTS_V2


def test_the_guide_shows_it():
    page = Path(__file__).parents[2] / "docs/guide/drawing.md"
    assert DARTS_V2 in page.read_text(encoding="utf-8")


def test_a_narrow_terminal_has_them_one_above_the_other():
    genotype = read_genotype("darts", "DARTS_V2")
    lines = text_drawing(genotype, 40, unicode=True).splitlines()
    sides = [line.split("    ") for line in DARTS_V2.splitlines()]
    assert len(lines) == 20
    assert (lines[0], lines[10]) == ("normal", "reduce")
    assert lines[1:3] == ["c(k-2) ── sep_conv_3x3 ─┬─▸ 0", "c(k-1) ── sep_conv_3x3 ─┘"]
    assert sides[1][0] == lines[1]
    assert all(len(line) <= 12 for line in text_drawing(genotype, 12).splitlines())


def test_a_primitive_on_a_node_stands_there():
    cell = CellMatrix(
        ((0, 1, 1, 0), (0, 0, 1, 1), (0, 0, 0, 1), (0,) * 4), ("input", *["maxpool3x3"] * 2, "output")
    )
    assert text_drawing(cell, unicode=False).splitlines() == [
        "cell",
        "input --> 1 maxpool3x3",
        "input, 1 maxpool3x3 --> 2 maxpool3x3",
        "1 maxpool3x3, 2 maxpool3x3 --> output",
    ]


def test_weights_stand_behind_the_primitives():
    space = make_space("nasbench201")
    alphas = {name: 0 * alpha for name, alpha in random_alphas(space).items()}
    cell = CellString(("nor_conv_3x3",) * 6)
    drawn = text_drawing(cell, unicode=False, weights=weights_of(space, cell, alphas))
    assert drawn.splitlines()[1:4] == [
        "input -- nor_conv_3x3 0.200 ---> 1",
        "input -- nor_conv_3x3 0.200 -+-> 2",
        "1 ------ nor_conv_3x3 0.200 -+",
    ]


def test_a_screen_is_not_filled_with_cells():
    space = make_space("s2")
    genotype = SPACES["s2"].derive(random_alphas(space))
    lines = text_drawing(genotype, 80).splitlines()
    assert len(lines) <= 24
    assert lines[-1] == "and 16 more of 20 cells"
    assert len(text_drawing(genotype, 80, lines=1000).splitlines()) == 100


@pytest.mark.parametrize(
    ("encoding", "sign"), [("ascii", ">"), ("utf-8", "▸"), ("cp1252", ">"), ("latin-1", ">")]
)
def test_what_the_terminal_cannot_show_is_not_written(monkeypatch, encoding, sign):
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding=encoding))
    drawn = text_drawing(read_genotype("recurrent", "ENAS"))
    drawn.encode(encoding)
    assert sign in drawn
