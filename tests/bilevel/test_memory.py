"""The vectors of P numbers that each method holds at once, beside w and beside what the losses need inside."""

import pytest
import torch

from fastnas.bilevel import METHODS, InnerSettings, InnerSgd, Watch, unroll
from tests.bilevel.test_invariants import LargeDiagonal, peak_vectors

STEPS, TERMS, RANK = 3, 2, 3
VECTORS = {
    "first-order": 0,
    "darts": 2,
    "t1-t2": 2,
    "amended": 4,
    "idarts": 6,
    "neumann": 7,
    "cg": 9,
    "nystroem": 2 * RANK + 10,
    "reverse": 6,  # and the T of the trajectory
    "truncated-reverse": 6,
    "idarts-release": 6,
}


@pytest.mark.parametrize("name", [name for name in METHODS if name != "exact"])  # P^2 numbers
def test_holds_as_many_vectors_as_the_documentation_says(name):
    size = 1 << 18
    problem = LargeDiagonal(size)
    settings = InnerSettings(
        learning_rate=0.1,
        neumann_terms=TERMS,
        rank=RANK,
        tolerance=1e-2,
        reverse_steps=2,
        trajectory=unroll(problem, InnerSgd(0.1), STEPS),
        watch=Watch(),
    )
    with torch.no_grad():
        peak = peak_vectors(size, lambda: METHODS[name].hypergradient(problem, settings))
    assert peak == pytest.approx(VECTORS[name], abs=0.01)
