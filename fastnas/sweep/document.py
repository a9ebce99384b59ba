"""Reads YAML strictly: plain values alone, a key once in a mapping, numbers as YAML 1.2 has them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, ClassVar

import yaml

from fastnas.errors import FastnasError

LARGEST = 1 << 20  # bytes: a sweep is a page


class Loader(yaml.SafeLoader):
    """Nothing but strings, numbers, true, false, null, lists and mappings; nothing that is read can run code.

    PyYAML reads YAML 1.1, in which 3e-4 is a string and off is false: numbers and words are those of YAML 1.2 here.
    """

    # SafeLoader's are not inherited: no dates, no sets.
    yaml_implicit_resolvers: ClassVar[dict[Any, Any]] = {}
    yaml_constructors: ClassVar[dict[Any, Any]] = {}

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """No aliases: a few lines of them can stand for billions of values."""
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise yaml.MarkedYAMLError(problem="aliases (*name) are not read", problem_mark=mark)
        return super().compose_node(parent, index)


def _mapping(loader: Loader, node: yaml.MappingNode) -> dict[str, Any]:
    """Keys are words, each there once."""
    found: dict[str, Any] = {}
    for key, value in loader.construct_pairs(node, deep=True):
        if not isinstance(key, str):
            raise yaml.MarkedYAMLError(problem=f"key {key!r} is no word", problem_mark=node.start_mark)
        if key in found:
            raise yaml.MarkedYAMLError(problem=f"key {key!r} is there twice", problem_mark=node.start_mark)
        found[key] = value
    return found


def _list(loader: Loader, node: yaml.SequenceNode) -> list[Any]:
    return loader.construct_sequence(node, deep=True)


def _scalar(kind: Any) -> Any:
    return lambda loader, node: kind(loader.construct_scalar(node))


_NUMERIC = list("-+.0123456789")
# tag -> what a plain word must look like to have it, its first letters, what makes its value
_SCALARS: dict[str, tuple[str, list[str], Any]] = {
    "null": (r"~|null|", ["~", "n", ""], lambda text: None),
    "bool": (r"true|false", ["t", "f"], lambda text: text == "true"),
    "int": (r"[-+]?[0-9]+", _NUMERIC, int),  # 010 is ten
    "float": (r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", _NUMERIC, float),
    "str": (r"(?!)", [], str),
}
for _tag, (_pattern, _first, _kind) in _SCALARS.items():
    Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"({_pattern})$"), _first)
    Loader.add_constructor(f"tag:yaml.org,2002:{_tag}", _scalar(_kind))
Loader.add_constructor("tag:yaml.org,2002:map", _mapping)
Loader.add_constructor("tag:yaml.org,2002:seq", _list)
Loader.add_constructor(None, yaml.SafeLoader.construct_undefined)  # any other tag is refused


def read_document(path: Path) -> Any:
    """What the YAML file holds.

    Raises:
        FastnasError: it cannot be read, or is no such YAML.
    """
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST + 1)
    except OSError as error:
        raise FastnasError(f"sweep file {path} cannot be read: {error.strerror}") from None
    if len(content) > LARGEST:
        raise FastnasError(f"sweep file {path} is larger than {LARGEST:,} bytes: name a sweep's YAML file")
    return parse(content, str(path))


def parse(content: bytes | str, where: str) -> Any:
    """The value of a YAML text; ``where`` names it in a sentence.

    >>> parse("{gamma: 1e-3, graphs: off, T: [1, 2]}", "text")
    {'gamma': 0.001, 'graphs': 'off', 'T': [1, 2]}
    """
    try:
        return yaml.load(content, Loader)  # a SafeLoader
    except yaml.MarkedYAMLError as error:
        line = "" if error.problem_mark is None else f", line {error.problem_mark.line + 1}"
        raise FastnasError(f"{where}{line}: {error.problem}") from None
    except RecursionError:
        raise FastnasError(f"{where} is no sweep: its lists are nested too deeply") from None
    except (yaml.YAMLError, ValueError) as error:
        raise FastnasError(f"{where} is no YAML: {str(error).splitlines()[0]}") from None
