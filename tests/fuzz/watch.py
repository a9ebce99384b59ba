"""What is demanded of every reader: a result or one sentence, soon, in little memory, and nothing done.

An audit hook sees what Python is asked to do: processes, sockets, code that is executed, names that pickle looks up,
files that are written or removed elsewhere than in the fuzzed folder.
"""

import atexit
import dataclasses
import os
import shutil
import signal
import sys
import tempfile
import typing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from fastnas.errors import LONGEST, FastnasError

SECONDS = 5  # of processor time: an ordinary input takes milliseconds
MEMORY = 256 * 2**20  # beyond what the process has; inputs are kilobytes
PLACE = Path(tempfile.mkdtemp(prefix="fastnas-fuzz-")).resolve()
atexit.register(shutil.rmtree, PLACE, ignore_errors=True)

_FORBIDDEN = (
    "code.__new__",
    "cpython.run",
    "ctypes.",
    "os.exec",
    "os.fork",
    "os.kill",
    "os.posix_spawn",
    "os.putenv",
    "os.spawn",
    "os.startfile",
    "os.system",
    "pickle.find_class",
    "pty.spawn",
    "socket.",
    "subprocess.Popen",
    "urllib.Request",
    "webbrowser.open",
)
_CHANGES = (
    "os.chmod",
    "os.link",
    "os.mkdir",
    "os.remove",
    "os.rename",
    "os.rmdir",
    "os.symlink",
    "os.truncate",
)
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_seen: list[str] | None = None  # what was done while somebody watched


class TookTooLongError(BaseException):
    """The time is over. No ``Exception``, which a reader may catch."""


def hold(read: Callable[[bytes], object], content: bytes) -> None:
    """Raises AssertionError unless ``read(content)`` ends as every reader must."""
    before = _memory()
    with watched() as seen, _limited():
        sentence = refusal(read, content)
    assert not seen, f"it did {seen}"
    assert _memory(peak=True) - before < MEMORY, f"it took {(_memory(peak=True) - before) / 2**20:.0f} MiB"
    if sentence is not None:
        assert sentence.strip(), "a refusal without words"
        assert sentence.isprintable(), f"more than a sentence: {sentence!r}"
        assert len(sentence) <= LONGEST + 5, f"a sentence of {len(sentence)} characters: {sentence[:200]!r}"


def refusal(read: Callable[[bytes], object], content: bytes) -> str | None:
    """The sentence with which ``read`` refuses ``content``; None: it took it. Any other exception goes on."""
    try:
        read(content)
    except FastnasError as error:
        return str(error)
    return None


@contextmanager
def watched() -> Iterator[list[str]]:
    """What is done within it that reading does not need; readers that use up stack and memory are seen, too."""
    global _seen
    before, _seen = _seen, []
    try:
        yield _seen
    finally:
        _seen = before


@contextmanager
def _limited() -> Iterator[None]:
    """Raises TookTooLongError after ``SECONDS`` of processor time."""

    def stop(*_: object) -> None:
        raise TookTooLongError(f"more than {SECONDS} s")

    handler = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, handler)


def _memory(peak: bool = False) -> int:
    """Bytes that this process has in memory, or had at the most since it was last asked what it has."""
    try:
        if not peak:
            Path("/proc/self/clear_refs").write_text("5")
        status = Path("/proc/self/status").read_text()
    except OSError:  # not on Linux, or not allowed: then only the system's own limit holds
        return 0
    return 1024 * int(status.partition("VmHWM:" if peak else "VmRSS:")[2].split()[0])


def _audit(event: str, arguments: tuple) -> None:
    if _seen is None:
        return
    if event.startswith(_FORBIDDEN) or (event in ("exec", "marshal.loads") and not _our_own()):
        _seen.append(f"{event} {str(arguments)[:200]}")
    elif (event == "open" and isinstance(arguments[0], str | bytes) and _writes(*arguments[1:3])) or (
        event in _CHANGES and isinstance(arguments[0], str | bytes)
    ):
        _elsewhere(event, arguments[0])


def _writes(mode: str | None, flags: int | None) -> bool:
    return bool(set(mode or "") & set("wax+")) or bool((flags or 0) & _WRITING)


def _elsewhere(event: str, path: str | bytes) -> None:
    assert _seen is not None
    name = os.fsdecode(path)
    if not os.path.abspath(name).startswith(f"{PLACE}{os.sep}"):
        _seen.append(f"{event} {name}")


def _our_own() -> bool:
    """Whether it is the import system that executes a module, or typing an annotation: readers do both."""
    name = sys._getframe(2).f_code.co_filename
    return name.startswith("<frozen importlib") or name in (typing.__file__, dataclasses.__file__)


sys.addaudithook(_audit)
