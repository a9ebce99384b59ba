"""The audit as a user meets it: one command on a tiny supernet, its numbers held to what must be true of them."""

import json
import math

import pytest
import torch

from fastnas.audit import AuditConfig, AuditOptions, AuditRun
from fastnas.audit.problems import Averaged, Meter
from fastnas.audit.report import nearest, table
from fastnas.audit.state import prepare
from fastnas.bilevel import METHODS, radius_sweep
from fastnas.search import SearchConfig
from tests.audit.conftest import audit_into

TINY_OPTIONS = {
    "space": "nasbench201",
    "channels": 2,
    "layers": 1,
    "images": 128,
    "batch_size": 8,
    "inner_steps": 2,
    "dtype": "float64",
    "device": "cpu",
}
MEASURED = ("seconds", "gradient_seconds", "product_seconds", "expected_seconds", "peak_bytes")


def prepared(minibatches=1, **options):
    """A state from Python."""
    search = SearchConfig.from_options({**TINY_OPTIONS, **options})
    groups = (search.network, search.images, search.hypergradient, search.optimiser)
    config = AuditConfig(AuditOptions(), *groups, AuditRun(search.run.seed, device="cpu", threads=1))
    return prepare(config, config.search(), Meter(), minibatches)


def without_times(value):
    """The result without what a clock or an allocator said."""
    if isinstance(value, dict):
        return {key: without_times(one) for key, one in value.items() if key not in MEASURED}
    return [without_times(one) for one in value] if isinstance(value, list) else value


def of(result, method, products):
    (found,) = [r for r in result["estimators"] if (r["method"], r["products"]) == (method, products)]
    return found


def test_every_method_has_its_rows(audited):
    result, folder = audited
    kinds = ["exact", "r = 0.01", f"r = {result['recommended_radius']:.3g}"]
    for method in METHODS:
        rows = [row for row in result["estimators"] if row["method"] == method]
        if method in ("first-order", "exact"):
            assert [row["products"] for row in rows] == ["-"]
        else:
            assert [row["products"] for row in rows] == list(dict.fromkeys(kinds))
        for row in rows:
            assert row["left_out"] or all(math.isfinite(to["cosine"]) for to in row["to"].values())
    text = (folder / "audit.txt").read_text()
    assert all(f"\n{method} " in text for method in METHODS)


def test_json_is_what_the_file_holds_and_the_table_shows(audited):
    result, folder = audited
    assert json.loads((folder / "audit.json").read_text()) == result
    text = (folder / "audit.txt").read_text()
    assert text == table(result) + "\n"
    row = of(result, "idarts", "exact")
    line = next(line for line in text.splitlines() if line.startswith("idarts            exact"))
    for key in "ABC":
        assert f"{row['to'][key]['cosine']:.3f}" in line
        assert f"{row['to'][key]['term']['cosine']:.3f}" in line
    assert (folder / "audit.svg").read_text().startswith("<?xml")
    assert sorted(file.name for file in folder.iterdir()) == ["audit.json", "audit.svg", "audit.txt"]


def test_what_was_noticed_names_its_row(audited):
    result, folder = audited
    noticed = [row for row in result["estimators"] if row["noticed"]]
    assert {row["method"] for row in noticed} >= {"cg", "neumann"}
    lines = [line for line in (folder / "audit.txt").read_text().splitlines() if line.startswith("! ")]
    for row, line in zip(noticed, lines, strict=True):
        begin = f"! {row['method']}, {row['products']}: "
        assert line.startswith(begin)
        assert line.removeprefix(begin)[:40] in row["noticed"][0]


def test_both_spectra_are_there(audited):
    w, alpha = audited[0]["spectra"]
    assert (w["size"], alpha["size"]) == (audited[0]["state"]["weights"], audited[0]["state"]["alphas"])
    for one in (w, alpha):
        assert one["lambda_min"] < one["trace"] / one["size"] < one["lambda_max"]
        assert one["asymmetry"] < 1e-6
        assert f"\n{one['name']} " in table(audited[0])


def test_each_reference_has_cosine_one_with_itself(audited):
    for one in audited[0]["references"]:
        assert one["to"][one["key"]]["cosine"] == pytest.approx(1, abs=1e-12)
        assert one["to"][one["key"]]["relative_error"] == 0
        assert one["to"][one["key"]]["term"]["relative_error"] == 0
    assert "exact products" in audited[0]["references"][0]["name"]
    assert "differences of r = " in audited[0]["references"][2]["name"]


def test_two_audits_of_one_seed_say_the_same(audited, tmp_path):
    """Whatever the global random state is."""
    torch.manual_seed(123)
    assert without_times(audit_into(tmp_path / "again")) == without_times(audited[0])


def test_another_seed_is_another_state():
    assert not torch.equal(prepared(seed=1).problem.w, prepared().problem.w)


def test_without_kinks_a_small_step_is_exact_and_with_them_it_is_not(audited):
    """On the smooth twin the error is O(r^2), in float64; on the network no step makes it small: switches."""
    rows = {(row["network"], row["radius"]): row for row in audited[0]["sweep"] if row["minibatches"] == 1}
    for product in ("hessian", "mixed"):
        assert rows["smooth", 0.001][product]["relative_error"] < 1e-3
        kinked = [rows["kinked", radius][product]["relative_error"] for radius in (0.1, 0.01, 0.001)]
        assert min(kinked) > 0.5
        # Ten times the step, a hundred times the error.
        steps = [rows["smooth", radius][product]["relative_error"] for radius in (0.01, 0.001)]
        assert steps[0] / steps[1] == pytest.approx(100, rel=0.05)


def test_the_papers_radius_is_exact_on_a_wider_smooth_network():
    state = prepared(channels=4, batch_size=16)
    for problem, least, most in ((state.twin(), 0, 1e-3), (state.problem, 0.1, math.inf)):
        _, row = radius_sweep([problem], problem.val_grads()[0], [0.01])
        for found in (row.hessian, row.mixed):
            assert least <= found.relative_error <= most


def test_the_recommended_radius_has_the_largest_cosine(audited):
    result = audited[0]
    scores = {
        row["radius"]: row["hessian"]["cosine"] + row["mixed"]["cosine"]
        for row in result["sweep"]
        if row["network"] == "kinked" and row["minibatches"] == 1 and row["radius"] is not None
    }
    assert result["recommended_radius"] == max(scores, key=scores.get)
    assert len(scores) == 4
    assert 0.01 in scores


def test_exact_products_over_all_minibatches_are_exact(audited):
    rows = [row for row in audited[0]["sweep"] if row["radius"] is None and row["network"] == "kinked"]
    assert [row["images"] for row in rows] == [8, 16]
    for row in rows:
        assert row["hessian"]["relative_error"] == row["mixed"]["relative_error"] == 0
    assert rows[0]["hessian_over_all"]["relative_error"] > 0.01
    assert rows[1]["hessian_over_all"]["relative_error"] == 0


def test_what_an_estimator_called_is_what_its_method_says(audited):
    """Gradients by central differences; an exact product in place of two of them."""
    result = audited[0]
    assert of(result, "first-order", "-")["gradients"] == 1
    for method, gradients in (("darts", 4), ("amended", 5), ("t1-t2", 3), ("nystroem", 23), ("reverse", 11)):
        row = of(result, method, "r = 0.01")
        assert (row["gradients"], row["exact_products"]) == (gradients, 0)
    row = of(result, "nystroem", "exact")
    assert (row["gradients"], row["exact_products"]) == (1, 11)
    assert all(row["peak_bytes"] > 0 for row in result["estimators"] if not row["left_out"])


def test_the_neumann_series_stays_within_its_bound_and_tends_to_the_reference(audited):
    found = audited[0]["neumann"]
    fast = found["curves"][1]
    assert fast["bounded"]
    assert found["mu"] > 0
    for point in fast["points"]:
        assert point["error"] <= point["bound"]
    errors = [point["error"] for point in fast["points"]]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < errors[0] / 4
    assert len(errors) == 9
    # The bound is a geometric series in K.
    ratio = 1 - fast["gamma"] * found["mu"]
    assert fast["points"][5]["bound"] / fast["points"][4]["bound"] == pytest.approx(ratio)


def test_the_memory_of_reverse_modes_grows_by_a_vector_a_step(audited):
    result = audited[0]
    vector = result["state"]["weights"] * 8
    rows = {(row["method"], row["steps"]): row for row in result["reverse"]}
    grown = rows["reverse", 4]["peak_bytes"] - rows["reverse", 2]["peak_bytes"]
    assert grown == pytest.approx(2 * vector, rel=0.05)
    for method in ("truncated-reverse", "idarts"):
        assert rows[method, 4]["peak_bytes"] == pytest.approx(rows[method, 2]["peak_bytes"], rel=0.01)
    assert [rows[method, 4]["kept"] for method in ("reverse", "truncated-reverse", "idarts")] == [4, 1, 0]


def test_the_nearest_is_the_one_with_the_smallest_error(audited):
    """Of a second-order term; first order has none, and is not named."""
    result = audited[0]
    for key in "ABC":
        best = nearest(result, key)
        assert best["method"] != "first-order"
        rows = [row for row in result["estimators"] if row["to"] and row["method"] != "first-order"]
        assert best["to"][key]["term"]["relative_error"] == min(
            row["to"][key]["term"]["relative_error"] for row in rows
        )


def test_the_mean_of_minibatches_is_the_mean_of_their_oracles():
    state = prepared(minibatches=3)
    problems, mean = state.problems, Averaged(state.problems)
    u, p = torch.randn_like(mean.w), torch.randn_like(mean.alpha)
    for oracle, argument in (
        ("train_grad_w", ()),
        ("train_grad_alpha", ()),
        ("val_grad_alpha", ()),
        ("train_hessian_product", (u,)),
        ("train_mixed_product", (u,)),
        ("val_alpha_hessian_product", (p,)),
    ):
        parts = [getattr(problem, oracle)(*argument) for problem in problems]
        torch.testing.assert_close(getattr(mean, oracle)(*argument), torch.stack(parts).mean(0))
    for i, both in enumerate(zip(*(problem.val_grads() for problem in problems), strict=True)):
        torch.testing.assert_close(mean.val_grads()[i], torch.stack(both).mean(0))
    assert not torch.equal(problems[0].train_grad_w(), problems[1].train_grad_w())
    assert (state.meter.gradients, state.meter.products) == (6 * 3 + 2 * 3 + 3 + 2, 6 * 3)


def test_the_state_is_that_of_the_last_weight_step():
    """The trajectory ends at the present w, and its last step was on the minibatch that is audited."""
    state = prepared()
    assert len(state.trajectory.steps) == 2
    problem, before = state.trajectory.steps[-1]
    assert torch.equal(problem.problem.train[0], state.train[0][0])
    w = problem.w.clone()
    buffer = state.search.step.weight_optimiser.momentum_buffer.clone()
    with state.kept():
        problem.w.copy_(before)
        grad = problem.train_grad_w()
        norm = grad.norm()
        clipped = grad * min(1, 5 / (norm + 1e-6))
        sgd = state.trajectory.optimiser
        moved = before - sgd.learning_rate * buffer
    torch.testing.assert_close(moved, w)
    # The buffer holds this gradient: buf = mu buf' + grad + wd w, and grad points along what was added.
    assert torch.dot(buffer, clipped) > 0
