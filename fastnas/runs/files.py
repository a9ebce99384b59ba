"""Files that are there whole or not at all, whatever happens while they are written."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PART = ".part"  # ends the name of a file that is being written


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """An error of the system (a full disk) says which file it was about."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None


def write_atomically(path: Path, content: bytes | str) -> None:
    """``path`` holds either what it held before or all of ``content``, after a power cut, too.

    A process killed in between leaves a file whose name ends in ``PART`` behind; ``remove_parts`` clears it away.
    """
    data = content.encode() if isinstance(content, str) else content
    with naming(path):
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=PART)
    try:
        with naming(path):
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(name, 0o644)
            os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    with naming(path):
        _sync_folder(path.parent)


def remove_parts(folder: Path) -> None:
    """Removes what processes that were killed while they wrote left in ``folder``."""
    for file in folder.glob(f".*{PART}"):
        with naming(file):
            file.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Makes the names in ``folder`` durable, where its file system can."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EACCES):
            raise
    finally:
        os.close(handle)
