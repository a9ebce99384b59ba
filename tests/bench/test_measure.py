"""The measuring tools measure what they say."""

import time

import pytest
import torch

from bench.commit import commit
from bench.measure import alternate, environment, peak_bytes, spread

MIB = 1 << 20


def floats(mebibytes: int) -> torch.Tensor:
    return torch.zeros(mebibytes * MIB // 4)


def test_peak_of_overlapping_tensors():
    def overlap() -> None:
        a, b = floats(4), floats(4)
        del a
        c = floats(4)  # two alive
        d = floats(4)  # three alive: the peak
        del b, c, d
        floats(8)

    assert peak_bytes(overlap) == 12 * MIB


def test_peak_is_above_the_level_at_the_start():
    held = floats(16)
    assert peak_bytes(lambda: floats(4)) == 4 * MIB
    assert held.numel() == 4 * MIB


def test_peak_counts_what_the_call_leaves_behind():
    kept: list[torch.Tensor] = []
    assert peak_bytes(lambda: kept.append(floats(4))) == 4 * MIB
    assert peak_bytes(lambda: kept.append(floats(2))) == 2 * MIB


def test_peak_sees_what_backward_keeps_and_allocates():
    x = torch.randn(MIB // 4, requires_grad=True)  # 1 MiB

    def forward_backward() -> None:
        # exp keeps its result (1), the square its input: the same tensor; the square's result (1) feeds the
        # sum. Backward: the square's gradient is 2 e g; at most its factor and its product (2) beside e.
        torch.autograd.grad(x.exp().square().sum(), x)

    assert 3 * MIB <= peak_bytes(forward_backward) < 5 * MIB


def test_peak_sees_other_threads_work():
    """A convolution allocates on the calling thread whatever number of threads computes it."""
    x, w = torch.randn(8, 16, 32, 32), torch.randn(16, 16, 3, 3)
    result = 8 * 16 * 32 * 32 * 4
    assert peak_bytes(lambda: torch.nn.functional.conv2d(x, w, padding=1)) >= result


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_peak_on_a_gpu():
    def overlap() -> None:
        a = torch.zeros(MIB, device="cuda")
        b = torch.zeros(MIB, device="cuda")
        del a
        torch.zeros(MIB // 2, device="cuda")
        del b

    assert peak_bytes(overlap, "cuda") == 8 * MIB


def test_alternate_takes_turns():
    calls = []
    times = alternate({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, rounds=3, warmup=2)
    assert calls == ["a", "b"] * 5
    assert {name: len(t) for name, t in times.items()} == {"a": 3, "b": 3}


def test_alternate_reads_seconds():
    times = alternate({"sleep": lambda: time.sleep(0.05), "nothing": lambda: None}, rounds=3, warmup=0)
    assert min(times["sleep"]) >= 0.05
    assert min(times["nothing"]) < 0.05


def test_spread():
    times = torch.rand(17, dtype=torch.float64)
    expected = torch.quantile(times, torch.tensor([0.5, 0.2, 0.8], dtype=torch.float64))
    got = spread(times.tolist())
    assert [got["median"], got["p20"], got["p80"]] == pytest.approx(expected.tolist(), rel=1e-12)
    assert spread([2.0]) == {"median": 2.0, "p20": 2.0, "p80": 2.0}


def test_environment_names_versions():
    found = environment()
    assert found["torch"] == torch.__version__
    assert found["threads"] == torch.get_num_threads()
    assert found["device"]
    assert found["commit"] == commit()
