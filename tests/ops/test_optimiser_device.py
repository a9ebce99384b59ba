"""The CUDA launchers and kernels of sgd_step_ and adam_step_, run on the CPU through tests/cuda_on_host."""

import pytest
import torch

from fastnas.ops import adam_step_, sgd_step_, vector_norm
from tests.cuda_on_host.library import on_host
from tests.ops.test_optimiser import (
    ADAM,
    DTYPES,
    SGD,
    check_adam,
    check_sgd,
    make,
    run_adam,
    run_sgd,
    sgd_arguments,
)

pytestmark = pytest.mark.usefixtures("poisoned")
SIZES = [0, 1, 7, 1025, 2000]


def sgd_on_host(*tensors, **options):
    return on_host().sgd_step_(*sgd_arguments(*tensors, **options))


def adam_on_host(*tensors, learning_rate, betas, eps, weight_decay):
    on_host().adam_step_(*tensors, learning_rate, *betas, eps, weight_decay)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    "changes", [{}, {"momentum": 0.0}, {"weight_decay": 0.0}, {"clip": float("inf")}], ids=str
)
def test_accuracy_of_sgd(size, changes, dtype):
    check_sgd(*make(size, dtype), sgd_on_host, **(SGD | changes))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("changes", [{}, {"betas": (0.9, 0.999)}, {"weight_decay": 0.0}], ids=str)
def test_accuracy_of_adam(size, changes, dtype):
    check_adam(*make(size, dtype), adam_on_host, **(ADAM | changes))


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_not_finite_gradients_do_what_they_do_on_the_cpu(momentum, value):
    w, (grad,) = make(37, steps=1)
    grad[36] = value
    options = SGD | {"momentum": momentum}
    ours, theirs = (run_sgd(step, w, [grad], **options) for step in (sgd_on_host, sgd_step_))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    assert torch.equal(ours[0], w)
    ours, theirs = (run_adam(step, w, [grad], **ADAM) for step in (adam_on_host, adam_step_))
    torch.testing.assert_close(ours, theirs, equal_nan=True)


def test_an_infinite_weight_without_decay_spoils_no_buffer():
    w, (grad,) = make(37, steps=1)
    w[[3, 36]] = torch.inf
    options = SGD | {"weight_decay": 0.0}
    moved, buffer = run_sgd(sgd_on_host, w, [grad], **options)
    assert buffer.isfinite().all()
    assert moved.isinf().nonzero().flatten().tolist() == [3, 36]
    assert run_adam(adam_on_host, w, [grad], **(ADAM | {"weight_decay": 0.0}))[1].isfinite().all()


def test_without_momentum_a_buffer_is_left_alone():
    w, (grad,) = make(37, steps=1)
    expected, _ = run_sgd(sgd_on_host, w, [grad], **(SGD | {"momentum": 0.0}))
    buffer = torch.full((37,), torch.nan)
    sgd_on_host(w, grad, buffer, **(SGD | {"momentum": 0.0}))
    assert torch.equal(w, expected)
    assert buffer.isnan().all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_learning_rate_may_lie_on_the_device(dtype):
    w, grads = make(129, dtype)
    rate = torch.tensor(0.1).double()
    rate.fill_(SGD["learning_rate"])
    ours = run_sgd(sgd_on_host, w, grads, **(SGD | {"learning_rate": rate}))
    assert all(torch.equal(a, b) for a, b in zip(ours, run_sgd(sgd_on_host, w, grads, **SGD), strict=True))
    rate.fill_(0.0)
    assert torch.equal(run_sgd(sgd_on_host, w, grads, **(SGD | {"learning_rate": rate}))[0], w)


@pytest.mark.parametrize("dtype", DTYPES)
def test_write_their_slices_alone_and_the_same_bits_again(dtype):
    whole = torch.cat(make(1039, dtype)[1]).abs()  # Adam's mean of squares is not negative
    before, parts = whole.clone(), [whole[1039 * k + 1 : 1039 * k + 1026] for k in range(4)]
    copies = [part.clone() for part in parts]
    norms, counts = [], []
    for w, grad, buffer, square in (copies, parts):  # aligned and not
        norms.append(sgd_on_host(w, grad, buffer, **SGD))
        count = torch.zeros(())
        adam_on_host(w, grad, buffer, square, count, **ADAM)
        counts.append(count)
    assert torch.equal(*norms)
    assert torch.equal(*counts)
    torch.testing.assert_close(norms[0], vector_norm(copies[1]), rtol=1e-14, atol=0)
    for k, copy in enumerate(copies):
        before[1039 * k + 1 : 1039 * k + 1026] = copy
    assert torch.equal(whole, before)
