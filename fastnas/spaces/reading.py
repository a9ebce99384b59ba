"""Genotypes from names, files, run folders and text."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from fastnas._imports import check_imports
from fastnas.errors import FastnasError
from fastnas.spaces.family import SPACES, Family, family
from fastnas.spaces.genotype import HOW_OWN, AnyGenotype, json_object, shorten

MOST_BYTES = 2**18


class FoundGenotype(NamedTuple):
    """A genotype and the name of the space that makes its network."""

    space: str
    genotype: AnyGenotype


def read_genotype(space: str | None, source: str | Path) -> AnyGenotype:
    """A genotype from a published name, a file (any of the field's formats), a run's folder or the text itself.

    Args:
        space: that it must be of; None: whichever it is of.
        source: where it is.

    Raises:
        FastnasError: nothing of that name, an unreadable file, or not a genotype of this space.
    """
    return find_genotype(source, space).genotype


def find_genotype(source: str | Path, space: str | None = None) -> FoundGenotype:
    """As :func:`read_genotype`, with the space that it is of.

    Without ``space`` that is the one that its JSON names or, where it names none, the first of this format.

    >>> find_genotype("|none~0|+|none~0|none~1|+|skip_connect~0|none~1|none~2|").space
    'nasbench201'
    """
    wanted = None if space is None else family(space)
    text = str(source)
    for known in [*([] if wanted is None else [wanted]), *SPACES.values()]:  # two spaces may have one name
        if text in known.published:
            return _published(known, text, wanted)
    text = _text(source, wanted)
    try:
        return _parsed_as(wanted, text) if wanted is not None else _parsed(text)
    except FastnasError:
        _check_run(Path(source))  # may know better why
        raise


def _published(known: Family, name: str, wanted: Family | None) -> FoundGenotype:
    if wanted is not None and wanted.name != known.name:
        raise FastnasError(f"genotype {name} is one of the space {known.name}; it does not fit {wanted.name}")
    return FoundGenotype(known.name, known.published[name])


def _text(source: str | Path, wanted: Family | None) -> str:
    """What is to be parsed: a file's content, or the source itself if it looks like a genotype."""
    if not str(source).strip():
        raise FastnasError("genotype: the text is empty; name a run's folder, a file or a published genotype")
    path = Path(source)
    if _is(path.is_dir):
        path = path / "genotype.json"
        if not _is(path.is_file):
            raise FastnasError(
                f"genotype: the folder {source} is no run, or has no genotype yet: {path} is missing"
            )
    if not _is(path.is_file):
        if set(str(source)) & set("({|"):
            return str(source)
        of = [known.published for known in SPACES.values() if wanted in (None, known)]
        names = list(dict.fromkeys(name for published in of for name in published))
        known_names = f"the names known here are {', '.join(names)}" if names else "no names are known"
        of_space = "" if wanted is None else f"for space {wanted.name} "
        raise FastnasError(
            f"genotype {str(source)!r}: no such file, and no such name; {of_space}{known_names}"
        )
    try:
        if (size := path.stat().st_size) > MOST_BYTES:
            raise FastnasError(
                f"genotype file {path}: no genotype takes {size:,} bytes; name a genotype's file, or a run's folder"
            )
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise FastnasError(f"genotype file {path}: cannot be read as text ({error})") from None


def _check_run(folder: Path) -> None:
    """Raises FastnasError if this is a run's folder, and the run had code of the user's own that is not here."""
    try:
        content = json_object((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return
    check_imports(folder, content or {})


def _parsed_as(wanted: Family, text: str) -> FoundGenotype:
    named = _named(text)
    try:
        genotype = wanted.genotype.parse(text)
    except FastnasError as error:
        other = named if named is not wanted else None
        other = other or _first_that_fits(text)
        hint = f"it is one of {other.name}; say --space {other.name}" if other is not None else str(error)
        raise FastnasError(f"this genotype does not fit the space {wanted.name}: {hint}") from None
    return FoundGenotype(wanted.name, genotype)


def _parsed(text: str) -> FoundGenotype:
    found = _named(text) or _first_that_fits(text)
    if found is None:
        raise FastnasError(_why_none(text))
    return FoundGenotype(found.name, found.genotype.parse(text))


def _why_none(text: str) -> str:
    """What is wrong with a text that no space reads: by the space that it names, or the format that it looks like."""
    named = (json_object(text) or {}).get("space")
    if isinstance(named, str) and named not in SPACES:
        return (
            f"genotype: it names {shorten(named)} and is of none of the spaces {', '.join(SPACES)}; {HOW_OWN}"
        )
    signs = {
        "|": "nasbench201",
        "recurrent=": "recurrent",
        "normal=": "darts",
        '"matrix"': "nasbench1shot1-1",
    }
    signs |= {'"normal"': "darts", '"recurrent"': "recurrent", '"arch"': "nasbench201"}
    for sign, name in signs.items():
        if sign in text:
            try:
                SPACES[name].genotype.parse(text)
            except FastnasError as error:
                return str(error)
    return f"{text[:60]!r} is a genotype of none of the spaces {', '.join(SPACES)}"


def _named(text: str) -> Family | None:
    """The space that a genotype's JSON names, if it is known."""
    name = (json_object(text) or {}).get("space")
    return SPACES.get(name) if isinstance(name, str) else None


def _first_that_fits(text: str) -> Family | None:
    for known in SPACES.values():
        try:
            known.genotype.parse(text)
        except FastnasError:
            continue
        return known
    return None


def _is(asked: Callable[[], bool]) -> bool:
    try:
        return asked()
    except (OSError, ValueError):  # a genotype's text, too long for a name
        return False
