"""Reports as they look: on a desk, a telephone, paper, in light and dark, to a screen reader."""

import pytest

from bench.made_run import make_run
from fastnas.report import write_report
from tests.browser.conftest import EPOCHS
from tests.browser.looks import PAGE, check_contrast, check_fits, check_structure, pages_of

PHONE = 360
FOLDED = "details:not(.run-fold)"  # the runs of a comparison look as they do alone
TEXT = {"space": "recurrent", "dataset": "ptb", "data": "text", "images": None}
RUNS = {
    "darts": {"extras": True},
    "nasbench201": {"space": "nasbench201"},
    "nasbench1shot1": {"space": "nasbench1shot1-1"},
    "recurrent": TEXT,
    "s2": {"space": "s2"},
    "one-epoch": {"epochs": 1},
}


@pytest.fixture(scope="package")
def comparison(tmp_path_factory):
    """A report of four runs, two of each method."""
    folder = tmp_path_factory.mktemp("comparison")
    runs = [
        make_run(folder / f"{method}-{seed}", epochs=EPOCHS, method=method, seed=seed)
        for method in ("darts", "idarts")
        for seed in (0, 1)
    ]
    return write_report(runs, folder / "report.html")


@pytest.fixture
def file(request, reported, comparison):
    """The report of that name."""
    if request.param == "comparison":
        return comparison
    return reported(**RUNS[request.param]) / "report.html"


@pytest.mark.parametrize("file", [*RUNS, "comparison"], indirect=True)
def test_on_a_telephone(visit, file):
    """In the dark: nothing is wider than the window, text stands out, what is a picture has a name."""
    page = visit(file, width=PHONE, colours="dark")
    check_fits(page)
    assert page.locator("figure.cell svg:visible").count() >= 1
    check_structure(page)
    assert check_contrast(page, folded=FOLDED) > 40


@pytest.mark.parametrize("file", ["darts", "s2", "comparison"], indirect=True)
def test_on_a_desk(visit, file):
    page = visit(file)
    check_fits(page)
    page.keyboard.press("ArrowLeft")
    check_structure(page)
    assert check_contrast(page, folded=FOLDED) > 40


@pytest.mark.parametrize("file", ["darts", "recurrent", "comparison"], indirect=True)
def test_on_paper(visit, file):
    """Every figure is there, none larger than a page or without its heading; controls are not."""
    page = visit(file, width=PAGE[0], height=PAGE[1], colours="dark")
    figures = page.locator("figure:visible").count()
    page.emulate_media(media="print")
    assert page.locator("figure:visible").count() >= figures
    assert page.get_by_role("button").count() == page.get_by_role("slider").count() == 0
    heights = page.locator("figure:visible").evaluate_all(
        "(all) => all.map((one) => one.getBoundingClientRect().height)"
    )
    assert max(heights) <= PAGE[1]
    assert page.locator("figure:visible").evaluate_all(
        "(all) => all.every((one) => getComputedStyle(one).breakInside.startsWith('avoid'))"
    )
    assert 1 <= pages_of(page.pdf(format="A4")) <= 15
    check_contrast(page, folded=FOLDED)


def test_focus_is_seen(visit, reported):
    """What the tabulator key reaches is marked, and the first stop skips to the report."""
    page = visit(reported(extras=True) / "report.html")
    page.locator(".player").wait_for()
    stops = []
    for _ in range(6):
        page.keyboard.press("Tab")
        stops.append(
            page.locator(":focus").evaluate("(one) => [one.className, getComputedStyle(one).outlineStyle]")
        )
    assert [name for name, _ in stops[:3]] == ["skip", "play", "slider"]
    assert all(style != "none" for _, style in stops)
