"""The watch sees what it is there for: each of these would fail a reader."""

import os
import pickle
import socket
import subprocess
import sys

import pytest

from fastnas.errors import FastnasError
from tests.fuzz import watch
from tests.fuzz.watch import PLACE, TookTooLongError, hold


def says(sentence):
    def read(content):
        error = FastnasError("")
        error.args = (sentence,)  # past what its constructor makes of it
        raise error

    return read


def test_results_and_sentences_pass():
    hold(lambda content: content, b"")
    hold(says("wrong, here; do that"), b"")


@pytest.mark.parametrize(
    ("sentence", "words"),
    [
        ("", "without words"),
        ("two\nlines", "more than a sentence"),
        ("\x1b[31mred", "more than a sentence"),
        ("x" * 5000, "a sentence of 5000 characters"),
    ],
)
def test_other_sentences_fail(sentence, words):
    with pytest.raises(AssertionError, match=words):
        hold(says(sentence), b"")


def test_other_exceptions_fail():
    with pytest.raises(KeyError):
        hold({}.__getitem__, b"")


ELSEWHERE = PLACE.with_name(f"{PLACE.name}-elsewhere")


@pytest.mark.parametrize(
    ("act", "event"),
    [
        (lambda _: os.system("true"), "os.system"),
        (lambda _: subprocess.run(["true"], check=True), "subprocess.Popen"),
        (lambda _: eval("1 + 1"), "exec"),
        (lambda _: exec("pass"), "exec"),
        (lambda _: pickle.loads(pickle.dumps(len)), "pickle.find_class"),
        (ELSEWHERE.write_bytes, "open"),
        (lambda _: ELSEWHERE.unlink(missing_ok=True), "os.remove"),
        (lambda _: socket.socket().close(), "socket."),
    ],
)
def test_what_is_done_is_seen(act, event):
    try:
        with pytest.raises(AssertionError, match=f"it did .*{event}"):
            hold(act, b"")
    finally:
        ELSEWHERE.unlink(missing_ok=True)


def test_reading_and_importing_are_not_held_against_anyone():
    sys.modules.pop("this_is_imported_once", None)
    (PLACE / "this_is_imported_once.py").write_text("answer = 42")
    sys.path.insert(0, str(PLACE))
    try:
        hold(lambda content: __import__("this_is_imported_once"), b"")
    finally:
        sys.path.remove(str(PLACE))
        del sys.modules["this_is_imported_once"]
    hold(lambda content: (PLACE / "file").write_bytes(content), b"x")


def test_time_has_a_bound(monkeypatch):
    monkeypatch.setattr(watch, "SECONDS", 0.05)

    def spin(content):
        while True:
            pass

    with pytest.raises(TookTooLongError):
        hold(spin, b"")


@pytest.mark.skipif(not watch._memory(), reason="the system does not say how much memory there was")
def test_memory_has_a_bound():
    with pytest.raises(AssertionError, match=r"it took 3\d\d MiB"):
        hold(lambda content: content * 300 * 2**20, b"x")
