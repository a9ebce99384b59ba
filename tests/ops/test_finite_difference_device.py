"""The CUDA launchers and kernels of perturb_ and difference_, run on the CPU through tests/cuda_on_host."""

import pytest
import torch

from fastnas.ops import difference_, perturb_, vector_norm
from tests.cuda_on_host.library import on_host
from tests.ops.test_finite_difference import DTYPES, RADIUS, check_accuracy, make, perturbed

pytestmark = pytest.mark.usefixtures("poisoned")


def perturb_on_host(*arguments):
    on_host().perturb_(*arguments)


def difference_on_host(*arguments):
    on_host().difference_(*arguments)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("size", [0, 1, 7, 1025, 5003])
def test_accuracy(size, sign, dtype):
    check_accuracy(*make(size, dtype), RADIUS, sign, perturb_on_host, difference_on_host)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bad", [0.0, 1e-43, torch.nan, torch.inf])
def test_special_vectors_do_what_they_do_on_the_cpu(bad, dtype):
    """u is zero, so short that eps overflows, or not finite."""
    saved, u, behind = make(37, dtype)
    u = torch.full_like(u, bad) if bad < 1 else u.index_fill(0, torch.tensor([5]), bad)
    for sign in (1, -1):
        ours = perturbed(saved, u, RADIUS, sign, perturb_on_host)
        torch.testing.assert_close(
            ours, perturbed(saved, u, RADIUS, sign), rtol=1e-6, atol=1e-6, equal_nan=True
        )
        if bad == 0 or (bad == 1e-43 and dtype == torch.float32):
            assert torch.equal(ours, saved)
    ahead, norm = saved.clone(), vector_norm(u)
    difference_on_host(ahead, behind, norm, RADIUS)
    expected = difference_(saved.clone(), behind, norm, RADIUS)
    torch.testing.assert_close(ahead, expected, rtol=1e-6, atol=0, equal_nan=True)
    assert ahead.isfinite().any() == (bad < 1)


@pytest.mark.parametrize("dtype", DTYPES)
def test_write_their_slice_alone(dtype):
    """Unaligned slices of one buffer, as of an arena; their neighbours and the inputs stay; the same bits."""
    buffer = torch.cat(make(1039, dtype))
    before, (w, saved, u) = buffer.clone(), (buffer[1039 * k + 1 : 1039 * k + 1026] for k in range(3))
    norm = vector_norm(u)
    perturb_on_host(w, saved, u, norm, RADIUS, 1)
    assert torch.equal(w, perturbed(saved.clone(), u.clone(), perturb=perturb_on_host))
    before[1:1026] = w
    assert torch.equal(buffer, before)
    aligned = w.clone()
    difference_on_host(aligned, u.clone(), norm, RADIUS)
    difference_on_host(w, u, norm, RADIUS)
    before[1:1026] = aligned
    assert torch.equal(buffer, before)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_vector_may_be_read_where_it_is_written(dtype):
    saved, u, _ = make(1025, dtype)
    norm = vector_norm(u)
    expected = perturbed(saved, u, perturb=perturb_on_host)
    for w, start, direction in ((saved.clone(), None, u), (u.clone(), saved, None)):
        perturb_on_host(
            w, w if start is None else start, w if direction is None else direction, norm, RADIUS, 1
        )
        assert torch.equal(w, expected)
    difference_on_host(saved, saved, norm, RADIUS)
    assert torch.count_nonzero(saved) == 0


def test_checks_are_the_same():
    x = torch.ones(3)
    with pytest.raises(ValueError, match="perturb_: u must be like w"):
        perturb_on_host(x, x, x[:1], torch.ones(()).double(), RADIUS, 1)
    with pytest.raises(ValueError, match="perturb_: u must be like w"):
        torch.ops.fastnas.perturb_(x, x, x[:1], torch.ones(()).double(), RADIUS, 1)
    assert perturb_(x, x, x, vector_norm(x), RADIUS, 1) is x
