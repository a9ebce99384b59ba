"""Paths that users name."""

from __future__ import annotations

from pathlib import Path

from fastnas.errors import FastnasError


def user_path(flag: str, name: str | Path) -> Path:
    """The path ``name``, a ``~`` at its beginning being a home folder.

    Raises:
        FastnasError: it is none that this system can have: a NUL in it, too long, a user that does not exist.
    """
    try:
        path = Path(name).expanduser()
        path.exists()
    except (OSError, RuntimeError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error).rstrip(".")
        raise FastnasError(f"{flag} {str(name)!r} cannot be looked at: {reason}") from None
    return path
