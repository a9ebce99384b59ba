"""The audit as a user meets it: one command on a tiny supernet, its numbers held to what must be true of them."""

import json
import math
import subprocess
import sys

import pytest

from fastnas.audit.report import nearest, table
from fastnas.bilevel import METHODS
from tests.audit.conftest import TINY, audit_into

MEASURED = ("seconds", "gradient_seconds", "product_seconds", "expected_seconds", "peak_bytes")


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


def test_each_reference_has_cosine_one_with_itself(audited):
    for one in audited[0]["references"]:
        assert one["to"][one["key"]]["cosine"] == pytest.approx(1, abs=1e-12)
        assert one["to"][one["key"]]["relative_error"] == 0
        assert one["to"][one["key"]]["term"]["relative_error"] == 0
    assert "exact products" in audited[0]["references"][0]["name"]
    assert "differences of r = " in audited[0]["references"][2]["name"]


def test_two_audits_of_one_seed_say_the_same(audited, tmp_path):
    again = audit_into(tmp_path / "again")
    assert without_times(again) == without_times(audited[0])
    other = audit_into(tmp_path / "other", "--seed=1")
    assert without_times(other)["estimators"] != without_times(audited[0])["estimators"]


def test_without_kinks_a_small_step_is_exact_and_with_them_it_is_not(audited):
    """r = 0.01 in float64: on the smooth twin the error is O(r^2), on the network switches are counted."""
    rows = {(row["network"], row["radius"]): row for row in audited[0]["sweep"] if row["minibatches"] == 1}
    for product in ("hessian", "mixed"):
        assert rows["smooth", 0.01][product]["relative_error"] < 1e-3
        assert rows["kinked", 0.01][product]["relative_error"] > 1e-2
        # Ten times the step, a hundred times the error.
        steps = [rows["smooth", radius][product]["relative_error"] for radius in (0.01, 0.001)]
        assert steps[0] / steps[1] == pytest.approx(100, rel=0.05)


def test_the_recommended_radius_has_the_largest_cosine(audited):
    result = audited[0]
    scores = {
        row["radius"]: row["hessian"]["cosine"] + row["mixed"]["cosine"]
        for row in result["sweep"]
        if row["network"] == "kinked" and row["minibatches"] == 1 and row["radius"] is not None
    }
    assert result["recommended_radius"] == max(scores, key=scores.get)
    assert len(scores) == 5
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


def test_the_nearest_is_the_one_with_the_largest_cosine(audited):
    result = audited[0]
    for key in "ABC":
        best = nearest(result, key)["to"][key]["term"]["cosine"]
        assert best == max(r["to"][key]["term"]["cosine"] or -1 for r in result["estimators"] if r["to"])


def test_it_says_beforehand_what_it_will_cost(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "fastnas.audit", *TINY, "--minibatches=1", "--out", tmp_path / "out"],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("audit: at most ")
    assert "gradients of" in done.stderr.splitlines()[0]
    assert "USDT" not in done.stderr
    assert done.stdout.endswith(f"audit:    {tmp_path / 'out'}\n")
    assert "idarts" in done.stdout
