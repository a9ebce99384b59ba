"""Exact second-order products: by tangents through the fused kernels, by double backward through plain PyTorch."""

from dataclasses import replace
from statistics import median

import pytest
import torch
import torch.nn.functional as F

from fastnas.bilevel import hessian_vector_product, mixed_product
from fastnas.errors import FastnasError
from fastnas.spaces import Cell, make_space
from fastnas.supernet import SupernetProblem, build_supernet, problem
from tests.ops.settings import runs_with_threads
from tests.supernet.networks import SPACES, batch, named, supernet

# Odd sides, channels that fill no vector or exactly one, reductions, residual blocks, biases.
SHAPES = [
    ("darts", 4, 3, 3, (9, 11)),
    ("darts", 6, 3, 2, (9, 8)),
    ("darts", 16, 3, 2, (9, 11)),
    ("darts", 4, 8, 2, (8, 8)),
    ("nasbench201", 6, 2, 3, (9, 11)),
    ("nasbench201", 18, 1, 2, (8, 7)),
    ("s2", 4, 4, 2, (9, 11)),
    ("robustdarts-s4", 4, 3, 2, (9, 11)),  # noise
]
SMALL = [SHAPES[0], SHAPES[4]]
PRODUCTS = ["train_hessian_product", "train_mixed_product", "val_alpha_hessian_product"]


def problem_of(shape, backend="fused", dtype=torch.float64, seed=0, **changes):
    net = supernet(shape, backend, dtype, seed)
    for name, value in changes.items():
        setattr(net, name, value)
    return SupernetProblem(net, batch(shape, dtype, seed + 2), batch(shape, dtype, seed + 5))


def direction(product, given, seed=3):
    """What the product is taken with: like w, or like alpha."""
    model = given.alpha if "val_alpha" in product else given.w
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(model.shape, generator=generator, dtype=torch.float64).to(model.dtype)


def value(product, given, seed=3):
    return getattr(given, product)(direction(product, given, seed))


def error(found, exact):
    return ((found.double() - exact.double()).norm() / exact.double().norm()).item()


@pytest.mark.every_cpu_level
@pytest.mark.parametrize("shape", SHAPES, ids=named)
def test_float64_is_exact(shape):
    tangents, plain = problem_of(shape), problem_of(shape, "reference")
    assert (tangents.exact_by, plain.exact_by) == ("tangents", "double backward")
    for product in PRODUCTS:
        assert error(value(product, tangents), value(product, plain)) < 1e-10, product


@pytest.mark.every_cpu_level
@pytest.mark.parametrize("shape", SMALL, ids=named)
def test_float32_is_as_accurate_as_plain_pytorch(shape):
    """In the median of the draws: a switch that one side's rounding flips is neither's merit."""
    errors = {(product, backend): [] for product in PRODUCTS for backend in ("fused", "reference")}
    for seed in range(5):
        exact = problem_of(shape, "reference", torch.float64, seed)
        narrow = {
            backend: problem_of(shape, backend, torch.float32, seed) for backend in ("fused", "reference")
        }
        for product in PRODUCTS:
            along = direction(product, narrow["fused"])
            true = getattr(exact, product)(along.double())
            for backend, given in narrow.items():
                errors[product, backend].append(error(getattr(given, product)(along), true))
    for product in PRODUCTS:
        ours, theirs = (median(errors[product, backend]) for backend in ("fused", "reference"))
        assert ours <= 2 * theirs + 4 * torch.finfo(torch.float32).eps, f"{product}: {ours:.1e}, {theirs:.1e}"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", SMALL, ids=named)
def test_activations_computed_again_give_the_same_bits(shape, dtype):
    kept, again = (problem_of(shape, dtype=dtype, recompute=recompute) for recompute in (False, True))
    for product in PRODUCTS:
        assert torch.equal(value(product, kept), value(product, again)), product


@pytest.mark.parametrize("space", SPACES)
def test_a_cell_over_dual_numbers_is_the_same_bits_with_any_number_of_threads(space):
    net = supernet((space, 4, 3, 5, (9, 11)), "fused", torch.float32)
    spec, cell = net.space.stages[1], net._fused[1]
    generator = torch.Generator().manual_seed(0)

    def dual(*shape):
        return torch.randn(*shape, dtype=torch.complex64, generator=generator).requires_grad_()

    channels = [net.space.stages[source.stage].out_channels for source in spec.inputs]
    inputs = [dual(5, c, 9, 11) for c in channels]
    mixing, weights = dual(*net.alphas[spec.alpha].shape), dual(len(cell.weights))

    def run():
        out = cell.of_duals(inputs, mixing, weights)
        grad = torch.arange(out.numel(), dtype=torch.float32).cos().view_as(out) * (1 + 0.5j)
        return [out.detach(), *torch.autograd.grad(out, [mixing, weights, *inputs], grad)]

    first, *others = runs_with_threads(run)
    for other in others:
        assert all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("shape", SMALL, ids=named)
def test_double_backward_through_a_fused_network(shape, monkeypatch):
    """Where kernels know no dual numbers: on the modules' own weights, which a fused cell sees as one leaf."""
    monkeypatch.setattr(problem, "carries_tangents", lambda net: False)
    given, plain = problem_of(shape), problem_of(shape, "reference")
    assert given.exact_by == "double backward"
    fused = set(given.net._fused)
    for product in PRODUCTS:
        assert error(value(product, given), value(product, plain)) < 1e-10, product
    assert set(given.net._fused) == fused
    assert torch.isfinite(given.train_grad_w()).all()  # fused again


def test_cells_that_are_not_fused_carry_tangents_too():
    """A space with a primitive that the kernels do not know, in its reduction cells."""
    space = make_space("darts", channels=4, layers=3, image_channels=3, classes=10)
    stages = tuple(_with_plain_edges(stage) if _is_reduction(stage) else stage for stage in space.stages)
    space = replace(space, stages=stages)
    problems = []
    for backend in ("fused", "reference"):
        torch.manual_seed(0)
        net = build_supernet(space, backend=backend, dtype=torch.float64)
        images = batch(SHAPES[0])
        problems.append(SupernetProblem(net, images, images))
    fused, plain = problems
    assert len(fused.net._fused) == 1
    assert fused.exact_by == "tangents"
    for product in PRODUCTS:
        assert error(value(product, fused), value(product, plain)) < 1e-10, product


def _is_reduction(stage):
    return isinstance(stage, Cell) and stage.kind == "reduce"


def _with_plain_edges(cell):
    edges = tuple(
        replace(e, primitives=tuple(name.replace("sep_conv_5x5", "conv_7x1_1x7") for name in e.primitives))
        for e in cell.edges
    )
    return replace(cell, edges=edges)


@pytest.mark.parametrize("shape", SMALL, ids=named)
def test_hessians_are_symmetric(shape):
    given = problem_of(shape)
    for product in ("train_hessian_product", "val_alpha_hessian_product"):
        a, b = (direction(product, given, seed) for seed in (3, 4))
        ab, ba = a @ getattr(given, product)(b), b @ getattr(given, product)(a)
        assert abs(ab - ba) <= 1e-10 * a.norm() * getattr(given, product)(b).norm(), product


@pytest.mark.parametrize("shape", SMALL, ids=named)
def test_central_differences_come_close(shape):
    """In float64 with a step so short that it crosses no switch (these draws; measured 1e-8)."""
    given = problem_of(shape)
    u = direction("train_mixed_product", given)
    for exact, difference in (
        (given.train_hessian_product(u), hessian_vector_product(given, u, radius=1e-5)),
        (given.train_mixed_product(u), mixed_product(given, u, radius=1e-5)),
    ):
        assert error(difference, exact) < 1e-6


@pytest.mark.parametrize("way", ["tangents", "double backward"])
@pytest.mark.parametrize("shape", SMALL, ids=named)
def test_a_product_leaves_no_trace(shape, way, monkeypatch):
    if way == "double backward":
        monkeypatch.setattr(problem, "carries_tangents", lambda net: False)
    given = problem_of(shape, dtype=torch.float32)
    net = given.net
    net.eval()

    def state():
        arenas = [arena.flat.clone() for arena in (net.weights, net.alphas, net.running)]
        return [*arenas, torch.get_rng_state()]

    before, grads = state(), [*given.val_grads(), given.train_grad_w()]
    found = {product: value(product, given) for product in PRODUCTS}
    assert all(torch.equal(a, b) for a, b in zip(before, state(), strict=True))
    again = [*given.val_grads(), given.train_grad_w()]
    assert all(torch.equal(a, b) for a, b in zip(grads, again, strict=True))
    assert not net.training
    assert net.statistics_move
    leaves = [*net.weights.leaves, *net.alphas.leaves]
    assert all(leaf.requires_grad and leaf.grad is None for leaf in leaves)
    for product, vector in found.items():
        assert not vector.requires_grad
        assert vector.is_contiguous()
        other = value(product, given)
        assert torch.equal(vector, other)
        assert vector.data_ptr() != other.data_ptr()


@pytest.mark.parametrize("way", ["tangents", "double backward"])
def test_along_zero_a_product_is_zero(way, monkeypatch):
    if way == "double backward":
        monkeypatch.setattr(problem, "carries_tangents", lambda net: False)
    given = problem_of(SHAPES[4], dtype=torch.float32)
    for product in PRODUCTS:
        found = getattr(given, product)(torch.zeros_like(direction(product, given)))
        assert torch.equal(found, torch.zeros_like(found)), product


def test_of_any_loss():
    """Label smoothing, by double backward of the loss alone; and a loss without curvature."""
    for loss in (
        lambda logits, labels: F.cross_entropy(logits, labels, label_smoothing=0.1),
        lambda logits, labels: logits.gather(1, labels[:, None]).sum(),
    ):
        fused, plain = problem_of(SHAPES[4]), problem_of(SHAPES[4], "reference")
        fused.loss = plain.loss = loss
        for product in PRODUCTS:
            assert error(value(product, fused), value(product, plain)) < 1e-10, product


@pytest.mark.parametrize("product", PRODUCTS)
def test_a_direction_that_does_not_fit_is_one_sentence(product):
    given = problem_of(SHAPES[4], dtype=torch.float32)
    right = direction(product, given)
    name, model = ("p", "alpha") if "val_alpha" in product else ("u", "w")
    for wrong, got in (
        (right[1:], f"got shape \\({len(right) - 1},\\), torch.float32"),
        (right.double(), "torch.float64"),
        (right[None], "got shape"),
        ([0.0], "got list"),
    ):
        with pytest.raises(FastnasError, match=f"^{product}: {name} must be a tensor like {model}: .*{got}"):
            getattr(given, product)(wrong)


def test_one_value_per_channel_is_one_sentence():
    given = problem_of(("darts", 4, 3, 1, (4, 4)))
    with pytest.raises(FastnasError, match="batch normalisation needs more than 1 value"):
        value("train_mixed_product", given)
