"""vector_norm's CUDA launcher and kernels, run on the CPU through tests/cuda_on_host."""

import pytest
import torch

from fastnas.ops import vector_norm
from tests.cuda_on_host.library import on_host
from tests.ops.test_vector_norm import DTYPES, check_accuracy, make

pytestmark = pytest.mark.usefixtures("poisoned")


def norm_on_host(vector):
    return on_host().vector_norm(vector)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [0, 1, 7, 1025, 20_013])
def test_accuracy(size, dtype):
    check_accuracy(make(size, dtype), norm_on_host)


def test_more_packs_than_the_grid_has_threads():
    check_accuracy(make((1 << 20) + 1025, torch.float32), norm_on_host)


@pytest.mark.parametrize("value", [1e-45, 1e-30, 3e38])
def test_where_float32_squares_underflow_or_overflow(value):
    check_accuracy(torch.full((1001,), value, dtype=torch.float64), norm_on_host)
    torch.testing.assert_close(
        norm_on_host(torch.full((1001,), value)), vector_norm(torch.full((1001,), value)), rtol=1e-14, atol=0
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("place", [0, 1024, 2000])
def test_not_finite(place, dtype):
    vector = make(2001, dtype)
    vector[place] = -torch.inf
    assert norm_on_host(vector) == torch.inf
    vector[place] = torch.nan
    assert norm_on_host(vector).isnan()


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_same_bits_again_and_unaligned(dtype):
    vector = make(20_014, dtype)
    once = norm_on_host(vector[1:])
    assert torch.equal(once, norm_on_host(vector[1:]))
    assert torch.equal(once, norm_on_host(vector[1:].clone()))
