"""What is said of an exception that came out of a user's own code: where it was raised, and what it says."""

from __future__ import annotations

import os
import traceback
from pathlib import Path

from fastnas.errors import FastnasError

_LIBRARY = f"{Path(__file__).parent}{os.sep}"


def located(error: BaseException) -> str:
    """``file:line: Class: message``, in one line: the deepest place in the user's own files.

    >>> try:
    ...     exec(compile("1 / 0", "mine.py", "exec"))
    ... except ZeroDivisionError as error:
    ...     print(located(error))
    mine.py:1: ZeroDivisionError: division by zero
    """
    text = " ".join(str(error).split())
    said = f"{type(error).__name__}: {text}" if text else type(error).__name__
    if isinstance(error, FastnasError):
        said = text
    if isinstance(error, SyntaxError) and error.filename is not None:
        return f"{error.filename}:{error.lineno}: {type(error).__name__}: {error.msg}"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not _is_ours(frame.filename)]
    # Rather a file of theirs than what it called in an installed package; their own may be installed, too.
    own = [frame for frame in frames if "site-packages" not in frame.filename] or frames
    return f"{own[-1].filename}:{own[-1].lineno}: {said}" if own else said


def _is_ours(file: str) -> bool:
    """Whether a frame's file is this library's, torch's or Python's importing."""
    return file.startswith((_LIBRARY, "<frozen ")) or f"{os.sep}torch{os.sep}" in file
