"""``--table``: rows tell what a benchmark says of their cells, and the search is the same."""

import json

import numpy as np
import pytest
import torch

import fastnas
from fastnas import FastnasError
from fastnas.search import SearchConfig, loop
from fastnas.search.table import open_table, ranks
from fastnas.spaces import CellMatrix
from fastnas.tables import Nasbench101Table, load_table
from fastnas.tables.convert import convert
from fastnas.tables.nasbench101 import cell_hash
from tests.interrupted import interrupted_in
from tests.own_code import as_a_process
from tests.tables import official101
from tests.tables.tables import arrays


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("tables") / "table.npz"
    np.savez(path, **arrays())
    return path


def test_rows_tell_and_the_search_is_the_same(tiny, tmp_path, file, capsys):
    plain = tiny(space="nasbench201")
    result = tiny(space="nasbench201", table=file, out=tmp_path / "with", progress=True)
    table = load_table(file)
    assert result.table.row(0) == table.row(0)
    for row, same in zip(result.metrics, plain.metrics, strict=True):
        standings = table.row(row["genotype"]).standings
        for data, found in row["table"].items():
            for split in ("val", "test"):
                assert found[split] == standings[data][split].accuracy
                assert found[f"{split}_regret"] == standings[data][split].regret
        for name in ("train_loss", "val_loss", "hypergradient_norm", "alpha_entropy", "genotype"):
            assert row[name] == same[name]
    for name, alpha in plain.alphas.items():
        assert alpha.equal(result.alphas[name])
    last = result.metrics[-1]["table"]
    assert json.loads((tmp_path / "with/metrics.jsonl").read_text().splitlines()[-1])["table"] == last
    shown = (
        f"table: test CIFAR-10 {last['cifar10']['test']:.2f}% (regret {last['cifar10']['test_regret']:.2f})"
    )
    assert shown in capsys.readouterr().out
    rank = table.row(result.genotype).standings["imagenet16"]["test"].rank
    assert f"(rank {rank:,} of 15,625)" in ranks(table, result.genotype).splitlines()[-1]


@pytest.mark.parametrize("before", [True, False])
def test_a_run_goes_on_with_and_without(tiny, tmp_path, file, before):
    """Interrupted in the second epoch, then resumed with the table, or without, that the first one had not, or had."""

    with interrupted_in(loop.Search, 2):
        tiny(space="nasbench201", table=file if before else None)
    result = fastnas.search(resume=tmp_path / "run", table=None if before else file)
    assert ["table" in row for row in result.metrics] == [before, not before]


def test_a_table_is_checked_before_anything_is_made(tiny, tmp_path, file):
    for options, words in (
        ({"space": "nasbench201", "table": tmp_path / "none.npz"}, "none.npz: no such file"),
        ({"space": "darts", "table": file}, "there is no table of the cells of space darts"),
        (
            {"space": "nasbench1shot1-1", "table": file},
            "which does not have the cells of space nasbench1shot1-1",
        ),
    ):
        with pytest.raises(fastnas.FastnasError, match=words):
            tiny(**options)
    assert not (tmp_path / "run").exists()


def test_a_cell_that_a_part_of_a_table_lacks(tiny, tmp_path):
    """Two of NAS-Bench-101's cells; a search does not stop for the others."""
    cell = CellMatrix(((0, 1), (0, 0)), ("input", "output"))
    runs = [(epoch, 1.0, 0.5, 0.5, 0.5) for epoch in (0, 54, 108)]
    records = [official101.record(cell_hash(cell), 108, cell.matrix, cell.operations, runs, 1)]
    table = convert(official101.write(tmp_path / "a.tfrecord", records), tmp_path / "a.npz")
    assert isinstance(table, Nasbench101Table)
    result = tiny(space="nasbench1shot1-1", layers=3, epochs=1, table=tmp_path / "a.npz")
    assert result.metrics[0]["table"] is None
    assert "the table of 1 cells does not have" in ranks(table, result.genotype)
    assert ranks(table, cell) == (
        "table:    CIFAR-10 validation 50.00% (rank 1 of 1), test 50.00% (rank 1 of 1)"
    )


def test_no_table_has_cells_with_a_primitive_of_ones_own(tiny, file):
    few = ("none", "skip_connect", "nor_conv_1x1")
    assert open_table(SearchConfig.from_options({"space": "nasbench201", "table": file, "primitives": few}))
    with as_a_process():
        fastnas.register_primitive("gate", lambda context: torch.nn.Identity())
        with pytest.raises(FastnasError, match="has no cell with gate; leave it out, or these primitives"):
            tiny(space="nasbench201", table=file, primitives=[*few, "gate"])
        with pytest.raises(FastnasError, match="NAS-Bench-201 has no cell with gate"):
            load_table(file).row("|gate~0|+|none~0|none~1|+|none~0|none~1|none~2|")
