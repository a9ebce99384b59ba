"""Whole supernets on the CUDA kernels, run on the CPU (tests/cuda_on_host): what ``test_fused`` asks of the CPU's."""

import pytest
import torch
import torch.nn.functional as F

from fastnas.supernet import fused_cell, gradients
from tests.cuda_on_host.library import on_host
from tests.supernet import test_cell_op
from tests.supernet.networks import SHAPES, batch, named, supernet
from tests.supernet.test_fused import assert_as_accurate_as_plain_pytorch, results


@pytest.fixture(autouse=True)
def on_device(monkeypatch):
    for module in (fused_cell, test_cell_op):
        monkeypatch.setattr(module, "OPS", on_host())


@pytest.mark.parametrize("shape", [*(SHAPES[i] for i in (0, 1, 5)), ("darts", 16, 3, 2, (16, 13))], ids=named)
def test_float32_is_as_accurate_as_plain_pytorch(shape):
    draws = []
    for seed in range(3):
        kinds = (("fused", torch.float32), ("reference", torch.float32), ("reference", torch.float64))
        draws.append(
            [
                results(supernet(shape, backend, dtype, seed), *batch(shape, dtype, seed))
                for backend, dtype in kinds
            ]
        )
    assert_as_accurate_as_plain_pytorch(draws)


@pytest.mark.parametrize("shape", [SHAPES[1], SHAPES[5]], ids=named)
def test_activations_computed_again_give_the_same_bits(shape):
    test_cell_op.test_activations_computed_again_give_the_same_bits(shape, torch.float32)


@pytest.mark.parametrize("mode", ["training", "evaluation"])
def test_an_empty_batch_has_empty_logits_and_zero_gradients(mode):
    net = supernet(("darts", 4, 1, 0, (8, 8)), "fused", torch.float32).train(mode == "training")
    logits = net(batch(("darts", 4, 1, 0, (8, 8)), torch.float32)[0])
    assert logits.shape == (0, 10)
    assert not any(g.any() for g in gradients(logits.sum(), net.weights, net.alphas))


def test_nan_in_an_image_reaches_its_logits():
    shape = ("darts", 4, 3, 2, (8, 8))
    images, _ = batch(shape, torch.float32)
    images[0, 1, 3, 3] = torch.nan
    net = supernet(shape, "fused", torch.float32).eval()
    assert net(images).isnan().all(1).tolist() == [True, False]


@pytest.mark.parametrize("shape", [SHAPES[0], SHAPES[5]], ids=named)
def test_constant_weights_leave_alphas_gradient_as_it_is(shape):
    net, (images, labels) = supernet(shape, "fused", torch.float32), batch(shape, torch.float32)
    _, expected = gradients(F.cross_entropy(net(images), labels), net.weights, net.alphas)
    with net.weights.constant():
        (found,) = gradients(F.cross_entropy(net(images), labels), net.alphas)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("shape", [SHAPES[1], SHAPES[5]], ids=named)
def test_bfloat16_images_with_float32_numbers(shape):
    """Activations rounded to 8 bits; weights, statistics and their gradients stay float32."""
    exact = supernet(shape, "reference")
    net = supernet(shape, "fused", torch.float32)
    net.takes_bfloat16 = True
    images, labels = batch(shape)
    truth = gradients(F.cross_entropy(exact(images), labels), exact.weights, exact.alphas)
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        logits = net(images.float())
    found = gradients(F.cross_entropy(logits.float(), labels), net.weights, net.alphas)
    for ours, exactly in zip(found, truth, strict=True):
        assert ours.dtype == torch.float32
        assert F.cosine_similarity(ours.double(), exactly, dim=0) > 0.9
    assert (net.running.flat - exact.running.flat).norm() < 0.02 * exact.running.flat.norm()
