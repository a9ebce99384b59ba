"""The fused executor computes what the reference does: values, both gradients, statistics, autograd's contract."""

from statistics import median

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch.utils._python_dispatch import TorchDispatchMode

from fastnas.bilevel import METHODS, InnerSettings
from fastnas.errors import FastnasError
from fastnas.search.step import SearchStep
from fastnas.supernet import gradients
from tests.ops.settings import runs_with_threads
from tests.supernet.networks import SHAPES, SKELETON_SHAPES, SPACES, batch, is_fused, named, supernet


def results(net, images, labels):
    """What a pass in training mode and then one in evaluation mode give, by name."""
    found = {}
    for mode in ("training", "evaluation"):
        net.train(mode == "training")
        logits = net(images)
        weights, alphas = gradients(F.cross_entropy(logits, labels), net.weights, net.alphas)
        found |= {
            f"{mode}: logits": logits.detach(),
            f"{mode}: d weights": weights,
            f"{mode}: d alpha": alphas,
        }
    return found | {"running statistics": net.running.flat.clone()}


def errors(found, exact):
    """|found - exact| of each, relative to |exact|.

    Alpha's gradient counts relative to that of weights and alpha together: of a single image's in the DARTS space
    it is zero in exact arithmetic, since every map has mean zero and the head averages over the image.
    """
    scales = {name: value.double().norm() for name, value in exact.items()}
    for mode in ("training", "evaluation"):
        scales[f"{mode}: d alpha"] = torch.hypot(scales[f"{mode}: d weights"], scales[f"{mode}: d alpha"])
    return {
        name: ((found[name].double() - value).norm() / scales[name]).item() for name, value in exact.items()
    }


def assert_as_accurate_as_plain_pytorch(draws):
    """In float32 the median error of the draws, each (fused, reference, exact), is at most twice plain PyTorch's."""
    fused = [errors(found, exact) for found, _, exact in draws]
    plain = [errors(found, exact) for _, found, exact in draws]
    rounding = 4 * torch.finfo(torch.float32).eps
    for name in fused[0]:
        ours, theirs = (median(error[name] for error in side) for side in (fused, plain))
        assert ours <= 2 * theirs + rounding, f"{name}: {ours:.1e}, plain PyTorch {theirs:.1e}"


# ---------------------------------------------------------------------------- the same numbers


@pytest.mark.every_cpu_level
@pytest.mark.parametrize("shape", [*SHAPES, *SKELETON_SHAPES], ids=named)
def test_float64_is_exact(shape):
    found, exact = (results(supernet(shape, backend), *batch(shape)) for backend in ("fused", "reference"))
    for name, error in errors(found, exact).items():
        assert error < 1e-10, name


@pytest.mark.parametrize(
    "shape",
    [
        *(SHAPES[i] for i in (0, 1, 5, 6)),
        ("darts", 4, 3, 1, (16, 13)),
    ],
    ids=named,
)
def test_float32_is_as_accurate_as_plain_pytorch(shape):
    draws = []
    for seed in range(5):
        kinds = (("fused", torch.float32), ("reference", torch.float32), ("reference", torch.float64))
        draws.append(
            [
                results(supernet(shape, backend, dtype, seed), *batch(shape, dtype, seed))
                for backend, dtype in kinds
            ]
        )
    assert_as_accurate_as_plain_pytorch(draws)


@pytest.fixture(scope="module")
def digits():
    """Images (B, 1, 8, 8) float32 in [-1, 1] and labels (B,): 60 batches of 8."""
    bunch = load_digits()
    order = torch.randperm(len(bunch.target), generator=torch.Generator().manual_seed(0))[: 60 * 8]
    images = torch.from_numpy(bunch.images).float().unsqueeze(1)[order] / 8 - 1
    return list(zip(images.split(8), torch.from_numpy(bunch.target)[order].split(8), strict=True))


@pytest.mark.parametrize("shape", [SHAPES[0], SHAPES[5]], ids=named)
def test_after_50_training_steps_both_are_still_the_same(shape, digits):
    """In float64 as they come; in float32 from the same trained weights.

    Two trainings in float32 part within 50 steps whoever runs them: a flipped ReLU grows (measured, DARTS space:
    plain PyTorch is 2% off plain PyTorch in float64).
    """
    trained = {}
    for backend in ("fused", "reference"):
        net = supernet(shape, backend, image_channels=1)
        settings = InnerSettings(learning_rate=0.025, momentum=0.9, weight_decay=3e-4)
        step = SearchStep(net, METHODS["first-order"], settings)
        losses = [step.weight_step((x.double(), y), 0.025)[0] for x, y in digits[:50]]
        assert torch.stack(losses[40:]).mean() < 0.9 * torch.stack(losses[:10]).mean()  # it learns
        trained[backend] = net
    for arena in ("weights", "running"):
        ours, theirs = (getattr(trained[backend], arena).flat for backend in ("fused", "reference"))
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-8)

    def from_here(backend, dtype):
        net = supernet(shape, backend, dtype, image_channels=1)
        for arena in ("weights", "alphas", "running"):
            getattr(net, arena).flat.copy_(getattr(trained["fused"], arena).flat.float())
        return net

    kinds = (("fused", torch.float32), ("reference", torch.float32), ("reference", torch.float64))
    assert_as_accurate_as_plain_pytorch(
        [
            [results(from_here(backend, dtype), x.to(dtype), y) for backend, dtype in kinds]
            for x, y in digits[50:55]
        ]
    )


@pytest.mark.parametrize("space", SPACES)
def test_a_cell_is_the_same_bits_with_any_number_of_threads(space):
    shape = (space, 4, 3, 5, (9, 11))
    net = supernet(shape, "fused", torch.float32)
    index = 1
    spec, cell = net.space.stages[index], net.stages[index]
    stem = net.stages[0](batch(shape, torch.float32)[0]).detach().requires_grad_()
    inputs = [stem] * len(spec.inputs)
    mixing = net.alphas[spec.alpha].detach().softmax(-1).requires_grad_()
    start = net.running.flat.clone()

    def once():
        net.running.flat.copy_(start)
        out = net.cell(index, inputs, mixing)
        weights = [
            leaf for leaf in net.weights.leaves if leaf.data_ptr() == next(cell.parameters()).data_ptr()
        ]
        loss = (out * torch.linspace(-1, 1, out.numel()).view(out.shape)).sum()
        return [out.detach(), *torch.autograd.grad(loss, [stem, mixing, *weights]), net.running.flat.clone()]

    if not is_fused(net):
        pytest.skip("its cells run in torch, whose sums depend on the threads")
    first, *others = runs_with_threads(once)
    for other in others:
        assert all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("shape", [SHAPES[1], SHAPES[6]], ids=named)
def test_layouts_of_both_executors_are_the_same(shape):
    a, b = (supernet(shape, backend) for backend in ("reference", "fused"))
    for arena in ("weights", "alphas", "running"):
        tensors = [getattr(net, arena).tensors for net in (a, b)]
        shapes = [[(name, t.shape) for name, t in side.items()] for side in tensors]
        assert shapes[0] == shapes[1]
        assert torch.equal(getattr(a, arena).flat, getattr(b, arena).flat)


@pytest.mark.parametrize("mode", ["training", "evaluation"])
def test_nan_in_an_image_reaches_its_logits(mode):
    """A NaN must not be hidden by a ReLU or a maximum. In evaluation the other image is untouched."""
    shape = ("darts", 4, 3, 2, (8, 8))
    images, _ = batch(shape)
    images[0, 1, 3, 3] = torch.nan
    for backend in ("fused", "reference"):
        net = supernet(shape, backend).train(mode == "training")
        hit = net(images).isnan().all(1)
        assert hit.tolist() == [True, mode == "training"]


# ---------------------------------------------------------------------------- statistics


@pytest.mark.parametrize("shape", [SHAPES[1], SHAPES[6]], ids=named)
def test_frozen_statistics_stay_and_the_batchs_are_used(shape):
    net, (images, _) = supernet(shape, "fused"), batch(shape)
    before = net.running.flat.clone()
    with net.frozen_statistics():
        frozen = net(images)
    assert torch.equal(net.running.flat, before)
    moving = net(images)
    assert torch.equal(frozen, moving)
    moved = net.running.flat != before
    assert moved.all()
    net.eval()
    after = net.running.flat.clone()
    assert not torch.allclose(net(images), moving)
    assert torch.equal(net.running.flat, after)


# ---------------------------------------------------------------------------- autograd's contract


class WeightGradients(TorchDispatchMode):
    """Counts the native backward calls that write weight gradients, and those that leave them out."""

    def __init__(self):
        super().__init__()
        self.written = self.left_out = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        names = [argument.name for argument in function._schema.arguments]
        if function.namespace == "fastnas" and "weights_wanted" in names:
            wanted = args[names.index("weights_wanted")]
            self.written += wanted
            self.left_out += not wanted
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("shape", [SHAPES[1], SHAPES[6]], ids=named)
def test_constant_weights_leave_alphas_gradient_as_it_is(shape):
    net, (images, labels) = supernet(shape, "fused"), batch(shape)
    with WeightGradients() as whole:
        _, expected = gradients(F.cross_entropy(net(images), labels), net.weights, net.alphas)
    with net.weights.constant(), WeightGradients() as alone:
        loss = F.cross_entropy(net(images), labels)
        (found,) = gradients(loss, net.alphas)
        assert not any(leaf.requires_grad for leaf in net.weights.leaves)
    assert torch.equal(found, expected)
    assert (alone.written, alone.left_out) == (0, whole.written)
    assert whole.left_out == 0
    if is_fused(net):
        assert whole.written > 0
    assert all(leaf.requires_grad for leaf in net.weights.leaves)


@pytest.mark.parametrize("shape", [SHAPES[1], SHAPES[6]], ids=named)
def test_backward_fills_every_grad(shape):
    net, (images, labels) = supernet(shape, "fused"), batch(shape)

    def loss():
        with net.frozen_statistics():
            return F.cross_entropy(net(images), labels)

    def found():
        tensors = [[*net.parameters()], [*net.alphas.tensors.values()]]
        return [torch.cat([t.grad.reshape(-1) for t in side]) for side in tensors]

    expected = gradients(loss(), net.weights, net.alphas)
    assert all(tensor.grad is None for tensor in net.parameters())
    loss().backward()
    assert all(torch.equal(a, b) for a, b in zip(found(), expected, strict=True))
    loss().backward()
    for a, b in zip(found(), expected, strict=True):
        torch.testing.assert_close(a, 2 * b, rtol=1e-14, atol=0)
    net.zero_grad(set_to_none=False)
    assert not found()[0].any()
    net.zero_grad()
    for alpha in net.alphas.tensors.values():
        alpha.grad = None
    kept = loss()
    kept.backward(retain_graph=True)
    assert all(torch.equal(a, b) for a, b in zip(found(), expected, strict=True))
    kept.backward()  # what backward needs is not used up by it
    for a, b in zip(found(), expected, strict=True):
        torch.testing.assert_close(a, 2 * b, rtol=1e-14, atol=0)


@pytest.mark.parametrize("space", SPACES)
def test_torchs_own_optimiser_trains_it(space):
    shape = (space, 4, 1, 3, (8, 8))
    images, labels = batch(shape)
    flats = []
    for backend in ("fused", "reference"):
        net = supernet(shape, backend)
        optimiser = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
        for _ in range(3):
            optimiser.zero_grad()
            F.cross_entropy(net(images), labels).backward()
            optimiser.step()
        flats.append(net.weights.flat)
    torch.testing.assert_close(*flats, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("way", ["backward", "grad"])
def test_a_second_derivative_is_refused(space, way):
    shape = (space, 4, 3, 2, (8, 8))
    net, (images, labels) = supernet(shape, "fused"), batch(shape)
    leaves = [*net.weights.leaves, *net.alphas.leaves]

    def second():
        first = torch.autograd.grad(F.cross_entropy(net(images), labels), leaves, create_graph=True)
        total = sum(g.square().sum() for g in first)
        return (
            total.backward() if way == "backward" else torch.autograd.grad(total, leaves, allow_unused=True)
        )

    with pytest.raises(FastnasError, match="differentiable once"):
        second()


# ---------------------------------------------------------------------------- borders


@pytest.mark.parametrize("mode", ["training", "evaluation"])
def test_an_empty_batch_has_empty_logits_and_zero_gradients(mode):
    shape = ("darts", 4, 1, 0, (8, 8))
    for backend in ("reference", "fused"):
        net = supernet(shape, backend).train(mode == "training")
        logits = net(batch(shape)[0])
        assert logits.shape == (0, 10)
        assert not any(g.any() for g in gradients(logits.sum(), net.weights, net.alphas))


def test_a_single_value_per_channel_cannot_be_normalised():
    """As nn.BatchNorm2d says: its variance is zero, its gradient too, and the network would learn nothing."""
    shape = ("darts", 4, 3, 1, (4, 4))
    for backend in ("reference", "fused"):
        net = supernet(shape, backend)
        with pytest.raises(ValueError, match="more than 1 value per channel"):
            net(batch(shape)[0])
