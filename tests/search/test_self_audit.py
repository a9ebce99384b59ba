"""A search that audits itself, and one that measures its radius: what they log, and that they leave no trace."""

import json
import math

import pytest
import torch

import fastnas
from fastnas import FastnasError
from fastnas.bilevel import METHODS, Ends
from fastnas.runs.interrupt import Interrupt
from fastnas.search.config import SearchConfig
from fastnas.search.engine import Search
from fastnas.search.self_audit import damping_for, self_audit
from tests.checkpoints import forget

VOLATILE = {"seconds", "images_per_second", "peak_memory_bytes"}
AUDIT = {"audit_against", "audit_cosine", "audit_relative_error", "audit_term_cosine"}


def figures(row, without=()):
    return {name: value for name, value in row.items() if name not in VOLATILE | set(without)}


@pytest.mark.parametrize("method", [name for name in METHODS if name != "exact"])
def test_an_audit_leaves_no_trace(tiny, tmp_path, method):
    """Every other figure of the epochs, and alpha after them, are the same to the bit."""
    options = {"space": "nasbench201", "method": method}
    plain = tiny(**options)
    audited = tiny(**options, audit_every=2, out=tmp_path / "audited")
    for a, b in zip(plain.metrics, audited.metrics, strict=True):
        assert a.keys() | AUDIT == b.keys()
        assert figures(a) == figures(b, AUDIT)
    for name, alpha in plain.alphas.items():
        assert torch.equal(alpha, audited.alphas[name])
    first, second = audited.metrics
    assert all(first[name] is None for name in AUDIT)
    assert -1 <= second["audit_cosine"] <= 1
    assert second["audit_relative_error"] > 0
    against = "cg, exact products, damping" if method == "first-order" else f"{method}, exact products"
    assert second["audit_against"].startswith(against)
    assert (second["audit_term_cosine"] is None) == (method == "first-order")


def test_an_estimator_with_exact_products_is_held_against_conjugate_gradients(tiny):
    row = tiny(space="nasbench201", epochs=1, hvp="exact", mixed_product="exact", audit_every=1).metrics[0]
    assert row["audit_against"].startswith("cg, exact products, damping")
    assert row["audit_cosine"] > 0.5


def test_a_tiny_step_agrees_with_exact_products_and_nothing_moves(tiny):
    """Of reverse mode through T weight steps made anew, by differences of r = 1e-7 in float64."""
    result = tiny(space="nasbench201", epochs=1, dtype="float64", method="reverse", difference_radius=1e-7)
    config = SearchConfig.from_options(
        {**result.config.to_options(), "out": None, "graphs": "off"}
    ).resolved()
    search = Search(config, torch.device("cpu"), Interrupt())
    search.begin_epoch(1)
    batches = [search.cast(batch) for batch, _ in zip(search.train, range(2), strict=False)]
    before = search.net.weights.flat.clone(), search.net.running.flat.clone(), torch.get_rng_state()
    row = self_audit(search.step, batches, search.cast(next(iter(search.val))), 0.025)
    after = search.net.weights.flat, search.net.running.flat, torch.get_rng_state()
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    # Of so short a step in float64 a kink is rarely crossed: the difference is nearly exact.
    assert row["audit_cosine"] > 0.99
    assert row["audit_relative_error"] < 0.1


def test_the_epochs_line_says_it(tiny, capsys):
    tiny(epochs=1, audit_every=1, progress=True)
    line = capsys.readouterr().out
    assert "  cosine " in line
    assert "to idarts, exact products" in line


def test_exact_with_exact_products_has_nothing_better():
    options = {"method": "exact", "hvp": "exact", "mixed_product": "exact", "audit_every": 1}
    with pytest.raises(FastnasError, match="nothing better to compare"):
        SearchConfig.from_options(options).resolved()


def test_a_resumed_run_may_audit_itself_anew(tiny):
    out = tiny(space="nasbench201", epochs=1).out
    assert len(fastnas.search(resume=out, audit_every=1).metrics) == 1


@pytest.mark.parametrize(
    ("low", "high", "damping"),
    [(1.0, 50.0, 0.0), (0.1, 50.0, 0.5), (-2.0, 50.0, 4.0), (-0.01, 50.0, 0.51), (-60.0, 50.0, 120.0)],
)
def test_damping_makes_the_hessian_well_conditioned(low, high, damping):
    found = damping_for(Ends(high, 0.0, low, 0.0, 0.0, 20))
    assert found == pytest.approx(damping)
    assert low + found > 0
    assert (high + found) / (low + found) <= 102


def test_auto_measures_a_radius_and_searches_with_it(tiny, tmp_path, capsys):
    options = {"space": "nasbench201"}
    auto = tiny(**options, difference_radius="auto", progress=True)
    radius = auto.metrics[0]["difference_radius"]
    assert [row["difference_radius"] for row in auto.metrics] == [radius] * 2
    assert f"difference radius {radius:g}" in capsys.readouterr().out
    content = json.loads((auto.out / "config.json").read_text())
    assert content["measured"] == {"difference_radius": radius}
    assert content["config"]["difference_radius"] == "auto"
    # Measuring leaves no trace: a search that is told this radius is the same to the bit.
    told = tiny(**options, difference_radius=radius, out=tmp_path / "told")
    for a, b in zip(auto.metrics, told.metrics, strict=True):
        assert figures(a, {"difference_radius"}) == figures(b)
    again = tiny(**options, difference_radius="auto", out=tmp_path / "again")
    assert again.metrics[0]["difference_radius"] == radius


def test_a_resumed_run_takes_the_radius_of_its_start(tiny, tmp_path):
    out = tiny(space="nasbench201", difference_radius="auto", epochs=2).out
    forget(out)
    content = json.loads((out / "config.json").read_text())
    content["measured"]["difference_radius"] = 0.05
    (out / "config.json").write_text(json.dumps(content))
    resumed = fastnas.search(resume=out)
    assert [row["difference_radius"] for row in resumed.metrics] == [0.05] * 2
    told = tiny(space="nasbench201", difference_radius=0.05, epochs=2, out=tmp_path / "told")
    assert figures(resumed.metrics[1], {"difference_radius"}) == figures(told.metrics[1])
    for bad in ({}, {"difference_radius": "x"}, {"difference_radius": -1}, {"difference_radius": math.nan}):
        (out / "config.json").write_text(json.dumps({**content, "measured": bad}))
        with pytest.raises(FastnasError, match="does not hold the difference_radius that the run measured"):
            fastnas.search(resume=out)


def test_a_word_that_is_not_auto_is_refused():
    with pytest.raises(FastnasError, match=r"difference_radius must be float or auto, got 'large'"):
        SearchConfig.from_options({"difference_radius": "large"})
