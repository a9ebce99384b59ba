"""Official benchmark files of any kind into compact ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tqdm import tqdm

from fastnas.errors import FastnasError
from fastnas.tables import official101, official201
from fastnas.tables.arrays import check_new
from fastnas.tables.nasbench101 import Nasbench101Table
from fastnas.tables.nasbench201 import Nasbench201Table


def convert(source: Path, out: Path, bar: tqdm[Any] | None = None) -> Nasbench201Table | Nasbench101Table:
    """Writes the table in the official file or folder ``source`` to the new file ``out``; gives it back, too.

    Args:
        source: a file whose name ends in .tfrecord is read as NAS-Bench-101, everything else as NAS-Bench-201.
        out: the .npz file.
        bar: shows how far it is.

    Raises:
        FastnasError: ``source`` is missing, damaged, not whole or asks for Python objects (nothing of it is run), or
            ``out`` exists.
    """
    check_new(out)
    if not source.exists():
        raise FastnasError(f"{source}: no such file or folder")
    if bar is not None:
        bar.reset(total=sum(1 for _ in source.iterdir()) - 1 if source.is_dir() else source.stat().st_size)

    def progress(done: int) -> None:
        if bar is not None:
            bar.update(done - bar.n)

    official = official101 if source.suffix == ".tfrecord" else official201
    table: Nasbench201Table | Nasbench101Table = official.read_official(source, progress)
    table.save(out)
    try:
        return type(table).load(out)
    except FastnasError as error:
        out.unlink()
        raise FastnasError(f"{source} holds numbers that no table can have: {error}") from None
