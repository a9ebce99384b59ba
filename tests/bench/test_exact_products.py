"""The table of exact products: all ways agree, ratios are to the difference, the command line."""

import pytest

from bench import exact_products
from bench.exact_products import DIFFERENCE, DOUBLE, TANGENTS, ExactProductsConfig, measure, table

TINY = {"channels": 4, "layers": 3, "batch_size": 4, "image_size": 8, "rounds": 2, "warmup": 0}


@pytest.mark.parametrize("space", ["darts", "nasbench201"])
def test_all_ways_are_measured(space):
    result = measure(
        ExactProductsConfig(**{**TINY, "space": space, "layers": None if space != "darts" else 3})
    )
    rows = {(row["product"], row["way"]): row for row in result["rows"]}
    assert set(rows) == {(p, way) for p in ("H u", "mixed") for way in (TANGENTS, DIFFERENCE, DOUBLE)}
    for (product, way), row in rows.items():
        assert row["ratio"] == pytest.approx(row["median"] / rows[product, DIFFERENCE]["median"])
        assert row["bytes"] > 0
        assert way == DIFFERENCE or row["error"] < 1e-3
    assert table(result).count("\n| ") == 2 + len(rows)  # the header's two lines


def test_a_wrong_product_is_not_timed(monkeypatch):
    monkeypatch.setattr(exact_products, "AGREES", 0.0)
    with pytest.raises(exact_products.FastnasError, match="off, so nothing was timed"):
        measure(ExactProductsConfig(**TINY))


def test_the_command_line_writes_what_it_prints(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(exact_products, "RESULT", tmp_path / "table.md")
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in TINY.items()]
    exact_products.main([*flags, "--write"])
    assert (tmp_path / "table.md").read_text() == capsys.readouterr().out
    with pytest.raises(SystemExit):
        exact_products.main([*flags, "--rounds=0"])
    assert "rounds must be at least 1, got 0" in capsys.readouterr().err
