"""Docstrings as they are in the source, made into the site's Markdown: cross references, lists of modules, examples."""

from __future__ import annotations

import re
from typing import Any

import griffe

ROLE = re.compile(r":(?:func|meth|class|mod|attr|data|exc):`~?([\w.]+)`")
PAGE = re.compile(r"(?<![\w/`(\[])docs/([\w/-]+)\.md")
CODE = re.compile(r"(``?[^`]+``?)")
LISTED = re.compile(r"(?:^\w+ {2,}\S.*\n(?: {2,}\S.*\n)*){2,}", re.MULTILINE)  # name   what it is
SESSION = re.compile(r"^>>> .*\n(?:\S.*\n)*", re.MULTILINE)
NO_MARKUP = re.compile(
    r"(<)(?=[A-Za-z/])|(^ *|: )(?=>(?!>>))", re.MULTILINE
)  # <a, b> is no tag, `x: > 0` no quotation
JOINER = "\u2060"  # invisible, and no mark of Markdown's


class Docstrings(griffe.Extension):
    """Rewrites all of a package that has been read."""

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        """Every object of it, once: an alias shows the docstring of what it stands for."""
        self._visit(pkg)

    def _visit(self, thing: griffe.Object) -> None:
        if thing.docstring is not None:
            thing.docstring.value = _rewritten(thing.docstring.value, thing)
        for member in thing.members.values():
            if not member.is_alias:
                self._visit(member)  # type: ignore[arg-type]


def _rewritten(text: str, thing: griffe.Object) -> str:
    text = ROLE.sub(r"``:\1:``", f"{text}\n")
    text = LISTED.sub(_bullets, text)
    text = re.sub(r"^Example:$", "Examples:", text, flags=re.MULTILINE)
    text = SESSION.sub(lambda session: f"```pycon\n{session[0]}```\n", text)
    parts = CODE.split(text)  # text, code, text, ...
    return "".join(_code(part, thing) if i % 2 else _prose(part) for i, part in enumerate(parts)).rstrip("\n")


def _prose(text: str) -> str:
    return PAGE.sub(r"[docs/\1.md](../\1.md)", NO_MARKUP.sub(rf"\g<0>{JOINER}", text))


def _code(span: str, thing: griffe.Object) -> str:
    role = re.fullmatch(r"``:([\w.]+):``", span)
    return _reference(role[1], thing) if role else span


def _bullets(listed: re.Match[str]) -> str:
    text = re.sub(r"\n {2,}", " ", listed[0])
    return "\n" + re.sub(r"^(\w+) {2,}", r"- `\1`: ", text, flags=re.MULTILINE)


def _reference(name: str, thing: griffe.Object) -> str:
    """A link where the site has the object, its name in code where not."""
    shown = f"<code>{name}</code>"
    path = _path(name, thing)
    return shown if path is None else f'<autoref identifier="{path}" optional>{shown}</autoref>'


def _path(name: str, thing: griffe.Object) -> str | None:
    """Where ``name`` is defined, as seen from the docstring of ``thing``."""
    scope: griffe.Object | griffe.Alias | None = thing
    first, *rest = name.split(".")
    while scope is not None:
        if first in scope.members:
            found: Any = scope.members[first]
            for part in rest:
                if part not in found.members:
                    return None
                found = found.members[part]
            return str(found.target_path if found.is_alias else found.canonical_path)
        scope = scope.parent
    return None
