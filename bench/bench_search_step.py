"""One forward + backward and one whole search step of each estimator, DARTS supernet, C = 16, 8 cells.

pytest-benchmark times one implementation after the other, in few rounds; ``python -m bench.speedup`` makes them
take turns and is the figure to quote. The reference backend is plain PyTorch too: it is timed on one pass only,
and ``python -m bench.speedup --backend reference`` times the rest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from bench.contenders import (
    FORWARD_BACKWARD,
    METHODS,
    Contest,
    fastnas_function,
    fastnas_model,
    full_float32,
    vanilla_function,
    vanilla_model,
)
from bench.measure import peak_bytes, synchronize
from fastnas.supernet import BACKENDS

if TYPE_CHECKING:
    from pytest_benchmark.fixture import BenchmarkFixture

PAIRS = [
    (method, implementation)
    for method in METHODS
    for implementation in ("vanilla", *BACKENDS)
    if implementation != "reference" or method == FORWARD_BACKWARD
]
# The dearer a step (1, 2, 5, 6, 11 passes), the fewer rounds: the file takes a few minutes on two cores.
ROUNDS = {FORWARD_BACKWARD: 5, "first-order": 4, "darts": 3, "amended": 2, "idarts": 2}


@pytest.mark.parametrize(("method", "implementation"), PAIRS)
def test_search_step(
    method: str, implementation: str, benchmark: BenchmarkFixture, pytestconfig: pytest.Config
) -> None:
    contest = Contest(
        method=method,
        batch_size=pytestconfig.getoption("batch_size"),
        device=pytestconfig.getoption("bench_device"),
    )
    contest.check()
    full_float32()
    model = vanilla_model(contest)
    if implementation == "vanilla":
        function = vanilla_function(contest, model)
    else:
        function = fastnas_function(contest, fastnas_model(contest, implementation, model))
    detail = f", T = {contest.inner_steps}, K = {contest.neumann_terms}" if method == "idarts" else ""
    benchmark.group = "search step"
    benchmark.extra_info |= {
        "implementation": implementation,
        "case": f"{method}{detail}, DARTS supernet C = 16, 8 cells, batch {contest.batch_size}",
        "space": contest.space,
        "batch_size": contest.batch_size,
        "device": contest.device,
        "peak_bytes": peak_bytes(function, contest.device),  # also the warm-up
        "steps_per_epoch": contest.steps_per_epoch,
    }

    def synchronized() -> None:
        function()
        synchronize(contest.device)

    benchmark.pedantic(synchronized, rounds=ROUNDS[method], iterations=1)
