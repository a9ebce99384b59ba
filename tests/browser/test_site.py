"""The documentation site: built without a warning, all links lead somewhere, nothing public is left out, and it
works from the disk."""

import importlib
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from urllib.parse import unquote, urlsplit

import pytest
from mkdocs.utils import yaml_load

from fastnas.retrain import RetrainConfig
from fastnas.search import SearchConfig
from tests.documentation.blocks import COMMENT, FENCE, ROOT, pages

PACKAGES = sorted(path.parent.name for path in (ROOT / "fastnas").glob("*/__init__.py"))
# What no program outside calls; docs/architecture.md says what is in them.
INNER = ("kernels", "runs", "sweep")
COMMANDS = ROOT / "docs/reference/commands.md"  # made by docs/_hooks/commands.py
LINK = re.compile(r"\]\(([^()\s]+)\)")


class Page(HTMLParser):
    """What a page of the site links to, loads and can be linked to at."""

    def __init__(self, text):
        super().__init__()
        self.links, self.loads, self.anchors = [], [], {""}
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.anchors |= {found[name] for name in ("id", "name") if found.get(name)}
        target = found.get("href") or found.get("src")
        if target:
            (self.links if tag == "a" else self.loads).append(target)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """How the build ended, and its folder."""
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "mkdocs",
            "build",
            "--strict",
            "--site-dir",
            folder,
        ],  # with --quiet no warning counts
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    return done, folder


@pytest.fixture(scope="module")
def site(built):
    """The text of its pages, and their folder."""
    return {path.relative_to(built[1]): path.read_text() for path in built[1].rglob("*.html")}, built[1]


@pytest.fixture(scope="module")
def parsed(site):
    return {site[1] / path: Page(text) for path, text in site[0].items() if path.name != "404.html"}


def test_it_builds_without_a_warning(built):
    said = [line for line in built[0].stderr.splitlines() if not line.startswith("INFO")]
    assert built[0].returncode == 0, "\n".join(said)


def test_every_link_of_the_site_leads_somewhere(parsed):
    """Those that the hooks write among them, which mkdocs does not look at."""
    lost, seen = [], 0
    for path, page in parsed.items():
        for target in page.links + page.loads:
            parts = urlsplit(target)
            if parts.scheme:
                continue
            file = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            seen += 1
            if not file.is_file() or (file in parsed and parts.fragment not in parsed[file].anchors):
                lost.append((path.name, target))
    assert not lost
    assert seen > 1000


def test_the_site_loads_nothing_from_a_network(site, parsed):
    assert not [target for page in parsed.values() for target in page.loads if urlsplit(target).scheme]
    for sheet in site[1].rglob("*.css"):
        assert not re.search(r"(?:@import|url\()[\s\"']*(?:https?:)?//", sheet.read_text()), sheet.name


def test_docstrings_are_rendered(site):
    """No role, no cross reference and no prompt is left as it stands in the source."""
    for path, text in site[0].items():
        assert not re.search(r":(?:func|meth|class|mod|attr|data|exc):", text), path
        assert "<autoref" not in text, path
        assert not re.search(r"<blockquote>\s*(<blockquote>|<p>=)", text), path


@pytest.mark.parametrize("package", ["", *(name for name in PACKAGES if name not in INNER)])
def test_everything_public_is_in_the_reference(site, package):
    name = f"fastnas.{package}".rstrip(".")
    anchors = set(re.findall(r'id="(fastnas[\w.]*)"', "".join(site[0].values())))
    module = importlib.import_module(name)
    public = {one: getattr(module, one) for one in module.__all__ if not one.startswith("__")}
    assert public
    for one, found in public.items():
        defined = f"{getattr(found, '__module__', '')}."  # there, or in a package above, or here
        places = [anchor.removesuffix(one) for anchor in anchors if anchor.endswith(f".{one}")]
        assert any(f"{name}." == place or defined.startswith(place) for place in places), (
            f"{name}.{one}: write ::: {defined}{one} into docs/reference/{package or 'index'}.md"
        )


@pytest.mark.parametrize(("command", "config"), [("search", SearchConfig), ("retrain", RetrainConfig)])
def test_every_flag_is_in_the_reference(parsed, command, config):
    (page,) = [page for path, page in parsed.items() if path.name == "commands.html"]
    wanted = {f"fastnas-{command}-{name.replace('_', '-')}" for name in config().to_options()}
    assert wanted <= page.anchors


def test_links_hold_on_disk_too():
    lost = []
    for page in pages():
        text = FENCE.sub("", (ROOT / page).read_text())
        for target in LINK.findall(re.sub(r"`[^`\n]+`", "", text)):
            path = target.partition("#")[0]
            file = ((ROOT / page).parent / path).resolve()
            if path and not re.match(r"[a-z]+:", path) and file != COMMANDS:
                lost += [] if file.exists() else [(page, target)]
    assert not lost


def test_a_page_begins_with_its_title():
    """It is what the site's navigation and the search call it."""
    for page in pages():
        lines = [line for line in (ROOT / page).read_text().splitlines() if line and not COMMENT.match(line)]
        assert lines[0].startswith("# "), page


def test_the_navigation_has_each_page_once():
    def named(entries):
        for entry in entries:
            for value in entry.values() if isinstance(entry, dict) else [entry]:
                yield from named(value) if isinstance(value, list) else [value]

    found = list(named(yaml_load((ROOT / "mkdocs.yml").read_text())["nav"]))
    assert len(found) == len(set(found))
    assert {page.removeprefix("docs/") for page in pages() if page.startswith("docs/")} <= set(found)


@pytest.fixture
def opened(browser, built):
    """``opened(page)`` is a page of the site on the disk, which complains of nothing and asks for nothing else."""
    contexts, complaints, asked = [], [], []

    def opened(page, width=1280, colours="light"):
        context = browser.new_context(
            viewport={"width": width, "height": 800}, color_scheme=colours, offline=True
        )
        contexts.append(context)
        context.on("request", lambda request: asked.append(request.url))
        context.on("weberror", lambda error: complaints.append(str(error.error)))
        context.on("console", lambda said: complaints.append(said.text) if said.type == "error" else None)
        found = context.new_page()
        found.goto((built[1] / f"{page}.html").as_uri())
        return found

    yield opened
    for context in contexts:
        context.close()
    own = (built[1].as_uri(), "data:", "blob:", "about:")
    assert asked
    assert not [url for url in asked if not url.startswith(own)]
    assert not complaints


@pytest.mark.parametrize("page", ["overview", "reference/bilevel", "reference/commands"])
def test_pages_fit_the_screen(opened, page):
    """What is wide is scrolled inside; the system's colours are taken up."""
    for width, colours, scheme in ((1280, "light", "default"), (360, "dark", "slate")):
        found = opened(page, width, colours)
        assert found.evaluate("document.documentElement.scrollWidth") == width
        assert found.evaluate("document.body.dataset.mdColorScheme") == scheme


def test_a_flag_is_not_broken_and_a_long_first_column_is(opened):
    """At the widths of a desk and of a phone: behind its dashes a flag would look like two."""
    for width in (1280, 360):
        found = opened("guide/from-darts", width)
        lines = found.locator("article code .flag").evaluate_all(
            "all => all.map(one => one.getClientRects().length)"
        )
        assert len(lines) > 100
        assert set(lines) == {1}
    wrap = found.locator("article td:first-child code").first.evaluate(
        "one => getComputedStyle(one).whiteSpace"
    )
    assert wrap != "nowrap"


@pytest.mark.parametrize(("typed", "wanted"), [("neumann_terms", "bilevel.html"), ("--hvp", "commands.html")])
def test_the_search_works_from_the_disk(opened, typed, wanted):
    found = opened("index")
    found.locator(".md-search__input").first.press_sequentially(typed)
    found.locator(f".md-search-result__link[href*='{wanted}']").first.wait_for(state="attached")
