"""What the steps of an epoch noticed: each kind of sentence is said once a run, and steps are counted."""

from __future__ import annotations

import re
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from fastnas._terminal import size_of, wrapped
from fastnas.bilevel import NotFiniteError, Watch
from fastnas.runs.progress import say


class Notices:
    """Reads the watches of an epoch's steps: on a GPU each while the next step runs, so that nothing waits.

    Args:
        epoch: in the sentences.
        device: of the run.
        steps: of the epoch, done before.
        count: of them, those whose estimator noticed something.
        say: whether sentences are written on the standard error.
        said: kinds of sentences that the run has said so far; its epochs share it.

    Attributes:
        count: steps so far whose estimator noticed something.
    """

    def __init__(
        self,
        epoch: int,
        device: torch.device,
        steps: int = 0,
        count: int = 0,
        say: bool = True,
        said: set[str] | None = None,
    ) -> None:
        self.epoch, self.count = epoch, count
        self._said: set[str] = set() if said is None else said
        self._behind = 1 if device.type == "cuda" else 0
        self._unread: deque[tuple[int, Watch]] = deque()
        self._steps, self._say = steps, say

    def add(self, watch: Watch) -> None:
        """The next step's.

        Raises:
            NotFiniteError: something in a step was not finite; the sentence has the step's number.
        """
        self._steps += 1
        self._unread.append((self._steps, watch))
        self._read(self._behind)

    @contextmanager
    def naming(self) -> Iterator[None]:
        """Within it, an error of the next step, raised at once, says which step it is."""
        try:
            yield
        except NotFiniteError as error:
            raise NotFiniteError(f"{self._where(self._steps + 1)}: {error}") from None

    def _where(self, step: int) -> str:
        return f"epoch {self.epoch}, step {step}"

    def finish(self) -> int:
        """Reads what is left, as must be done before anything is kept of the state; raises as ``add``.

        Returns:
            The count.
        """
        self._read(0)
        return self.count

    def _read(self, left: int) -> None:
        while len(self._unread) > left:
            step, watch = self._unread.popleft()
            where = self._where(step)
            try:
                sentences = watch.sentences()
            except NotFiniteError as error:
                raise NotFiniteError(f"{where}: {error}") from None
            for sentence in sentences:
                self._tell(f"{where}: {sentence}", _kind(sentence))
            self.count += bool(sentences)

    def _tell(self, sentence: str, kind: str) -> None:
        if self._say and kind not in self._said:
            say(wrapped(sentence, size_of(sys.stderr).columns, "  "), sys.stderr)
        self._said.add(kind)


def _kind(sentence: str) -> str:
    """A sentence without its numbers.

    >>> _kind("|V_k| grew 1.5e-3 times") == _kind("|V_k| grew 20 times")
    True
    """
    return re.sub(r"-?\d[\d.]*(e[+-]?\d+)?", "#", sentence)
