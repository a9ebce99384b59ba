"""One reader that is fuzzed."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from tests.fuzz.watch import PLACE


class Target(NamedTuple):
    """A reader.

    Attributes:
        name: of the target.
        read: bytes, however damaged -> whatever the reader makes of them; it raises FastnasError where it refuses them.
        seeds: () -> what the reader takes, or knows why not: where mutations begin.
        tokens: pieces that mean something to the reader.
    """

    name: str
    read: Callable[[bytes], object]
    seeds: Callable[[], Sequence[bytes]]
    tokens: tuple[bytes, ...] = ()


def place(name: str, content: bytes | None = None) -> Path:
    """The file ``name`` in the fuzzed folder, with ``content``, and the folders that it needs."""
    path = PLACE / name
    if not path.parent.is_dir():
        path.parent.mkdir(parents=True)
    if content is not None:
        path.write_bytes(content)
    return path


def text(content: bytes) -> str:
    """``content`` as the command line would have it: bytes that are no UTF-8 become lone surrogates."""
    return content.decode("utf-8", "surrogateescape")
