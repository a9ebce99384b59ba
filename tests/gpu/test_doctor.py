"""The doctor, the first-use check and the benchmark's CUDA graphs on a GPU."""

import contextlib
import json

import pytest
import torch

from bench.contenders import METHODS, Contest, batches, vanilla_model
from bench.gpu import device_events
from bench.gpu_contenders import GraphedSearch
from bench.vanilla import Search, SearchSettings, concat
from fastnas import ops
from fastnas.doctor import __main__ as doctor
from fastnas.doctor import check_first_use
from fastnas.doctor.bandwidth import bandwidths, copy_rate
from fastnas.doctor.checks import check
from fastnas.doctor.operators import OPERATORS
from fastnas.ops._distrust import DISTRUSTED

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("operator", OPERATORS, ids=lambda one: one.name)
def test_every_operator_is_right(operator):
    for finding in check([operator], torch.device("cuda"), small=False, cuda_build=True):
        assert finding.status == "ok", finding


def test_a_wrong_operator_is_seen_and_replaced(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("FASTNAS_FIRST_USE_CHECK", "1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    real = torch.ops.fastnas.mixed_sum
    monkeypatch.setattr(torch.ops.fastnas, "mixed_sum", lambda *arguments: real(*arguments) * 1.001)
    try:
        check_first_use(torch.device("cuda"))
        assert "mixed_sum" in DISTRUSTED
        assert "mixed_sum in float32 computes wrong numbers" in capsys.readouterr().err
        weights, x = torch.ones(1, device="cuda"), torch.full((5,), 3.0, device="cuda")
        assert torch.equal(ops.mixed_sum(weights, [x]), x)
    finally:
        DISTRUSTED.clear()


def test_bandwidths_are_below_what_is_possible():
    device = torch.device("cuda")
    copy = copy_rate(device)
    assert 1e10 < copy < 2e13
    found = bandwidths(device)
    assert {"mixed_sum", "vector_norm", "perturb_", "difference_"} <= {one.operator for one in found}
    for one in found:
        assert 0 < one.share < 3  # an operator that reads more than it writes can be above a copy


def test_json(capsys):
    with contextlib.suppress(SystemExit):  # another test says what is wrong
        doctor.main(["--device=cuda", "--quick", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["environment"]["device"] == torch.cuda.get_device_name()
    assert found["environment"]["driver"] != "unknown"


@pytest.mark.parametrize("method", METHODS[1:])
def test_plain_pytorch_in_cuda_graphs_takes_the_same_steps(method):
    """In float64, where both are the same to the last digits."""
    contest = Contest(
        channels=4, layers=3, batch_size=4, image_size=8, device="cuda", method=method, inner_steps=2
    )
    ends = []
    for kind in (Search, GraphedSearch):
        model = vanilla_model(contest).double()
        search = kind(model, SearchSettings())
        val, *train = batches(contest, 1 + contest.weight_steps, torch.float64)
        step = getattr(search, f"{method.replace('-', '_')}_step")
        for _ in range(2):  # the second one replays, and sees a momentum buffer
            step(train, val)
        ends.append((concat(search.weights).detach(), concat(model.alphas).detach()))
    for plain, graphed in zip(*ends, strict=True):
        torch.testing.assert_close(graphed, plain, rtol=1e-6, atol=1e-8)


def test_kernels_are_counted_in_a_replayed_graph_too():
    x = torch.ones(1000, device="cuda")

    def function():
        return (x * 2).sqrt() + 1

    function()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        function()
    counts = [sum(calls for calls, _ in device_events(one).values()) for one in (function, graph.replay)]
    assert counts == [3, 3]
