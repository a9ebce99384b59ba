"""What searches found, by a table that the test makes up."""

import itertools
import json

import numpy as np
import pytest

from bench.search_curves import main
from fastnas.spaces.genotype import NASBENCH201_PRIMITIVES
from fastnas.tables.nasbench201 import CELLS, EPOCHS, TRAINING_TIME, Nasbench201Table
from fastnas.tables.standing import DATASETS, SPLITS

BEST, MIDDLE = CELLS - 1, CELLS // 2  # every accuracy of cell i is 100 i / (CELLS - 1)


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """A table in which a cell's number is its rank from below."""
    ops = np.array(list(itertools.product(range(len(NASBENCH201_PRIMITIVES)), repeat=6)))
    accuracy = (100 * np.arange(CELLS) / (CELLS - 1)).astype(np.float32)
    columns = {
        f"{data}_{split}{epochs}": accuracy for data in DATASETS for split in SPLITS for epochs in EPOCHS
    }
    columns |= {f"{data}_params": np.full(CELLS, 7, np.int32) for data in DATASETS}
    columns |= {f"{data}_mflops": accuracy for data in DATASETS} | {
        TRAINING_TIME[data]: accuracy for data in DATASETS
    }
    found = Nasbench201Table(ops, columns)
    path = tmp_path_factory.mktemp("table") / "table.npz"
    found.save(path)
    return found, path


@pytest.fixture
def run(tmp_path, table):
    """``run(name, cells, **options)``: the folder of a search whose epochs ended with these cells."""

    def make(name, cells, *, written=None, **options):
        folder = tmp_path / name
        folder.mkdir()
        config = {
            "space": "nasbench201",
            "method": "darts",
            "seed": 0,
            "channels": 4,
            "epochs": len(cells),
            **options,
        }
        (folder / "config.json").write_text(json.dumps({"config": config}))
        rows = [
            {"epoch": i, "genotype": str(table[0].arch(cell)), "val_accuracy": 0.25, "alpha_entropy": 1.5}
            for i, cell in enumerate(cells, 1)
        ]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:written]))
        return folder

    return make


def test_the_table_and_the_picture(run, table, tmp_path, capsys):
    runs = [
        run("a", [0, BEST]),
        run("b", [BEST, MIDDLE], seed=1),
        run("c", [0, 0], method="idarts", inner_steps=4),
    ]
    main([*map(str, runs), "--table", str(table[1]), "--svg", str(tmp_path / "curves.svg")])
    _, _, darts, idarts = capsys.readouterr().out.splitlines()
    assert darts == "| darts | 2 |" + " 75.00 ± 35.36 |" * 6 + " 25.00 ± 35.36 | 1, 7,813 | 25.00 ± 0.00 |"
    assert idarts == "| idarts | 1 |" + " 0.00 |" * 6 + " 100.00 | 15,625 | 25.00 |"
    picture = (tmp_path / "curves.svg").read_text()
    assert picture.startswith("<?xml")
    for text in ("darts, median of 2", "idarts, median of 1"):
        assert f"<!-- {text} -->" in picture


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"channels": 8}, "the searches differ in channels: compare them in groups that do not"),
        ({"space": "darts"}, "is a search in darts; the table is of nasbench201"),
        ({"written": 1}, "holds 1 of 2 epochs: let the search end first"),
    ],
)
def test_what_cannot_be_compared_is_one_sentence(run, table, capsys, options, sentence):
    runs = [run("a", [0, 1]), run("b", [0, 1], **options)]
    with pytest.raises(SystemExit) as stop:
        main([*map(str, runs), "--table", str(table[1])])
    assert stop.value.code == 2
    assert sentence in capsys.readouterr().err


def test_a_folder_of_something_else(tmp_path, table, capsys):
    with pytest.raises(SystemExit):
        main([str(tmp_path), "--table", str(table[1])])
    assert f"{tmp_path} is no folder of a search that has ended" in capsys.readouterr().err
