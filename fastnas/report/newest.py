"""The newest page of runs that go on: made when somebody asks for it, when they have changed, and not too often."""

from __future__ import annotations

import gzip
import hashlib
import os
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from fastnas.errors import FastnasError

LEAST = 1.0  # seconds between the end of one rendering and the beginning of the next, and
SHARE = 5.0  # as many times as long as the last one took: rendering takes a sixth of one core at the most
# What tells that a run has changed: its files, and its folders, to which every epoch adds one.
CHANGING = ("config.json", "metrics.jsonl", "genotype.json", "result.json", "genotypes", "alphas")


class Page(NamedTuple):
    """A page as it is sent.

    Attributes:
        plain: UTF-8.
        packed: the same by gzip, for an address that is far away.
        etag: its name, quoted.
    """

    plain: bytes
    packed: bytes
    etag: str

    @classmethod
    def of(cls, text: str) -> Page:
        """The page with this text."""
        plain = text.encode()
        name = hashlib.blake2b(plain, digest_size=16).hexdigest()
        return cls(plain, gzip.compress(plain, 4, mtime=0), f'"{name}"')


class Newest:
    """The newest page of some runs.

    Args:
        runs: finds their folders; a sweep has more of them as it goes on.
        render: makes the page.
        clock: in seconds.
    """

    def __init__(
        self,
        runs: Callable[[], Sequence[Path]],
        render: Callable[[], str],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._runs, self._render, self._clock = runs, render, clock
        self._lock = threading.Lock()
        self._page: Page | None = None
        self._state: object = None
        self._not_before = 0.0

    def page(self, now: bool = False) -> Page:
        """The page; the one before, while another thread makes a new one or it is too early for that.

        Args:
            now: it is not too early: the runs have ended.
        """
        found = self._page
        if not self._lock.acquire(blocking=found is None or now):
            assert found is not None
            return found
        try:
            if self._page is None or now or self._clock() >= self._not_before:
                self._renew()
            assert self._page is not None
            return self._page
        finally:
            self._lock.release()

    def _renew(self) -> None:
        """Makes the page anew, if the runs are not as they were when it was made."""
        began, state = self._clock(), self._seen()
        if self._page is not None and state == self._state:
            return
        try:
            self._page = Page.of(self._render())
        except (FastnasError, OSError):
            # A folder that is being moved or removed: what was there stays, and the next time is tried again.
            if self._page is None:
                raise
        else:
            self._state = state
        ended = self._clock()
        self._not_before = ended + max(LEAST, SHARE * (ended - began))

    def _seen(self) -> object:
        """What tells one state of the runs from another."""
        return [(run, [_stamp(run / name) for name in CHANGING]) for run in self._runs()]


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
