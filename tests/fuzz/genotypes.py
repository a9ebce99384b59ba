"""Targets: genotypes as text, JSON, names and files."""

import json
from xml.etree import ElementTree

from fastnas.spaces import (
    SPACES,
    CellMatrix,
    CellSequence,
    CellString,
    Choice,
    Genotype,
    find_genotype,
    to_dot,
)
from fastnas.spaces.genotype import json_object
from fastnas.spaces.published import PUBLISHED
from fastnas.spaces.recurrent import PUBLISHED as RECURRENT
from fastnas.spaces.recurrent import RecurrentGenotype
from tests.fuzz.target import Target, place, text

CELL = CellMatrix(((0, 1, 1), (0, 0, 1), (0, 0, 0)), ("input", "maxpool3x3", "output"))
STRING = CellString.parse("|none~0|+|nor_conv_3x3~0|skip_connect~1|+|none~0|none~1|avg_pool_3x3~2|")
PAIRS = (("skip_connect", 0), ("none", 1))
SEQUENCE = CellSequence((PAIRS, PAIRS), ((2,), (0, 2)), (1,))
CHOICE = Choice("mine", {"cell": ((0, 1, "skip_connect"), (0, 2, "none"))})
SHORT = Genotype(PAIRS, (2,), PAIRS, (2,))
EVERY = (SHORT, PUBLISHED["DARTS_V2"], STRING, CELL, SEQUENCE, CHOICE, RECURRENT["DARTS_V1"])
CLASSES = (Genotype, CellString, CellMatrix, CellSequence, Choice, RecurrentGenotype)
TOKENS = (
    *(
        b"NaN",
        b"Infinity",
        b"null",
        b"true",
        b'"\\ud800"',
        b'"\\u0000"',
        b"1e999",
        b"-1",
        b"9" * 4000,
        b"[]",
        b"{}",
        b'""',
    ),
    *(
        b"0x" + b"f" * 4000,
        b"range(9)",
        b"range(0, 9, 0)",
        b"list(",
        b"[" * 200,
        b"(" * 90,
        b"-" * 200,
        b"{**",
        b"1if 2else",
    ),
    *(
        b"Genotype(",
        b"'\\x00'",
        b"\x00",
        b"\xff",
        b"\xed\xa0\x80",
        b"\n",
        b"none",
        b"~0|",
        b"__import__('os').system('true')",
    ),
    *(
        b'"space": "darts", ',
        b'"matrix": ',
        b'"edges": ',
        b"1000000000000",
        b"*a, ",
        b"1.5",
        b"True",
        b"b'x'",
        b"1j",
    ),
)


def parse(content: bytes) -> None:
    """Every class reads it; what one takes, it prints, draws and reads back."""
    source = text(content)
    refusals = []
    for kind in CLASSES:
        try:
            found = kind.parse(source)
        except ValueError as error:
            refusals.append(error)
            continue
        assert kind.parse(json.dumps(found.to_json())) == found
        assert kind.parse(str(found)) == found
        assert 0 <= found.skip_share() <= 1
        assert to_dot(found).startswith("digraph")
        drawn = found._repr_svg_()
        assert drawn is None or ElementTree.fromstring(drawn.encode()).tag.endswith("svg")
    for error in refusals:  # the first that is none of the library's sentences, if there is one, is the fault
        if type(error).__name__ != "FastnasError":
            raise error
    if len(refusals) == len(CLASSES):
        raise refusals[0]


def find(content: bytes) -> None:
    """As --genotype: a name, a path or the text itself, of any space."""
    found = find_genotype(text(content))
    assert found.space in SPACES


def find_in_space(content: bytes) -> None:
    """As --genotype with --space: the first byte says which."""
    names = sorted(SPACES)
    find_genotype(text(content[1:]), names[content[0] % len(names)] if content else "darts")


def find_in_file(content: bytes) -> None:
    """As --genotype with the folder of a run."""
    find_genotype(place("run/genotype.json", content).parent)


def parse_json(content: bytes) -> None:
    """What every JSON reader begins with."""
    json_object(text(content))


def _texts() -> list[bytes]:
    return [form.encode() for one in EVERY for form in (str(one), json.dumps(one.to_json()))]


def _of_spaces() -> list[bytes]:
    return [bytes([place]) + source for place, source in enumerate(_texts())]


TARGETS = (
    Target("genotype", parse, _texts, TOKENS),
    Target("genotype-json", parse_json, _texts, TOKENS),
    Target("genotype-source", find, lambda: [*_texts(), b"DARTS_V2", b"~root", b"/dev/null", b"/"], TOKENS),
    Target("genotype-of-space", find_in_space, _of_spaces, TOKENS),
    Target("genotype-file", find_in_file, _texts, TOKENS),
)
