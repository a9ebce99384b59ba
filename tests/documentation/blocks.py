"""The code blocks of a page, and what the comment above each says of running it (CONTRIBUTING.md)."""

from __future__ import annotations

import re
import shlex
import textwrap
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
FENCE = re.compile(
    r"^(?P<indent> *)(?P<ticks>`{3,})(?P<language>[\w+-]*)(?P<info>[^\n`]*)\n"
    r"(?P<code>.*?)^(?P=indent)(?P=ticks) *$",
    re.MULTILINE | re.DOTALL,
)
COMMENT = re.compile(r"^ *<!--(.*?)--> *$")
MARKER = re.compile(r"(?P<kind>run|run with|not run)(?:: *(?P<note>\S.*))?")
TITLE = re.compile(r'title="([^"]+)"')
SHELLS = ("", "console", "bash", "sh")
OURS = ("fastnas", "examples", "bench")


@dataclass(frozen=True)
class Command:
    """``python -m MODULE ARGUMENTS``, or ``python FILE ARGUMENTS``."""

    module: str
    arguments: tuple[str, ...]
    launched: bool = False  # by torchrun

    @property
    def ours(self) -> bool:
        """Whether its parser is here."""
        return self.module.split(".")[0] in OURS

    def __str__(self) -> str:
        return shlex.join([self.module, *self.arguments])


@dataclass(frozen=True)
class Block:
    """One fenced block."""

    page: str
    line: int
    language: str
    title: str | None  # of the file that it is
    marker: str | None  # run, run with, not run
    note: str
    code: str

    @property
    def place(self) -> str:
        """Where it stands."""
        return f"{self.page}:{self.line}"

    @property
    def more(self) -> list[str]:
        """The flags that its commands get when they run here."""
        return shlex.split(self.note) if self.marker == "run with" else []

    def commands(self) -> list[Command]:
        """The calls of Python in a block for a shell; after a prompt alone where there are prompts."""
        if self.language not in SHELLS or self.title:
            return []
        lines = re.sub(r"\\\n\s*", "", self.code).splitlines()
        if any(line.startswith("$ ") for line in lines):
            lines = [line[2:] for line in lines if line.startswith("$ ")]
        first = dict(re.findall(r"\bfor (\w+) in ([^\s;]+)", "\n".join(lines)))  # of a loop's values
        found = []
        for line in lines:
            if re.search(r"\b(python|torchrun) ", line):
                words = re.sub(r"\$(\w+)", lambda name: first.get(name[1], name[0]), line)
                found += [command for part in _simple(words) if (command := _command(part))]
        return found


def _simple(line: str) -> list[list[str]]:
    """The words of each simple command of a line of shell."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    parts: list[list[str]] = [[]]
    for word in lexer:
        if set(word) <= set("();<>|&"):
            parts.append([])
        else:
            parts[-1].append(word)
    return parts


def _command(words: list[str]) -> Command | None:
    while words and (words[0] in ("do", "time") or re.fullmatch(r"\w+=.*", words[0])):
        words = words[1:]
    arguments = [word for word in words if word != "..."]
    if words[:1] == ["torchrun"] and "-m" in words:
        at = arguments.index("-m")
        return Command(arguments[at + 1], tuple(arguments[at + 2 :]), launched=True)
    if words[:2] == ["python", "-m"] and len(words) > 2:
        return Command(arguments[2], tuple(arguments[3:]))
    if words[:1] == ["python"] and len(words) > 1 and words[1].endswith(".py"):
        return Command(arguments[1], tuple(arguments[2:]))
    return None


def blocks(page: str) -> list[Block]:
    """Those of a page, named from the repository's root, from top to bottom."""
    return parse((ROOT / page).read_text(), page)


def parse(text: str, page: str) -> list[Block]:
    """Those of a text; a comment above a block that is no marker is an error."""
    found = []
    for fence in FENCE.finditer(text):
        above = text[: fence.start()].splitlines()
        line = len(above) + 1
        comment = COMMENT.match(above[-1]) if above else None
        marker = MARKER.fullmatch(comment[1].strip()) if comment else None
        kind, note = (marker["kind"], marker["note"] or "") if marker else (None, "")
        assert not comment or marker, f"{page}:{line}: {comment[0].strip()} is no marker: CONTRIBUTING.md"
        assert bool(note) != (kind in (None, "run")), f"{page}:{line}: say why, or with which flags"
        title = TITLE.search(fence["info"])
        code = textwrap.dedent(fence["code"])
        found.append(Block(page, line, fence["language"], title and title[1], kind, note, code))
    return found


def pages() -> list[str]:
    """All that is read: the site's pages and README.md."""
    found = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md"))
    return ["README.md", "CONTRIBUTING.md", *found]
