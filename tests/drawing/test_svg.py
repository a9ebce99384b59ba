"""A cell's SVG: what a page and its script find in it, what a blind reader hears, and names that are not kind."""

import re
from itertools import combinations
from xml.etree import ElementTree

import numpy as np
import pytest

import fastnas
from fastnas.drawing import STYLE, Weights, cell_svg
from fastnas.drawing.palette import DARK, KINDS, LIGHT
from fastnas.spaces import CellString, Choice
from tests.drawing.geometry import SVG, read

CELL = CellString(("nor_conv_3x3", "skip_connect", "none", "avg_pool_3x3", "nor_conv_1x1", "none"))
(GRAPH,) = CELL.graphs()
WEIGHTS = Weights((0.5, 0.25, None, 1.0, 0.0, 0.125), (None, 0.75, None, None))


def parsed(*, weights=WEIGHTS, graph=GRAPH, portrait=False):
    return ElementTree.fromstring(cell_svg(graph, weights, ident="here", portrait=portrait))


def classes(element):
    return element.get("class", "").split()


@pytest.mark.parametrize("portrait", [False, True])
def test_a_script_finds_edges_weights_and_nodes(portrait):
    root = parsed(portrait=portrait)
    for i, (_, _, primitive) in enumerate(GRAPH.edges):
        (path,) = [e for e in root.iter(f"{SVG}path") if e.get("data-edge") == str(i)]
        (label,) = [e for e in root.iter(f"{SVG}g") if e.get("data-edge") == str(i)]
        assert {"cell-edge", f"op-{primitive}"} <= set(classes(path))
        assert {"cell-op", f"op-{primitive}"} <= set(classes(label))
        weight = WEIGHTS.edges[i]
        shown = [
            (t.get("data-edge"), t.text) for t in label.iter(f"{SVG}tspan") if "cell-weight" in classes(t)
        ]
        assert shown == ([] if weight is None else [(str(i), f"{weight:.3f}")])
        assert path.get("style") == (None if weight is None else f"--width: {1 + 4 * weight:g}px")
        assert label.find(f"{SVG}text").text.strip() == primitive
    (node,) = [e for e in root.iter(f"{SVG}g") if e.get("data-node")]
    assert node.find(f"{SVG}text/{SVG}tspan").get("data-node") == node.get("data-node") == "1"
    roles = [classes(e)[1:] for e in root.iter(f"{SVG}g") if "cell-node" in classes(e)]
    assert roles == [["cell-input"], [], [], ["cell-output"]]


def test_it_says_the_cell_in_words():
    root = parsed()
    assert root.get("role") == "img"
    title, description = (root.find(f"{SVG}{name}") for name in ("title", "desc"))
    assert root.get("aria-labelledby").split() == [title.get("id"), description.get("id")]
    assert title.text == "cell cell"
    assert description.text == (
        "1 (weight 0.750) reads nor_conv_3x3 0.500 of input. 2 reads skip_connect 0.250 of input, none of 1. "
        "output reads avg_pool_3x3 1.000 of input, nor_conv_1x1 0.000 of 1, none 0.125 of 2."
    )


def test_other_weights_move_nothing():
    def bare(weights):
        return re.sub(
            r'0\.\d\d|stroke-width="[\d.]+"| style="[^"]*"', "", cell_svg(GRAPH, weights, ident="a")
        )

    first, second = (Weights((weight,) * 6, (weight,) * 4) for weight in (0.01, 0.87))
    assert bare(first) == bare(second)


def test_wider_edges_weigh_more():
    widths = [float(path.get("stroke-width")) for path in parsed().iter(f"{SVG}path")]
    assert widths == [3.0, 2.0, 1.6, 5.0, 1.0, 1.5]


UNKIND = (
    "<script>alert(1)</script>",
    '"]; --x',
    "\x00\x1b[2J",
    "\ud800",
    "&amp;",
    "x" * 500,
    "卷积" * 9,
    "{}%s",
)


@pytest.mark.parametrize("name", UNKIND)
def test_names_are_text_whatever_is_in_them(name):
    choice = Choice(name, {name: ((0, 1, name), (1, 2, "none"))})
    text = fastnas.draw(choice).svg()
    text.encode()
    root = ElementTree.fromstring(text)
    assert "script" not in {element.tag.removeprefix(SVG) for element in root.iter()}
    drawn = read(cell_svg(choice.graphs()[0], ident=name))
    left, _, right, _ = drawn.labels[0]
    assert right - left < 300
    known = {
        "class",
        "id",
        "d",
        "points",
        "transform",
        "x",
        "y",
        "width",
        "height",
        "rx",
        "fill",
        "stroke",
        "style",
    }
    known |= {
        "viewBox",
        "role",
        "aria-labelledby",
        "stroke-width",
        "stroke-dasharray",
        "data-edge",
        "font-size",
    }
    known |= {"font-family", "text-anchor", "textLength", "lengthAdjust"}
    assert {attribute for element in root.iter() for attribute in element.attrib} <= known


def linear(colour):
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    return np.array([p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts])


def luminance(colour):
    return linear(colour) @ (0.2126, 0.7152, 0.0722)


def contrast(a, b):
    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("colours", [LIGHT, DARK], ids=["light", "dark"])
def test_contrast_is_what_wcag_asks_for(colours):
    papers = ["paper", "node", "input", *(f"{kind}-paper" for kind in KINDS)]
    assert all(contrast(colours["ink"], colours[paper]) >= 7 for paper in papers)
    assert contrast(colours["muted"], colours["none-paper"]) >= 4.5
    assert all(contrast(colours[line], colours["paper"]) >= 3 for line in ("muted", *KINDS))
    assert all(contrast(colours[kind], colours[f"{kind}-paper"]) >= 3 for kind in KINDS)


# Machado, Oliveira and Fernandes 2009: what linear RGB is to readers without one kind of cone.
DEFICIENCIES = {
    "none": np.eye(3),
    "protanopia": [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]],
    "deuteranopia": [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]],
    "tritanopia": [[1.256, -0.077, -0.179], [-0.078, 0.931, 0.148], [0.005, 0.691, 0.304]],
}
XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def seen(colour, deficiency):
    """CIELAB of a colour as such a reader sees it."""
    rgb = np.clip(np.array(DEFICIENCIES[deficiency]) @ linear(colour), 0, 1)
    x, y, z = np.cbrt(XYZ @ rgb / (0.9505, 1, 1.089))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("deficiency", list(DEFICIENCIES))
@pytest.mark.parametrize("colours", [LIGHT, DARK], ids=["light", "dark"])
def test_the_colour_blind_tell_kinds_apart(colours, deficiency):
    """By 15 units at least; a just noticeable difference is about 2.3. What is "none" is dashed."""
    kinds = [seen(colours[kind], deficiency) for kind in ("convolution", "pooling", "skip", "other")]
    assert min(np.linalg.norm(a - b) for a, b in combinations(kinds, 2)) > 15


def test_every_custom_property_is_defined_in_light_and_dark():
    assert LIGHT.keys() == DARK.keys()
    used = set(re.findall(r"var\(--([a-z-]+)", STYLE))
    assert used >= {"ink", "paper", "muted", "none", "convolution-paper", "kind"}
    assert used - {"kind", "kind-paper", "width"} <= LIGHT.keys()  # those are of the elements
    assert "prefers-color-scheme: dark" in STYLE


def test_a_drawing_alone_brings_its_style_and_paper():
    text = fastnas.draw(CELL).svg()
    assert "prefers-color-scheme: dark" in text
    assert 'class="cell-paper"' in text
    assert "url(" not in text
    assert "http" not in text.replace("http://www.w3.org/2000/svg", "")
