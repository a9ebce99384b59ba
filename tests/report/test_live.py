"""``--live``: a child process that shows a run, and that never outlives it."""

import http.client
import multiprocessing
import os
import signal
import socket
import threading
import time
from pathlib import Path
from urllib.request import urlopen

import pytest

import fastnas
from fastnas.report.server import ENDED
from fastnas.runs import live as module
from fastnas.runs.live import Live, listening
from fastnas.runs.ranks import Ranks
from fastnas.runs.watch import WatchConfig, watched
from fastnas.search import SearchConfig
from fastnas.search.engine import Search
from tests.search.conftest import TINY

PATIENCE = 60  # seconds for what takes a few on a machine that does nothing else
WAITS = "import sys; sys.stdin.read()"  # a child without the seconds that an import of torch takes


def until(found, what):
    """Waits for ``found()`` to be true, and gives it."""
    end = time.monotonic() + PATIENCE
    while not (value := found()):
        assert time.monotonic() < end, what
        time.sleep(0.05)
    return value


def is_there(url):
    """Whether somebody listens."""
    host, port = url.split("/")[2].split(":")
    try:
        socket.create_connection((host, int(port)), timeout=1).close()
    except OSError:
        return False
    return True


def is_alive(pid):
    """Whether the process runs; nobody has waited for one that is a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def get(url):
    """The page and whether it is said to be the last one."""
    with urlopen(url, timeout=PATIENCE) as answer:
        return answer.read().decode(), answer.headers.get(ENDED)


class Asking(threading.Thread):
    """A browser: asks for the page again and again, until nobody answers."""

    def __init__(self, url):
        super().__init__()
        self.url, self.page, self.last = url, "", None

    def run(self):
        try:
            while True:
                self.page, self.last = get(self.url)
                time.sleep(0.2)
        except (OSError, http.client.HTTPException):
            pass


def test_a_search(tmp_path, monkeypatch, capsys):
    """The page follows the search, what it came to is fetched before the child ends, and the rows are the same."""
    lives, epoch, asking = [], Search.epoch, []

    def served(self, *others):
        lives.append(self)
        serve(self, *others)

    def after_a_look(self, number, *others):
        (live,) = lives
        if number == 1:
            page, last = get(live.url)
            assert "epoch <b>0</b> of 0" in page
            assert last is None
            check_child(live, live._child.pid)
            asking.append(Asking(live.url))
            asking[0].start()
        return epoch(self, number, *others)

    serve = Live.serve
    monkeypatch.setattr(Live, "serve", served)
    monkeypatch.setattr(Search, "epoch", after_a_look)
    monkeypatch.setattr(module, "LINGERS", 60.0)
    result = fastnas.search(**TINY, out=tmp_path / "run", live=True)
    asking[0].join(PATIENCE)
    assert (asking[0].last, "epoch <b>2</b> of 2" in asking[0].page) == ("1", True)
    assert not is_there(asking[0].url)
    assert len(result.metrics) == 2
    assert f"live report: {asking[0].url}\n" in capsys.readouterr().err


def check_child(live, pid):
    """Behind all others, without a GPU, apart from the terminal, its address unknown to whoever lists processes."""
    environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    assert {b"CUDA_VISIBLE_DEVICES=", b"OMP_NUM_THREADS=1"} <= set(environment)
    assert os.getpriority(os.PRIO_PROCESS, pid) >= 10
    assert os.getsid(pid) != os.getsid(0)
    secret = live.url.split("/")[3].encode()
    assert len(secret) == 32
    assert secret not in Path(f"/proc/{pid}/cmdline").read_bytes() + b"".join(environment)


def shown(run, told):
    """A process that shows a run, and then hangs."""
    with Live(True) as live:
        live.serve(Path(run), True)
        Path(told).write_text(f"{live._child.pid} {live.url}")
        time.sleep(PATIENCE)


def test_a_process_that_is_killed(tmp_path):
    """By a signal that nothing can handle."""
    process = multiprocessing.get_context("fork").Process(
        target=shown, args=(str(tmp_path), str(told := tmp_path / "told"))
    )
    process.start()
    pid, url = until(lambda: told.exists() and told.read_text(), "it never began").split()
    assert is_there(url)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    until(lambda: not is_alive(pid) and not is_there(url), "the child is still there")


@pytest.mark.parametrize("ending", [None, fastnas.FastnasError("a mistake"), KeyboardInterrupt()])
def test_it_ends_with_the_run(tmp_path, monkeypatch, capsys, ending):
    monkeypatch.setattr(module, "_CHILD", WAITS)
    seen = []

    def run():
        with Live(True) as live:
            live.serve(tmp_path, True)
            seen.append(live._child)
            if ending is not None:
                raise ending

    if ending is None:
        run()
    else:
        with pytest.raises(type(ending)):
            run()
    assert seen[0].returncode == 0
    out, err = capsys.readouterr()
    assert out.count("http://127.0.0.1:") == 1
    assert out.endswith(f"\n  while it runs; then {tmp_path / 'report.html'}\n")
    assert err == ""


def test_a_child_that_hangs_is_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_CHILD", "import time; time.sleep(60)")
    monkeypatch.setattr(module, "LINGERS", 0.0)
    monkeypatch.setattr(module, "RENDERS", 0.1)
    with Live(True) as live:
        live.serve(tmp_path, True)
        child = live._child
    assert child.returncode == -signal.SIGKILL


def test_a_child_that_ends_too_early(tmp_path, monkeypatch, capsys):
    """Costs the search nothing, and is said."""
    monkeypatch.setattr(module, "_CHILD", "raise SystemExit(3)")
    with Live(True) as live:
        live.serve(tmp_path, True)
        live._child.wait(PATIENCE)
    assert "the live report ended before the run; " in capsys.readouterr().err


def test_a_port_that_is_taken(tmp_path):
    """Is said before anything is made."""
    with listening("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(
            fastnas.FastnasError, match=f"^--live-host 127.0.0.1 --live-port {port}: address already "
        ):
            fastnas.search(**TINY, out=tmp_path / "run", live=True, live_port=port)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("port", [-1, 65536])
def test_no_port(port, tmp_path):
    with pytest.raises(fastnas.FastnasError, match=rf"^--live-port must be from 0 .* to 65535, got {port}$"):
        fastnas.search(**TINY, out=tmp_path / "run", live=True, live_port=port)
    assert not (tmp_path / "run").exists()


def test_another_host_is_said(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(module, "_CHILD", WAITS)
    with Live(True, "0.0.0.0") as live:
        live.serve(tmp_path, True)
    err = capsys.readouterr().err
    assert err == "other machines may reach the live report: whoever has its address sees the run\n"


def test_the_first_process_alone():
    """Of those that torchrun started; and none if it is not asked for."""
    for asked, rank in ((True, 1), (False, 0)):
        with watched(WatchConfig(live=asked), Ranks(rank, 2)) as live:
            live.serve(Path("nowhere"), True)
            assert (live.url, live._child) == (None, None)


def test_watching_is_no_part_of_what_a_run_is():
    """A run is resumed with another address, and its processes need not be told alike."""
    plain = SearchConfig()
    seen = SearchConfig.from_options(
        {"live": True, "live_port": 8080, "live_host": "::1", "tensorboard": True}
    )
    assert plain.differences(seen) == []
    assert plain.decisive() == seen.decisive()


def test_a_retraining(tmp_path, monkeypatch):
    runs = []
    monkeypatch.setattr(Live, "serve", lambda self, run, progress: runs.append(run))
    fastnas.retrain(
        genotype="DARTS_V2",
        out=tmp_path / "run",
        channels=2,
        layers=3,
        images=40,
        batch_size=8,
        epochs=1,
        device="cpu",
        live=True,
    )
    assert runs == [tmp_path / "run"]
