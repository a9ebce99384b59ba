"""Charts: where the numbers are in the picture, and that heat maps are the weights."""

import base64
import io
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from fastnas.report.alphas import entropies, genotype_shares, histories, mean_weights
from fastnas.report.charts import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Chart, Curve, Painter
from fastnas.report.curves import charts_of
from fastnas.report.read import read_run
from tests.report.runs import primitive_weights, write_search

SVG = "{http://www.w3.org/2000/svg}"


def parsed(svg):
    return ElementTree.fromstring(svg.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1))


def points(root, colour):
    """The corners of the line of that colour."""
    (line,) = [
        p
        for p in root.iter(f"{SVG}path")
        if p.get("stroke") == f"var(--{colour})" and p.get("transform") is None
    ]
    return np.array(
        re.findall(r"[ML]([-\d.]+) ([-\d.]+)", line.get("d").replace("M ", "M").replace("L ", "L")), float
    )


@pytest.fixture
def painter():
    return Painter()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("charts") / "run"
    alphas = write_search(path, epochs=5)
    return read_run(path), alphas


def chart(values, **options):
    epochs = tuple(range(1, len(values[0]) + 1))
    curves = tuple(Curve(f"curve {i}", tuple(v), f"c{i}") for i, v in enumerate(values))
    return Chart("x", "Title <&>", "unit <&>", epochs, curves, **options)


def test_a_line_is_where_its_values_are(painter):
    values = [3.0, 1.0, 4.0, 1.5, 9.0]
    root = parsed(painter.chart(chart([values]), "a"))
    found = points(root, "c0")
    np.testing.assert_allclose(found[:, 0], np.linspace(LEFT, WIDTH - RIGHT, 5), atol=0.06)
    heights = found[:, 1]
    slope = np.polyfit(values, heights, 1)
    np.testing.assert_allclose(np.polyval(slope, values), heights, atol=0.1)
    assert slope[0] < 0  # up is more
    assert (heights >= TOP).all()
    assert (heights <= HEIGHT - BOTTOM).all()


def test_values_that_are_missing_are_bridged(painter):
    found = points(parsed(painter.chart(chart([[1.0, None, 3.0, None]]), "a")), "c0")
    assert len(found) == 2


def test_the_cursor_stands_at_the_last_epoch(painter):
    root = parsed(painter.chart(chart([[1.0, 2.0, 3.0]]), "a"))
    (cursor,) = [line for line in root.iter(f"{SVG}line")]
    assert float(cursor.get("x1")) == float(root.get("data-right")) == WIDTH - RIGHT
    assert (root.get("data-first"), root.get("data-last")) == ("1", "3")


def test_of_one_epoch_it_stands_in_the_middle(painter):
    root = parsed(painter.chart(chart([[1.0]]), "a"))
    (cursor,) = [line for line in root.iter(f"{SVG}line")]
    assert float(cursor.get("x1")) == (LEFT + WIDTH - RIGHT) / 2


def test_values_over_decades_are_on_a_logarithmic_axis(painter):
    values = [10.0**-k for k in range(5)]
    steps = np.diff(points(parsed(painter.chart(chart([values], may_be_log=True), "a")), "c0")[:, 1])
    np.testing.assert_allclose(steps, steps[0], atol=0.15)
    linear = np.diff(points(parsed(painter.chart(chart([values]), "a")), "c0")[:, 1])
    assert linear[0] > 5 * linear[1]


def test_nothing_but_colours_of_the_page_and_no_identifier_twice(painter):
    svg = painter.chart(chart([[1.0, 2.0], [2.0, 1.0]]), "a") + painter.chart(chart([[1.0, 2.0]]), "b")
    colours = set(re.findall(r'(?:fill|stroke)="([^"]*)"', svg))
    assert colours <= {"none", *(f"var(--{name})" for name in ("ink", "muted", "grid", "c0", "c1"))}
    assert "style=" not in svg
    idents = re.findall(r' id="([^"]*)"', svg)
    assert sorted(idents) == ["a-desc", "a-title", "b-desc", "b-title"]
    assert "Title &lt;&amp;&gt;" in svg
    assert "unit &lt;&amp;&gt;" in svg


def test_a_painter_forgets_the_chart_before(painter):
    one, other = chart([[1.0, 5.0, 2.0]]), chart([[0.2, 0.3, 0.5], [0.8, 0.7, 0.5]], stacked=True)
    first = painter.chart(one, "a")
    painter.chart(other, "b")
    assert painter.chart(one, "a") == first == Painter().chart(one, "a")


def test_numbers_that_charts_must_bear(painter):
    """Constant, huge, tiny, negative, all but one missing: a chart, and no warning."""
    for values in ([0.0] * 3, [1e300, -1e300, 0.0], [1e-300, 2e-300, 0.0], [-5.0] * 3, [None, 2.0, None]):
        for may_be_log in (False, True):
            root = parsed(painter.chart(chart([values], may_be_log=may_be_log), "a"))
            found = points(root, "c0")
            assert np.isfinite(found).all()
            assert (found[:, 1] >= TOP - 1).all()
            assert (found[:, 1] <= HEIGHT - BOTTOM + 1).all()


def test_a_heat_map_is_the_weights(run, painter):
    found, alphas = run
    history = histories(found)[1]
    root = parsed(painter.heat_map(history, "a"))
    (image,) = list(root.iter(f"{SVG}image"))
    data = base64.b64decode(image.get("href").partition(",")[2])
    opacity = np.asarray(Image.open(io.BytesIO(data)))[..., 3]
    weights = np.stack([alphas[e]["reduce"].double().softmax(-1).numpy().reshape(-1) for e in range(1, 6)], 1)
    assert opacity.shape == (14 * 8, 5)
    scaled = (weights - weights.min()) / (weights.max() - weights.min())
    np.testing.assert_allclose(opacity / 255, scaled, atol=0.5 / 255 + 1e-9)
    labels = [text.text for text in root.iter(f"{SVG}text")]
    assert labels.count("sep_conv_3x3") == 14
    assert "c(k-1) → 0" in labels


def test_mean_weights_and_entropies(run):
    found, alphas = run
    of = mean_weights(histories(found))
    for i, epoch in enumerate(of.epochs):
        wanted = primitive_weights(alphas[epoch])
        assert dict(zip(of.primitives, of.shares[i], strict=True)) == pytest.approx(wanted)
    entropy = entropies(histories(found))["normal"][2]
    weights = alphas[3]["normal"].double().softmax(-1).numpy()
    assert entropy == pytest.approx(-(weights * np.log(weights)).sum(1).mean())


def test_shares_of_the_genotype(run):
    found, _ = run
    shares = genotype_shares(found)
    for i, genotype in enumerate(found.genotypes):
        ops = [op for op, _ in genotype.normal + genotype.reduce]
        for k, primitive in enumerate(shares.primitives):
            assert shares.shares[i, k] == pytest.approx(ops.count(primitive) / 16)


def test_charts_are_those_that_have_numbers(run):
    names = {chart.name for charts in charts_of(run[0], histories(run[0])).values() for chart in charts}
    assert names >= {"loss", "accuracy", "entropy", "weights", "shares", "hypergradient", "seconds", "memory"}
    assert not names & {"perplexity", "audit", "hessian", "warnings", "drop-path"}
