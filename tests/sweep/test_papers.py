"""The sweeps of papers' tables: each is one that can be run, and a small version of each runs."""

from contextlib import nullcontext

import pytest

from fastnas.sweep import tuning
from fastnas.sweep.description import papers, read_sweep
from fastnas.sweep.run import listing, run_sweep
from fastnas.sweep.trial import run_trial
from fastnas.sweep.trials import points_of

SMALL = (
    *(
        "dataset=digits",
        "data=null",
        "table=null",
        "epochs=1",
        "channels=2",
        "layers=3",
        "images=64",
        "batch_size=8",
    ),
    *("seeds=[0]", "resources.gpus=0", "resources.cpus=1"),
)
# paper -> what of its grid is run, and how many points that are
PARTS = {
    "idarts-table-3": (["grid.inner_steps=[2]", "grid.neumann_terms=[0, 3]", "report=[val_accuracy]"], 2),
    "idarts-figure-2": (["grid.inner_steps=[2]", "grid.arch_learning_rate=[3e-4]", "report=[val_loss]"], 5),
    "idarts-figure-4": (["grid.inner_steps=[1]", "grid.neumann_terms=[0, 4]", "report=[val_accuracy]"], 2),
    "amended-eta": (["grid=[{method: [darts]}, {method: [amended], eta: [0.1]}]"], 2),
}


def test_all_papers_are_known():
    assert sorted(papers()) == sorted(PARTS)


@pytest.mark.parametrize("name", PARTS)
def test_every_search_of_a_paper_is_one(name):
    sweep = read_sweep(name)
    lines = listing(sweep).splitlines()
    searches = [trial for point in points_of(sweep) for trial in point.trials]
    assert len(lines) == len(searches) + 3
    assert len(searches) == 3 * len(points_of(sweep)) >= 15


@pytest.mark.parametrize("name", PARTS)
def test_a_small_version_of_a_paper_runs(name, tmp_path, monkeypatch):
    """In this process, one search after the other: tests/sweep/test_ray.py is about Ray."""

    def run_trials(trials, folder, resources, **how):
        for trial in trials:
            run_trial(folder.path, trial.name, trial.options)

    monkeypatch.setattr(tuning, "run_trials", run_trials)
    monkeypatch.setattr(tuning, "connected", lambda address: nullcontext())
    monkeypatch.setattr(tuning, "check_resources", lambda resources: None)
    overrides, count = PARTS[name]
    sweep = read_sweep(name, (*SMALL, *overrides))
    text, failed = run_sweep(sweep, tmp_path / "sweep")
    assert not failed, text
    assert len(list((tmp_path / "sweep/outcomes").iterdir())) == count
    assert (tmp_path / "sweep/results.md").read_text().count("\n") == count + 2
