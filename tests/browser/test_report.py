"""A report in the browser: what it does when it is used."""

import json
import re
from shutil import copytree

import pytest
from playwright.sync_api import expect
from safetensors.torch import load_file

from fastnas.drawing import weights_of
from fastnas.report import read_run, write_report
from tests.browser.conftest import EPOCHS

PERMISSIONS = ["clipboard-read", "clipboard-write"]


@pytest.fixture
def report(visit, reported):
    """A report of DARTS' space, open."""
    return ready(visit(reported(extras=True) / "report.html"))


def ready(page):
    """The same page when its script has read it."""
    page.locator(".player").wait_for()
    return page


def to(page, epoch):
    """Moves the slider."""
    page.locator(".slider").evaluate(
        "(slider, epoch) => { slider.value = epoch; slider.dispatchEvent(new Event('input', {bubbles: true})); }",
        epoch,
    )


def now(page):
    """Where the page says which epoch it shows."""
    return page.locator(".player .now b")


def shown(page):
    """The epoch that it shows."""
    return int(now(page).inner_text())


def weights(page, name):
    """What is written on the edges of the cell ``name``, by edge."""
    figure = page.locator("figure.cell", has=page.locator("figcaption", has_text=name))
    found = figure.locator(".wide .cell-weight[data-edge]").evaluate_all(
        "(all) => all.map((one) => [Number(one.dataset.edge), one.textContent.trim()])"
    )
    return dict(found)


def expected(run, epoch):
    """By cell, what the alphas of ``epoch`` say of its genotype's edges."""
    found = read_run(run)
    genotype = found.genotypes[epoch - 1]
    alphas = load_file(run / f"alphas/epoch-{epoch:03d}.safetensors")
    cells = zip(genotype.graphs(), weights_of(found.space, genotype, alphas), strict=True)
    return {graph.name: {i: w for i, w in enumerate(of.edges) if w is not None} for graph, of in cells}


def check_weights(page, run, epoch):
    """All edges of both cells have the weights of ``epoch``, rounded."""
    cells = expected(run, epoch)
    assert list(cells) == ["normal", "reduce"]
    for name, of in cells.items():
        written = weights(page, name)
        assert len(of) == len(written) == 8
        for edge, text in written.items():
            digits = len(text.partition(".")[2])
            assert digits >= 2
            assert text == f"{of[edge]:.{digits}f}"


@pytest.mark.parametrize("epoch", [1, 3])
def test_the_slider_shows_an_epoch(report, reported, epoch):
    run = reported(extras=True)
    before = report.locator("figure.cell .wide").all_inner_texts()
    to(report, epoch)
    assert shown(report) == epoch
    assert report.locator("figure.cell .wide").all_inner_texts() != before
    check_weights(report, run, epoch)
    genotype = json.loads((run / "metrics.jsonl").read_text().splitlines()[epoch - 1])["genotype"]
    assert report.locator("[data-genotype]").inner_text() == genotype


def test_the_last_epoch_is_shown_first(report, reported):
    assert shown(report) == EPOCHS
    check_weights(report, reported(extras=True), EPOCHS)


def test_widths_of_the_edges_follow_the_weights(report, reported):
    to(report, 2)
    for name, of in expected(reported(extras=True), 2).items():
        figure = report.locator("figure.cell", has=report.locator("figcaption", has_text=name))
        widths = figure.locator(".wide path.cell-edge[data-edge]").evaluate_all(
            "(all) => all.map((one) => [one.dataset.edge, parseFloat(getComputedStyle(one).strokeWidth)])"
        )
        drawn = {int(edge): width for edge, width in widths}
        strongest, weakest = max(of, key=of.get), min(of, key=of.get)
        assert drawn[strongest] > drawn[weakest] > 0


def test_without_a_script_the_last_cell_is_there(visit, reported):
    run = reported(extras=True)
    page = visit(run / "report.html", javascript=False)
    check_weights(page, run, EPOCHS)
    assert page.locator(".player").is_hidden()
    assert page.locator("svg.chart").count() > 5
    assert page.get_by_role("button").count() == 0  # none that does nothing


STEP = 500  # milliseconds an epoch, of so few


def test_it_plays_to_the_end_and_stops(report):
    report.clock.install()
    play = report.locator(".play")
    play.click()
    assert play.get_attribute("aria-pressed") == "true"
    assert shown(report) == 1  # from the last epoch it begins anew
    for epoch in range(2, EPOCHS + 1):
        report.clock.run_for(STEP)
        assert shown(report) == epoch
    report.clock.run_for(STEP)
    assert play.get_attribute("aria-pressed") == "false"
    assert shown(report) == EPOCHS


def test_play_is_paused_by_itself_and_by_the_slider(report):
    report.clock.install()
    to(report, 1)
    play = report.locator(".play")
    play.click()
    report.clock.run_for(STEP)
    play.click()
    assert play.get_attribute("aria-pressed") == "false"
    report.clock.run_for(3 * STEP)
    assert shown(report) == 2
    play.click()
    to(report, 4)
    report.clock.run_for(3 * STEP)
    assert shown(report) == 4


def test_arrow_keys_move_the_epoch(report):
    report.keyboard.press("ArrowLeft")
    report.keyboard.press("ArrowLeft")
    assert shown(report) == EPOCHS - 2
    report.keyboard.press("ArrowRight")
    assert shown(report) == EPOCHS - 1
    report.locator(".slider").focus()
    report.keyboard.press("Home")
    assert shown(report) == 1
    report.keyboard.press("ArrowLeft")
    assert shown(report) == 1
    report.keyboard.press("ArrowRight")
    assert shown(report) == 2


def cursors(page):
    """Where the cursor is in every chart, as an epoch."""
    return page.locator("svg.chart").evaluate_all(
        """(all) => all.map((svg) => {
            const {first, last, left, right} = svg.dataset, x = Number(svg.querySelector(".cursor").getAttribute("x1"));
            return Number(first) + (x - left) / (right - left) * (last - first);
        })"""
    )


def test_cursors_move_with_the_slider(report):
    to(report, 4)
    found = cursors(report)
    assert len(found) > 10
    assert found == pytest.approx([4] * len(found))


def test_a_click_in_a_chart_moves_the_slider(report):
    chart = report.locator("svg.chart").first
    chart.scroll_into_view_if_needed()
    box = chart.bounding_box()
    left, right, width = chart.evaluate(
        "(svg) => [Number(svg.dataset.left), Number(svg.dataset.right), svg.viewBox.baseVal.width]"
    )
    x = (left + 0.4 * (right - left)) / width
    report.mouse.click(box["x"] + x * box["width"], box["y"] + box["height"] / 2)
    assert shown(report) == 3  # 1 + 0.4 * 5
    assert cursors(report) == pytest.approx([3] * len(cursors(report)))
    assert report.locator(".slider").input_value() == "3"


def test_the_legend_reads_the_epoch(report, reported):
    to(report, 2)
    row = json.loads((reported(extras=True) / "metrics.jsonl").read_text().splitlines()[1])
    loss = report.locator("figure", has=report.get_by_role("heading", name="Loss", exact=True))
    assert [float(text) for text in loss.locator("output").all_inner_texts()] == pytest.approx(
        [row["train_loss"], row["val_loss"]], abs=1e-4
    )


def test_the_genotype_is_copied(report):
    report.context.grant_permissions(PERMISSIONS)
    to(report, 2)
    button = report.locator("[data-copy]").first
    button.click()
    expect(button).to_have_text("Copied")
    assert report.evaluate("navigator.clipboard.readText()") == report.locator("[data-genotype]").inner_text()


def test_links_to_epochs_lead_there(report):
    report.locator("details", has_text="It changed after").locator("summary").click()
    report.locator("a[href='#epoch-3']").click()
    assert shown(report) == 3


def test_what_a_folder_says_is_text(visit, reported, tmp_path):
    """Names, options, genotypes: nothing of it becomes a part of the page, and nothing runs."""
    evil = "</script></div><img src='https://example.org/x' onerror='alert(1)'><b id=evil>"
    folder = copytree(reported(extras=True), tmp_path / "<b id=evil>&amp;")
    config = json.loads((folder / "config.json").read_text())
    config["config"].update(dataset=evil, method=evil)
    config["provenance"].update(device=evil, arguments=[evil], started=evil)
    (folder / "config.json").write_text(json.dumps(config))
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        row.update({evil: 1.0, "audit_against": evil})
        row["genotype"] = re.sub("sep_conv_3x3", evil, row["genotype"], count=1)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    page = visit(write_report([folder], tmp_path / "evil.html"))
    dialogs = []
    page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
    to(page, 2)
    page.wait_for_timeout(100)
    assert not dialogs
    assert page.locator("#evil, img[onerror]").count() == 0
    assert "<b id=evil>" in page.locator("h1").inner_text()
