"""What a reader sees of a page: judged in the browser, by tests/browser/looks.js."""

import re
from pathlib import Path

_LOOKS = (Path(__file__).parent / "looks.js").read_text().split("\n", 1)[1]
PAGE = (703, 1032)  # CSS pixels of an A4 page within margins of 12 mm


def look(page, what, *arguments):
    """``looks.js``'s function ``what``."""
    return page.evaluate(f"(given) => {_LOOKS.strip()}.{what}(...given)", list(arguments))


def check_fits(page):
    """The page is not wider than its window."""
    found = look(page, "overflow")
    assert found["wider"] <= 0, found
    assert not found["out"], found


def check_structure(page):
    """One h1, no level of headings left out; pictures and controls have names; identifiers are there once."""
    found = look(page, "unnamed")
    assert not any(found.values()), found
    levels = look(page, "headings")
    assert levels.count(1) == 1, levels
    assert all(after <= before + 1 for before, after in zip([0, *levels], levels, strict=False)), levels


def check_contrast(page, least=4.5, folded="details"):
    """Every text stands out from what is behind it, also in ``folded``; how many were looked at."""
    page.locator(folded).evaluate_all("(all) => all.forEach((one) => (one.open = true))")
    height = page.evaluate("document.documentElement.scrollHeight")
    page.set_viewport_size({"width": page.viewport_size["width"], "height": height + 50})
    found = look(page, "faint", least)
    assert not found["faint"], found["faint"]
    return found["seen"]


def pages_of(pdf):
    """How many pages a PDF of Chromium's has."""
    return len(re.findall(rb"/Type\s*/Page\b(?!s)", pdf))
