"""A long search's report stays small and quick to move in."""

import json

from playwright.sync_api import expect

from bench.report_page import ReportPageConfig, row, table

EPOCHS = 60  # 500 go the same way, and take eight times as long to draw


def test_many_cells(visit, reported):
    """The page holds one of them at a time."""
    run = reported(EPOCHS)
    file = run / "report.html"
    assert file.stat().st_size < 200_000 + 6_000 * EPOCHS
    page = visit(file)
    now = page.locator(".player .now b")
    expect(now).to_have_text(str(EPOCHS))
    assert page.locator("figure.cell svg").count() == 4  # two cells, wide and narrow
    assert page.locator("*").count() < 12_000
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert len({of["genotype"] for of in rows}) == EPOCHS
    page.locator(".slider").fill("30")
    assert now.inner_text() == "30"
    assert page.locator("[data-genotype]").inner_text() == rows[29]["genotype"]
    assert page.locator("figure.cell svg").count() == 4


def test_it_is_measured(browser, tmp_path):
    config = ReportPageConfig(epochs=(2,), rounds=1)
    measured = row(config, 2, tmp_path, browser)
    assert (measured["epochs"], measured["genotypes"]) == (2, 2)
    assert measured["bytes"] == (tmp_path / "2/report.html").stat().st_size
    assert 0 < measured["move_ms"] < 1e5
    assert 0 < measured["open_ms"] < 1e5
    assert table([measured], config).splitlines()[-1].startswith("| 2 | 2 | ")
