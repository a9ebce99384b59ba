"""NAS-Bench-201's table: what it says, what a file must hold, and the published facts."""

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest

from fastnas.describe import describe
from fastnas.errors import FastnasError
from fastnas.spaces import CellString, make_network
from fastnas.spaces.genotype import NASBENCH201_PRIMITIVES
from fastnas.tables import Nasbench201Table, load_table, table_of
from fastnas.tables.__main__ import main
from tests.tables.tables import DATASETS, arrays, real_table

ARCH = "|nor_conv_3x3~0|+|nor_conv_3x3~0|nor_conv_3x3~1|+|skip_connect~0|nor_conv_3x3~1|nor_conv_1x1~2|"
SKIPS = "|skip_connect~0|+|skip_connect~0|skip_connect~1|+|skip_connect~0|skip_connect~1|skip_connect~2|"


@pytest.fixture(scope="module")
def contents():
    return arrays()


@pytest.fixture(scope="module")
def file(contents, tmp_path_factory):
    path = tmp_path_factory.mktemp("tables") / "table.npz"
    np.savez_compressed(path, **contents)
    return path


@pytest.fixture(scope="module")
def table(file):
    return load_table(file)


def test_a_row_is_what_the_arrays_say(table, contents):
    for index in (0, 4711, 15624):
        row = table.row(index)
        assert [NASBENCH201_PRIMITIVES[op] for op in contents["ops"][index]] == list(row.arch.ops)
        assert table.row(str(row.arch)) == row == table.row(row.arch)
        for data in DATASETS:
            found = row.results[data]
            for split in ("val", "test"):
                column = contents[f"{data}_{split}200"].astype(np.float64)
                standing = getattr(found, split)
                assert standing.accuracy == pytest.approx(column[index], abs=1e-4)
                assert standing.rank == 1 + (column > column[index]).sum()
                assert standing.regret == pytest.approx(column.max() - column[index], abs=1e-4)
                assert getattr(found, f"{split}12") == pytest.approx(
                    contents[f"{data}_{split}12"][index], abs=1e-4
                )
            assert found.parameters == contents[f"{data}_params"][index]
            assert found.mflops == pytest.approx(contents[f"{data}_mflops"][index], abs=1e-4)


def test_top_and_ties(contents):
    column = np.full_like(contents["cifar100_test200"], 50)
    column[[5, 7, 9]] = (80, 90, 80)
    columns = {name: array for name, array in contents.items() if array.ndim == 1 and name != "op_names"}
    table = Nasbench201Table(contents["ops"], columns | {"cifar100_test200": column})
    best = table.top(4, "cifar100", "test")
    assert [row.index for row in best] == [7, 5, 9, 0]
    assert [row.results["cifar100"].test.rank for row in best] == [1, 2, 2, 4]


def test_operations_in_another_order_and_what_was_not_measured(tmp_path, contents, table):
    order = [3, 0, 4, 2, 1]
    changed = contents | {
        "op_names": contents["op_names"][order],
        "ops": np.argsort(order)[contents["ops"]].astype(np.uint8),
        "cifar100_val12": np.full_like(contents["cifar100_val12"], np.nan),
    }
    np.savez(tmp_path / "a.npz", **changed)
    found = load_table(tmp_path / "a.npz")
    found.save(tmp_path / "b.npz")
    again = load_table(tmp_path / "b.npz")
    for index in range(0, 15625, 997):
        assert found.arch(index) == again.arch(index) == table.arch(index)
    assert np.isnan(again.row(3).results["cifar100"].val12)
    assert again.row(3).results["cifar10"] == table.row(3).results["cifar10"]


class Bomb:
    def __reduce__(self):
        return os.system, ("touch bomb",)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("ops", None, "the array 'ops' is missing; is it a table of this space?"),
        ("imagenet16_mflops", None, "the array 'imagenet16_mflops' is missing"),
        ("ops", lambda a: a[1:], r"ops must have shape \(15625, 6\), got \(15624, 6\)"),
        ("ops", lambda a: a + 1, "ops must lie between 0 and 4, got 1 to 5"),
        ("ops", lambda a: a[[0, *range(15624)]], "ops must hold each of the 15,625 cells once"),
        ("ops", lambda a: a.astype(float), "ops must be integers, got float64"),
        ("op_names", lambda a: np.array([*a[:4], "conv_9x9"]), "op_names must be none, skip_connect"),
        ("cifar10_val200", lambda a: a * 2, "cifar10_val200 must lie between 0 and 100, got"),
        (
            "cifar10_val200",
            lambda a: np.where(a > 90, np.nan, a),
            "cifar10_val200 must lie between 0 and 100, got nan",
        ),
        ("cifar10_params", lambda a: a - a, "cifar10_params must lie between 1 and"),
        (
            "cifar100_test12",
            lambda a: a.astype(object),
            "cifar100_test12 holds Python objects, which could run code",
        ),
        ("cifar100_test12", lambda a: np.array([Bomb()] * 15625), "cifar100_test12 holds Python objects"),
    ],
)
def test_a_file_that_is_no_table_is_one_sentence(tmp_path, monkeypatch, contents, name, value, words):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "table.npz"
    changed = contents | {name: None if value is None else value(contents[name])}
    np.savez(path, **{key: array for key, array in changed.items() if array is not None})
    with pytest.raises(FastnasError, match=words) as caught:
        load_table(path)
    assert str(path) in str(caught.value)
    assert not (tmp_path / "bomb").exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "no such file"), (b"", "not a readable .npz file"), (..., "not a readable .npz file")],
    ids=["missing", "empty", "cut"],
)
def test_a_missing_empty_or_cut_file(tmp_path, file, content, words):
    path = tmp_path / "table.npz"
    if content is not None:
        path.write_bytes(file.read_bytes()[:-100] if content is ... else content)
    with pytest.raises(FastnasError, match=f"table {path}: {words}"):
        load_table(path)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--arch", "|none~0|"], "expected |op~0|+|op~0|op~1|"),
        (["--arch", ARCH.replace("nor_conv_1x1", "conv_9x9")], "unknown primitive 'conv_9x9'"),
        ([], "say which cells: one of --arch, --genotype and --top"),
        (["--arch", ARCH, "--top", "1"], "say which cells"),
        (["--top", "0"], "--top must be at least 1, got 0"),
        (["--top", "1", "--dataset", "svhn"], "--dataset svhn: this table has cifar10, cifar100, imagenet16"),
        (["--genotype", "nowhere.json"], "no such file"),
    ],
)
def test_a_mistake_on_the_command_line(file, capsys, arguments, words):
    with pytest.raises(SystemExit) as caught:
        main(["nasbench201", "--file", str(file), *arguments])
    assert caught.value.code == 2
    message = capsys.readouterr().err
    assert words in message
    assert message.startswith("error: ")
    assert message.count("\n") == 1


def test_the_command_line_prints_a_row_and_the_best(file, table, capsys):
    row = table.row(ARCH)
    main(["nasbench201", "--file", str(file), "--arch", ARCH, "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["index"] == row.index
    assert found["results"]["cifar100"]["test"]["rank"] == row.results["cifar100"].test.rank
    main(["nasbench201", "--file", str(file), "--arch", ARCH])
    text = capsys.readouterr().out
    assert f"{row.results['imagenet16'].test.accuracy:.3f}" in text
    assert f"{row.results['cifar10'].parameters:,}" in text
    main(["nasbench201", "--file", str(file), "--top", "2", "--dataset", "imagenet16", "--split", "test"])
    assert capsys.readouterr().out.splitlines()[-1].endswith(str(table.top(2, "imagenet16", "test")[1].arch))


def test_a_table_of_another_space(file):
    with pytest.raises(
        FastnasError, match="is NAS-Bench-201's, which does not have the cells of space nasbench1shot1-2"
    ):
        table_of("nasbench1shot1-2", file)
    with pytest.raises(FastnasError, match="there is no table of the cells of space darts"):
        table_of("darts", file)


def test_published_facts():
    """Dong and Yang 2020: the best cell by validation accuracy on CIFAR-10, and the cell of skip connections only."""
    table = load_table(real_table())
    (best,) = table.top(1)
    assert best.index == 6111
    assert (best.results["cifar10"].val.accuracy, best.results["cifar10"].test.accuracy) == (91.6067, 94.3733)
    skips = table.row(SKIPS)
    found = [
        round(standing.accuracy, 2)
        for standings in skips.standings.values()
        for standing in standings.values()
    ]
    assert found == [39.77, 54.30, 15.03, 15.61, 16.43, 16.32]
    # The first cells of the benchmark's own order, which its authors' code asserts.
    assert str(table.arch(0)) == (
        "|avg_pool_3x3~0|+|nor_conv_1x1~0|skip_connect~1|+|nor_conv_1x1~0|skip_connect~1|skip_connect~2|"
    )
    assert str(table.arch(123)) == (
        "|avg_pool_3x3~0|+|avg_pool_3x3~0|nor_conv_1x1~1|+|none~0|avg_pool_3x3~1|nor_conv_3x3~2|"
    )


@pytest.mark.parametrize(
    ("data", "classes", "size"), [("cifar10", 10, 32), ("cifar100", 100, 32), ("imagenet16", 120, 16)]
)
def test_parameters_and_flops_of_every_cell_are_the_tables(data, classes, size):
    """A network costs what the empty cell's does and each operation on its own, which is looked at in samples."""
    contents = np.load(real_table(), allow_pickle=False)

    def costs(ops):
        found = describe(make_network("nasbench201", CellString(tuple(ops)), classes=classes), size)
        return np.array([found.parameters, found.macs])

    empty = costs(["none"] * 6)
    alone = np.array([costs([op] + ["none"] * 5) - empty for op in NASBENCH201_PRIMITIVES])
    found = empty + alone[contents["ops"]].sum(1)
    for index in (0, 6111):
        np.testing.assert_array_equal(
            costs(NASBENCH201_PRIMITIVES[op] for op in contents["ops"][index]), found[index]
        )
    assert len(found) == 15625
    np.testing.assert_array_equal(found[:, 0], contents[f"{data}_params"])
    # The table counts the classifier's bias, one addition a class, and float32 rounds its millions.
    mflops = (found[:, 1] + classes) / 1e6
    np.testing.assert_allclose(contents[f"{data}_mflops"], mflops, rtol=2 * np.finfo(np.float32).eps)


def test_help_names_every_command(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["fastnas.tables"])
    with pytest.raises(SystemExit):
        main(["--help"])
    assert {"nasbench201", "nasbench101", "convert"} <= set(capsys.readouterr().out.replace("│", " ").split())


def test_the_real_file_keeps_its_numbers_when_it_is_written_again(tmp_path):
    path: Path = real_table()
    load_table(path).save(tmp_path / "again.npz")
    before, after = (np.load(name, allow_pickle=False) for name in (path, tmp_path / "again.npz"))
    assert set(before) == set(after)
    for name in before:
        np.testing.assert_array_equal(before[name], after[name])
