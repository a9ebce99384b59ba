"""The baseline is the networks and the estimators that it says it is."""

import ast
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

import bench.vanilla
import bench.vanilla_nasbench201
from bench.vanilla import Batch, DartsSupernet, ModelWithAlphas, Search, SearchSettings, Zero, concat
from bench.vanilla_nasbench201 import NasBench201Supernet


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def test_weight_counts():
    darts = DartsSupernet(C=16, layers=8, classes=10)
    assert count(darts) == 1_930_618
    assert len(list(darts.parameters())) == 1399
    assert [tuple(a.shape) for a in darts.alphas] == [(14, 8), (14, 8)]
    nasbench201 = NasBench201Supernet(C=16, cells=5, classes=10)
    assert count(nasbench201) == 1_692_826
    assert [tuple(a.shape) for a in nasbench201.alphas] == [(6, 5)]


@pytest.mark.parametrize("module", [bench.vanilla, bench.vanilla_nasbench201])
def test_imports_nothing_of_fastnas(module):
    assert module.__file__ is not None
    tree = ast.parse(Path(module.__file__).read_text())
    names = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module or "." for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    assert names
    allowed = {"__future__", "collections", "copy", "dataclasses", "torch"}
    assert {name for name in names if name != "bench.vanilla" and name.split(".")[0] not in allowed} == set()


def test_image_channels_and_odd_sizes():
    model = DartsSupernet(C=4, layers=3, classes=7, image_channels=1, nodes=2)
    assert model(torch.randn(3, 1, 12, 12)).shape == (3, 7)
    assert [tuple(a.shape) for a in model.alphas] == [(5, 8), (5, 8)]


def test_reductions_halve_the_image_and_double_the_channels():
    model = DartsSupernet(C=4, layers=8, classes=10)
    sizes: list[tuple[int, ...]] = []
    for cell in model.cells:
        cell.register_forward_hook(lambda module, args, out: sizes.append(tuple(out.shape[1:])))
    model(torch.randn(2, 3, 16, 16))
    expected = [(16, 16, 16)] * 2 + [(32, 8, 8)] * 3 + [(64, 4, 4)] * 3
    assert sizes == expected


def test_zero_takes_the_stride():
    x = torch.randn(1, 2, 4, 4)
    assert Zero(1)(x).shape == (1, 2, 4, 4)
    assert Zero(2)(x).shape == (1, 2, 2, 2)
    assert not Zero(2)(x).any()


def test_alphas_are_no_weights_but_follow_the_model():
    model = NasBench201Supernet(C=4, cells=1, classes=10)
    leaf = model.alphas[0]
    model.double()
    assert model.alphas[0] is leaf
    assert leaf.dtype == torch.float64
    assert all(p is not leaf for p in model.parameters())


# ---------------------------------------------------------------------------- estimators, on a smooth twin


class Smooth(ModelWithAlphas):
    """A mixture of three smooth branches: everything that a central difference needs to be exact to O(eps^2)."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(5, 6)
        self.second = nn.Linear(6, 4)
        self.alphas = [nn.Parameter(torch.randn(3)), nn.Parameter(torch.randn(2))]

    def forward(self, x: Tensor) -> Tensor:
        a, b = (alpha.softmax(0) for alpha in self.alphas)
        h = self.first(x)
        h = a[0] * h.tanh() + a[1] * h.sigmoid() + a[2] * F.softplus(h)
        return b[0] * self.second(h) + b[1] * self.second(h.sin())


def batch() -> Batch:
    return torch.randn(7, 5), torch.randint(4, (7,))


@pytest.fixture
def search():
    """A search on the smooth twin after two weight steps, in float64."""
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    # Weight decay and rates large enough that each term of an estimator counts.
    search = Search(Smooth(), SearchSettings(w_lr=0.3, w_decay=0.05, radius=1e-3, neumann_gamma=0.2))
    for _ in range(2):
        search.weight_step(batch())
    yield search
    torch.set_default_dtype(before)


def loss(search: Search, data: Batch, weights: dict[str, Tensor]) -> Tensor:
    return F.cross_entropy(functional_call(search.model, weights, (data[0],)), data[1])


def exact_products(search: Search, train: Batch, vector: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """H u and d2L1/dalpha dw u by differentiating twice."""
    weights = dict(search.model.named_parameters())
    grads = torch.autograd.grad(loss(search, train, weights), search.weights, create_graph=True)
    inner = sum((g * u).sum() for g, u in zip(grads, vector, strict=True))
    products = torch.autograd.grad(inner, [*search.weights, *search.model.alphas])
    return list(products[: len(search.weights)]), list(products[len(search.weights) :])


def error(got: list[Tensor], expected: list[Tensor]) -> float:
    return ((concat(got) - concat(expected)).norm() / concat(expected).norm()).item()


# Relative to the exact value the differences (r = 0.001, error O(eps^2)) were off by 8e-8, 7e-9 and 3e-7. Dropping
# the momentum, the weight decay or a series term, a wrong sign or a wrong batch moved them by 0.02 to 0.8.
TOLERANCE = 1e-6


def test_darts_differentiates_through_the_unrolled_step(search):
    train, val, s = batch(), batch(), search.settings
    weights = dict(search.model.named_parameters())
    grads = torch.autograd.grad(loss(search, train, weights), search.weights, create_graph=True)
    moments = [search.w_optimizer.state[w]["momentum_buffer"] for w in search.weights]
    assert all(m.abs().max() > 0 for m in moments)
    unrolled = {
        name: w - s.w_lr * (s.w_momentum * m + g + s.w_decay * w)
        for (name, w), g, m in zip(weights.items(), grads, moments, strict=True)
    }
    expected = torch.autograd.grad(loss(search, val, unrolled), search.model.alphas)
    before = [w.detach().clone() for w in search.weights]
    assert error(search.darts(train, val), list(expected)) < TOLERANCE
    assert error(search.weights, before) < 1e-15  # restored by adding back: up to rounding


def test_amended_is_its_equation_6(search):
    train, val = batch(), batch()
    vector, direct = search.validation_gradients(val)
    product, _ = exact_products(search, train, vector)
    _, implicit = exact_products(search, train, product)
    expected = [d - search.settings.amended_eta * i for d, i in zip(direct, implicit, strict=True)]
    assert error(search.amended(train, val), expected) < TOLERANCE


def test_idarts_is_its_neumann_series(search):
    train, val, gamma = batch(), batch(), search.settings.neumann_gamma
    vector, direct = search.validation_gradients(val)
    total = [torch.zeros_like(v) for v in vector]
    for _ in range(search.settings.neumann_terms + 1):
        total = [t + v for t, v in zip(total, vector, strict=True)]
        product, _ = exact_products(search, train, vector)
        vector = [v - gamma * p for v, p in zip(vector, product, strict=True)]
    _, implicit = exact_products(search, train, total)
    expected = [d - gamma * i for d, i in zip(direct, implicit, strict=True)]
    assert error(search.idarts(train, val), expected) < TOLERANCE


def test_first_order_is_the_direct_gradient(search):
    val = batch()
    expected = torch.autograd.grad(
        loss(search, val, dict(search.model.named_parameters())), search.model.alphas
    )
    assert error(search.first_order(batch(), val), list(expected)) == 0


def test_a_weight_step_is_clipped_sgd_with_momentum(search):
    train, s = batch(), SearchSettings(w_clip=0.01)
    search = Search(search.model, s)
    before = [w.detach().clone() for w in search.weights]
    grads = search.gradients(train, search.weights)
    search.weight_step(train)
    scale = s.w_clip / (concat(grads).norm() + 1e-6)
    assert scale < 1
    expected = [w - s.w_lr * (scale * g + s.w_decay * w) for w, g in zip(before, grads, strict=True)]
    assert error(search.weights, expected) < 1e-15


@pytest.mark.parametrize(
    ("method", "inner_steps"), [("first_order", 1), ("darts", 1), ("amended", 1), ("idarts", 3)]
)
def test_steps_move_alpha_and_take_T_weight_steps(method, inner_steps, monkeypatch):
    torch.manual_seed(1)
    search = Search(DartsSupernet(C=4, layers=3, classes=3, nodes=2))
    alphas = concat(search.model.alphas).detach().clone()
    trained: list[Batch] = []
    weight_step = search.weight_step
    monkeypatch.setattr(search, "weight_step", lambda data: (trained.append(data), weight_step(data)))

    def images() -> Batch:
        return torch.randn(4, 3, 8, 8), torch.randint(3, (4,))

    batches = [images() for _ in range(inner_steps)]
    getattr(search, f"{method}_step")(batches, images())
    assert [data[0].data_ptr() for data in trained] == [data[0].data_ptr() for data in batches]
    assert 0 < (concat(search.model.alphas) - alphas).abs().max() <= 1.01 * search.settings.a_lr
