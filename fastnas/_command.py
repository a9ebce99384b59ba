"""What the command lines share: a user's mistake is one sentence and exit status 2."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from fastnas.errors import FastnasError


@contextmanager
def clear_errors() -> Iterator[None]:
    """Turns a user's mistake, or a system that refuses, into ``error: <sentence>`` and a non-zero exit."""
    try:
        yield
        sys.stdout.flush()
    except FastnasError as error:
        _fail(str(error), 2)
    except BrokenPipeError:
        # The reader (head, less) has gone: no more output, and none from the interpreter's own flush.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except OSError as error:
        _fail(f"{error.strerror or error}: {error.filename or 'while writing'}", 1)


def _fail(sentence: str, status: int) -> None:
    print(f"error: {sentence}", file=sys.stderr)
    sys.exit(status)
