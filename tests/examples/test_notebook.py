"""The notebook runs from its first cell to its last, and shows what it says."""

import os
import re
from pathlib import Path

import nbclient
import nbformat
import pytest

from tests.documentation.blocks import ROOT

NOTEBOOK = ROOT / "examples/search.ipynb"


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    """What each cell left, by the cell's name."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client = nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(ROOT)}})
    temporary = str(tmp_path_factory.mktemp("notebook"))
    client.execute(
        env={**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": temporary}
    )  # a cell's error is raised here
    return {cell.id: cell.outputs for cell in notebook.cells if cell.cell_type == "code"}


def text(outputs):
    """What was printed."""
    return "".join(output.text for output in outputs if output.get("name") == "stdout")


def shown(outputs, mime):
    """What is displayed in that format."""
    return [output.data[mime] for output in outputs if mime in output.get("data", {})]


def test_it_is_kept_without_outputs():
    for cell in nbformat.read(NOTEBOOK, as_version=4).cells:
        assert not cell.get("outputs"), cell.id
        assert cell.get("execution_count") is None, cell.id


def test_cells_are_drawn(outputs):
    """As SVG, the normal and the reduction cell, with the weights of what was found."""
    (svg,) = shown(outputs["cell-drawn"], "image/svg+xml")
    genotype = text(outputs["genotype"])
    for primitive in re.findall(r"\('(\w+)', \d\)", genotype):
        assert primitive in svg
    assert svg.startswith("<svg")
    assert svg.count('class="cell-weight"') == 16


@pytest.mark.parametrize("cell", ["data-made", "metrics-drawn", "alpha-drawn"])
def test_figures_are_shown(outputs, cell):
    assert len(shown(outputs[cell], "image/png")) == 1


def test_hypergradients_are_audited(outputs):
    """First order has no second-order term; iDARTS is nearer to its reference than to nothing."""
    first, second = text(outputs["audit-shown"]).splitlines()
    assert first.startswith("first-order")
    assert "term None" in first
    assert second.startswith("idarts")
    assert float(re.search(r"cosine (\S+),", second)[1]) > 0.5


def test_the_network_learns(outputs):
    accuracy, images = re.match(r"(.*)% of (\d+) digits", text(outputs["retrained"])).groups()
    assert float(accuracy) > 80
    assert int(images) == 360


def test_the_report_is_written(outputs):
    """A comparison of both searches."""
    page = Path(text(outputs["report-written"]).strip()).read_text()
    assert all(f">{method}<" in page for method in ("first-order", "idarts"))


def test_nothing_but_searches_warns(outputs):
    warned = {name for name, left in outputs.items() for output in left if output.get("name") == "stderr"}
    assert warned <= {"searches"}
