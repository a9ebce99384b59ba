"""Brings pages that lie outside docs/ into the site, and leads links that hold on disk to where they are in it."""

from __future__ import annotations

import json
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
BROUGHT = {"README.md": "overview.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
RESULTS = "bench/results"
NOTEBOOK, AS_PAGE = "examples/search.ipynb", "guide/notebook.md"
CODE = re.compile(r"(^ *(`{3,}).*?^ *\2 *$|`[^`\n]+`)", re.MULTILINE | re.DOTALL)
PRE = re.compile(r"(<pre\b.*?</pre>)", re.DOTALL)
INLINE = re.compile(r"(?<=<code>)[^<]+(?=</code>)")
FLAG = re.compile(r"(?<![\w-])--?[a-zA-Z][\w-]*")
LINK = re.compile(r"(\[(?:[^\[\]]|\[[^\[\]]*\])*\])\(([^()\s]+)\)")
DECISION = re.compile(r"^(\d+)\. \*\*(.+?)\*\* ?", re.MULTILINE | re.DOTALL)


def on_files(files: Files, config: Any) -> Files:
    """README.md and its neighbours, and what was measured, are pages and files of the site, too."""
    for path, uri in _places().items():
        files.append(File.generated(config, uri, abs_src_path=str(ROOT / path)))
    files.append(File.generated(config, AS_PAGE, content=_notebook()))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Its links, from where it lies on disk to where it stands in the site."""
    uri = page.file.src_uri
    if uri == "decisions.md":
        markdown = _with_headings(markdown)
    origins = {place: path for path, place in _places().items()}
    folder = posixpath.dirname(origins.get(uri, f"docs/{uri}"))

    def led(link: re.Match[str]) -> str:
        label, target = link.groups()
        return f"{_titled(label, target, folder)}({_target(target, label, folder, posixpath.dirname(uri))})"

    parts = CODE.split(markdown)  # text, code, its fence, text, ...
    return "".join(LINK.sub(led, part) if i % 3 == 0 else part for i, part in enumerate(parts) if i % 3 != 2)


def on_page_content(html: str, **_: Any) -> str:
    """A flag within a line is kept in one piece: a browser would break it behind its dashes."""
    parts = PRE.split(html)

    def whole(code: re.Match[str]) -> str:
        return FLAG.sub(r'<span class="flag">\g<0></span>', code[0])

    return "".join(part if i % 2 else INLINE.sub(whole, part) for i, part in enumerate(parts))


def _notebook() -> str:
    """Its text and its code; what it draws is drawn where it is run."""
    cells = json.loads((ROOT / NOTEBOOK).read_text())["cells"]
    sources = [(cell["cell_type"], "".join(cell["source"])) for cell in cells]
    parts = [f"```python\n{source}\n```" if kind == "code" else source for kind, source in sources]
    title, _, text = parts[0].partition("\n")
    whence = f"This page is the notebook `{NOTEBOOK}`, to be run cell by cell."
    return "\n\n".join([title, whence, text.strip(), *parts[1:]])


def _places() -> dict[str, str]:
    """Path in the repository -> in the site, of all that lies outside docs/."""
    measured = sorted(path.name for path in (ROOT / RESULTS).iterdir() if path.is_file())
    results = {
        f"{RESULTS}/{name}": f"bench/{'index.md' if name == 'README.md' else name}" for name in measured
    }
    return {**BROUGHT, **results}


def _titled(label: str, target: str, folder: str) -> str:
    """A page that is named by its file is named by its title in the site."""
    path = target.partition("#")[0]
    file = ROOT / folder / path
    same = posixpath.basename(label[1:-1]) == posixpath.basename(path)
    if not (same and path.endswith(".md") and file.is_file()):
        return label
    title = re.search(r"^# (.+)$", file.read_text(), re.MULTILINE)
    return f"[{title[1]}]" if title else label


def _target(target: str, label: str, folder: str, here: str) -> str:
    path, mark, anchor = target.partition("#")
    if not path or re.match(r"[a-z]+:|/", path):
        return target
    wanted = posixpath.normpath(posixpath.join(folder, path))
    place = {**_places(), RESULTS: "bench/index.md", NOTEBOOK: AS_PAGE}.get(wanted)
    if place is None:
        if not wanted.startswith("docs/"):
            return target  # none of the site's: mkdocs says so
        place = wanted.removeprefix("docs/")
    number = re.fullmatch(r"\[decision (\d+)\]", label)
    if place == "decisions.md" and number:
        mark, anchor = "#", f"decision-{number[1]}"
    return posixpath.relpath(place, here or ".") + mark + anchor


def _with_headings(markdown: str) -> str:
    """Each numbered decision below a heading of its own, which can be linked to."""

    def heading(entry: re.Match[str]) -> str:
        number, title = entry.groups()
        return f"## {number}. {' '.join(title.split()).rstrip('.')} {{ #decision-{number} }}\n\n"

    dedented = re.sub(r"^ {3,4}(?=\S)", "", markdown, flags=re.MULTILINE)
    return DECISION.sub(heading, dedented)
