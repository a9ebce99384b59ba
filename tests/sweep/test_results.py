"""A sweep's table: means and deviations are numpy's, and what failed or is missing is said."""

import csv
import json

import numpy as np
import pytest

import fastnas
from fastnas.errors import FastnasError
from fastnas.search.curvature import CURVATURE
from fastnas.sweep.folder import Outcome, SweepFolder
from fastnas.sweep.results import COLUMNS, columns_of, rows_of, save, statistic
from fastnas.sweep.run import run_sweep
from fastnas.sweep.trials import points_of
from tests.sweep.conftest import TINY

ROW = {"val_accuracy": 0.5, "table": {"cifar10": {"test": 90.25}}}


@pytest.mark.parametrize("n", [2, 3, 7])
def test_statistics_are_numpys(n):
    values = np.random.default_rng(n).normal(90, 3, n)
    found = statistic(values.tolist())
    assert (found.mean, found.n, found.values) == (np.mean(values), n, values.tolist())
    # Of the sample: with n - 1.
    assert found.std == pytest.approx(np.sqrt(np.sum((values - values.mean()) ** 2) / (n - 1)), rel=1e-14)


def test_one_value_has_no_deviation_and_none_no_mean():
    assert (statistic([3.0]).mean, statistic([3.0]).std) == (3.0, None)
    assert (statistic([]).mean, statistic([]).std, statistic([]).n) == (None, None, 0)


@pytest.fixture
def begun(tiny, tmp_path):
    """A sweep of two points and three seeds, its points, and its folder."""
    sweep = tiny(grid={"inner_steps": [1, 2]}, seeds=[0, 1, 2])
    points, folder = points_of(sweep), SweepFolder(tmp_path / "sweep")
    folder.begin(sweep, [trial for point in points for trial in point.trials], resume=False)
    yield sweep, points, folder
    folder.end()


def test_failed_and_missing_searches_are_left_out_and_said(begun):
    _, points, folder = begun
    folder.write("inner-steps-1_seed-0", Outcome({"val_accuracy": 0.5}, 2.0, 3 << 20))
    folder.write("inner-steps-1_seed-1", Outcome(sentence="it diverged"))
    folder.write("inner-steps-1_seed-2", Outcome({"val_accuracy": 0.625}, 4.0, 3 << 20))
    text = save(rows_of(points, folder, ["val_accuracy"]), folder)
    assert text == (
        "| inner_steps | n      | val_accuracy   | seconds | peak MiB |\n"
        "|-------------|--------|----------------|---------|----------|\n"
        "| 1           | 2 of 3 | 0.5625 ± 0.088 | 3 ± 1.4 | 3 ± 0    |\n"
        "| 2           | 0 of 3 | -              | -       | -        |\n"
        "\n"
        "failed:\n"
        "- inner-steps-1_seed-1: it diverged"
    )
    assert (folder.path / "results.md").read_text() == text + "\n"
    with (folder.path / "results.csv").open() as file:
        first, second = csv.DictReader(file)
    assert (first["inner_steps"], first["val_accuracy_mean"], first["val_accuracy_n"]) == ("1", "0.5625", "2")
    assert float(first["val_accuracy_std"]) == np.std([0.5, 0.625], ddof=1)
    assert (first["failed"], first["missing"]) == ("1", "0")
    assert (second["val_accuracy_mean"], second["failed"], second["missing"]) == ("", "0", "3")
    one, _ = json.loads((folder.path / "results.json").read_text())["rows"]
    assert one["options"] == {"inner_steps": 1}
    assert one["failed"] == {"inner-steps-1_seed-1": "it diverged"}
    assert one["metrics"]["val_accuracy"]["values"] == [0.5, 0.625]


def test_a_cell_that_a_table_lacks_has_no_value(begun):
    _, points, folder = begun
    rows = [ROW, {**ROW, "table": None}, {**ROW, "table": {"cifar10": {"test": 91.25}}}]
    for seed, row in enumerate(rows):
        folder.write(f"inner-steps-1_seed-{seed}", Outcome(row, 1.0, 1))
    found = rows_of(points, folder, ["table.cifar10.test", "val_accuracy"])[0].metrics
    assert (found["table.cifar10.test"].mean, found["table.cifar10.test"].n) == (90.75, 2)
    assert found["val_accuracy"].n == 3


def test_what_can_be_reported_is_what_a_row_has(tmp_path, tiny):
    options = {**TINY, "spectrum_every": 1, "audit_every": 1}
    row = fastnas.search(**options, out=tmp_path / "run").metrics[-1]
    sweep = tiny(search=options, report=["nothing"])
    with pytest.raises(FastnasError, match="report has 'nothing'") as caught:
        columns_of(sweep, points_of(sweep))
    known = str(caught.value).partition("they do ")[2].split(", ")
    assert set(known) >= {*COLUMNS["any"], *COLUMNS["images"], "audit_cosine", *CURVATURE}
    assert not [name for name in known if not isinstance(row[name], int | float)]


def test_a_folder_is_not_taken_for_another_sweeps(begun, tiny, tmp_path):
    sweep, points, folder = begun
    trials = [trial for point in points for trial in point.trials]
    with pytest.raises(FastnasError, match="already holds a sweep: choose another folder, or add --resume"):
        SweepFolder(folder.path).begin(sweep, trials, resume=False)
    with pytest.raises(FastnasError, match="another process runs the sweep"):
        SweepFolder(folder.path).begin(sweep, trials, resume=True)
    folder.end()
    SweepFolder(folder.path).begin(sweep, trials, resume=True)
    fastnas.search(**{**trials[0].options, "out": folder.run_of(trials[0].name)})
    other = tiny("epochs=2", grid={"inner_steps": [1, 2]})
    with pytest.raises(
        FastnasError, match=r"a search of another configuration: it differs in epochs; choose"
    ):
        run_sweep(other, folder.path, resume=True)
    (tmp_path / "other").mkdir()
    (tmp_path / "other/file").touch()
    with pytest.raises(FastnasError, match="is not empty and holds no sweep"):
        run_sweep(sweep, tmp_path / "other", resume=True)
    with pytest.raises(FastnasError, match="is a file; name a folder"):
        run_sweep(sweep, tmp_path / "other/file")


@pytest.mark.parametrize(
    "content", ["", "{", "[1]", "{}", '{"row": 1}', '{"seconds": "1"}', '{"a": 1}', "[" * 9999]
)
def test_a_damaged_outcome_is_said(begun, content):
    folder = begun[2]
    folder.outcome_file("a").write_text(content)
    with pytest.raises(FastnasError, match=r"outcomes/a\.json is damaged: remove it"):
        folder.outcome("a")


def test_data_that_is_not_there_is_said_before_anything_is_made(tiny, tmp_path):
    sweep = tiny("dataset=cifar10", f"data={tmp_path}/none")
    with pytest.raises(
        FastnasError, match=r"tiny: data .*/none is not there; name it by --override data=PATH"
    ):
        run_sweep(sweep, tmp_path / "sweep")
    assert not (tmp_path / "sweep").exists()
