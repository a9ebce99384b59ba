"""Several runs: groups, mean and spread beside numpy's, and which cells agree."""

import json
import sys

import numpy as np
import pytest

from fastnas.report import page, read_run
from fastnas.report.compare import agreements, compared, groups_of, yardsticks
from fastnas.report.curves import charts_of
from tests.report.pages import Page
from tests.report.runs import write_retraining, write_search


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Three seeds of one method and two of another, the last one shorter."""
    folder = tmp_path_factory.mktemp("compare")
    found = []
    for method, seed, epochs in (
        ("idarts", 0, 4),
        ("idarts", 1, 4),
        ("idarts", 2, 3),
        ("darts", 0, 4),
        ("darts", 5, 2),
    ):
        write_search(folder / f"{method}-{seed}", epochs=epochs, seed=seed, method=method, alphas=False)
        found.append(read_run(folder / f"{method}-{seed}"))
    return found


def same_length(runs):
    """Runs of which one was stopped differ in no option: their configurations say the same number of epochs."""
    for run in runs:
        run.config["epochs"] = 4
    return runs


def test_groups_are_named_by_what_differs(runs):
    """The inner steps follow from the method, and the seed is no option of the experiment."""
    groups = groups_of(same_length(runs))
    assert [(group.name, len(group.runs)) for group in groups] == [("method idarts", 3), ("method darts", 2)]


def test_two_options_that_differ_are_both_named(tmp_path):
    found = []
    for i, options in enumerate(({"channels": 4}, {"channels": 6}, {"channels": 6, "batch_size": 32})):
        write_search(tmp_path / str(i), epochs=1, **options)
        found.append(read_run(tmp_path / str(i)))
    assert [group.name for group in groups_of(found)] == [
        "channels 4, batch_size 64",
        "channels 6, batch_size 64",
        "channels 6, batch_size 32",
    ]


def test_how_a_run_is_watched_makes_no_other_experiment(tmp_path):
    found = []
    for i, port in enumerate((0, 8080)):
        write_search(tmp_path / str(i), epochs=1, live=True, live_port=port, seed=i)
        found.append(read_run(tmp_path / str(i)))
    assert found[0].config["live_port"] != found[1].config["live_port"]
    assert [group.name for group in groups_of(found)] == ["all runs"]


def test_runs_that_differ_in_nothing_are_one_group(runs):
    assert [group.name for group in groups_of(runs[:1])] == ["all runs"]


def test_mean_and_spread_are_numpys(runs):
    groups = groups_of(same_length(runs))
    charts = {run.name: [c for of in charts_of(run, ()).values() for c in of] for run in runs}
    (loss,) = [chart for chart in compared(groups, charts) if chart.title == "Loss: validation"]
    assert loss.epochs == (1, 2, 3, 4)
    for curve, group in zip(loss.curves, groups, strict=True):
        for i, epoch in enumerate(loss.epochs):
            values = [run.values("val_loss")[epoch - 1] for run in group.runs if epoch <= run.epochs[-1]]
            spread = np.std(values, ddof=1) if len(values) > 1 else 0.0
            assert curve.values[i] == pytest.approx(np.mean(values))
            assert curve.low[i] == pytest.approx(np.mean(values) - spread)
            assert curve.high[i] == pytest.approx(np.mean(values) + spread)


def test_which_cells_agree_is_counted(runs):
    for agreement in agreements(runs):
        graphs = [next(g for g in run.genotype.graphs() if g.name == agreement.name) for run in runs]
        for (source, target), found, shares in zip(
            agreement.edges, agreement.by_run, agreement.shares, strict=True
        ):
            for graph, op in zip(graphs, found, strict=True):
                there = [
                    o for a, b, o in graph.edges if (graph.labels[a], graph.labels[b]) == (source, target)
                ]
                assert there == ([op] if op else [])
            assert dict(shares) == {op: found.count(op) / 5 for op in found if op}


def test_the_consensus_is_what_more_than_half_have(tmp_path):
    """Three runs, two of them alike: their cell, each edge with its share."""
    for i, seed in enumerate((3, 3, 4)):
        write_search(tmp_path / str(i), epochs=2, seed=seed, alphas=False)
    found = [read_run(tmp_path / str(i)) for i in range(3)]
    for agreement in agreements(found):
        alike, other = (
            next(g for g in run.genotype.graphs() if g.name == agreement.name) for run in found[1:]
        )
        named = {
            (alike.labels[a], alike.labels[b], op): 3 if (a, b, op) in other.edges else 2
            for a, b, op in alike.edges
            if op
        }
        labels = agreement.consensus.labels
        shares = {
            (labels[a], labels[b], op): weight
            for (a, b, op), weight in zip(agreement.consensus.edges, agreement.weights.edges, strict=True)
            if op
        }
        assert shares == pytest.approx({edge: count / 3 for edge, count in named.items()})


def test_the_page_of_a_comparison(runs, monkeypatch):
    monkeypatch.setattr(sys.modules["fastnas.report.page"], "WHOLE", 0)  # in less time
    found = Page(page(same_length(runs)))
    values = [run.rows[-1]["val_accuracy"] * 100 for run in runs[:3]]
    assert f"{np.mean(values):.2f} ± {np.std(values, ddof=1):.2f} %" in found.text
    assert found.payload("all")["epochs"] == [1, 2, 3, 4]
    assert len([a for a in found.all("section") if a.get("class") == "run"]) == 5
    idents = [attributes["id"] for _, attributes in found.elements if "id" in attributes]
    assert len(set(idents)) == len(idents)


def test_a_search_beside_a_retraining(tmp_path, runs, monkeypatch):
    monkeypatch.setattr(sys.modules["fastnas.report.page"], "WHOLE", 0)
    write_retraining(tmp_path / "retraining")
    found = Page(page([runs[0], read_run(tmp_path / "retraining")]))
    assert "kind search" in found.text
    assert "kind retrain" in found.text


TABLE = {"cifar10": {"val": 88.0, "test": 91.0, "val_regret": 3.6, "test_regret": 3.37}}


@pytest.fixture(scope="module")
def audited(tmp_path_factory):
    """A first-order search without a second-order term and a darts search with one, audited after epochs 2 and 4."""
    folder = tmp_path_factory.mktemp("audited")
    found = []
    for method, against in (
        ("first-order", "cg, exact products, damping 13"),
        ("darts", "darts, exact products"),
    ):
        path = folder / method
        write_search(path, method=method, alphas=False, row={"table": TABLE})
        rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
        for row in rows[1::2]:
            row |= {"audit_against": against, "audit_cosine": 0.9, "audit_relative_error": 0.3}
            row["audit_term_cosine"] = None if method == "first-order" else 0.5
        rows[-1]["hypergradient_warnings"] = 0 if method == "first-order" else 2
        (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        found.append(read_run(path))
    return found


def charts_by_title(runs):
    charts = {run.name: [c for of in charts_of(run, ()).values() for c in of] for run in runs}
    return {chart.title: chart for chart in compared(groups_of(runs), charts)}


def test_what_the_first_run_lacks_stands_where_the_others_have_it(audited):
    titles = list(charts_by_title(audited))
    term = titles.index("Agreement with a better estimator: its second-order term")
    assert titles[term - 1] == "Agreement with a better estimator: hypergradient"
    assert titles.index("Warnings of the estimator") == titles.index("Hypergradient") + 1


def test_all_charts_have_the_same_epochs_below_them(audited):
    charts = charts_by_title(audited)
    assert {chart.span for chart in charts.values()} == {(1, 4)}
    assert charts["Relative error to a better estimator"].epochs == (2, 4)


def test_a_mean_of_warnings_is_no_whole_number(audited):
    assert charts_by_title(audited)["Warnings of the estimator"].written(2 / 3) == "0.6667"


def test_what_the_audits_compared_with_is_said_where_it_differs(audited):
    (alone,) = [c for c in charts_of(audited[0], ())["Hypergradient and curvature"] if c.name == "audit"]
    assert alone.unit == "cosine to cg, exact products, damped"
    both = charts_by_title(audited)["Agreement with a better estimator: hypergradient"]
    assert both.unit == "cosine"
    assert yardsticks(groups_of(audited)) == {
        "method first-order": "cg, exact products, damped",
        "method darts": "darts, exact products",
    }
    assert yardsticks(groups_of(audited[:1])) == {}
    assert "method darts to darts, exact products" in Page(page(audited)).text


def test_the_table_of_runs_has_what_the_benchmark_says(audited, monkeypatch):
    monkeypatch.setattr(sys.modules["fastnas.report.page"], "WHOLE", 0)
    text = Page(page(audited)).text
    assert "CIFAR-10 test in the table" in text
    assert "91.00 %" in text
    assert "3.37" in text
