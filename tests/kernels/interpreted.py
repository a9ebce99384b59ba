"""The Triton kernels on the CPU, run by Triton's interpreter: ``test_interpreted.py`` runs this file so.

As CUDA tensors reach them, through torch.ops, with tensors of the CPU.
"""

import pytest
import torch
from triton.runtime.interpreter import InterpretedFunction

from fastnas.kernels import highway_sum as kernels
from fastnas.kernels import neumann, virtual_step
from fastnas.ops import neumann_step_
from fastnas.ops.highway_sum import highway_sum
from tests.ops import test_highway_sum, test_neumann, test_virtual_step
from tests.ops.settings import as_on_cuda

DTYPES = [torch.float32, torch.float64]


def neumann_step(*arguments):
    gamma = arguments[-1]
    rate = (0.0, gamma) if isinstance(gamma, torch.Tensor) else (gamma, None)
    return as_on_cuda("neumann_step_", *arguments[:-1], *rate)


def step(*tensors, **options):
    as_on_cuda("virtual_step_", *test_virtual_step.arguments(*tensors, **options))


def sizes(module, dtype):
    """One block, several, the last one whole or not."""
    block, _ = module.CONFIGURATIONS[dtype]
    return [0, 1, 7, block - 1, block, block + 1, 3 * block, 3 * block + 1025]


def test_cuda_tensors_reach_the_kernels(monkeypatch):
    """Not the reference, which would give the same."""
    calls = []
    for module, name in ((neumann, "neumann_step_"), (virtual_step, "virtual_step_")):
        kernel = getattr(module, name)
        spied = lambda *given, kernel=kernel, name=name: (calls.append(name), kernel(*given))[1]  # noqa: E731
        monkeypatch.setattr(module, name, spied)
    x, norm = torch.ones(5), torch.ones(()).double()
    neumann_step(x.clone(), x.clone(), x, x, norm, 0.01, 0.1)
    step(x.clone(), x, x, learning_rate=0.1, momentum=0.9, weight_decay=0.0)
    assert calls == ["neumann_step_", "virtual_step_"]


@pytest.mark.parametrize("dtype", DTYPES)
def test_neumann_accuracy(dtype):
    for size in sizes(neumann, dtype):
        test_neumann.check(*test_neumann.make(size, dtype), step=neumann_step)


def test_neumann_agrees_with_the_reference_and_the_cpu():
    test_neumann.check_reference(neumann_step)


@pytest.mark.parametrize("dtype", DTYPES)
def test_neumann_writes_its_slices_alone_and_repeats_to_the_bit(dtype):
    test_neumann.check_slices(neumann_step, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [0.0, torch.nan, torch.inf])
def test_neumann_of_special_vectors(value, dtype):
    v, series, ahead, behind = test_neumann.make(2500, dtype)
    v = torch.zeros_like(v) if value == 0 else v.index_fill(0, torch.tensor([2400]), value)
    for sides in ((ahead, behind), (ahead, ahead)):
        ours = test_neumann.run(neumann_step, v, series, *sides)
        theirs = test_neumann.run(neumann_step_, v, series, *sides)
        torch.testing.assert_close(ours, theirs, equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES)
def test_neumann_with_gamma_on_the_device(dtype):
    vectors = test_neumann.make(2500, dtype)
    gamma = torch.tensor(0.025).double()
    ours = test_neumann.run(neumann_step, *vectors, gamma=gamma)
    torch.testing.assert_close(ours, test_neumann.run(neumann_step, *vectors, gamma=gamma.item()))


@pytest.mark.parametrize("count", [1, 1023, 1024, 1025, 2500])
def test_the_norm_of_many_blocks(count):
    shares, norm = torch.rand(count, dtype=torch.float64), torch.full((), torch.nan, dtype=torch.float64)
    neumann.root_kernel[(1,)](shares, norm, count, BLOCK=neumann.ROOT_BLOCK)
    torch.testing.assert_close(norm, shares.sum().sqrt(), rtol=1e-14, atol=0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("changes", test_virtual_step.CHANGES, ids=str)
def test_virtual_step_accuracy(changes, dtype):
    for size in sizes(virtual_step, dtype):
        w, grad, buffer = test_virtual_step.make(size, dtype)
        for momentum in (buffer, None):
            test_virtual_step.check(w, grad, momentum, step, **(test_virtual_step.STEP | changes))


def test_virtual_step_of_infinite_weights():
    test_virtual_step.check_infinite_weights(step)


@pytest.mark.parametrize("dtype", DTYPES)
def test_virtual_step_writes_its_slice_alone_and_reads_rates_on_the_device(dtype):
    test_virtual_step.check_slices(step, dtype)
    test_virtual_step.check_rate_on_device(step, dtype)


class Highway(torch.autograd.Function):
    """``highway_sum`` as CUDA tensors reach it."""

    @staticmethod
    def forward(ctx, *given):
        ctx.save_for_backward(*given)
        return as_on_cuda("highway_sum", *given)

    @staticmethod
    def backward(ctx, grad):
        return as_on_cuda("highway_sum_backward", grad, *ctx.saved_tensors)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 5, 7), (2, 9, 70), (4, 2, 256)])
def test_highway_sum_accuracy(shape, dtype):
    test_highway_sum.check(Highway.apply, *test_highway_sum.make(*shape, dtype))


def test_highway_sum_of_nothing_and_of_large_numbers():
    for mine, theirs in zip(
        test_highway_sum.value_and_grads(Highway.apply, *test_highway_sum.make(2, 0, 5)),
        test_highway_sum.value_and_grads(highway_sum, *test_highway_sum.make(2, 0, 5)),
        strict=True,
    ):
        assert torch.equal(mine, theirs)
    mixing, states, raw, _ = test_highway_sum.make(2, 3, 5, torch.float32, scale=1e4)
    torch.testing.assert_close(Highway.apply(mixing, states, raw), highway_sum(mixing, states, raw))


def test_the_interpreter_is_what_ran():
    for kernel in (
        neumann.step_kernel,
        neumann.root_kernel,
        virtual_step.step_kernel,
        kernels.forward_kernel,
        kernels.backward_kernel,
    ):
        assert isinstance(kernel, InterpretedFunction)
