"""``python -m fastnas.tables``: what a benchmark says of a cell, and benchmarks' official files made compact."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from tqdm import tqdm

from fastnas._command import clear_errors
from fastnas._terminal import is_terminal
from fastnas.errors import FastnasError
from fastnas.spaces import read_genotype
from fastnas.tables import DATASETS, SPLITS, Table, row_of, table_of
from fastnas.tables.arrays import check_new
from fastnas.tables.convert import convert
from fastnas.tables.report import cell_report, to_json, top_report

DESCRIPTION = """Benchmark tables: the accuracies that others reached by training every cell of a space. They are
read from a compact .npz file, which `convert` makes out of a benchmark's official one (docs/tables.md)."""


@dataclass(frozen=True)
class Query:
    """What to look up."""

    file: Path
    """The table, a compact .npz file."""
    arch: str | None = None
    """Look up this cell, in the benchmark's own notation."""
    genotype: str | None = None
    """Look up the cell in this file, or the one that a search found: its run's folder."""
    top: int | None = None
    """Print so many of the best cells."""
    dataset: str = "cifar10"
    """By which data set --top goes: cifar10, cifar100 or imagenet16."""
    split: str = "val"
    """By which of its splits: val or test."""
    json: bool = False
    """Print JSON."""


@dataclass(frozen=True)
class Nasbench201(Query):
    """NAS-Bench-201, whose cells are '|op~0|+|op~0|op~1|+|op~0|op~1|op~2|'."""


@dataclass(frozen=True)
class Nasbench101(Query):
    """NAS-Bench-101, whose cells are '{"matrix": [[0, 1], [0, 0]], "operations": ["input", "output"]}'."""


@dataclass(frozen=True)
class Convert:
    """Make a compact .npz file out of an official one; nothing in that is run."""

    source: Annotated[Path, tyro.conf.arg(name="from")]
    """NAS-Bench-201-v1_1-096897.pth, NATS-tss-v1_0-3ffb9.pickle.pbz2, the folder NATS-tss-v1_0-3ffb9-simple,
    nasbench_only108.tfrecord or nasbench_full.tfrecord."""
    out: Path
    """The file to write, new, ending in .npz."""


@clear_errors()
def main(arguments: list[str] | None = None) -> None:
    """Parses the flags and does what they say."""
    commands: Any = {"nasbench201": Nasbench201, "nasbench101": Nasbench101, "convert": Convert}
    command: Any = tyro.extras.subcommand_cli_from_dict(
        commands, prog="python -m fastnas.tables", description=DESCRIPTION, args=arguments
    )
    if isinstance(command, Convert):
        _convert(command.source, command.out)
    else:
        _query(command, "nasbench201" if isinstance(command, Nasbench201) else "nasbench1shot1-1")


def _query(query: Query, space: str) -> None:
    if sum(value is not None for value in (query.arch, query.genotype, query.top)) != 1:
        raise FastnasError("say which cells: one of --arch, --genotype and --top")
    table = table_of(space, query.file)
    source = query.arch or query.genotype
    if source is not None:
        row = row_of(table, read_genotype(space, source))
        print(json.dumps(to_json(row), indent=2) if query.json else cell_report(row, table.cells))
        return
    rows = _top(table, query)
    if query.json:
        print(json.dumps([to_json(row) for row in rows], indent=2))
    else:
        print(top_report(rows, query.dataset, query.split))


def _top(table: Table, query: Query) -> list[Any]:
    known = [name for name in DATASETS if name in table.datasets]
    for flag, value, choices in (("dataset", query.dataset, known), ("split", query.split, list(SPLITS))):
        if value not in choices:
            raise FastnasError(f"--{flag} {value}: this table has {', '.join(choices)}")
    if query.top is None or query.top < 1:
        raise FastnasError(f"--top must be at least 1, got {query.top}")
    return list(table.top(query.top, query.dataset, query.split))


def _convert(source: Path, out: Path) -> None:
    check_new(out)
    with tqdm(unit="B", unit_scale=True, disable=not is_terminal(sys.stderr)) as bar:
        table = convert(source, out, bar)
    print(f"{out}: {table.title}, {table.cells:,} cells, {out.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
