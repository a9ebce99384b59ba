"""The watch itself: what it is there to see, it sees."""

import pytest

PAGE = """<!doctype html><html lang="en"><title>a page</title>{}</html>"""


@pytest.fixture
def page_with(tmp_path):
    """``page_with(text)`` is a file with that text in it."""

    def write(text):
        file = tmp_path / "page.html"
        file.write_text(PAGE.format(text))
        return file

    return write


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("<img alt='' src='https://example.org/a.png'>", r"reached for \['https://example.org/a.png'\]"),
        ("<link rel='stylesheet' href='style.css'>", r"reached for \['file://.*style.css'\]"),
        ("<script>fetch('http://127.0.0.1:9/').catch(() => 0)</script>", "reached for"),
        ("<script>new WebSocket('ws://127.0.0.1:9/')</script>", "reached for"),
        ("<script>throw Error('a fault')</script>", "a fault"),
        ("<script>console.warn('a doubt')</script>", "warning: a doubt"),
    ],
    ids=["image", "style", "fetch", "socket", "error", "warning"],
)
def test_what_a_page_must_not_do_is_seen(browser, visit, page_with, text, said):
    page = visit(page_with(text), expected=["ERR_FAILED"])
    page.wait_for_timeout(50)
    (watched,) = visit.watched
    with pytest.raises(AssertionError, match=said):
        watched.judge()
    visit.watched.clear()


def test_a_quiet_page_is_let_be(visit, page_with):
    page = visit(page_with("<h1>A page</h1><script>console.log('hello')</script>"), colours="dark", width=360)
    assert page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches && innerWidth === 360")
