"""fastnas.draw: from whatever holds a genotype to a file, or one sentence."""

import json
import math
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image

import fastnas
from fastnas.drawing import Drawing
from fastnas.drawing.weights import Weights
from fastnas.errors import FastnasError
from fastnas.retrain import RetrainConfig, RetrainResult
from fastnas.search import SearchConfig, SearchResult
from fastnas.search.folder import RunFolder
from fastnas.spaces import (
    SPACES,
    CellSequence,
    CellString,
    Choice,
    Genotype,
    family,
    make_space,
    read_genotype,
)
from fastnas.spaces.genotype import Graph
from tests.drawing.geometry import SVG
from tests.drawing.test_weights import random_alphas

V2 = read_genotype("darts", "DARTS_V2")


@pytest.fixture
def found(tmp_path):
    """A search's result as it is in its folder, its genotype that of the first of two epochs."""
    config = SearchConfig.from_options(
        {"space": "s2", "layers": 4, "primitives": ("none", "skip_connect", "noise")}
    )
    space = make_space("s2", layers=4, primitives=("none", "skip_connect", "noise"))
    config = replace(config, run=replace(config.run, out=tmp_path / "run")).resolved()
    folder = RunFolder.for_config(config)
    folder.start(config)
    results = []
    for epoch in (1, 2):
        alphas = random_alphas(space, epoch)
        genotype = family("s2", ("none", "skip_connect", "noise")).derive(alphas)
        row = {
            "epoch": epoch,
            "train_loss": 1.0,
            "val_loss": 1.0,
            "val_accuracy": 0.5,
            "genotype": str(genotype),
        }
        folder.record(config, row, genotype, alphas)
        results.append(SearchResult(genotype, alphas, [row], folder.path, config))
    (folder.path / "genotype.json").write_bytes((folder.path / "genotypes/epoch-001.json").read_bytes())
    return results[0]


@pytest.mark.parametrize("suffix", [".svg", ".PNG", ".pdf"])
def test_it_is_saved_by_the_ending_of_its_name(tmp_path, suffix):
    path = tmp_path / f"cells{suffix}"
    drawing = fastnas.draw(V2, path)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    if suffix == ".svg":
        assert ElementTree.parse(path).getroot().get("viewBox") == f"0 0 {drawing.width:g} {drawing.height:g}"
        assert path.read_text() == drawing.svg() == drawing._repr_svg_()
    elif suffix == ".pdf":
        assert path.read_bytes().startswith(b"%PDF-")
        first = path.read_bytes()
        assert drawing.save(path).read_bytes() == first
    else:
        image = Image.open(path)
        assert image.width / image.height == pytest.approx(drawing.width / drawing.height, rel=0.01)
        pixels = np.asarray(image.convert("RGB"), int)
        assert (abs(pixels - (0, 90, 150)).sum(-1) < 9).mean() > 0.002  # convolutions are blue
        assert (pixels.sum(-1) == 3 * 255).mean() > 0.4


def test_the_picture_of_the_readme_is_what_is_drawn():
    """If not: python -m fastnas.describe --genotype docs/images/cell.json --draw docs/images/cell.svg"""
    images = Path(__file__).parents[2] / "docs/images"
    assert fastnas.draw(images / "cell.json").svg() == (images / "cell.svg").read_text(encoding="utf-8")


def test_normal_is_left_of_reduction():
    drawing = fastnas.draw(V2)
    normal, reduce = drawing.parts
    assert (normal.heading, reduce.heading) == ("normal", "reduce")
    assert reduce.y == normal.y
    assert reduce.x > normal.x + normal.layout.width
    headings = [
        text.text
        for text in ElementTree.fromstring(drawing.svg()).iter(f"{SVG}text")
        if text.get("y") == "-8"
    ]
    assert headings == ["normal", "reduce"]


def test_equal_cells_in_a_row_are_drawn_once_and_twenty_fill_a_page():
    one, other = V2.normal, V2.reduce
    sequence = CellSequence((one, one, other, one), ((2, 3, 4, 5),) * 4, (2,))
    assert [part.heading for part in fastnas.draw(sequence).parts] == [
        "cell_0 to cell_1",
        "cell_2_reduce",
        "cell_3",
    ]
    weights = tuple(Weights((k / 4,) * 12, (None,) * 7) for k in range(4))
    assert len(Drawing(sequence.graphs(), weights).parts) == 4
    space = make_space("s2")
    drawing = fastnas.draw(SPACES["s2"].derive(random_alphas(space)))
    assert drawing.width <= 2480
    assert len({part.x for part in drawing.parts}) == 2
    boxes = [(p.x, p.y, p.x + p.layout.width, p.y + p.layout.height) for p in drawing.parts]
    for i, a in enumerate(boxes):
        assert all(a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1] for b in boxes[:i])


def test_a_search_is_drawn_with_what_its_alpha_weighs(found):
    drawing = fastnas.draw(found)
    assert drawing.graphs == found.genotype.graphs()
    strongest = [alpha.softmax(-1).max(-1).values.tolist() for alpha in found.alphas.values()]
    assert [weights.edges[:8] for weights in drawing.weights] == [pytest.approx(row) for row in strongest]


def test_a_run_folder_is_drawn_with_the_alphas_of_its_genotype(found):
    """Which is not that of the newest epoch."""
    assert fastnas.draw(found.out) == fastnas.draw(str(found.out)) == fastnas.draw(found)
    (found.out / "genotype.json").write_text(json.dumps(found.genotype.to_json()))  # as no epoch wrote it
    assert fastnas.draw(found.out) == fastnas.draw(found.genotype)


def test_an_early_stop_goes_back_to_just_its_epoch(tmp_path):
    """All epochs have one genotype, and the eigenvalue's rise is seen in epoch 20."""
    config = SearchConfig.from_options(
        {"space": "nasbench201", "early_stop": True, "spectrum_every": 1, "epochs": 20}
    )
    config = replace(config, run=replace(config.run, out=tmp_path / "run")).resolved()
    folder = RunFolder.for_config(config)
    folder.start(config)
    for epoch in range(1, 21):
        alphas = {"cell": torch.zeros(6, 5)}
        alphas["cell"][:, 3] = epoch / 10
        row = {"epoch": epoch, "train_loss": 1.0, "val_loss": 1.0, "genotype": ""}
        row["alpha_hessian_lambda_max"] = 1.0 if epoch <= 18 else 2.0
        folder.record(config, row, family("nasbench201").derive(alphas), alphas)
    (weights,) = fastnas.draw(folder.path).weights
    assert weights.edges == pytest.approx((math.exp(1.3) / (math.exp(1.3) + 4),) * 6)


def test_damaged_alphas_are_said(found):
    (found.out / "alphas/epoch-001.safetensors").write_bytes(b"no")
    with pytest.raises(FastnasError, match=r"the alphas of the run .* cannot be read"):
        fastnas.draw(found.out)


def test_alphas_and_space_may_be_given(found):
    given = fastnas.draw(
        found.genotype,
        alphas=found.alphas,
        space=make_space("s2", layers=4, primitives=("none", "skip_connect", "noise")),
    )
    assert given == fastnas.draw(found)
    cell = CellString(("skip_connect",) * 6)
    (weights,) = fastnas.draw(cell, alphas={"cell": torch.zeros(6, 5)}).weights
    assert weights.edges == pytest.approx((0.2,) * 6)
    with pytest.raises(FastnasError, match="'cell' must have the shape"):
        fastnas.draw(str(cell), alphas={"cell": torch.zeros(5, 5)})


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("cells.gif", r"'.*cells.gif' must end in .svg, .png or .pdf"),
        ("cells", "must end in"),
        ("folder/cells.svg", "cannot be written: there is no folder"),
        ("folder.svg", "is a folder; name a file"),
        ("a\0.svg", "cannot be written: embedded null byte"),
        ("x" * 300 + ".svg", "cannot be (looked at|written)"),
    ],
)
def test_mistakes_about_the_file(tmp_path, name, sentence):
    (tmp_path / "folder.svg").mkdir()
    with pytest.raises(FastnasError, match=sentence):
        fastnas.draw(V2, tmp_path / name)
    assert [file.name for file in tmp_path.iterdir()] == ["folder.svg"]


def test_a_system_that_refuses_is_one_sentence(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fastnas.runs.files.os.replace", full)
    with pytest.raises(FastnasError, match=r"cells.svg cannot be written: No space left on device"):
        fastnas.draw(V2, tmp_path / "cells.svg")
    assert not list(tmp_path.iterdir())


def test_mistakes_about_the_genotype():
    with pytest.raises(FastnasError, match="nothing to draw in a int"):
        fastnas.draw(3)
    with pytest.raises(FastnasError, match="no such file, and no such name"):
        fastnas.draw("DARTS_V3")


def test_what_is_too_large_to_draw_is_said_and_a_notebook_shows_its_text():
    pairs = tuple(("skip_connect", state) for node in range(300) for state in (node, node + 1))
    large = Genotype(pairs, (2,), V2.reduce, (2,))
    with pytest.raises(
        FastnasError, match="the cell normal has 601 edges, and 200 can be drawn; print it with"
    ):
        fastnas.draw(large).svg()
    assert large._repr_svg_() is None
    cells = [(("skip_connect", 0), (name, 1)) for name in ("skip_connect", "noise")] * 150
    with pytest.raises(FastnasError, match="has 300 different cells, and 200 can be drawn"):
        fastnas.draw(CellSequence(tuple(cells), ((2,),) * 300, ())).svg()


def test_states_without_an_edge_are_not_drawn():
    far = Choice("mine", {"cell": ((0, 9999, "skip_connect"),)})
    assert list(fastnas.draw(far).parts[0].layout.nodes) == [0, 9999]


def test_an_edge_that_leads_back_is_refused():
    class Own(Choice):
        def graphs(self):
            return (Graph("loop", ("a", "b"), ((1, 0, "skip_connect"),)),)

    with pytest.raises(FastnasError, match="loop cannot be drawn: edge 0 leads from state 1 to state 0"):
        fastnas.draw(Own("mine", {})).svg()


@pytest.mark.parametrize("space", list(SPACES))
def test_notebooks_show_genotypes_and_spaces(space):
    found = make_space(space)
    genotype = SPACES[space].derive(random_alphas(found))
    assert ElementTree.fromstring(genotype._repr_svg_()).tag == f"{SVG}svg"
    html = ElementTree.fromstring(f"<div>{found._repr_html_()}</div>")
    text = " ".join(html.itertext())
    assert (
        f"{sum(alpha.rows * len(alpha.primitives) for alpha in found.alphas):,} architecture parameters"
        in text
    )
    assert all(alpha.name in text for alpha in found.alphas[:7])


def test_a_space_is_a_table_of_stages():
    rows = ElementTree.fromstring(f"<div>{make_space('darts')._repr_html_()}</div>").findall("table")[0]
    shown = [[cell.text or "" for cell in row] for row in rows]
    assert shown[1:4] == [
        ["0", "stem", "48", "", ""],
        ["1 to 2", "normal cell", "4 × 16", "14, 8 primitives each", "normal"],
        ["3", "reduce cell", "4 × 32", "14, 8 primitives each", "reduce"],
    ]


def test_notebooks_show_results(found):
    html = found._repr_html_()
    assert "50.00 %" in html
    assert str(found.out) in html
    assert 'class="cell-weight"' in html
    trained = RetrainResult({"test_accuracy": 0.9, "parameters": 1234}, [], V2, found.out, RetrainConfig())
    shown = trained._repr_html_()
    assert "90.00 %" in shown
    assert "1,234" in shown
    assert shown.count("<svg") == 1
    broken = replace(found, alphas={})
    assert str(broken.genotype)[:20] in broken._repr_html_()
