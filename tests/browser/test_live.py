"""The page of a run that goes on, in a browser: it follows the run without being loaded anew."""

import threading

import pytest
from playwright.sync_api import expect

import fastnas
from fastnas.report import newest as timing
from fastnas.report.server import Server, newest_of
from fastnas.runs.live import address, listening
from tests.search.conftest import TINY

PATIENCE = 30_000  # milliseconds, on a machine that does much else
ASK = "document.dispatchEvent(new Event('visibilitychange'))"  # as when the reader comes back to the page


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """A run's folder, and its rows."""
    out = tmp_path_factory.mktemp("live") / "run"
    fastnas.search(**{**TINY, "epochs": 4}, out=out, arch_learning_rate=0.5)
    return out, (out / "metrics.jsonl").read_text().splitlines(keepends=True)


class Shown:
    """A run that goes on, and its page in a browser."""

    def __init__(self, rows, visit):
        self.run, self.rows = rows
        self.done(0)
        listener = listening("127.0.0.1", 0)
        self.server = Server(listener, "secret", newest_of([self.run]))
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,))
        self.thread.start()
        self.page = visit(address(listener, "secret"), expected=["ERR_CONNECTION_REFUSED"])
        self.page.evaluate("window.same = true")

    def done(self, epochs):
        """So many epochs have ended."""
        (self.run / "metrics.jsonl").write_text("".join(self.rows[:epochs]))

    def at(self, epoch, last):
        """Waits until the page shows that epoch of so many, and is still the one that was opened."""
        self.page.evaluate(ASK)
        expect(self.page.locator(".now")).to_have_text(f"epoch {epoch} of {last}", timeout=PATIENCE)
        assert self.page.evaluate("window.same") is True
        assert self.page.locator("#epoch").input_value() == str(epoch)

    def says(self, words):
        """Waits until the line under the heading says that."""
        self.page.evaluate(ASK)
        expect(self.page.locator("#live-status")).to_contain_text(words, timeout=PATIENCE)

    def close(self):
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@pytest.fixture
def shown(rows, visit, monkeypatch):
    monkeypatch.setattr(timing, "LEAST", 0.0)
    monkeypatch.setattr(timing, "SHARE", 0.0)
    found = Shown(rows, visit)
    yield found
    found.close()


def test_a_page_follows_its_run(shown):
    """From before the first epoch; who looks at an epoch stays there, who looks at the newest goes on with it."""
    page = shown.page
    assert page.get_by_text("Waiting for the first epoch").is_visible()
    shown.done(2)
    shown.at(2, 2)
    assert page.locator(".cell svg").first.is_visible()
    page.locator("#epoch").fill("1")
    page.locator("details#r1-rows > summary").click()
    page.evaluate("scrollTo(0, 300)")
    shown.done(3)
    shown.at(1, 3)
    assert page.locator("#r1-rows tbody tr").count() == 3
    assert page.locator("#r1-rows").evaluate("(e) => e.open")
    assert page.evaluate("document.activeElement.matches('#r1-rows > summary')")
    assert page.evaluate("scrollY") == 300
    page.locator("#epoch").fill("3")
    shown.done(4)
    shown.at(4, 4)
    # Killed, with its machine: the page stays as it is, and says so.
    shown.server.shutdown()
    shown.server.socket.close()
    shown.says("cannot be reached")
    assert page.locator(".cell svg").first.is_visible()


def test_the_end_is_said(shown):
    shown.done(4)
    shown.server.ended = True
    shown.says("The run has ended; this is what it came to")
    shown.at(4, 4)
