"""NAS-Bench-1Shot1's cells, whose convolutions have the ReLU behind the BatchNorm: fused, they are the reference's."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from fastnas.spaces import CellMatrix, Input, make_network, make_space
from fastnas.supernet import SupernetProblem, build_supernet, fused_cell, gradients
from fastnas.supernet.cell_plan import is_fused, is_rectified
from fastnas.supernet.primitives import EPS
from tests.cuda_on_host.library import on_host
from tests.ops.settings import runs_with_threads
from tests.supernet import networks
from tests.supernet.networks import batch, named
from tests.supernet.test_fused import assert_as_accurate_as_plain_pytorch, errors, results

SHAPES = [
    ("nasbench1shot1-1", 4, 3, 3, (9, 11)),
    ("nasbench1shot1-2", 17, 1, 2, (8, 8)),
    ("nasbench1shot1-3", 6, 4, 2, (8, 7)),
]
PRODUCTS = ["train_hessian_product", "train_mixed_product", "val_alpha_hessian_product"]


def supernet(shape, backend, dtype=torch.float64, seed=0):
    """As ``networks.supernet``; norms have scales and shifts of both signs."""
    net = networks.supernet(shape, backend, dtype, seed)
    generator = torch.Generator().manual_seed(seed + 7)
    for tensor in net.weights.tensors.values():
        if tensor.dim() == 1:
            tensor.data.add_(torch.randn(tensor.shape, generator=generator))
    return net


@pytest.mark.every_cpu_level
@pytest.mark.parametrize("shape", SHAPES, ids=named)
def test_float64_is_exact(shape):
    fused, plain = (supernet(shape, backend) for backend in ("fused", "reference"))
    assert networks.is_fused(fused)
    for name, error in errors(results(fused, *batch(shape)), results(plain, *batch(shape))).items():
        assert error < 1e-10, name


def test_float32_is_as_accurate_as_plain_pytorch():
    shape, kinds = (
        SHAPES[0],
        (("fused", torch.float32), ("reference", torch.float32), ("reference", torch.float64)),
    )
    assert_as_accurate_as_plain_pytorch(
        [
            [results(supernet(shape, b, dtype, seed), *batch(shape, dtype, seed)) for b, dtype in kinds]
            for seed in range(5)
        ]
    )


@pytest.mark.parametrize("shape", SHAPES[1:], ids=named)
def test_exact_products_are_those_of_double_backward(shape):
    images, generator = batch(shape), torch.Generator().manual_seed(3)
    fused, plain = (SupernetProblem(supernet(shape, b), images, images) for b in ("fused", "reference"))
    assert fused.exact_by == "tangents"
    for product in PRODUCTS:
        model = fused.alpha if "val_alpha" in product else fused.w
        u = torch.randn(model.shape, generator=generator, dtype=torch.float64)
        found, exact = getattr(fused, product)(u), getattr(plain, product)(u)
        assert (found - exact).norm() < 1e-10 * exact.norm(), product


@pytest.mark.parametrize("training", [True, False])
def test_activations_computed_again_and_threads_give_the_same_bits(training):
    shape = ("nasbench1shot1-1", 16, 1, 5, (9, 11))
    images, labels = batch(shape, torch.float32)
    net = supernet(shape, "fused", torch.float32).train(training)

    def once():
        with net.frozen_statistics():
            loss = F.cross_entropy(net(images), labels)
        return gradients(loss, net.weights, net.alphas)

    first, *others = runs_with_threads(once)
    net.recompute = True
    for other in (*others, once()):
        # Stem and head are torch's, whose sums depend on the threads.
        torch.testing.assert_close(other, first, rtol=1e-4, atol=1e-6)
    net.recompute = False
    kept = once()
    net.recompute = True
    assert all(torch.equal(a, b) for a, b in zip(kept, once(), strict=True))


def test_constant_weights_leave_alphas_gradient_as_it_is():
    shape = SHAPES[2]
    net, (images, labels) = supernet(shape, "fused"), batch(shape)
    _, expected = gradients(F.cross_entropy(net(images), labels), net.weights, net.alphas)
    with net.weights.constant():
        (found,) = gradients(F.cross_entropy(net(images), labels), net.alphas)
    assert torch.equal(found, expected)


def test_on_the_cuda_kernels(monkeypatch):
    """Run on the CPU (tests/cuda_on_host)."""
    monkeypatch.setattr(fused_cell, "OPS", on_host())
    shape, kinds = (
        SHAPES[0],
        (("fused", torch.float32), ("reference", torch.float32), ("reference", torch.float64)),
    )
    assert_as_accurate_as_plain_pytorch(
        [
            [results(supernet(shape, b, dtype, seed), *batch(shape, dtype, seed)) for b, dtype in kinds]
            for seed in range(3)
        ]
    )


def test_a_wrong_plan_never_leaves_its_tensors():
    """Any number of it changed by one: the op refuses, or it computes something of the same shapes."""
    shape = ("nasbench1shot1-1", 4, 1, 2, (4, 4))
    net = supernet(shape, "fused")
    index = next(iter(net._fused))
    cell = net._fused[index]
    x = torch.rand(2, 4, 4, 4, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
    mixing = net.mixing({name: a.detach().softmax(-1) for name, a in net.alphas.tensors.items()})[
        cell.spec.mixing
    ]
    given = ([x], mixing, cell.weights.detach(), torch.zeros_like(cell.running), EPS, True)
    ops = torch.ops.fastnas
    out, kept = ops.cell(cell.plan.numbers, *given, True)
    refused = 0
    for at in range(0, len(cell.plan.numbers), 3):
        plan = cell.plan.numbers.clone()
        plan[at] += (-1) ** at * (2**40 if at % 5 == 0 else 1)
        try:
            result, _ = ops.cell(plan, *given, False)
            ops.cell_backward(plan, torch.ones_like(out), out, kept, *given, True, [True])
            assert result.shape == out.shape
        except (ValueError, RuntimeError):
            refused += 1
    assert refused > len(cell.plan.numbers) // 8


# ---------------------------------------------------------------------------- what may be fused


def test_a_cell_that_reads_negative_values_is_not_fused():
    """Kernels put a ReLU before each convolution; where it would change something, cells run as in the reference."""
    space = make_space("nasbench1shot1-1", channels=4, layers=3)
    assert is_rectified(space.stages) == [True] * (len(space.stages) - 1) + [False]
    stem = replace(space.stages[0], rectified=False)
    space = replace(space, stages=(stem, *space.stages[1:]))
    assert is_rectified(space.stages)[:3] == [False, True, True]
    torch.manual_seed(0)
    net = build_supernet(space, dtype=torch.float64)
    assert (
        list(net._fused) == [i for i, kind in enumerate(s.kind for s in space.stages) if kind == "cell"][1:]
    )
    plain = build_supernet(space, backend="reference", dtype=torch.float64)
    plain.weights.flat.copy_(net.weights.flat)
    plain.alphas.flat.copy_(net.alphas.flat)
    images = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(net(images), plain(images))


@pytest.mark.parametrize(
    "change", [{"affine": False}, {"normalise_pools": True}, {"inputs": (Input(0, "relu_conv_bn"),) * 8}]
)
def test_norms_that_the_kernels_do_not_know_are_not_fused(change):
    spec = make_space("nasbench1shot1-1", channels=4, layers=3).stages[1]
    assert is_fused(spec, [True] * len(spec.inputs))
    assert not is_fused(replace(spec, **change), [True] * len(spec.inputs))


# ---------------------------------------------------------------------------- the cell, by hand


def test_a_cell_by_hand():
    """Space 1: weights on the inputs of nodes 3 and 4, on primitives and on the output, softmaxed each for itself."""
    net = supernet(("nasbench1shot1-1", 4, 1, 2, (8, 8)), "reference").eval()
    index = next(i for i, spec in enumerate(net.space.stages) if spec.kind == "cell")
    cell, softmaxed = net.stages[index], {name: a.softmax(-1) for name, a in net.alphas.tensors.items()}
    x = torch.rand(2, 4, 8, 8, dtype=torch.float64)
    projected = [project(x) for project in cell.preprocess]
    mixed = [edge for edge in cell.edges if len(edge) == 3]
    values = []
    for node in range(1, 5):
        sources = [projected[node - 1], *values]
        weights = softmaxed[f"parents_{node}"][0] if node > 2 else [1.0] * len(sources)
        summed = sum(w * s for w, s in zip(weights, sources, strict=True))
        primitives = zip(softmaxed["operations"][node - 1], mixed[node - 1].values(), strict=True)
        values.append(sum(w * primitive(summed) for w, primitive in primitives))
    first, *rest = softmaxed["output"][0]
    parts = [first * q + w * s for q, w, s in zip(projected[4:], rest, values, strict=True)]
    found = net.cell(index, [x] * 8, net.mixing(softmaxed)[cell.spec.mixing])
    torch.testing.assert_close(found, torch.cat(parts, 1))


def test_a_discrete_cell_by_hand():
    """A vertex that feeds a narrower one gives it its first channels; the output adds the input, projected."""
    matrix = ((0, 1, 1, 0, 1), (0, 0, 1, 1, 1), (0, 0, 0, 0, 1), (0, 0, 0, 0, 1), (0, 0, 0, 0, 0))
    operations = ("input", "conv3x3-bn-relu", "maxpool3x3", "conv1x1-bn-relu", "output")
    space = make_network("nasbench1shot1-1", CellMatrix(matrix, operations), channels=16, layers=3)
    net = build_supernet(space, dtype=torch.float64)
    cell = net.stages[1]
    assert cell.channels == [0, 6, 5, 5, 16]
    x = torch.rand(2, 16, 8, 8, dtype=torch.float64)
    first, pool, second = cell.operations
    one = first(cell.projections["1"](x))
    two, three = pool(one[:, :5] + cell.projections["2"](x)), second(one[:, :5])
    torch.testing.assert_close(cell(x), torch.cat([one, two, three], 1) + cell.projections["4"](x))
    assert net(torch.rand(2, 3, 9, 9, dtype=torch.float64)).shape == (2, 10)
