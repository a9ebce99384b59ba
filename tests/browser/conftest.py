"""A browser that looks at pages, and watches what they do meanwhile."""

import os
from pathlib import Path

import pytest
from playwright.sync_api import sync_playwright

from bench.chromium import MISSING, chromium, launched
from bench.made_run import make_run
from fastnas.report import write_report
from tests.browser.watched import Watched

EPOCHS = 6


def pytest_collection_modifyitems(items):
    """What drives the browser is marked ``browser``."""
    for item in items:
        if "browser" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.browser)


@pytest.fixture(scope="package")
def browser():
    """Chromium, one a worker, for as long as the tests are about pages: while it is there, asyncio has its loop."""
    if chromium() is None:
        required = os.environ.get("FASTNAS_REQUIRE_BROWSER") == "1"
        (pytest.fail if required else pytest.skip)(MISSING)
    with sync_playwright() as playwright:
        running = launched(playwright)
        yield running
        running.close()


@pytest.fixture(scope="package")
def reported(tmp_path_factory):
    """``reported(epochs, **options)``: a run's folder with its report, made once; ``of`` several: their comparison."""
    made = {}

    def reported(epochs=EPOCHS, **options):
        key = (epochs, *sorted(options.items()))
        if key not in made:
            folder = make_run(tmp_path_factory.mktemp("reported") / "run", epochs=epochs, **options)
            write_report([folder])
            made[key] = folder
        return made[key]

    return reported


@pytest.fixture
def visit(browser):
    """``visit(where)`` opens a file or an address; at the end of the test nothing was complained of or sent elsewhere.

    Keywords: ``width``, ``height``, ``colours`` ("light" or "dark"), ``javascript``, ``expected`` (complaints that are
    no fault, as parts of their text).
    """
    contexts = []

    def visit(where, *, width=1280, height=800, colours="light", javascript=True, expected=()):
        address = where.as_uri() if isinstance(where, Path) else where
        context = browser.new_context(
            viewport={"width": width, "height": height}, color_scheme=colours, java_script_enabled=javascript
        )
        contexts.append(context)
        visit.watched.append(Watched(context, address, expected))
        page = context.new_page()
        page.goto(address)
        return page

    visit.watched = []
    yield visit
    for context in contexts:
        context.close()
    for watched in visit.watched:
        watched.judge()
