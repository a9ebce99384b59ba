"""What a run says, on terminals of every width, on dumb ones, and through pipes: pseudo-terminals and processes."""

import fcntl
import io
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import threading
from itertools import pairwise

import pytest
import torch

import fastnas
from fastnas._terminal import laid_out
from fastnas.retrain.__main__ import main as retrain
from fastnas.runs import progress as progress_module
from fastnas.runs import summary
from fastnas.runs.notices import Notices
from fastnas.runs.progress import Progress
from fastnas.search.__main__ import main as search
from fastnas.spaces import Genotype, read_genotype
from fastnas.sweep.folder import Outcome
from fastnas.sweep.run import _Counter

TINY = [
    "--images=40",
    "--batch-size=8",
    "--epochs=1",
    "--channels=2",
    "--layers=1",
    "--threads=1",
    "--device=cpu",
]
SEARCH = [*TINY, "--method=darts", "--spectrum-every=1", "--audit-every=1"]
ERASE = "\x1b[K"


class Terminal:
    """A pseudo-terminal; what is written to ``file`` can be ``read`` once it is closed."""

    def __init__(self, columns, lines=24):
        self._own, theirs = pty.openpty()
        self.resize(columns, lines)
        mode = termios.tcgetattr(theirs)
        mode[1] &= ~termios.OPOST  # newlines as they are written
        termios.tcsetattr(theirs, termios.TCSANOW, mode)
        self.file = open(theirs, "w", encoding="utf-8", buffering=1)  # noqa: SIM115
        self._read = b""
        self._reader = threading.Thread(target=self._drain)
        self._reader.start()

    def resize(self, columns, lines=24):
        fcntl.ioctl(self._own, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def _drain(self):
        while True:
            try:
                self._read += os.read(self._own, 1 << 16)
            except OSError:  # the other end was closed
                return

    def read(self):
        self.file.close()
        self._reader.join()
        os.close(self._own)
        return self._read.decode()


@pytest.fixture
def terminal(monkeypatch):
    """``terminal(columns)``: one that is the standard output and the standard error from now on."""
    monkeypatch.setenv("TERM", "xterm")

    def begin(columns, lines=24):
        made = Terminal(columns, lines)
        monkeypatch.setattr(sys, "stdout", made.file)
        monkeypatch.setattr(sys, "stderr", made.file)
        return made

    return begin


def drawn(text):
    """Every bar that was drawn."""
    return [part.rpartition("\r")[2] for part in text.split(ERASE)[:-1]]


def lines_of(text):
    """What stays on the screen."""
    return [line.rpartition(ERASE)[2].rpartition("\r")[2] for line in text.split("\n")]


@pytest.mark.parametrize("columns", [20, 40, 80, 200])
def test_a_search_fits_its_terminal(tmp_path, monkeypatch, terminal, columns):
    monkeypatch.setattr(sys.modules[search.__module__], "report_of", lambda run: run / "report.html")
    monkeypatch.chdir(tmp_path)
    screen = terminal(columns)
    search([*SEARCH, "--out=r"])
    text = screen.read()
    bars = [bar for bar in drawn(text) if bar]
    assert any("1/1" in bar and "%" in bar for bar in bars)
    assert max(map(len, bars)) < columns
    assert any("left" in bar for bar in bars) == (columns >= 40)
    assert any("|" in bar for bar in bars) == (columns >= 50)
    shown = lines_of(text)
    assert not set(shown) & set(bars)  # none stays
    for line in shown:
        assert len(line) <= columns or " " not in line.strip(), line
    whole = " ".join(" ".join(shown).split())
    for phrase in (
        "epoch 1/1 train loss",
        "entropy",
        "Hessian of w",
        "cosine",
        "genotype: Genotype(normal=",
        "run: r",
    ):
        assert phrase in whole


def test_the_end_of_a_search_fits_one_screen(tmp_path, terminal, monkeypatch):
    monkeypatch.chdir(tmp_path)
    screen = terminal(80)
    search([*SEARCH, "--out=runs/found"])
    shown = lines_of(screen.read())
    first = max(i for i, line in enumerate(shown) if "cosine" in line) + 1
    closing = shown[first:]
    assert len(closing) <= 24  # with the prompt
    assert closing[1].split() == ["normal", "reduce"]
    labels = [line.partition(":")[0] for line in closing if re.match(r"[a-z]+:", line)]
    assert labels == ["genotype", "val", "time", "run", "report", "next"]
    text = "\n".join(closing)
    genotype = Genotype.parse(
        text[text.index("Genotype(") : text.index("val:")].strip()
    )  # as it may be copied
    assert genotype == read_genotype("darts", "runs/found")
    assert "next:     python -m fastnas.retrain --genotype runs/found" in closing
    assert (tmp_path / "runs/found/report.html").stat().st_size > 10_000


def test_a_pipe_gets_text_alone(tmp_path):
    """In a locale of ASCII alone, with a path that it cannot write."""
    out = tmp_path / "gefunden-é"
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "TERM": "xterm", "NO_COLOR": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "fastnas.search", *SEARCH, f"--out={out}"],
        capture_output=True,
        env=environment,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    for byte in done.stdout + done.stderr:
        assert byte == 0x0A or 0x20 <= byte < 0x7F
    shown = done.stdout.decode().splitlines()
    assert shown[1] == f"run {tmp_path}/gefunden-\\xe9"
    assert sum(line.startswith("genotype: Genotype(") and line.endswith(")") for line in shown) == 1
    assert (
        max(len(line) for line in shown if not line.startswith(("genotype:", "run", "report:", "next:")))
        <= 80
    )


def test_a_dumb_terminal_is_no_better_than_a_pipe(tmp_path, terminal, monkeypatch):
    monkeypatch.setattr(sys.modules[retrain.__module__], "report_of", lambda run: None)
    screen = terminal(40)
    monkeypatch.setenv("TERM", "dumb")
    retrain([*TINY, "--genotype=DARTS_V2", "--auxiliary=0", f"--out={tmp_path / 'run'}"])
    text = screen.read()
    assert "epoch 1/1  train loss" in text
    assert "test:     accuracy" in text
    assert not set(text) & {"\r", "\x1b", "\t"}


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still but for ``clock[0] += seconds``."""
    now = [0.0]
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: now[0])
    return now


@pytest.mark.parametrize(("seconds", "expected"), [(1.0, 3), (10.0, 9), (0.1, 0), (1000.0, 9)])
def test_plain_lines_are_few(clock, monkeypatch, seconds, expected):
    """Of an epoch of 100 steps: never in less than 30 s, and never in less than a tenth of it."""
    said = io.StringIO()
    monkeypatch.setattr(sys, "stderr", said)
    with Progress(1000, 500, unit="img") as bar:
        bar.set_description("epoch 1/2")
        for _ in range(99):
            clock[0] += seconds
            if bar.update(5):
                bar.set_postfix({"loss": "1.234"})
    lines = said.getvalue().splitlines()
    assert len(lines) == expected
    if seconds == 10.0:
        assert lines[0] == "epoch 1/2, 10%  31:40 left  loss 1.234  0.5 img/s"


def test_an_epochs_line_is_news_enough(clock, monkeypatch):
    said, told = io.StringIO(), io.StringIO()
    monkeypatch.setattr(sys, "stderr", said)
    monkeypatch.setattr(sys, "stdout", told)
    with Progress(1000, 100) as bar:
        for epoch in range(10):
            for _ in range(100):
                clock[0] += 0.25
                if bar.update():
                    bar.refresh()
            bar.tell([f"epoch {epoch + 1}/10", "loss 1.0"])
    assert said.getvalue() == ""
    assert len(told.getvalue().splitlines()) == 10


def test_a_terminal_may_become_another_width(terminal):
    screen = terminal(120)
    with Progress(100, 100, unit="img") as bar:
        bar.set_description("epoch 1/50")
        for columns in (120, 30, 60, 18, 100):
            screen.resize(columns)
            bar.update()
            bar.set_postfix({"loss": "1.234", "acc": "99.9%"})
            screen.file.write(f"\n{columns}")  # what was drawn last stays
    widths = {}
    parts = screen.read().split("\n")
    for before, after in pairwise(parts):
        widths[int(re.match(r"\d+", after)[0])] = len(drawn(before)[-1])
    assert widths.keys() == {120, 30, 60, 18, 100}
    assert all(0 < length < columns for columns, length in widths.items())
    assert widths[120] > widths[60] > widths[30] > widths[18]


def test_a_line_that_comes_back_from_tee_finds_no_bar(terminal, monkeypatch):
    screen, told = terminal(80), io.StringIO()
    monkeypatch.setattr(sys, "stdout", told)
    with Progress(100, 50, unit="img") as bar:
        bar.set_postfix({"loss": "1.0"})
        bar.tell(["epoch 1/2", "loss 1.0"])
        bar.set_description("epoch 2/2")
        screen.file.write("here")
        bar.refresh()
    before, _, after = screen.read().partition("here")
    assert told.getvalue() == "epoch 1/2  loss 1.0\n"
    assert any("loss 1.0" in line for line in drawn(before))
    assert lines_of(before) == [""]
    assert any("epoch 2/2" in line for line in drawn(after))


def test_quiet_says_what_was_found_alone(tmp_path, capsys, monkeypatch):
    for main, flags, label in (
        (search, SEARCH, "genotype:"),
        (retrain, [*TINY, "--genotype=DARTS_V2", "--auxiliary=0"], "test:"),
    ):
        out = tmp_path / label[:4]
        main([*flags, f"--out={out}", "--quiet"])
        shown = capsys.readouterr()
        assert [line.split()[0] for line in shown.out.splitlines()] == [label, "run:"]
        assert shown.out.endswith(f"run:      {out}\n")
        assert "epoch 1/1" not in shown.err
        assert "quiet" not in json.loads((out / "config.json").read_text())["config"]
        assert (out / "report.html").exists()
        with monkeypatch.context() as patch:
            patch.setattr("fastnas.report.write_report", lambda runs: runs[0])
            main([f"--resume={out}"])  # which is not quiet because the run was
        assert "the run is finished: its one epoch is done\n" in capsys.readouterr().out


def test_a_report_that_fails_is_a_sentence(tmp_path, capsys, monkeypatch):
    def fails(paths):
        raise ValueError("the ink\nis gone")

    monkeypatch.setattr("fastnas.report.write_report", fails)
    search([*TINY, "--method=first-order", f"--out={tmp_path / 'run'}"])
    shown = capsys.readouterr()
    assert shown.err == "no report was written: ValueError: the ink is gone\n"
    assert "report:" not in shown.out
    assert "next:     python -m fastnas.retrain" in shown.out


def test_a_result_writes_its_report(tmp_path):
    options = {
        "images": 40,
        "batch_size": 8,
        "epochs": 1,
        "channels": 2,
        "layers": 1,
        "threads": 1,
        "device": "cpu",
    }
    found = fastnas.search(**options, method="first-order", out=tmp_path / "run")
    assert not (found.out / "report.html").exists()
    assert found.report(tmp_path / "r.html") == tmp_path / "r.html"
    assert "<html" in (tmp_path / "r.html").read_text()


def test_a_kind_of_sentence_is_said_once_a_run(capsys):
    class Watched:
        def __init__(self, *sentences):
            self.said = sentences

        def sentences(self):
            return self.said

    said = set()
    for epoch in (1, 2):
        notices = Notices(epoch, torch.device("cpu"), said=said)
        notices.add(Watched(f"idarts: |V_k| grew {epoch}.5e-2 times"))
        notices.add(Watched(f"idarts: |V_k| grew {epoch} times", "cg: negative curvature"))
        assert notices.finish() == 2
    assert capsys.readouterr().err.splitlines() == [
        "epoch 1, step 1: idarts: |V_k| grew 1.5e-2 times",
        "epoch 1, step 2: cg: negative curvature",
    ]


@pytest.mark.parametrize("width", range(1, 70))
def test_no_phrase_is_lost(width):
    groups = [["epoch 1/6", "train loss 2.31 acc 9.1%", "12.3 s"], [], ["entropy 2.08", "skip 0.13"]]
    words = laid_out(groups, width).split()
    assert words == [
        "epoch",
        "1/6",
        "train",
        "loss",
        "2.31",
        "acc",
        "9.1%",
        "12.3",
        "s",
        "entropy",
        "2.08",
        "skip",
        "0.13",
    ]


def test_what_fits_is_drawn(monkeypatch):
    """Above a summary, in as many lines as the screen has left."""
    genotype = read_genotype("darts", "DARTS_V2")
    text = summary.on_screen(["run:      here"] * 12, genotype)
    assert text.startswith("\nnormal")
    assert text.count("\n") + 2 == 24  # its last line, and the prompt
    assert summary.on_screen(["run:      here"] * 13, genotype).startswith("\nrun:")


def test_a_sweep_says_what_ends_or_is_quiet(tmp_path, capsys):
    outcome = Outcome({"val_loss": 0.5}, 12.0, 1)
    for quiet in (False, True):
        counter = _Counter(3, 1, "val_loss", quiet)
        counter.begin(tmp_path)
        counter.say("seed-1", outcome)
        counter.say("seed-2", Outcome(sentence="no memory"))
    assert capsys.readouterr().out.splitlines() == [
        "1 of 3 searches had ended before",
        f"2 searches to run in {tmp_path}",
        "2/3  seed-1  val_loss 0.5  12.0 s",
        "3/3  seed-2  failed: no memory",
    ]
