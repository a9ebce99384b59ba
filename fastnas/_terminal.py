"""What is at the other end of an output, a terminal or a file, and text that fits it."""

from __future__ import annotations

import os
import shutil
import textwrap
from collections.abc import Sequence
from typing import Any

USUAL = os.terminal_size((80, 24))


def is_terminal(stream: Any) -> bool:
    """Whether ``stream`` is a terminal on which a line can be written over."""
    try:
        return bool(stream.isatty()) and os.environ.get("TERM") != "dumb"
    except (AttributeError, ValueError):  # none, or closed
        return False


def size_of(stream: Any) -> os.terminal_size:
    """Columns and lines of a terminal as it is now, and the usual ones of all else."""
    try:
        found = os.get_terminal_size(stream.fileno())
    except (AttributeError, ValueError, OSError):
        return shutil.get_terminal_size(USUAL)
    # A terminal that nobody gave a size says 0.
    return os.terminal_size((found.columns or USUAL.columns, found.lines or USUAL.lines))


def laid_out(groups: Sequence[Sequence[str]], width: int) -> str:
    """Phrases in one line where that is wide enough, else in a line for each group, or in more of them.

    The first phrase of all is the head, and what is below it is indented.

    >>> row = [["epoch 1/6", "loss 2.31", "12.3 s"], ["entropy 2.08", "skip 0.13"]]
    >>> print(laid_out(row, 80))
    epoch 1/6  loss 2.31  12.3 s  entropy 2.08  skip 0.13
    >>> print(laid_out(row, 36))
    epoch 1/6  loss 2.31  12.3 s
               entropy 2.08  skip 0.13
    >>> print(laid_out(row, 24))
    epoch 1/6  loss 2.31
      12.3 s
      entropy 2.08
      skip 0.13
    """
    filled = [list(group) for group in groups if group]
    whole = "  ".join(phrase for group in filled for phrase in group)
    if len(whole) <= width:
        return whole
    head = len(filled[0][0]) + 2
    indent = " " * (head if head <= width // 3 else 2)
    lines: list[str] = []
    for group in filled:
        line = ""
        for phrase in group:
            longer = f"{line}  {phrase}" if line else (indent if lines else "") + phrase
            if line and len(longer) > width:
                lines.append(line)
                longer = indent + phrase
            line = longer
        lines.append(line)
    return "\n".join(wrapped(line, width, indent) for line in lines)


def wrapped(text: str, width: int, indent: str = "") -> str:
    """``text`` in lines of at most ``width``, but for words that are longer, those below the first indented.

    >>> print(wrapped("genotype: CellString(one, two, three)", 26, " " * 10))
    genotype: CellString(one,
              two, three)
    """
    if len(text) <= width:
        return text
    own = text[: len(text) - len(text.lstrip())]
    return textwrap.fill(
        text.strip(),
        max(width, len(indent) + 1),
        initial_indent=own,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
