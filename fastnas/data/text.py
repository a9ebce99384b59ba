"""Text: a corpus of words, cut into parallel streams, and windows of these for truncated back-propagation.

Nothing is downloaded: a folder holds three plain text files, one sentence a line, words between spaces.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastnas._paths import user_path
from fastnas.errors import FastnasError

CORPORA = ("ptb",)
"""Names of the data sets of text."""
PARTS = ("train", "valid", "test")
END = "<eos>"  # behind every line


@dataclass(frozen=True)
class Corpus:
    """Words as numbers.

    Attributes:
        name: of the data set.
        words: the vocabulary, in the order in which the training text has it first.
        train, valid, test: int64 (N,) each.
    """

    name: str
    words: tuple[str, ...]
    train: Tensor
    valid: Tensor
    test: Tensor


def read_corpus(name: str, path: str | Path | None) -> Corpus:
    """The corpus in a folder: ``NAME.train.txt`` or ``train.txt``, and the same of valid and test.

    Every line is its words and ``<eos>``; an empty line is ``<eos>`` alone. The vocabulary is the training text's.

    Args:
        name: one of ``CORPORA``.
        path: the folder.

    Returns:
        The corpus, on the CPU.

    Raises:
        FastnasError: no path, a missing, empty or unreadable file, or a word that the training text does not have.
    """
    if path is None:
        raise FastnasError(f"{name} is read from files: give their folder with --data")
    folder = user_path("--data", path)
    if not folder.is_dir():
        raise FastnasError(f"{name}: --data {str(path)!r} is no folder")
    index: dict[str, int] = {}
    parts = []
    for part in PARTS:
        file = _file(name, folder, part)
        found = _read(file)
        if part == "train":
            for word in found:
                index.setdefault(word, len(index))
        parts.append(_numbers(found, index, file))
    return Corpus(name, tuple(index), *parts)


def streams(text: Tensor, count: int, flag: str = "--batch-size") -> Tensor:
    """``text`` (N,) cut into ``count`` streams of the same length side by side: (N // count, count).

    Column b is one continuous piece; the rest at the end is left out.

    Raises:
        FastnasError: a stream would have fewer than two words.

    >>> streams(torch.arange(7), 3)
    tensor([[0, 2, 4],
            [1, 3, 5]])
    """
    length = len(text) // count
    if length < 2:
        raise FastnasError(
            f"{flag} {count} leaves no two words for each stream of a text of {len(text)} words; take a smaller one"
        )
    return text[: length * count].view(count, length).t().contiguous()


def window(text: Tensor, begin: int, length: int) -> tuple[Tensor, Tensor]:
    """Words and what comes after each of them.

    Args:
        text: (T, B), from ``streams``.
        begin: the first row.
        length: rows, of which there may be fewer at the end.

    Returns:
        Words (L, B) and targets (L B,), L <= length.
    """
    rows = min(length, len(text) - 1 - begin)
    return text[begin : begin + rows], text[begin + 1 : begin + 1 + rows].reshape(-1)


class Windows:
    """Windows of one length over parallel streams, in order.

    Iterating is one pass, from the beginning; `forever` goes on. Nothing is random. Follow one iterator at a time.

    Args:
        text: (T, B), from ``streams``; windows are made on its device.
        length: rows of a window (bptt).
        drop_last: leave out a last window of fewer rows.

    Raises:
        FastnasError: the streams are shorter than a window (with ``drop_last``).

    >>> words, targets = next(iter(Windows(streams(torch.arange(7), 3), 1)))
    >>> words, targets
    (tensor([[0, 2, 4]]), tensor([1, 3, 5]))
    """

    def __init__(self, text: Tensor, length: int, *, drop_last: bool = True) -> None:
        self.text, self.length, self.drop_last = text, length, drop_last
        self._served = 0  # windows of the pass in progress handed out so far
        self._skip = 0  # windows of the next pass already handed out before a resume
        if drop_last and len(text) - 1 < length:
            raise FastnasError(
                f"--bptt {length} is more than the {len(text) - 1} words that each of {text.shape[1]} streams has; "
                "take a smaller --bptt or a smaller --batch-size"
            )

    def __len__(self) -> int:
        """Windows in one pass."""
        full, rest = divmod(len(self.text) - 1, self.length)
        return full if self.drop_last or not rest else full + 1

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """One pass: words (L, B) and targets (L B,)."""
        first, self._skip = self._skip, 0
        for i in range(first, len(self)):
            self._served = i + 1
            yield window(self.text, i * self.length, self.length)

    def forever(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Pass after pass without end."""
        while True:
            yield from self

    def begin(self, seed: int) -> None:
        """Make the next pass begin with the first window; there is nothing that a seed could change."""
        self._served, self._skip = 0, 0

    def state_dict(self) -> dict[str, Any]:
        """Where the pass in progress stands: ``served`` (int)."""
        return {"served": 0 if self._served == len(self) else self._served}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Make the next iteration go on where ``state`` was taken.

        Raises:
            FastnasError: the state belongs to other windows.
        """
        served = state.get("served")
        if not isinstance(served, int) or not 0 <= served < len(self):
            raise FastnasError(
                f"cannot resume after {served} windows of a pass of {len(self)}: other data, batch size or bptt"
            )
        self._served = self._skip = served


def _file(name: str, folder: Path, part: str) -> Path:
    names = (f"{name}.{part}.txt", f"{part}.txt")
    for file in (folder / candidate for candidate in names):
        if file.is_file():
            return file
    raise FastnasError(f"{name}: there is neither {names[0]} nor {names[1]} in {folder}")


def _read(file: Path) -> list[str]:
    try:
        with file.open(encoding="utf-8") as text:
            lines = list(text)
    except (OSError, UnicodeDecodeError) as error:
        raise FastnasError(f"{file} cannot be read as text: {error}") from None
    if not lines:
        raise FastnasError(f"{file} is empty: it should hold a sentence a line")
    return [word for line in lines for word in (*line.split(), END)]


def _numbers(words: Sequence[str], index: dict[str, int], file: Path) -> Tensor:
    try:
        return torch.tensor([index[word] for word in words], dtype=torch.int64)
    except KeyError as error:
        raise FastnasError(
            f"{file} has the word {error.args[0]!r}, which the training text has not; replace it by <unk> there"
        ) from None
