"""Serves the report of runs while they go on, to whoever has its address.

One page, at a path that is a secret; nothing of a request reaches the file system. HTTP/1.0: a connection is one
request. A client that hangs holds one of ``CONNECTIONS`` for ``LONGEST`` seconds, and none that comes later waits for
it: the oldest connection gives way.
"""

from __future__ import annotations

import hmac
import ipaddress
import json
import math
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Collection, Sequence
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from fastnas._imports import import_user_code
from fastnas.errors import FastnasError
from fastnas.report.newest import Newest
from fastnas.report.read import folders_of, runs_of
from fastnas.runs.live import LINGERS, OPEN, address, is_open, listening, token

CONNECTIONS = 16
LONGEST = 60.0  # seconds that a connection may take
PATIENCE = 20.0  # seconds for what a client sends, and for what it takes
# The page's own policy names its script and its style by their digests; here is what a <meta> cannot say, too.
POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "Vary": "Accept-Encoding",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
ENDED = "Fastnas-Ended"  # a header: this page is the last one


class Server(ThreadingHTTPServer):
    """Serves the newest page at ``/secret/``.

    Args:
        listener: where it listens; the server's from now on.
        secret: the path.
        newest: the page.
        names: of this machine, by which it may be asked beside its addresses and localhost.
    """

    daemon_threads = True
    block_on_close = False

    def __init__(
        self, listener: socket.socket, secret: str, newest: Newest, names: Collection[str] = ()
    ) -> None:
        super().__init__(listener.getsockname()[:2], Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listener
        self.secret, self.newest = secret, newest
        self.names = {"localhost", *(name.lower() for name in names)}
        self.ended = False
        self.asked = -math.inf  # when somebody last got the page
        self._open: dict[socket.socket, float] = {}  # since when; -inf: told to end
        self._open_lock = threading.Lock()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answers in a thread of its own; the oldest connection ends if there are too many."""
        with self._open_lock:
            refused = len(self._open) >= 2 * CONNECTIONS  # those that shall end have not ended yet
            waiting = [old for old, since in self._open.items() if since > -math.inf]
            if len(waiting) >= CONNECTIONS:
                self._hang_up(waiting[0])
            if not refused:
                self._open[request] = time.monotonic()
        if refused:
            return super().shutdown_request(request)
        return super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """The connection has ended."""
        with self._open_lock:
            self._open.pop(request, None)
        super().shutdown_request(request)

    def service_actions(self) -> None:
        """Twice a second: ends connections that take too long."""
        with self._open_lock:
            for request, since in self._open.items():
                if since > -math.inf and time.monotonic() > since + LONGEST:
                    self._hang_up(request)

    def _hang_up(self, connection: socket.socket) -> None:
        """Wakes the thread that answers there, which then ends."""
        self._open[connection] = -math.inf
        with suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that has gone is no news; a fault of ours is."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)

    def is_ours(self, host: str | None) -> bool:
        """Whether a Host header names this machine. Another site's name that its owner lets point here does not."""
        name = (host or "").strip().lower()
        name = name[1:].partition("]")[0] if name.startswith("[") else name.partition(":")[0]
        if name in self.names:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True


class Handler(BaseHTTPRequestHandler):
    """One request."""

    server: Server
    timeout = PATIENCE

    def parse_request(self) -> bool:
        """Whether it is one that is answered with the page or a 404."""
        if not super().parse_request():
            return False
        if self.command not in ("GET", "HEAD"):
            self._answer(405, more={"Allow": "GET, HEAD"})
            return False
        if not self.server.is_ours(self.headers.get("Host")):
            self._answer(421)
            return False
        return True

    def do_GET(self) -> None:
        """Sends the page, if the path is the secret and the client has not got it already."""
        path = self.path.partition("?")[0].removesuffix("/").encode("utf-8", "surrogatepass")
        if not hmac.compare_digest(path, f"/{self.server.secret}".encode()):
            return self._answer(404)
        ended = self.server.ended  # before the page is made, which is then the last one
        try:
            page = self.server.newest.page(now=ended)
        except (FastnasError, OSError) as error:
            return self._answer(503, f"{error}\n".encode())
        self.server.asked = time.monotonic()
        more = {"ETag": page.etag, **({ENDED: "1"} if ended else {})}
        if page.etag in self.headers.get("If-None-Match", ""):
            return self._answer(304, more=more)
        packed = "gzip" in self.headers.get("Accept-Encoding", "")
        if packed:
            more["Content-Encoding"] = "gzip"
        return self._answer(200, page.packed if packed else page.plain, "text/html", more)

    do_HEAD = do_GET

    def _answer(
        self, status: int, body: bytes = b"", kind: str = "text/plain", more: dict[str, str] | None = None
    ) -> None:
        self.send_response(status)
        for name, value in (HEADERS | (more or {})).items():
            self.send_header(name, value)
        if status != 304:
            self.send_header("Content-Type", f"{kind}; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Without a word why."""
        self.command = getattr(self, "command", None) or "GET"
        self._answer(code)

    def version_string(self) -> str:
        """Of the Server header: none."""
        return "fastnas"

    def log_message(self, format: str, *args: Any) -> None:
        """A poll every other second is no news."""


def serve(paths: Sequence[Path], host: str, port: int) -> None:
    """Serves the runs in the folders ``paths`` until Ctrl-C, at an address that is printed.

    Raises:
        FastnasError: nothing can listen there, or there is no run.
    """
    with listening(host, port) as listener:
        newest = newest_of(paths)
        newest.page()  # a mistake is told here
        secret = token()
        if is_open(listener):
            print(OPEN, file=sys.stderr)
        print(f"live report: {address(listener, secret)} (until Ctrl-C)", flush=True)
        server = Server(listener, secret, newest, [host, socket.gethostname()])
        with server, suppress(KeyboardInterrupt):
            server.serve_forever()


def newest_of(paths: Sequence[Path]) -> Newest:
    """The newest page of the runs in the folders ``paths``."""
    from fastnas.report.page import page  # here: matplotlib takes half a second, and a child answers sooner

    return Newest(lambda: folders_of(paths), lambda: page(runs_of(paths), live=True))


def child(descriptor: int) -> None:
    """What the process that ``fastnas.runs.live.Live`` starts does, until its standard input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.nice(10)
    parent = os.getppid()
    told = json.loads(sys.stdin.readline())
    for source in told["imports"]:  # the flags of the run's own command, for spaces of the user's
        with suppress(FastnasError):  # a cell without weights is better than no page
            import_user_code(source)
    listener = socket.socket(fileno=descriptor)
    server = Server(
        listener,
        told["token"],
        newest_of([Path(run) for run in told["runs"]]),
        [told["host"], socket.gethostname()],
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    # A process that the run forked may hold the pipe open when the run is gone.
    while not select.select([sys.stdin], [], [], 1.0)[0] and os.getppid() == parent:
        pass
    server.ended = True
    if time.monotonic() < server.asked + LINGERS:
        server.newest.page(now=True)
        time.sleep(LINGERS)
    server.shutdown()
