"""Where the time goes: the counts by hand, the shares, the command line."""

import json
import math

import pytest
import torch

import fastnas._extension  # noqa: F401  (registers torch.ops.fastnas)
from bench import breakdown
from bench.breakdown import IN_CELLS, OUTSIDE, REST, Peaks, Profile, measure_peaks, rows_of
from bench.native_work import Work, native_work
from fastnas.ops.separable_stage import Branch

TINY = ["--channels", "4", "--layers", "3", "--batch-size", "2", "--image-size", "8", "--rounds", "2"]
OPS = torch.ops.fastnas
EPS = 1e-5


def images(count, channels, height, width):
    return torch.randn(count, channels, height, width).contiguous(memory_format=torch.channels_last)


def counted(function):
    """Calls, flops and bytes of each native op."""
    work = native_work(function)
    assert all(part.seconds > 0 for part in work.values())
    return {name: (part.calls, part.flops, part.bytes) for name, part in work.items()}


@pytest.fixture
def stage():
    """One call of two branches that read a (2, 4, 5, 7) state: 3x3 with stride 2 to 4 channels, 1x1 to 6."""
    x = images(2, 4, 5, 7)
    weights = torch.randn(4 * 9 + 4 * 4 + 4 * 6)
    table = [
        *Branch(0, 3, 1, 2, 0, 0, 36, 4, out=0, out_channel=0, norm=0, grad=0),
        *Branch(0, 0, 1, 1, 0, 0, 52, 6, out=1, out_channel=0, norm=1, grad=1),
    ]
    statistics = torch.empty(2, 2, 6)
    outs = []
    work = counted(lambda: outs.extend(OPS.separable_stage([x], [-1], weights, statistics, table, EPS, True)))
    return x, weights, table, statistics, outs, work["separable_stage"]


# Outputs: (2, 4, 3, 4) of 24 positions and (2, 6, 5, 7) of 70.
DEPTHWISE = 2 * 24 * 4 * 9
POINTWISE = 2 * 24 * 4 * 4, 2 * 70 * 4 * 6
WEIGHTS = 4 * 9 + 4 * 4 + 4 * 6
STATE, OUTS = 2 * 4 * 5 * 7, 24 * 4 + 70 * 6


def test_a_stage_by_hand(stage):
    *_, outs, work = stage
    assert [out.shape for out in outs] == [(2, 4, 3, 4), (2, 6, 5, 7)]
    assert work == (1, DEPTHWISE + sum(POINTWISE), 4 * (STATE + OUTS + WEIGHTS))


@pytest.mark.parametrize("wanted", [True, False])
def test_a_stages_backward_by_hand(stage, wanted):
    """With weights' gradients: the depthwise output again, its two gradients, and two of each 1x1 convolution."""
    x, weights, table, statistics, outs, _ = stage
    grads = [torch.randn_like(out) for out in outs]
    weights_grad = [torch.empty_like(weights)] if wanted else []
    coefficients, x_grad = torch.zeros(2, 3, 6), torch.zeros_like(x)
    work = counted(
        lambda: OPS.separable_stage_backward(
            grads, outs, [x], [-1], weights, statistics, coefficients, table, EPS, True, weights_grad, [x_grad]
        )
    )  # fmt: skip
    flops = 3 * DEPTHWISE + 2 * sum(POINTWISE) if wanted else DEPTHWISE + sum(POINTWISE)
    # Gradients and raw outputs; the state; its gradient, added to; weights, and their gradients.
    moved = 2 * OUTS + 3 * STATE + WEIGHTS * (2 if wanted else 1)
    assert work == {"separable_stage_backward": (1, flops, 4 * moved)}


def test_a_mixed_sum_by_hand():
    terms, out = [images(2, 4, 3, 3) for _ in range(3)], images(2, 4, 3, 3)
    statistics, weights = torch.ones(3, 2, 4), torch.rand(3)
    coefficients, weights_grad = torch.empty(3, 3, 4), torch.empty(3)
    flops, moved = 2 * 3 * 72, 4 * 4 * 72

    def run():
        OPS.normalised_mixed_sum(terms, [0, -1, 2], weights, [0, 1, 2], statistics, EPS, out)
        for _ in range(2):
            OPS.normalised_mixed_sum_backward(
                out, terms, [0, -1, 2], weights, [0, 1, 2], statistics, EPS, True, coefficients, weights_grad
            )  # fmt: skip

    twice = (2, 2 * flops, 2 * moved)
    assert counted(run) == {
        "normalised_mixed_sum": (1, flops, moved),
        "normalised_mixed_sum_backward": twice,
    }
    added = counted(
        lambda: OPS.normalised_mixed_sum(terms, [0, -1, 2], weights, [0, 1, 2], statistics, EPS, out, True)
    )
    assert added == {"normalised_mixed_sum": (1, flops, moved + 4 * 72)}


def test_a_pooling_by_hand():
    """Average and maximum at stride 1 for two edges, of which one has a skip-connection."""
    x, statistics = images(1, 4, 3, 3), torch.empty(2, 2, 4)
    grads, weights = [images(1, 4, 3, 3), images(1, 4, 3, 3)], torch.rand(6)
    table = [0, 0, 1, 1, 2, 0, 3, 1, 4, -1]

    def run():
        average, maximum = OPS.shared_pooling(x, 1, True, True, [0], [1], statistics)
        norms, coefficients = torch.ones(5, 2, 4), torch.rand(5, 3, 4)
        OPS.shared_pooling_backward(
            x, 1, [average], [maximum], grads, table, norms, coefficients, weights, torch.zeros_like(x)
        )

    # Backward: of each pooling a (g + b (p - mean)) of two edges, nine taps; the skip-connection's w g.
    # Read are x, two poolings and two gradients; the state's is added to.
    assert counted(run) == {
        "shared_pooling": (1, 2 * 9 * 36, 4 * 3 * 36),
        "shared_pooling_backward": (1, (2 * (4 + 4 + 9) + 2) * 36, 4 * (5 + 2) * 36),
    }


def test_a_sum_without_normalisation_by_hand():
    terms = [torch.randn(2, 5, requires_grad=True) for _ in range(3)]
    weights = torch.rand(3)
    forward, backward = (1, 2 * 3 * 10, 4 * 4 * 10), (1, (2 * 3 + 2) * 10, 4 * (1 + 3 + 2) * 10)

    def run():
        OPS.mixed_sum_backward(OPS.mixed_sum(weights, terms), weights, terms, [0, 2])

    assert counted(run) == {"mixed_sum": forward, "mixed_sum_backward": backward}


def test_rows_are_means_and_rates():
    profiles = [
        Profile(
            wall,
            {"mixed_sum": Work(3, 0.2, 10**9, 10**8), "new": Work(1, new, 0, 0)},
            {IN_CELLS: 0.1, OUTSIDE: outside},
        )
        for wall, new, outside in ((1.0, 0.6, 0.0), (3.0, 0.4, 0.2))
    ]
    rows = rows_of(profiles, Peaks(1e10, 1e9))
    assert [row["name"] for row in rows] == ["new", "mixed_sum", IN_CELLS, OUTSIDE, REST]
    seconds = [row["seconds"] for row in rows]
    assert seconds == pytest.approx([0.5, 0.2, 0.1, 0.1, 1.1])
    assert [row["share"] for row in rows] == pytest.approx([s / 2 for s in seconds])
    _, mixed_sum, *others = rows
    assert mixed_sum["calls"] == 3
    assert [mixed_sum[key] for key in ("gflops", "gbytes", "flops_share", "bytes_share")] == pytest.approx(
        [5, 0.5, 0.5, 0.5]
    )
    assert all(row["calls"] is row["gflops"] is None for row in others)


def test_peaks_are_measured():
    peaks = measure_peaks(side=64, mebibytes=1, rounds=2)
    assert all(math.isfinite(value) and value > 1e6 for value in (peaks.flops, peaks.bytes))


@pytest.mark.parametrize("space", ["darts", "nasbench201"])
def test_the_command(space, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(breakdown, "measure_peaks", lambda: Peaks(1e11, 1e10))
    out = tmp_path / "new" / "folder"
    breakdown.main([*TINY, "--space", space, "--out", str(out)])
    printed = capsys.readouterr().out
    assert (out / "breakdown.md").read_text() == printed
    result = json.loads((out / "breakdown.json").read_text())
    rows = {row["name"]: row for row in result["rows"]}
    assert sum(row["share"] for row in rows.values()) == pytest.approx(1)
    assert sum(row["seconds"] for row in rows.values()) == pytest.approx(result["profiled_s"])
    assert all(row["seconds"] > 0 for row in rows.values())
    native = rows.keys() - {IN_CELLS, OUTSIDE, REST}
    kernels = {"separable_stage", "normalised_mixed_sum", "shared_pooling"}
    assert native == kernels | {f"{name}_backward" for name in kernels}
    for name in native:
        row, work = rows[name], result["work"][name]
        assert row["calls"] == work["calls"] > 0
        assert row["gflops"] * 1e9 * row["seconds"] == pytest.approx(work["flops"])
        assert row["gbytes"] * 1e9 * row["seconds"] == pytest.approx(work["bytes"])
        assert row["bytes_share"] == pytest.approx(row["gbytes"] / 10)
    lines = printed.splitlines()
    assert lines[0].startswith(f"forward + backward on {space}, C = 4, 3 layers, batch 2 of 8x8, float32")
    table = [line for line in lines if line.startswith("|")]
    assert len(table) == 2 + len(rows) + 1
    assert {line.count("|") for line in table} == {9}


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("--space nasbench101", "unknown space 'nasbench101'; known are darts, nasbench201"),
        ("--channels 5", "space darts: channels must be even (its reductions halve them), got 5"),
        ("--rounds 0", "rounds must be at least 1, got 0"),
        ("--warmup -1", "warmup must be at least 0, got -1"),
    ],
)
def test_a_mistake_is_one_sentence(arguments, sentence, capsys, monkeypatch):
    monkeypatch.setattr(breakdown, "measure_peaks", lambda: pytest.fail("measured"))
    with pytest.raises(SystemExit) as stop:
        breakdown.main(arguments.split())
    assert stop.value.code == 2
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", f"error: {sentence}\n")


def test_out_must_be_a_folder(tmp_path, capsys):
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(SystemExit) as stop:
        breakdown.main(["--out", str(file / "beneath")])
    assert stop.value.code == 2
    assert "out must be a folder" in capsys.readouterr().err
