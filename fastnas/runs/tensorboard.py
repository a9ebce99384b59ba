"""A run's event files for TensorBoard: every number of every row, and its options."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from typing_extensions import Self

from fastnas.errors import FastnasError
from fastnas.runs.files import naming
from fastnas.runs.options import Options

if TYPE_CHECKING:
    from torch.utils.tensorboard import FileWriter, SummaryWriter

FOLDER = "tensorboard"


def check_tensorboard(asked: bool) -> None:
    """Raises FastnasError if TensorBoard is asked for and is not installed."""
    if not asked:
        return
    try:
        importlib.import_module("torch.utils.tensorboard")
    except ImportError:
        raise FastnasError(
            "--tensorboard needs the package tensorboard: pip install tensorboard, or leave it out"
        ) from None


class Board:
    """What a run writes for TensorBoard; nothing, if it is not asked for.

    A run that is resumed writes another file, which begins with the first epoch that is done again: TensorBoard then
    forgets what an older file says of this epoch and of later ones.

    Args:
        asked: whether it is.
        run: the run's folder.
        config: resolved.
        before: the rows of the epochs that are done.
    """

    def __init__(
        self, asked: bool, run: Path, config: Options, before: Sequence[Mapping[str, Any]] = ()
    ) -> None:
        self.asked, self.folder = asked, run / FOLDER
        self._config, self._before = config, list(before)
        self._writer: SummaryWriter | None = None  # made when the first row comes

    def add(self, row: Mapping[str, Any], more: Callable[[SummaryWriter], None] | None = None) -> None:
        """Writes an epoch's row, and ``more``; its step is the epoch."""
        if not self.asked:
            return
        with naming(self.folder):
            if self._writer is None:
                self._writer = self._begun(row)
            _write(self._writer, row)
            if more is not None:
                more(self._writer)
            self._writer.flush()

    def _begun(self, row: Mapping[str, Any]) -> SummaryWriter:
        """A file that begins with this row, and, if it is the first one, with those before."""
        from torch.utils.tensorboard import SummaryWriter

        first = not any(self.folder.glob("events.*"))
        earlier = self._before if first else []
        writer = SummaryWriter(str(self.folder), purge_step=earlier[0]["epoch"] if earlier else row["epoch"])
        for summary in self._hparams(row)[:2]:
            _events(writer).add_summary(summary)
        for done in earlier:
            _write(writer, done)
        return writer

    def _hparams(self, row: Mapping[str, Any]) -> tuple[Any, ...]:
        """What TensorBoard's table of hyperparameters reads: names, this run's values, that it has ended."""
        from torch.utils.tensorboard.summary import hparams

        free = self._config.free() - {"audit_every", "graphs", "recompute", "spectrum_every"}
        options = {
            name: value if isinstance(value, bool | int | float | str) else str(value)
            for name, value in self._config.to_options().items()
            if name not in free and value is not None
        }
        metrics = {
            tag: value for tag, value in numbers(row) if tag.endswith(("loss", "accuracy", "perplexity"))
        }
        found: tuple[Any, ...] = hparams(options, metrics)
        return found

    def close(self, row: Mapping[str, Any] | None = None) -> None:
        """Closes the file; with the last ``row`` the run has ended well."""
        writer, self._writer = self._writer, None
        if writer is not None:
            with naming(self.folder):
                if row is not None:
                    _events(writer).add_summary(self._hparams(row)[2])
                writer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _events(writer: SummaryWriter) -> FileWriter:
    assert writer.file_writer is not None
    return writer.file_writer


def _write(writer: SummaryWriter, row: Mapping[str, Any]) -> None:
    for tag, value in numbers(row):
        writer.add_scalar(tag, value, row["epoch"])


def numbers(row: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Every number of a row by its name, one within a mapping or a list behind a slash.

    >>> list(numbers({"epoch": 2, "loss": 0.5, "audit": {"cosine": 0.9, "to": None}, "genotype": "a"}))
    [('loss', 0.5), ('audit/cosine', 0.9)]
    """
    for name, value in row.items():
        if isinstance(value, Mapping):
            yield from numbers(value, f"{prefix}{name}/")
        elif isinstance(value, list):
            yield from numbers({str(i): entry for i, entry in enumerate(value)}, f"{prefix}{name}/")
        elif isinstance(value, int | float) and not isinstance(value, bool) and prefix + name != "epoch":
            yield prefix + name, float(value)
