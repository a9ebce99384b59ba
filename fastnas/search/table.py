"""What a benchmark's table says of the cells that a search passes through; the search itself does not look at it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastnas.errors import FastnasError
from fastnas.search.config import SearchConfig
from fastnas.spaces.family import AnyGenotype, family
from fastnas.tables import DATASETS, SPLITS, Table, row_of, table_of


def open_table(config: SearchConfig) -> Table | None:
    """The table that ``--table`` names, checked; None without.

    Raises:
        FastnasError: it cannot be read, or is not one of the search's space and primitives.
    """
    if config.run.table is None:
        return None
    space, chosen = config.network.space, config.network.primitives or ()
    table = table_of(space, config.run.table)
    if unknown := [name for name in chosen if name not in (family(space).primitives or ())]:
        raise FastnasError(
            f"--table {config.run.table} has no cell with {', '.join(unknown)}; leave it out, or these primitives"
        )
    return table


def table_entries(table: Table | None, genotype: AnyGenotype) -> dict[str, Any]:
    """A row's entries, nothing without a table.

    ``table``: by data set the accuracy (%) of the genotype's cell as the benchmark trained it, ``val`` and ``test``,
    and how far the best cell of the table is above it on that split (percentage points), ``val_regret`` and
    ``test_regret``. None if the table, not a whole one, does not have the cell.
    """
    if table is None:
        return {}
    try:
        known = row_of(table, genotype)
    except FastnasError:
        return {"table": None}
    found: dict[str, dict[str, float]] = {}
    for data, standings in known.standings.items():
        found[data] = {split: standing.accuracy for split, standing in standings.items()}
        found[data] |= {f"{split}_regret": standing.regret for split, standing in standings.items()}
    return {"table": found}


def table_shown(row: Mapping[str, Any]) -> list[str]:
    """A row's test accuracies and regrets for its epoch's line, phrase by phrase; empty where no table was asked."""
    found = row.get("table")
    if not found:
        return []
    shown = [
        f"{DATASETS[data]} {of['test']:.2f}% (regret {of['test_regret']:.2f})" for data, of in found.items()
    ]
    return [f"table: test {shown[0]}", *shown[1:]]


def ranks(table: Table, genotype: AnyGenotype) -> str:
    """What a search ends with: where its cell stands in the table, in a line for each data set."""
    try:
        row = row_of(table, genotype)
    except FastnasError as error:
        return f"table:    {error}"
    return "\n".join(
        f"table:    {DATASETS[data]} "
        + ", ".join(
            f"{SPLITS[split]} {standing.accuracy:.2f}% (rank {standing.rank:,} of {table.cells:,})"
            for split, standing in standings.items()
        )
        for data, standings in row.standings.items()
    )
