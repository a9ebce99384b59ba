"""Benchmark tables: what became of every cell of a space when others trained it.

``load_table("nasbench201.npz").row(arch).results["cifar10"].test.accuracy`` is what it is about; docs/tables.md says
where the files come from.
"""

from __future__ import annotations

from pathlib import Path
from typing import TypeAlias

from fastnas.errors import FastnasError
from fastnas.spaces import CellMatrix, CellString
from fastnas.spaces.family import AnyGenotype
from fastnas.tables.arrays import Archive
from fastnas.tables.nasbench101 import Nasbench101Row, Nasbench101Table, Nasbench101Training, cell_hash
from fastnas.tables.nasbench201 import Nasbench201Result, Nasbench201Row, Nasbench201Table
from fastnas.tables.standing import DATASETS, SPLITS, Standing

Table: TypeAlias = Nasbench201Table | Nasbench101Table
"""A benchmark's table."""
Row: TypeAlias = Nasbench201Row | Nasbench101Row
"""What a table says of one cell."""

TABLES: dict[str, type[Table]] = {
    "nasbench201": Nasbench201Table,
    **{f"nasbench1shot1-{number}": Nasbench101Table for number in (1, 2, 3)},
}
"""The table that has the cells of each space."""


def load_table(path: str | Path) -> Table:
    """The table in a compact .npz file (docs/tables.md), whichever benchmark's it is.

    Raises:
        FastnasError: the file is missing, damaged, or holds no table; nothing in it is unpickled.
    """
    path = Path(path)
    with Archive(path) as archive:
        kind: type[Table] = Nasbench101Table if "hashes" in archive else Nasbench201Table
    return kind.load(path)


def table_of(space: str, path: str | Path) -> Table:
    """The table at ``path``, which must be one of the cells of ``space``.

    Raises:
        FastnasError: there is no table of this space, the file cannot be read, or it is another benchmark's.
    """
    if space not in TABLES:
        raise FastnasError(
            f"there is no table of the cells of space {space}; there are of {', '.join(TABLES)}"
        )
    table = load_table(path)
    if not isinstance(table, TABLES[space]):
        raise FastnasError(f"table {path} is {table.title}'s, which does not have the cells of space {space}")
    return table


def row_of(table: Table, genotype: AnyGenotype) -> Row:
    """What ``table`` says of a genotype.

    Raises:
        FastnasError: it is none of this benchmark's cells.
    """
    if isinstance(genotype, CellString) and isinstance(table, Nasbench201Table):
        return table.row(genotype)
    if isinstance(genotype, CellMatrix) and isinstance(table, Nasbench101Table):
        return table.row(genotype)
    raise FastnasError(f"{genotype} is no cell of {table.title}")


__all__ = [
    "DATASETS",
    "SPLITS",
    "TABLES",
    "Nasbench101Row",
    "Nasbench101Table",
    "Nasbench101Training",
    "Nasbench201Result",
    "Nasbench201Row",
    "Nasbench201Table",
    "Row",
    "Standing",
    "Table",
    "cell_hash",
    "load_table",
    "row_of",
    "table_of",
]
