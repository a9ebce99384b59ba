"""reference/commands.md: every flag of every command, out of what its --help prints."""

from __future__ import annotations

import contextlib
import html
import importlib
import io
import os
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
URI = "reference/commands.md"
WIDE = "110"  # columns: few flags are broken, and groups of options stand below each other
INTRODUCTION = """---
search: {boost: 10}
---

# Commands

Each takes `--help`, which this page is made from. The flag `--inner-steps` is the keyword `inner_steps` of the function
in Python; `--flag` and `--no-flag` switch on and off. A mistake is one sentence on the standard error and exit status
2.
"""
# Commands that two of their arguments lead to.
FURTHER = {"fastnas.describe": ("--memory",)}


def on_files(files: Files, config: Any) -> Files:
    """The page, beside those that are written by hand."""
    files.append(File.generated(config, URI, content=_page()))
    return files


def _page() -> str:
    found = sorted(path.parent.name for path in (ROOT / "fastnas").glob("*/__main__.py"))
    first = ["search", "retrain", "describe"]
    names = [f"fastnas.{name}" for name in [*first, *(name for name in found if name not in first)]]
    parts = [
        _section(name, more) for name in names for more in ([], *([flag] for flag in FURTHER.get(name, ())))
    ]
    return "\n".join([INTRODUCTION, *parts])


def _section(module: str, more: list[str], level: str = "##") -> str:
    """One command, and those that it has below it."""
    text = _help(module, more)
    usage, _, rest = text.partition("\n")
    title = " ".join(["python -m", module, *more])
    parts = [f"{level} `{title}`\n", f"```text\n{_usage(usage)}\n```\n"]
    about, *boxes = re.split(r"^╭─ ", rest, flags=re.MULTILINE)
    parts.append(f"<p>{_prose(about)}</p>\n")
    for box in boxes:
        name, _, body = box.partition(" ─")
        if name == "subcommands":
            parts += [_section(module, [command], "###") for command in re.findall(r"• (\S+)", body)]
        elif rows := _rows(body):
            parts.append(_table(name, rows, " ".join([module, *more])))
    return "\n".join(parts)


def _usage(line: str) -> str:
    return line.removeprefix("usage: ")


def _help(module: str, more: list[str]) -> str:
    """What the command prints."""
    main = importlib.import_module(f"{module}.__main__").main
    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")  # frames are drawn where they can be
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = WIDE
    try:
        with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
            main([*more, "--help"])
    finally:
        os.environ.pop("COLUMNS")
        if before is not None:
            os.environ["COLUMNS"] = before
    out.seek(0)
    text = out.read()
    if not text.startswith("usage: "):
        raise RuntimeError(f"python -m {module} --help prints {text[:200]!r}, which is no help")
    return text


def _rows(body: str) -> list[tuple[str, str]]:
    """(flag, help) of a box; what stands above its rule is about the group."""
    lines = [line.strip("│ ") and line.removeprefix("│ ").rstrip("│ ") for line in body.splitlines()[1:]]
    rule = next((i for i, line in enumerate(lines) if line.startswith("───")), -1)
    rows: list[tuple[str, str]] = []
    for line in lines[rule + 1 :]:
        if re.match(r"[^\s╰─]", line):
            flag, _, meaning = re.sub(r" {2,}", "\t", line, count=1).partition("\t")
            rows.append((flag, meaning))
        elif rows and line.strip("╰─╯ "):
            rows[-1] = (rows[-1][0], f"{rows[-1][1]} {line.strip()}".strip())
    return [row for row in rows if row[0] != "-h, --help"]


def _table(name: str, rows: list[tuple[str, str]], command: str) -> str:
    """A group of options; every flag can be linked to."""
    lines = [
        f'<table class="flags"><caption>{html.escape(name)}</caption>',
        "<thead><tr><th>flag</th><th>meaning</th><th>default</th></tr></thead><tbody>",
    ]
    for flag, meaning in rows:
        default = re.search(r"\((?:default: ([^()]*(?:\([^()]*\)[^()]*)*)|(required))\)$", meaning)
        text = meaning[: default.start()] if default else meaning
        value = (default[1] if default[1] is not None else default[2]).strip() if default else ""
        shown = f"<code>{html.escape(value)}</code>" if value else ""
        lines.append(f"<tr><td>{_flag(flag, command)}</td><td>{_prose(text)}</td><td>{shown}</td></tr>")
    return "\n".join([*lines, "</tbody></table>\n"])


def _flag(flag: str, command: str) -> str:
    """Its names, of which the first can be linked to, and behind them what it takes."""
    names = re.match(r"(?:--?[\w-]+(?:, )?)+|", flag)[0].strip()  # type: ignore[index]
    takes = flag[len(names) :].strip()
    anchor = re.sub(r"[^\w]+", "-", f"{command} {flag.split(',')[0].split()[0]}").strip("-").lower()
    shown = "<br>".join(f"<code>{name}</code>" for name in names.split(", ")) if names else ""
    behind = f" <small>{html.escape(takes)}</small>" if names and takes else html.escape(takes)
    return f'<span id="{anchor}">{shown}{behind}</span>'


def _prose(text: str) -> str:
    """Help as HTML: code in backticks, and pages as links."""
    escaped = html.escape(" ".join(text.split()), quote=False)
    escaped = re.sub(r"``?([^`]+)``?", r"<code>\1</code>", escaped)
    return re.sub(r"\bdocs/([\w/-]+)\.md\b", r'<a href="../\1.html">docs/\1.md</a>', escaped)
