"""What the command lines share: a user's mistake is one sentence and exit status 2."""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fastnas.errors import FastnasError, RepeatedError, Terminated


@contextmanager
def interrupted_quietly() -> Iterator[None]:
    """Ctrl-C while a command line's package is imported ends the process without a traceback."""
    command_line = sys.argv[:1] == ["-m"]  # what it is until `python -m fastnas.search` has found its module
    if not command_line or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return

    def stop(*_: object) -> None:
        os.write(2, b"\ninterrupted\n")
        os._exit(130)

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def clear_errors() -> Iterator[None]:
    """Turns a user's mistake, or a system that refuses, into ``error: <sentence>`` and a non-zero exit.

    Ctrl-C ends with what it has to say, or "interrupted", and status 130; SIGTERM, where it is handled, with 143.
    """
    for stream in (sys.stdout, sys.stderr):  # a locale without a path's letters ends no run
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        yield
        sys.stdout.flush()
    except RepeatedError:
        sys.exit(2)
    except FastnasError as error:
        _fail(f"rank {rank()}: {error}" if rank() else str(error), 2)
    except KeyboardInterrupt as stop:
        if not rank():
            print(f"\n{str(stop) or 'interrupted'}", file=sys.stderr)
        sys.exit(143 if isinstance(stop, Terminated) else 130)
    except BrokenPipeError:
        # The reader (head, less) has gone: no more output, and none from the interpreter's own flush.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except OSError as error:
        _fail(f"{error.strerror or error}: {error.filename or 'while writing'}", 1)
    except (RuntimeError, MemoryError) as error:
        from fastnas.runs.memory import (
            is_out_of_memory,
        )  # here: torch is not to be imported before it is needed

        if not is_out_of_memory(error):
            raise
        _fail(
            "no memory left before the first step; take a smaller network or --batch-size, or a device with more",
            1,
        )


def rank() -> int:
    """Of this process among those that torchrun started, of which the first prints; 0: it is the first, or alone."""
    value = os.environ.get("RANK", "")
    return int(value) if value.isdecimal() and os.environ.get("WORLD_SIZE", "1") != "1" else 0


def flag_value(arguments: list[str], flag: str) -> str | None:
    """The value of ``flag`` in the arguments, None if it is absent or bare."""
    for i, argument in enumerate(arguments):
        if argument.startswith(f"{flag}="):
            return argument.partition("=")[2]
        if argument == flag and i + 1 < len(arguments) and not arguments[i + 1].startswith("--"):
            return arguments[i + 1]
    return None


def explicit_resume(arguments: list[str]) -> list[str]:
    """A bare ``--resume`` gets the folder of ``--out``, or is left out where there is no run yet: it begins then."""
    if "--resume" not in arguments or flag_value(arguments, "--resume") is not None:
        return arguments
    out = flag_value(arguments, "--out")
    if out is None:
        raise FastnasError("--resume needs the folder of the run: --resume runs/NAME")
    from fastnas.runs.folder import holds_run  # here: it imports torch

    at = arguments.index("--resume")
    value = ["--resume", out] if holds_run(Path(out)) else []
    return [*arguments[:at], *value, *arguments[at + 1 :]]


def _fail(sentence: str, status: int) -> None:
    print(f"error: {sentence}", file=sys.stderr)
    sys.exit(status)
