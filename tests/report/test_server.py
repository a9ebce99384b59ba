"""What is served: one page, at a secret address, to those who ask as a browser on this machine does."""

import gzip
import http.client
import socket
import threading
import time
from contextlib import contextmanager
from http.server import ThreadingHTTPServer

import pytest

from fastnas.errors import FastnasError
from fastnas.report import server as module
from fastnas.report.command import main
from fastnas.report.newest import Newest
from fastnas.report.server import ENDED, Server
from fastnas.runs.live import address, is_open, listening

SECRET = "a-secret"


@contextmanager
def serving(newest, **options):
    """A server of ``newest`` in a thread; its port."""
    listener = listening("127.0.0.1", 0)
    server = Server(listener, SECRET, newest, **options)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def newest(tmp_path):
    """The page of a folder: its metrics.jsonl."""
    (tmp_path / "metrics.jsonl").write_text("one")
    return Newest(lambda: [tmp_path], (tmp_path / "metrics.jsonl").read_text)


@pytest.fixture
def server(newest):
    with serving(newest) as found:
        yield found


def ask(server, path=f"/{SECRET}/", method="GET", **headers):
    """Status, headers and body of the answer."""
    connection = http.client.HTTPConnection(*server.server_address, timeout=10)
    connection.request(method, path, headers=headers)
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer.status, answer.headers, body


def raw(server, text):
    """All that comes back for these bytes."""
    with socket.create_connection(server.server_address, timeout=10) as connection:
        connection.sendall(text)
        connection.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: connection.recv(65536), b""))


def test_the_page_and_its_headers(server):
    status, headers, body = ask(server)
    assert (status, body, headers["Content-Type"]) == (200, b"one", "text/html; charset=utf-8")
    assert headers["Cache-Control"] == "no-store"
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Referrer-Policy"] == "no-referrer"
    assert headers["X-Frame-Options"] == "DENY"
    policy = headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none';")
    assert "connect-src 'self'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "Access-Control-Allow-Origin" not in headers
    assert "Python" not in headers["Server"]


def test_head_is_the_same_without_the_page(server):
    (status, got, _), (same, headers, body) = ask(server), ask(server, method="HEAD")
    assert (same, body) == (status, b"")
    assert all(headers[name] == got[name] for name in ("Content-Length", "ETag"))


def test_a_page_that_the_client_has_is_not_sent_again(server, tmp_path):
    _, headers, _ = ask(server)
    status, _, body = ask(server, **{"If-None-Match": headers["ETag"]})
    assert (status, body) == (304, b"")
    (tmp_path / "metrics.jsonl").write_text("another")
    server.newest._not_before = 0
    status, newer, body = ask(server, **{"If-None-Match": headers["ETag"]})
    assert (status, body) == (200, b"another")
    assert newer["ETag"] != headers["ETag"]


def test_packed_for_who_can_unpack(server):
    _, headers, body = ask(server, **{"Accept-Encoding": "gzip, deflate"})
    assert headers["Content-Encoding"] == "gzip"
    assert gzip.decompress(body) == b"one"


PATHS = [
    "/",
    "/favicon.ico",
    "/a-secre/",
    "/a-secret2/",
    "/A-SECRET/",
    "/a-secret/metrics.jsonl",
    "/a-secret/../",
    "/a-secret/%2e%2e/config.json",
    "/../../../../etc/passwd",
    "//etc/passwd",
    "/%00",
    "/a-secret%00/",
    "/é",
    "*",
]


@pytest.mark.parametrize("path", PATHS)
def test_every_other_path_is_one_404(server, path):
    answer = raw(server, f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.0 404 ")
    assert b"ETag" not in head
    assert body == b""


@pytest.mark.parametrize(
    "method", ["POST", "PUT", "DELETE", "OPTIONS", "CONNECT", "TRACE", "PATCH", "get", "X"]
)
def test_other_methods_are_refused(server, method):
    status, headers, body = ask(server, method=method)
    assert (status, body) == (405, b"")
    assert headers["Allow"] == "GET, HEAD"


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:80", "127.0.0.1:9", "[::1]:8000", "192.168.0.7", "lab7"]
)
def test_hosts_that_nobody_else_can_own(newest, host):
    with serving(newest, names=["Lab7"]) as server:
        assert ask(server, Host=host)[0] == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example:80", "", "[::1"]
)
def test_a_name_that_somebody_lets_point_here(server, host):
    """DNS rebinding: another site's page may ask this machine by its own site's name."""
    status, headers, body = ask(server, Host=host)
    assert (status, body) == ((200, b"one") if host == "[::1" else (421, b""))
    assert ("ETag" in headers) == (status == 200)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"GET /a-secret/ HTTP/9.9\r\n\r\n",
        b"GET /a-secret/ HTTP/1.0\r\n\r\n",
        b"GET /a-secret/\r\n",
        b"GET " + b"a" * 70_000,
        b"GET /a-secret/ HTTP/1.0\r\n" + b"a: b\r\n" * 200 + b"\r\n",
    ],
)
def test_what_is_no_request_gets_no_page(server, text):
    answer = raw(server, text)
    assert not answer.endswith(b"one")
    assert b"Traceback" not in answer
    assert ask(server)[0] == 200


def test_clients_that_hang_do_not_keep_others_out(server, monkeypatch):
    """The oldest gives way, so however many there are, the next is answered."""
    monkeypatch.setattr(module, "CONNECTIONS", 4)
    before = threading.active_count()
    hanging = [socket.create_connection(server.server_address) for _ in range(20)]
    try:
        for connection in hanging:
            connection.sendall(b"GET /a-secret/ HT")
        assert ask(server)[:3:2] == (200, b"one")
        assert threading.active_count() <= before + 2 * 4
    finally:
        for connection in hanging:
            connection.close()


def test_a_connection_ends_in_time(server, monkeypatch):
    """One byte now and then would reset the time that a client has for what it sends."""
    monkeypatch.setattr(module, "LONGEST", 0.2)

    def trickle(connection):
        for _ in range(200):
            connection.sendall(b"a")
            time.sleep(0.05)

    with (
        socket.create_connection(server.server_address, timeout=10) as connection,
        pytest.raises((BrokenPipeError, ConnectionResetError)),
    ):
        trickle(connection)
    assert ask(server)[0] == 200


def test_who_asks_behind_the_end_is_told(server, tmp_path):
    """And gets what the run came to, however early that is."""
    assert ENDED not in ask(server)[1]
    (tmp_path / "metrics.jsonl").write_text("the end")
    server.ended = True
    status, headers, body = ask(server)
    assert (status, body, headers[ENDED]) == (200, b"the end", "1")


class Counted:
    """A page whose rendering takes a second of its own clock; ``text`` of None cannot be rendered."""

    def __init__(self, folder):
        self.now, self.made, self.text, self.folder = 0.0, 0, "page", folder
        self.newest = Newest(lambda: [folder], self.render, lambda: self.now)

    def render(self):
        self.made, self.now = self.made + 1, self.now + 1
        if self.text is None:
            raise FastnasError("there is nothing to see")
        return f"{self.text} {self.made}"

    def change(self):
        with (self.folder / "metrics.jsonl").open("a") as file:
            file.write("row\n")


def test_rendered_when_asked_and_changed_and_not_too_often(tmp_path):
    counted = Counted(tmp_path)
    assert counted.made == 0
    first = counted.newest.page()
    counted.now = 100
    assert counted.newest.page() is first  # nothing changed
    counted.change()
    second = counted.newest.page()
    assert (counted.made, second.etag != first.etag) == (2, True)
    counted.change()
    counted.now = 105.9  # rendered at 101, in a second: not before 106
    assert counted.newest.page() is second
    assert counted.newest.page(now=True).plain == b"page 3"
    counted.change()
    counted.now = 200
    assert counted.newest.page().plain == b"page 4"


def test_a_page_stays_while_the_next_is_made(tmp_path):
    """Who asks meanwhile does not wait."""
    begun, go_on = threading.Event(), threading.Event()
    texts, now = iter(["old", "new"]), [0]

    def render():
        text = next(texts)
        if text == "new":
            begun.set()
            assert go_on.wait(10)
        return text

    newest = Newest(lambda: [tmp_path], render, lambda: now[0])
    newest.page()
    now[0] = 100
    (tmp_path / "metrics.jsonl").write_text("row\n")
    thread = threading.Thread(target=newest.page)
    thread.start()
    assert begun.wait(10)
    assert newest.page().plain == b"old"
    go_on.set()
    thread.join()
    assert newest.page().plain == b"new"


def test_a_run_that_cannot_be_read_for_a_moment(tmp_path):
    """A folder that is being moved: the page from before stays, and is made anew once it can be."""
    counted = Counted(tmp_path)
    first = counted.newest.page()
    counted.change()
    counted.text, counted.now = None, 100.0
    assert counted.newest.page() is first
    counted.text, counted.now = "again", 200.0
    assert counted.newest.page().plain == b"again 3"


def test_a_run_that_was_never_read_says_why(tmp_path):
    def render():
        raise FastnasError("there is nothing to see")

    with serving(Newest(lambda: [tmp_path], render)) as server:
        assert ask(server)[::2] == (503, b"there is nothing to see\n")


def test_a_port_that_is_taken():
    with listening("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(
            FastnasError, match=rf"^--live-host 127\.0\.0\.1 --live-port {port}: address already in use; "
        ):
            listening("127.0.0.1", port, "--live-")


@pytest.mark.parametrize("host", ["no.such.host.invalid", "", "a" * 300, "192.0.2.1"])
def test_no_address_of_this_machine(host):
    with pytest.raises(FastnasError, match=r"^--host .* leave (it|both) out for "):
        listening(host, 0).close()


def test_addresses():
    with listening("localhost", 0) as listener:
        assert not is_open(listener)
    with listening("0.0.0.0", 0) as listener:
        assert is_open(listener)
        assert address(listener, "s") == f"http://{socket.gethostname()}:{listener.getsockname()[1]}/s/"


@pytest.mark.skipif(not socket.has_ipv6, reason="a machine without IPv6")
def test_ipv6(newest):
    try:
        listener = listening("::1", 0)
    except FastnasError:
        pytest.skip("no IPv6 loopback")
    assert not is_open(listener)
    assert address(listener, "s") == f"http://[::1]:{listener.getsockname()[1]}/s/"
    listener.close()


def test_the_command(tmp_path, monkeypatch, capsys):
    """Says its address, and that others may reach it, until Ctrl-C."""
    (tmp_path / "config.json").write_text('{"config": {"space": "darts"}}')

    def answered_once(server):
        thread = threading.Thread(target=ThreadingHTTPServer.serve_forever, args=(server, 0.02))
        thread.start()
        try:
            assert ask(server, f"/{server.secret}/")[0] == 200
            raise KeyboardInterrupt
        finally:
            server.shutdown()
            thread.join()

    monkeypatch.setattr(Server, "serve_forever", answered_once)
    main([str(tmp_path), "--serve"])
    out, err = capsys.readouterr()
    assert out.startswith("live report: http://127.0.0.1:")
    assert err == ""
    main([str(tmp_path), "--serve", "--host", "0.0.0.0"])
    assert capsys.readouterr().err.startswith("other machines may reach the live report: ")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--out", "a.html"], "--serve shows the report and writes no file"),
        (["--port", "65536"], "--port must be from 0 "),
        (["--host", "no.such.host.invalid"], "--host 'no.such.host.invalid' is no address of this machine"),
    ],
)
def test_mistakes_of_the_command(tmp_path, capsys, flags, said):
    (tmp_path / "config.json").write_text('{"config": {"space": "darts"}}')
    with pytest.raises(SystemExit):
        main([str(tmp_path), "--serve", *flags])
    assert capsys.readouterr().err.startswith(f"error: {said}")
