import numpy as np
import pytest
import torch

from fastnas.errors import FastnasError
from fastnas.ops import vector_norm
from fastnas.ops.vector_norm import _vector_norm_ref
from tests.ops.accuracy import wide
from tests.ops.settings import as_elsewhere, runs_with_threads

DTYPES = [torch.float32, torch.float64]
SIZES = [0, 1, 7, 63, 129, 2048 + 13, 16384 + 2048 + 13, 300_007]
EPS = np.finfo(np.float64).eps


def make(size, dtype=torch.float32, seed=0):
    return torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def check_accuracy(vector, norm_of=vector_norm):
    exact = np.sqrt((wide(vector).astype(np.longdouble) ** 2).sum())
    norm, plain = norm_of(vector), torch.linalg.vector_norm(vector)
    assert (norm.shape, norm.dtype) == ((), torch.float64)
    assert abs(wide(norm) - exact) <= 4 * EPS * exact
    assert abs(wide(norm) - exact) <= abs(wide(plain) - exact) + 4 * EPS * exact


@pytest.mark.every_cpu_level
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
def test_accuracy(size, dtype):
    check_accuracy(make(size, dtype))


@pytest.mark.every_cpu_level
@pytest.mark.parametrize("value", [1e-45, 1e-30, 1e30, 3e38])
def test_accuracy_where_float32_squares_underflow_or_overflow(value):
    vector = torch.full((1001,), value)
    exact = wide(vector)[0] * np.sqrt(np.longdouble(1001))
    assert abs(wide(vector_norm(vector)) - exact) <= 4 * EPS * exact


@pytest.mark.every_cpu_level
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("place", [0, 100, 20_000, 20_012])  # in the vectors, behind them, in the last chunk
def test_not_finite(place, dtype):
    vector = make(20_013, dtype)
    for value in (torch.inf, -torch.inf):
        vector[place] = value
        assert vector_norm(vector) == torch.inf
    vector[place] = torch.nan
    assert vector_norm(vector).isnan()
    vector[0] = torch.inf
    assert vector_norm(vector).isnan() or place == 0


@pytest.mark.parametrize("dtype", DTYPES)
def test_same_bits_for_any_number_of_threads(dtype):
    vector = make(300_007, dtype)
    first, *others = runs_with_threads(lambda: vector_norm(vector))
    assert all(torch.equal(first, other) for other in others)


@pytest.mark.parametrize("dtype", DTYPES)
def test_unaligned(dtype):
    vector = make(1001, dtype)
    assert torch.equal(vector_norm(vector[1:]), vector_norm(vector[1:].clone()))


@pytest.mark.parametrize("dtype", DTYPES)
def test_reference(dtype):
    vector = make(1001, dtype)
    torch.testing.assert_close(_vector_norm_ref(vector), vector_norm(vector), rtol=1e-13, atol=0)
    assert torch.equal(as_elsewhere("vector_norm", vector), _vector_norm_ref(vector))


@pytest.mark.parametrize("size", [0, 5])
def test_opcheck(size):
    torch.library.opcheck(torch.ops.fastnas.vector_norm.default, (make(size),))


@pytest.mark.parametrize(
    ("vector", "sentence"),
    [
        (torch.ones(6)[::2], "vector_norm: vector must be contiguous; call contiguous() on it"),
        (torch.ones(3).half(), "vector_norm: vector must be float32 or float64, got float16"),
        (torch.ones(3).long(), "vector_norm: vector must be float32 or float64, got int64"),
        ([1.0], "vector_norm: vector must be a tensor, got list"),
    ],
)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_mistakes_are_told_in_one_sentence(vector, sentence, device):
    if isinstance(vector, torch.Tensor):
        vector = torch.empty_strided(vector.shape, vector.stride(), dtype=vector.dtype, device=device)
    with pytest.raises(FastnasError) as caught:
        vector_norm(vector)
    assert str(caught.value) == sentence
