"""Scaling: what is counted agrees with the methods, the documented model is the code's, and small steps are timed."""

import json
from pathlib import Path

import pytest

from bench import scaling
from bench.scaling import ScalingConfig, measure, table
from bench.scaling_model import MODELLED, Links, sending, step_time, traffic
from fastnas.bilevel import METHODS, InnerSettings, InnerSgd, toy_problem, unroll
from fastnas.errors import FastnasError

TINY = {"channels": 2, "layers": 1, "image_size": 8, "batch_size": 2, "rounds": 1, "warmup": 0}


@pytest.mark.parametrize("name", MODELLED)
def test_an_all_reduce_for_each_gradient_and_weight_step(name):
    """``METHODS`` says how many gradients a hypergradient costs."""
    method = METHODS[name]
    steps = unroll(toy_problem(), InnerSgd(0.1, clip=1.0), method.inner_steps)
    sent = traffic(name)
    assert len(sent.hypergradient) == method.gradients(InnerSettings(0.1, trajectory=steps))
    assert sent.weight_steps == (0 if method.moves_weights else method.inner_steps)
    assert all(p + h >= 1 for p, h in sent.hypergradient)
    assert len(sent.sizes(100, 10)) == len(sent.hypergradient) + sent.weight_steps


def test_the_bytes_of_idarts():
    """dL2/dw with dL2/dalpha, 2 K of dL1/dw, 2 of dL1/dalpha, T weight steps with loss and hits."""
    sizes = traffic("idarts", inner_steps=3, neumann_terms=1).sizes(1000, 10)
    assert sorted(sizes) == sorted([4 * 1010, *[4 * 1000] * 2, *[4 * 10] * 2, *[4 * 1002] * 3])


def test_the_ring():
    links = Links(bandwidth=1e9, latency=1e-3, host_latency=1e-2)
    assert sending([4e9], 1, links) == 0
    assert sending([1e9, 1e9], 4, links) == pytest.approx(6 / 4 * 2 + 6 * (2e-3 + 1e-2))
    assert step_time(5.0, [1e9, 1e9], 4, links) == pytest.approx(5 + 3 + 6 * 1.2e-2)


def test_the_documented_model_is_the_codes():
    page = (Path(__file__).parents[2] / "docs" / "scaling.md").read_text()
    assert scaling.model() in page


def test_small_steps_are_timed(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(scaling, "RESULT", tmp_path / "scaling.json")
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in TINY.items()]
    scaling.main([*flags, "--processes", "1", "2", "--methods", "first-order", "--write"])
    result = json.loads((tmp_path / "scaling.json").read_text())
    assert table(result) == capsys.readouterr().out
    rows = {(row["scaling"], row["processes"]): row for row in result["rows"]}
    assert set(rows) == {(kind, n) for kind in ("strong", "weak", "all-reduce") for n in (1, 2)}
    assert all(row["median"] > 0 for row in rows.values())
    for kind, factor in (("strong", 2), ("weak", 1)):
        first, second = rows[kind, 1], rows[kind, 2]
        assert second["efficiency"] == pytest.approx(first["median"] / (factor * second["median"]))


def test_mistakes():
    for options, sentence in (
        ({"methods": ("none",)}, "unknown method"),
        ({"processes": (3,)}, "multiple of 3"),
        ({"rounds": 0}, "rounds must be at least 1"),
    ):
        with pytest.raises(FastnasError, match=sentence):
            measure(ScalingConfig(**{**TINY, **options}))
