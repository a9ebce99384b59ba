"""Peak memory as straight lines over the batch, and what counts as none left."""

import weakref

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastnas.errors import FastnasError
from fastnas.runs import memory
from fastnas.runs.memory import (
    Forecast,
    Growth,
    bytes_of,
    doubled_growth,
    envelope,
    free_memory,
    is_out_of_memory,
    largest_that_runs,
    let_go,
    measured_growth,
    runs,
)

CPU = torch.device("cpu")
LINES = st.lists(st.tuples(st.integers(0, 1000), st.integers(0, 50)), min_size=1, max_size=20)


def two_moments(size):
    """A kilobyte that does not grow, and then 40 bytes an item: the second is the peak from 26 items on."""
    torch.zeros(256)
    torch.zeros(size, 10)


@given(LINES, st.integers(0, 100), st.integers(0, 3000))
def test_the_envelope_is_the_highest_line_everywhere(lines, batch, room):
    kept = Growth(envelope(lines))
    assert set(kept.lines) <= set(lines)
    assert kept.peak(batch) == Growth(tuple(lines)).peak(batch)
    largest = kept.largest(room)
    assert largest == 0 or kept.peak(largest) <= room
    if largest or kept.peak(1) > room:
        assert kept.lines[-1][1] == 0 or kept.peak(largest + 1) > room


def test_a_peak_beyond_the_measured_batches_is_found():
    """At the batches that are measured another moment is the peak."""
    growth = measured_growth(two_moments, CPU)
    assert [growth.peak(size) for size in (4, 8, 26, 100)] == [1024, 1024, 1040, 4000]
    assert doubled_growth(two_moments, CPU).peak(100) == pytest.approx(4000, rel=0.05)


def test_what_the_first_call_makes_for_good_is_counted_once():
    made = []

    def run(size):
        if not made:
            made.append(torch.zeros(1000))
        torch.zeros(size)

    assert measured_growth(run, CPU).peak(100) == 4000 + 400


def test_where_two_calls_do_different_things_batches_are_doubled():
    def run(size):
        for _ in range(size):
            torch.zeros(3)
        torch.zeros(100 * size)

    assert measured_growth(run, CPU).peak(50) == 20000


def test_a_tenth_of_a_limit_is_left_free():
    forecast = Forecast(10, "images", {"weights": 100}, Growth(((50, 10),)), Growth(((0, 5),)))
    assert forecast.peak() == 100 + 150 + 50
    assert forecast.largest(1000) == (900 - 150) // 15
    assert forecast.largest(1000, resident=False) == (900 - 50) // 15
    assert forecast.largest(160) == 0


@pytest.mark.parametrize("text", ["", "24", "1KiB", "24GiB", "24 gib", "1e9", "0.5TB"])
def test_sizes(text):
    found = {"24GiB": 24 << 30, "24 gib": 24 << 30, "1e9": 10**9, "0.5TB": 5 * 10**11}
    if text in found:
        assert bytes_of(text) == found[text]
        return
    with pytest.raises(FastnasError, match="--memory-limit must be a size"):
        bytes_of(text)


@pytest.mark.parametrize("text", ["-1GiB", "nan", "24 GoB", "1e99", "0", "infGiB", "1.2.3MB", "GiB"])
def test_what_is_no_size_is_said(text):
    with pytest.raises(FastnasError, match="--memory-limit must be a size of at least 1 MiB such as 24GiB"):
        bytes_of(text)


def test_free_memory_is_that_of_the_control_group_where_it_has_less(tmp_path, monkeypatch):
    everything = free_memory(CPU)
    assert everything is not None
    (tmp_path / "memory.max").write_text("4096\n")
    (tmp_path / "memory.current").write_text("1096\n")
    assert memory._left_in_group(tmp_path) == 3000
    (tmp_path / "memory.max").write_text("max\n")
    assert memory._left_in_group(tmp_path) is None
    monkeypatch.setattr(memory, "_left_in_group", lambda: 3000)
    assert free_memory(CPU) == 3000


def test_what_torch_says_without_memory_is_known():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 55)
    assert is_out_of_memory(caught.value)
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory."))
    assert is_out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"))
    assert is_out_of_memory(MemoryError())
    for name in ("new_empty", "empty_like"):
        error = RuntimeError(f'torch_call_dispatcher( "aten::{name}", "", stack.data()) API call failed')
        assert is_out_of_memory(error)
    assert not is_out_of_memory(RuntimeError("shapes do not fit"))
    assert not is_out_of_memory(FastnasError("out of memory"))


def test_what_a_failed_call_held_is_let_go():
    seen = []

    def fails():
        tensor = torch.zeros(10)
        seen.append(weakref.ref(tensor))
        raise torch.OutOfMemoryError("CUDA out of memory.")

    try:
        fails()
    except RuntimeError as error:
        assert seen[0]() is not None
        let_go(error)
        assert seen[0]() is None


def test_another_error_is_none_of_memory():
    def fails():
        raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match="do not fit"):
        runs(fails)


@pytest.mark.parametrize("limit", [0, 1, 2, 3, 7, 40, 63, 64, 200])
def test_the_largest_that_runs_is_near_the_limit(limit):
    tried = []

    def run(size):
        tried.append(size)
        if size > limit:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    found, most = largest_that_runs(run, 64), min(limit, 63)
    assert min(tried) >= 2
    assert found == 0 if most < 2 else most * 7 / 8 - 1 <= found <= most
    assert len(tried) <= 6
