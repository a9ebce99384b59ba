"""Primitives of a user's own: the same numbers by both executors, and one sentence for each that no cell can hold."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fastnas
from fastnas import FastnasError
from fastnas.bilevel import Products, t1_t2
from fastnas.describe import describe
from fastnas.spaces import make_network, make_space
from fastnas.supernet import SupernetProblem, build_supernet, gradients, own_primitives
from tests.own_code import OPERATORS, as_a_process

MIXED = ["none", "skip_connect", "nor_conv_3x3", "gate"]
SPACES = {
    "darts": {"layers": 3, "primitives": ["none", "skip_connect", "sep_conv_3x3", "max_pool_3x3", "gate"]},
    "nasbench201": {"layers": 1, "primitives": MIXED},
    "s2": {"layers": 3, "primitives": ["skip_connect", "gate", "dil_conv_3x3", "noise"]},
}


@pytest.fixture(autouse=True)
def registered():
    with as_a_process():
        exec(OPERATORS, {})
        yield


def space_of(name, **more):
    options = {"channels": 4, "classes": 3, "image_channels": 1, **SPACES[name], **more}
    return make_space(name, **options)


def batch(seed):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(3, 1, 9, 8, dtype=torch.float64, generator=generator)
    return images, torch.tensor([0, 1, 2])


def built(space, backend, **more):
    torch.manual_seed(0)
    net = build_supernet(space, backend=backend, dtype=torch.float64, **more)
    net.alphas.flat.normal_()
    return net


@pytest.mark.parametrize("name", SPACES)
def test_fused_is_the_reference(name):
    """Loss, gradients, running statistics and evaluation, with the recomputing executor as well."""
    found = []
    for options in ({"backend": "reference"}, {"backend": "fused"}, {"backend": "fused", "recompute": True}):
        net = built(space_of(name), **options)
        torch.manual_seed(1)
        loss = F.cross_entropy(net(batch(1)[0]), batch(1)[1])
        grads = gradients(loss, net.weights, net.alphas)
        torch.manual_seed(2)
        found.append([loss.detach(), *grads, net.running.flat.clone(), net.eval()(batch(2)[0]).detach()])
    for other in found[1:]:
        for fused, reference in zip(other, found[0], strict=True):
            torch.testing.assert_close(fused, reference, rtol=1e-10, atol=1e-13)
    assert found[0][2].abs().min() > 0


@pytest.mark.parametrize("name", ["darts", "nasbench201"])
def test_the_librarys_own_set_listed_is_the_space(name):
    """In any order alpha's columns follow, and so does the count of networks."""
    plain = make_space(name)
    assert make_space(name, primitives=plain.alphas[0].primitives) == plain
    few = make_space(name, channels=4, layers=3, primitives=["gate", "none", "skip_connect"])
    assert {alpha.shape[1] for alpha in few.alphas} == {3}
    pairs = (
        1 * 3 * 6 * 10
    )  # two of 2, 3, 4 and 5 edges; each of them with one of two primitives other than none
    assert describe(few, 8).networks == {"nasbench201": 3**6, "darts": (pairs * 4**4) ** 2}[name]


@pytest.mark.parametrize("way", ["difference", "exact"])
def test_hypergradient_leaves_no_trace_and_both_executors_agree(way):
    found = []
    for backend in ("reference", "fused"):
        net = built(space_of("nasbench201"), backend)
        state = [net.weights.flat.clone(), net.alphas.flat.clone(), net.running.flat.clone()]
        problem = SupernetProblem(net, batch(1), batch(2))
        assert problem.exact_by == "double backward"
        products = Products(way, way, radius=1e-4)
        found.append(t1_t2(problem, products=products))
        after = [net.weights.flat, net.alphas.flat, net.running.flat]
        assert all(torch.equal(a, b) for a, b in zip(state, after, strict=True))
    torch.testing.assert_close(found[1], found[0], rtol=1e-6 if way == "difference" else 1e-10, atol=1e-10)


def test_a_genotypes_network_and_its_description():
    genotype = fastnas.spaces.CellString(("gate", "none", "skip_connect", "gate", "none", "gate"))
    assert fastnas.spaces.read_genotype("nasbench201", str(genotype)) == genotype
    network = make_network("nasbench201", genotype, channels=4, layers=1, image_channels=1)
    assert [own.name for own in own_primitives(network)] == ["gate"]
    net = build_supernet(network)
    assert describe(network, 9).parameters == len(net.weights)
    assert net(torch.randn(2, 1, 9, 9)).shape == (2, 10)
    assert own_primitives(make_space("darts")) == []


def test_both_rules_for_none():
    """DARTS' genotypes never have it, NAS-Bench-201's do where it weighs most."""
    chosen = ("none", "gate", "skip_connect")
    alpha = torch.tensor([[9.0, 1.0, 0.0]])
    darts = fastnas.spaces.family("darts", chosen).derive(
        {k: alpha.expand(14, 3) for k in ("normal", "reduce")}
    )
    assert {op for op, _ in darts.normal + darts.reduce} == {"gate"}
    cell = fastnas.spaces.family("nasbench201", chosen).derive({"cell": alpha.expand(6, 3)})
    assert set(cell.ops) == {"none"}


def test_the_trial_changes_no_random_number():
    """The first network, which tries the primitive, has the weights of the second, which does not."""
    first, second = (built(space_of("darts"), "fused") for _ in range(2))
    assert torch.equal(first.weights.flat, second.weights.flat)
    assert torch.equal(copy.deepcopy(first)(batch(1)[0]), second(batch(1)[0]))


def test_registered_again_the_newer_counts_and_is_tried():
    build_supernet(space_of("nasbench201"))
    fastnas.register_primitive("gate", lambda context: nn.Conv2d(context.channels, context.channels, 3))
    with pytest.raises(FastnasError, match="keep the channels and divide the size"):
        build_supernet(space_of("nasbench201"))


class Square(torch.autograd.Function):
    """x^2, whose backward pass is taken for a constant: once by mistake, once said."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx, grad):
        return 2 * ctx.saved_tensors[0].detach() * grad


class Once(Square):
    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        return 2 * ctx.saved_tensors[0] * grad


class Module(nn.Module):
    """A function as a primitive."""

    def __init__(self, context, function, *parts):
        super().__init__()
        self.pool = nn.AvgPool2d(context.stride, context.stride, ceil_mode=True)
        self.function, self.parts = function, nn.ModuleList(parts)

    def forward(self, x):
        return self.function(self.pool(x), *self.parts)


class Counting(nn.Module):
    def __init__(self, dtype):
        super().__init__()
        self.register_buffer("seen", torch.zeros((), dtype=dtype))

    def forward(self, x):
        self.seen += 1
        return x


def conv(context, *arguments, **options):
    return nn.Conv2d(context.channels, context.channels, *arguments, **options)


SHARED = nn.Conv2d(4, 4, 1)
FAULTS = {
    "size": (lambda c: conv(c, 3, c.stride), r"makes \(2, 4, 5, 4\) of images \(2, 4, 7, 6\) with 4 channels"),
    "rounded down": (lambda c: nn.AvgPool2d(c.stride) if c.stride > 1 else nn.Identity(), "rounded up"),
    "channels": (lambda c: nn.Conv2d(c.channels, 2, 1), "must keep the channels"),
    "tuple": (lambda c: Module(c, lambda x: (x, x)), "makes tuple of images"),
    "type": (lambda c: Module(c, lambda x: x.double()), "it must keep their type"),
    "NaN": (lambda c: Module(c, torch.log), "NaN or infinity"),
    "in place": (lambda c: nn.Sequential(nn.ReLU(inplace=True), conv(c, 1)), "writes into its input"),
    "view": (lambda c: Module(c, lambda x: x.view(2, -1)), r"fails on channels-last images .*test_own_primitive.py:\d"),
    "own norm": (lambda c: nn.BatchNorm2d(c.channels), r"take context.norm\(\)"),
    "state": (lambda c: Module(c, lambda x, part: part(x), Counting(torch.float32)), "changes a buffer as it runs"),
    "integer": (lambda c: Module(c, lambda x, part: x, Counting(torch.int64)), "buffer parts.0.seen of torch.int64"),
    "detached": (lambda c: Module(c, lambda x, part: part(x).detach(), conv(c, 1)), "no gradient reaches"),
    "frozen": (lambda c: conv(c, 1).requires_grad_(False), "requires no gradient; make it a buffer"),
    "shared": (lambda c: SHARED, "made anew each time"),
    "no module": (lambda c: torch.tanh, "is no torch.nn.Module"),
    "arguments": (lambda c: nn.Conv2d(c, c, 1), r"cannot be built for 4 channels .*test_own_primitive.py:\d+: TypeErr"),
    "constant backward": (lambda c: Module(c, Square.apply), "cannot be differentiated twice"),
    "once": (lambda c: Module(c, Once.apply), "cannot be differentiated twice"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_what_no_cell_can_hold_is_one_sentence(fault):
    factory, sentence = FAULTS[fault]
    fastnas.register_primitive("wrong", factory)
    with pytest.raises(FastnasError, match=f"^primitive 'wrong' .*{sentence}"):
        build_supernet(make_space("darts", channels=4, layers=3, primitives=["skip_connect", "wrong"]))


SOUND = {
    "maximum": lambda c: nn.MaxPool2d(3, c.stride, 1),
    "random": lambda c: nn.Sequential(nn.Dropout(), nn.AvgPool2d(c.stride, c.stride, ceil_mode=True)),
    "noise": lambda c: Module(c, torch.randn_like),
    "constant": lambda c: Module(c, torch.zeros_like),
    "deep": lambda c: nn.Sequential(
        *(nn.Sequential(conv(c, 3, 1, 1), c.norm(), nn.ReLU()) for _ in range(6))
    ),
    "double": lambda c: Module(c, lambda x: x * x),
}


@pytest.mark.parametrize("kind", SOUND)
def test_what_is_sound_is_taken(kind):
    """Kinks, chance, and what depends on nothing are no faults."""
    fastnas.register_primitive("right", SOUND[kind])
    space = make_space("nasbench201", channels=16, layers=1, primitives=["right", "skip_connect"])
    build_supernet(space)


def test_what_is_differentiable_once_takes_differences_alone():
    fastnas.register_primitive("gate", lambda c: Module(c, Once.apply), twice_differentiable=False)
    problem = SupernetProblem(built(space_of("nasbench201"), "fused"), batch(1), batch(2))
    found = t1_t2(problem, products=Products())
    assert found.norm() > 0
    with pytest.raises(FastnasError, match=r"products cannot go through gate, .*take differences"):
        t1_t2(problem, products=Products("exact", "exact"))


@pytest.mark.parametrize(
    ("flag", "options"),
    [
        ("--hvp exact", {"hvp": "exact"}),
        ("--mixed-product exact", {"mixed_product": "exact"}),
        ("--audit-every", {"audit_every": 1}),
        ("--difference-radius auto", {"difference_radius": "auto"}),
    ],
)
def test_a_search_that_needs_more_is_refused_before_it_leaves_anything(flag, options, tmp_path):
    fastnas.register_primitive("gate", lambda c: Module(c, Once.apply), twice_differentiable=False)
    small = {"channels": 2, "layers": 1, "images": 64, "batch_size": 8, "inner_steps": 2, "threads": 1}
    with pytest.raises(FastnasError, match=f"^{flag} cannot go through gate, registered with"):
        fastnas.search(space="nasbench201", primitives=MIXED, out=tmp_path / "run", **small, **options)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("none", "is a primitive of this library"),
        ("sep_conv_3x3", "is a primitive of this library"),
        ("half", "is a method of torch.nn.ModuleDict"),
        ("two words", "must be a word of letters"),
        (nn.ReLU, r'a primitive needs a name: @fastnas.register_primitive\("NAME"\)'),
        ("a~0|b", "must be a word of letters"),
        ("größer", "must be a word of letters"),
        ("x" * 65, "must be a word of letters"),
        (3, "must be a word of letters"),
    ],
)
def test_names_that_cannot_be_had(name, sentence):
    with pytest.raises(FastnasError, match=sentence):
        fastnas.register_primitive(name, lambda context: nn.Identity())


def test_a_module_is_no_factory():
    with pytest.raises(FastnasError, match=r"must make a module out of a context, .* got Identity"):
        fastnas.register_primitive("mine", nn.Identity())


def test_unknown_ones_name_the_known_and_the_way():
    hint = "known are none, .*, gate; one of your own is registered first, on a command line by --import FILE"
    for space in ("darts", "s2", "nasbench201"):
        with pytest.raises(FastnasError, match=f"unknown primitive 'gone'; {hint}"):
            make_space(space, primitives=["gone"])
    with pytest.raises(FastnasError, match=f"NAS-Bench-201 cell: unknown primitive 'gone'; {hint}"):
        fastnas.spaces.read_genotype("nasbench201", "|gone~0|+|none~0|none~1|+|none~0|none~1|none~2|")
    pairs = [("gone", 0), ("gate", 1)]
    text = f"Genotype(normal={pairs}, normal_concat=[2], reduce={pairs}, reduce_concat=[2])"
    for space in (None, "darts"):
        with pytest.raises(FastnasError, match=f"unknown primitive 'gone' in normal; {hint}"):
            fastnas.spaces.read_genotype(space, text)
    with pytest.raises(FastnasError, match="none alone lets nothing through"):
        make_space("darts", primitives=["none"])
