"""The looks themselves: what is wrong with a page, they see."""

import pytest

from tests.browser.looks import check_contrast, check_fits, check_structure

PAGE = "<!doctype html><html lang='en'><title>a page</title><h1>A page</h1>{}</html>"
SVG = "<svg width='200' height='40' role='img' aria-label='a picture'>{}</svg>"


@pytest.fixture
def page_with(visit, tmp_path):
    """``page_with(body)``: such a page, open."""

    def open_page(body, **how):
        file = tmp_path / "page.html"
        file.write_text(PAGE.format(body))
        return visit(file, **how)

    return open_page


@pytest.mark.parametrize(
    ("check", "body", "said"),
    [
        (check_fits, "<p style='width: 2000px'>wide</p>", "'wider': 7"),
        (check_structure, "<h3>A heading</h3>", r"\[1, 3\]"),
        (check_structure, "<h1>A second</h1>", r"\[1, 1\]"),
        (check_structure, "<svg></svg>", "'bare': .'<svg>"),
        (check_structure, "<button></button>", "'bare': .'<button>"),
        (check_structure, "<p id='a'>one</p><p id='a'>two</p>", r"'twice': \['a'\]"),
        (check_structure, "<section aria-labelledby='none'></section>", "'lost': .'<section"),
        (check_contrast, "<p style='color: #777'>a faint text</p>", "4.48 a faint text"),
        (check_contrast, "<p style='opacity: .5'>a faint text</p>", r"\d a faint text"),
        (check_contrast, "<div style='background: #555'><p>a faint text</p></div>", r"\d a faint text"),
        (
            check_contrast,
            SVG.format("<rect width='200' height='40' fill='#333'/><text x='9' y='20'>a faint text</text>"),
            r"\d a faint text",
        ),
        (
            check_contrast,
            "<details><summary>a summary</summary><p style='color: #999'>a faint text</p></details>",
            r"\d a faint text",
        ),
    ],
)
def test_what_is_wrong_is_seen(page_with, check, body, said):
    page = page_with(body)
    with pytest.raises(AssertionError, match=said):
        check(page)


def test_what_is_right_is_let_be(page_with):
    page = page_with(
        "<h2>A heading</h2><p style='color: #767676'>grey</p>"
        "<div style='overflow: auto'><p style='width: 2000px'>scrolled</p></div>"
        + SVG.format("<rect width='200' height='40'/><text x='9' y='20' fill='white'>white</text>")
    )
    check_fits(page)
    check_structure(page)
    assert check_contrast(page) == 5
