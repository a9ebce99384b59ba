"""The live report of a run, as the run sees it: an address that it listens on, and a child process that answers there.

The child (``fastnas.report.server``) is given the socket, so a port that is taken is known before the run begins. It
renders in a process of its own, behind all others, and ends when the pipe that the run holds is closed, however that
comes.
"""

from __future__ import annotations

import ipaddress
import json
import os
import secrets
import socket
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from fastnas._imports import imported
from fastnas.errors import FastnasError

LOOPBACK = "127.0.0.1"
LINGERS = 3.0  # seconds in which browsers fetch the last epoch from a child whose run has ended
RENDERS = 20.0  # and the most for making it
_PACKAGES = Path(__file__).parents[2]
_CHILD = "import sys; sys.path.append(sys.argv[1]); from fastnas.report.server import child; child(int(sys.argv[2]))"
# A child is none of torchrun's processes, has no GPU and takes one thread.
_NOT_ITS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "PYTHONSAFEPATH")
_ITS = {name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")} | {
    "CUDA_VISIBLE_DEVICES": "",
    "MPLBACKEND": "agg",
}


def listening(host: str, port: int, prefix: str = "--") -> socket.socket:
    """A socket that listens at ``host``, with the port it got.

    Args:
        host: a name or an address of this machine.
        port: 0: any that is free.
        prefix: of the flags that a mistake names, host and port.

    Raises:
        FastnasError: nothing can listen there.
    """
    if not 0 <= port <= 65535:
        raise FastnasError(f"{prefix}port must be from 0 (any that is free) to 65535, got {port}")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, UnicodeError):
        raise FastnasError(
            f"{prefix}host {host!r} is no address of this machine; leave it out for {LOOPBACK}"
        ) from None
    found = socket.socket(family, kind, protocol)
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
        found.listen(64)
    except OSError as error:
        found.close()
        raise FastnasError(
            f"{prefix}host {host} {prefix}port {port}: {(error.strerror or str(error)).lower()}; take another "
            f"{prefix}port, or leave both out for any port of {LOOPBACK}"
        ) from None
    return found


def token() -> str:
    """What makes an address one that nobody guesses."""
    return secrets.token_urlsafe(24)


def address(listener: socket.socket, token: str) -> str:
    """Where a browser finds what is served at ``listener``.

    >>> with listening("127.0.0.1", 0) as listener:
    ...     address(listener, "secret") == f"http://127.0.0.1:{listener.getsockname()[1]}/secret/"
    True
    """
    host, port = listener.getsockname()[:2]
    if ipaddress.ip_address(host).is_unspecified:
        host = socket.gethostname()
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/{token}/"


def is_open(listener: socket.socket) -> bool:
    """Whether other machines may reach it."""
    return not ipaddress.ip_address(listener.getsockname()[0].partition("%")[0]).is_loopback


OPEN = "other machines may reach the live report: whoever has its address sees the run"


class Live:
    """The live report of one run, from ``serve`` to the end of the context; nothing, if it is not asked for.

    Args:
        asked: whether it is.
        host, port: where to listen, at once.

    Raises:
        FastnasError: nothing can listen there.
    """

    def __init__(self, asked: bool, host: str = LOOPBACK, port: int = 0) -> None:
        self._host = host
        self._listener = listening(host, port, "--live-") if asked else None
        self._child: subprocess.Popen[str] | None = None
        self.url: str | None = None

    def serve(self, run: Path, progress: bool) -> None:
        """Begins to show the run in the folder ``run``, and says where: with ``progress`` on the standard output."""
        if self._listener is None:
            return
        secret = token()
        self.url = address(self._listener, secret)
        if is_open(self._listener):
            print(OPEN, file=sys.stderr)
        print(
            f"live report: {self.url}\n  while it runs; then {run / 'report.html'}",
            file=sys.stdout if progress else sys.stderr,
            flush=True,
        )
        with self._listener:
            descriptor = self._listener.fileno()
            self._child = subprocess.Popen(
                [sys.executable, "-c", _CHILD, str(_PACKAGES), str(descriptor)],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[descriptor],
                env=_environment(os.environ),
                start_new_session=True,  # Ctrl-C is the run's: the child ends when the run has
                text=True,
            )
        self._listener = None
        # Not among its arguments, which every user of the machine can read.
        told = {"token": secret, "host": self._host, "runs": [str(run.absolute())], "imports": imported()}
        self._tell(json.dumps(told) + "\n")

    def _tell(self, line: str) -> None:
        assert self._child is not None
        assert self._child.stdin is not None
        with suppress(BrokenPipeError):  # it could not start, which is said at the end
            self._child.stdin.write(line)
            self._child.stdin.flush()

    def __enter__(self) -> Live:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends it, when browsers that show it have had the time to fetch what the run came to."""
        if self._listener is not None:
            self._listener.close()
        child, self._child = self._child, None
        if child is None:
            return
        assert child.stdin is not None
        if child.poll() is not None:
            print("the live report ended before the run; python -m fastnas.report shows why", file=sys.stderr)
        with suppress(BrokenPipeError):
            child.stdin.close()
        with suppress(subprocess.TimeoutExpired, KeyboardInterrupt):
            child.wait(LINGERS + RENDERS)
        child.kill()
        child.wait()


def _environment(ours: Mapping[str, str]) -> dict[str, str]:
    """The child's."""
    kept = {name: value for name, value in ours.items() if name not in _NOT_ITS}
    return kept | _ITS
