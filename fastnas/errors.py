"""What fastnas raises for a user's mistake, and when it is told to end."""

from __future__ import annotations

LONGEST = 4000  # characters: a few paths fit, a file's content does not


class FastnasError(ValueError):
    """A user's mistake, told in one sentence: what is wrong, where, and what to do.

    The command lines print it as ``error: <sentence>`` and exit with status 2; from Python it is an
    ordinary ``ValueError``. It may quote what a file says: so a character that does not print, such as the end of a
    line or a terminal's escape, is written as Python writes it in a string, and a long sentence loses its middle.

    >>> print(FastnasError("unknown method 'a\\nb'"))
    unknown method 'a\\nb'
    """

    def __init__(self, sentence: str) -> None:
        super().__init__(_cut(_printable(_cut(sentence))))


class RepeatedError(FastnasError):
    """A mistake that another process of a data-parallel run tells: the command lines print it there alone."""


class UnreadableError(FastnasError):
    """A file that a run reads as it goes on, such as an image, cannot be read; the run may go on once it can."""


class Terminated(KeyboardInterrupt):
    """SIGTERM has ended what ran, as Ctrl-C does; a command line exits with status 143 then."""


def _cut(sentence: str) -> str:
    if len(sentence) <= LONGEST:
        return sentence
    return f"{sentence[: LONGEST // 2]} ... {sentence[-LONGEST // 2 :]}"


def _printable(sentence: str) -> str:
    if sentence.isprintable():
        return sentence
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in sentence)
