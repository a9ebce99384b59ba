"""ModuleProblem: the oracles of closures over live modules, and everything else as it was."""

import copy
import gc
import sys
import weakref

import pytest
import torch
from torch import nn

import fastnas
from fastnas.bilevel import InnerSgd, Products, TwiceDifferentiable, Watch, cg, exact, hessian_vector_product
from fastnas.errors import FastnasError
from fastnas.hypergradient import ModuleProblem
from fastnas.ops import mixed_sum
from fastnas.supernet.arena import Arena
from tests.bilevel.problems import Cube
from tests.hypergradient.networks import Setting, same_bits

EXACT = Products("exact", "exact")
TIGHT = {"rtol": 1e-11, "atol": 1e-13}


def problem_of(setting, **arguments):
    return ModuleProblem(setting.train_loss, setting.val_loss, setting.model, setting.outer, **arguments)


def layers(name):
    return {
        "plain": [],
        "batchnorm": [nn.BatchNorm1d(8)],
        "dropout": [nn.Dropout(0.4)],
        "both": [nn.BatchNorm1d(8, momentum=None), nn.Dropout(0.4)],
        "spectral": [nn.utils.spectral_norm(nn.Linear(8, 8))],
    }[name]


@pytest.mark.parametrize("keep_graph", [False, True])
@pytest.mark.parametrize("name", ["plain", "batchnorm"])
def test_oracles_are_those_of_functions_of_flat_vectors(name, keep_graph):
    setting = Setting(*layers(name))
    wanted = setting.functions()
    generator = torch.Generator().manual_seed(3)
    with problem_of(setting, keep_graph=keep_graph) as problem:
        assert isinstance(problem, TwiceDifferentiable)
        for _ in range(2):  # at two points
            torch.testing.assert_close(problem.w, wanted.w, rtol=0, atol=0)
            torch.testing.assert_close(problem.alpha, wanted.alpha, rtol=0, atol=0)
            torch.testing.assert_close(problem.train_grad_w(), wanted.train_grad_w(), **TIGHT)
            torch.testing.assert_close(problem.train_grad_alpha(), wanted.train_grad_alpha(), **TIGHT)
            torch.testing.assert_close(problem.val_grads(), wanted.val_grads(), **TIGHT)
            torch.testing.assert_close(problem.val_grad_alpha(), wanted.val_grad_alpha(), **TIGHT)
            u = torch.randn(problem.w.shape, generator=generator, dtype=torch.float64)
            for product in ("train_hessian_product", "train_mixed_product"):
                torch.testing.assert_close(getattr(problem, product)(u), getattr(wanted, product)(u), **TIGHT)
            p = problem.alpha.clone()
            got = problem.val_alpha_hessian_product(p)
            torch.testing.assert_close(got, wanted.val_alpha_hessian_product(p), **TIGHT)
            for flat in (problem.w, wanted.w):
                flat.mul_(0.5)
            for flat in (problem.alpha, wanted.alpha):
                flat.add_(0.1)


def test_w_is_live():
    """The modules see a move of w, and w a move of the modules."""
    setting = Setting()
    with problem_of(setting) as problem:
        problem.w.fill_(0.5)
        assert all(parameter.eq(0.5).all() for parameter in setting.model.parameters())
        with torch.no_grad():
            setting.model[0].bias.fill_(2.0)
        assert problem.w.eq(2.0).sum() == 8
        problem.alpha.zero_()
        assert setting.decay.item() == 0


def test_parameters_come_home_if_there_is_no_memory_for_the_vectors(monkeypatch):
    setting, made = Setting(), []
    before, addresses = setting.everything(), setting.addresses()

    def arena(*arguments, **keywords):
        if made:
            raise MemoryError
        made.append(Arena(*arguments, **keywords))
        return made[0]

    monkeypatch.setattr(sys.modules[ModuleProblem.__module__], "Arena", arena)
    with pytest.raises(MemoryError), problem_of(setting):
        pass
    assert made
    assert same_bits(before, setting.everything())
    assert setting.addresses() == addresses


@pytest.mark.parametrize("name", ["plain", "batchnorm", "dropout", "both", "spectral"])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("products", [Products(), EXACT], ids=["difference", "exact"])
def test_everything_is_bit_identical_afterwards(name, training, products):
    setting = Setting(*layers(name))
    setting.model.train(training)
    with torch.no_grad():
        setting.model[0].weight[0, 0] = -0.0
        setting.model[0].weight[0, 1] = 1e-300
    before, addresses = setting.everything(), setting.addresses()
    parameters = list(setting.model.parameters())
    for keep_graph in (False, True):
        with problem_of(setting, keep_graph=keep_graph) as problem:
            first = cg(problem, steps=3, damping=1.0, products=products, watch=Watch())
            assert torch.equal(cg(problem, steps=3, damping=1.0, products=products, watch=Watch()), first)
            assert first.isfinite().all()
            problem.w.mul_(3)  # even so
        assert same_bits(before, setting.everything())
        assert setting.addresses() == addresses
        assert all(one is other for one, other in zip(parameters, setting.model.parameters(), strict=True))
        assert all(tensor.grad is None for tensor in [*parameters, *setting.outer])


@pytest.mark.parametrize("moment", ["oracle", "body"])
def test_also_when_something_raises(moment):
    setting = Setting(*layers("both"))
    before, addresses = setting.everything(), setting.addresses()

    def failing():
        setting.train_loss()
        raise ZeroDivisionError

    def use():
        train_loss = failing if moment == "oracle" else setting.train_loss
        with ModuleProblem(train_loss, setting.val_loss, setting.model, setting.outer) as problem:
            problem.w.zero_()
            problem.train_grad_w()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        use()
    assert same_bits(before, setting.everything())
    assert setting.addresses() == addresses


def test_buffers_come_back_however_the_parameters_were_given():
    """Those of every module that a loss calls: no module was named."""
    setting = Setting(*layers("batchnorm"))
    before = setting.everything()
    inner = list(setting.model.parameters())
    with ModuleProblem(setting.train_loss, setting.val_loss, inner, setting.outer) as problem:
        problem.train_grad_w()
        problem.val_grads()
    assert same_bits(before, setting.everything())
    setting.train_loss()  # outside they move
    assert not same_bits(before, setting.everything())


def test_a_buffer_that_a_module_replaces_comes_back_as_the_same_tensor():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("count", torch.zeros(()))

        def forward(self, x):
            self.count = self.count + 1
            return x * self.count

    setting = Setting(Counting())
    kept = setting.model[1].count
    with problem_of(setting) as problem:
        first = problem.train_grad_w()
        assert torch.equal(problem.train_grad_w(), first)  # the count is 1 each time
    assert setting.model[1].count is kept
    assert kept.item() == 0


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_buffers_of_a_scripted_module_come_back():
    """Its parts are called without hooks."""
    setting = Setting(nn.BatchNorm1d(8))
    plain, before = setting.model, setting.everything()
    with problem_of(setting) as problem:
        wanted = problem.train_grad_w()
    setting.model = torch.jit.script(plain)
    with ModuleProblem(setting.train_loss, setting.val_loss, plain, setting.outer) as problem:
        torch.testing.assert_close(problem.train_grad_w(), wanted, **TIGHT)
    setting.model = plain
    assert same_bits(before, setting.everything())


@pytest.mark.filterwarnings("ignore:Using `torch.compile")
def test_buffers_of_a_compiled_module_come_back():
    setting = Setting(nn.BatchNorm1d(8))
    plain, before = setting.model, setting.everything()
    with problem_of(setting) as problem:
        wanted = problem.train_grad_w(), problem.train_hessian_product(torch.ones_like(problem.w))
    setting.model = torch.compile(plain, backend="eager")
    inner = list(plain.parameters())
    with ModuleProblem(setting.train_loss, setting.val_loss, inner, setting.outer) as problem:
        got = problem.train_grad_w(), problem.train_hessian_product(torch.ones_like(problem.w))
    setting.model = plain
    torch.testing.assert_close(got, wanted, **TIGHT)
    assert same_bits(before, setting.everything())


def test_no_hook_stays():
    hooks = nn.modules.module._global_forward_pre_hooks
    setting, before = Setting(), len(hooks)
    with problem_of(setting):
        assert len(hooks) == before + 1
    assert len(hooks) == before


def test_both_sides_of_a_difference_see_the_same_dropout_mask():
    """With another mask each, the difference would be off by far more than its O(radius^2)."""
    setting = Setting(*layers("dropout"))
    with problem_of(setting) as problem:
        assert torch.equal(problem.train_grad_w(), problem.train_grad_w())
        u = torch.ones_like(problem.w)
        wanted = problem.train_hessian_product(u)
        error = (hessian_vector_product(problem, u, radius=1e-4) - wanted).norm() / wanted.norm()
        assert error < 1e-6
        mask = problem.train_grad_w()
    torch.rand(1)  # the next draw is another mask
    with problem_of(setting) as problem:
        assert not torch.allclose(problem.train_grad_w(), mask)


def test_precision_and_gradient_mode_of_the_caller_do_not_matter():
    setting = Setting(dtype=torch.float32)
    with problem_of(setting) as problem:
        wanted, product = problem.train_grad_w(), problem.train_hessian_product(torch.ones_like(problem.w))
        with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
            assert torch.equal(problem.train_grad_w(), wanted)
            assert torch.equal(problem.train_hessian_product(torch.ones_like(problem.w)), product)
        assert not problem.train_grad_w().requires_grad


def test_results_are_the_callers_own():
    w, a = torch.ones(3, requires_grad=True), torch.ones(2, requires_grad=True)
    with ModuleProblem(lambda: (w.sum() + a.sum()) ** 2, lambda: w.sum() + a.sum(), w, a) as problem:
        for oracle in (problem.train_grad_w, problem.train_grad_alpha, problem.val_grad_alpha):
            before = oracle().clone()
            oracle().fill_(9.0)
            assert torch.equal(oracle(), before)
        grad_w, grad_a = problem.val_grads()
        grad_w[0] = 9.0
        assert grad_w.tolist() == [9, 1, 1]
        assert grad_a.tolist() == [1, 1]


def test_commit_keeps_w_and_moves_no_memory():
    setting = Setting()
    before, addresses = setting.everything(), setting.addresses()
    with problem_of(setting) as problem:
        problem.w.add_(1)
        problem.alpha.add_(1)
        problem.commit()
        problem.w.zero_()  # behind it: lost
    assert setting.addresses() == addresses
    count = len(list(setting.model.parameters()))
    for one, other in zip(before[:count], setting.model.parameters(), strict=True):
        assert torch.equal(one + 1, other)
    assert torch.equal(setting.scale, before[count])


def test_optimisers_go_on_afterwards():
    setting, plain = Setting(), Setting()
    optimisers = [torch.optim.Adam(each.model.parameters(), 0.1) for each in (setting, plain)]
    for step in range(3):
        for each, optimiser in zip((setting, plain), optimisers, strict=True):
            optimiser.zero_grad()
            each.train_loss().backward()
            if each is setting and step:
                with problem_of(setting) as problem:
                    cg(problem, steps=2)
            optimiser.step()
    assert same_bits(list(setting.model.parameters()), list(plain.model.parameters()))


def test_parameters_of_any_layout():
    """Transposed, scalar, one element of a list given twice, and one that no loss uses."""
    transposed = torch.randn(3, 4).double().T.requires_grad_()
    scalar, unused = (torch.ones(shape, dtype=torch.float64, requires_grad=True) for shape in ((), (2,)))
    outer = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)

    def train_loss():
        return (transposed.square().sum() + scalar**2 + scalar * outer) / 2 + transposed[0, 1] * outer

    inner = [transposed, scalar, unused, transposed]
    before = transposed.detach().clone()
    with ModuleProblem(train_loss, lambda: transposed.sum() + scalar, inner, outer) as problem:
        assert problem.w.shape == (15,)
        wanted = before.clone()
        wanted[0, 1] += 0.3
        gradient = problem.train_grad_w()
        torch.testing.assert_close(gradient[:12].view(4, 3), wanted)
        assert gradient[13:].tolist() == [0, 0]
        torch.testing.assert_close(
            problem.train_mixed_product(torch.ones_like(problem.w)), torch.tensor([1.5]).double()
        )
    assert transposed.stride() == (1, 4)
    assert torch.equal(transposed, before)


def test_tied_parameters_are_one():
    first, second = nn.Linear(4, 4, bias=False).double(), nn.Linear(4, 4, bias=False).double()
    second.weight = first.weight
    model, outer = nn.Sequential(first, second), torch.zeros((), dtype=torch.float64, requires_grad=True)
    x = torch.ones(2, 4, dtype=torch.float64)
    with ModuleProblem(
        lambda: model(x).square().sum() * outer.exp(), lambda: model(x).sum(), model, outer
    ) as problem:
        assert problem.w.shape == (16,)
        model(x).square().sum().backward()
        torch.testing.assert_close(problem.train_grad_w(), first.weight.grad.flatten())
    assert second.weight is first.weight


def test_frozen_parameters_of_a_module_are_no_inner_ones():
    setting = Setting()
    setting.model[0].requires_grad_(False)
    before = setting.addresses()
    with problem_of(setting) as problem:
        assert len(problem.w) == 3 * 8 + 3
        assert setting.model[0].weight.data_ptr() == before[0]


class TestKeptGraph:
    def test_is_used_while_nothing_moves_and_made_again_when_something_does(self):
        setting = Setting(nn.BatchNorm1d(8))
        with problem_of(setting, keep_graph=True) as problem:
            u = torch.ones_like(problem.w)
            for moved in (None, problem.w, problem.alpha):
                if moved is not None:
                    moved.add_(0.1)
                setting.calls = 0
                products = [problem.train_hessian_product(u), problem.train_mixed_product(u)]
                products += [problem.train_hessian_product(u)]
                assert setting.calls == 1
                with problem_of(copy.deepcopy(setting)) as afresh:
                    assert torch.equal(products[0], afresh.train_hessian_product(u))
                    assert torch.equal(products[1], afresh.train_mixed_product(u))
                assert torch.equal(products[2], products[0])

    def test_differences_between_products_do_not_disturb_it(self):
        mixed = Products(hessian="exact")
        setting = Setting()
        with problem_of(setting, keep_graph=True) as kept, problem_of(Setting()) as plain:
            for _ in range(2):
                one, other = (cg(problem, steps=2, products=mixed) for problem in (kept, plain))
                assert torch.equal(one, other)

    def test_not_without_being_asked(self):
        setting = Setting()
        with problem_of(setting) as problem:
            for _ in range(2):
                problem.train_hessian_product(torch.ones_like(problem.w))
        assert setting.calls == 2

    def test_one_at_a_time_however_many_steps_there_are(self):
        """Reverse mode through T steps holds the activations of one."""
        alive, most = weakref.WeakSet(), [0]

        class Token:
            pass

        class Identity(torch.autograd.Function):
            @staticmethod
            def forward(context, x):
                context.token = Token()  # lives as long as the graph
                alive.add(context.token)
                return x.clone()

            @staticmethod
            def backward(context, grad):
                most[0] = max(most[0], len(alive))
                return grad.clone()

        class Layer(nn.Module):
            def forward(self, x):
                return Identity.apply(x)

        setting = Setting(Layer())
        arguments = {"method": "reverse", "inner_optimiser": InnerSgd(0.1), "steps": 6}
        fastnas.hypergradient(setting.train_loss, setting.val_loss, setting.model, setting.outer, **arguments)
        gc.collect()
        assert most[0] == 1
        assert len(alive) == 0

    def test_another_minibatch_has_its_own(self):
        setting, other = Setting(), Setting(seed=1)
        with problem_of(setting, keep_graph=True) as problem:
            u = torch.ones_like(problem.w)
            first = problem.train_hessian_product(u)
            second = problem.on(lambda: setting.train_loss() + setting.model[0].weight.square().sum())
            assert other is not setting
            difference = second.train_hessian_product(u) - first
            torch.testing.assert_close(difference[:48], torch.full((48,), 2.0).double())
            assert torch.equal(problem.train_hessian_product(u), first)


def test_exact_on_a_network_with_batchnorm():
    """The dense Hessian from kept graphs is that from functions."""
    setting = Setting(nn.BatchNorm1d(8))
    wanted = exact(setting.functions(), products=EXACT)
    with problem_of(setting, keep_graph=True) as problem:
        torch.testing.assert_close(exact(problem, products=EXACT), wanted, rtol=1e-6, atol=1e-9)


def leaf(*shape, dtype=torch.float32):
    return torch.zeros(*shape, dtype=dtype, requires_grad=True)


W, A = leaf(3), leaf(2)


@pytest.mark.parametrize(
    ("inner", "outer", "message"),
    [
        (3, A, "inner must be a module, a tensor or several tensors, got int"),
        ([W, 1.0], A, "inner[1] must be a tensor, got float"),
        (
            W,
            [A, A * 2],
            "outer[1] is computed from other tensors; give the parameter that it is computed from",
        ),
        (W, torch.zeros(2), "outer[0] requires no gradient; call requires_grad_() on it first"),
        (leaf(3, dtype=torch.bfloat16), A, "inner[0] must be float32 or float64, got torch.bfloat16"),
        ([], A, "inner holds no parameters that require a gradient"),
        (W, leaf(0), "outer holds no parameters that require a gradient"),
        (nn.Linear(2, 2).requires_grad_(False), A, "inner holds no parameters that require a gradient"),
        ([W, A], A, "a parameter is both inner and outer; it must be one of them"),
        (
            leaf(3, dtype=torch.float64),
            A,
            "inner and outer parameters must have one dtype and be on one device, got torch.float64 on cpu and "
            "torch.float32 on cpu",
        ),
        (
            torch.zeros(3, device="meta", requires_grad=True),
            A,
            "inner and outer parameters must have one dtype and be on one device, got torch.float32 on meta and "
            "torch.float32 on cpu",
        ),
    ],
)
def test_wrong_parameters(inner, outer, message):
    with pytest.raises(FastnasError) as raised:
        ModuleProblem(lambda: W.sum(), lambda: W.sum(), inner, outer)
    assert str(raised.value) == f"hypergradient: {message}"


def dependence(name, group):
    return (
        f"{name} does not depend on the {group} parameters, so there is nothing to differentiate; "
        "compute it from the live ones, without detach, item or no_grad"
    )


@pytest.mark.parametrize(
    ("loss", "oracle", "message"),
    [
        (lambda: W * A.sum(), "train_grad_w", "train_loss must return a scalar tensor, got shape (3,)"),
        (lambda: 3.0, "train_grad_w", "train_loss must return a scalar tensor, got float"),
        (
            lambda: W.detach().sum(),
            "train_grad_w",
            "train_loss depends on no parameter that requires a gradient; compute it from the live inner and outer "
            "parameters, without detach, item or no_grad",
        ),
        (lambda: A.sum(), "train_grad_w", dependence("train_loss", "inner")),
        (lambda: W.sum(), "train_grad_alpha", dependence("train_loss", "outer")),
        (lambda: A.sum(), "val_grads", dependence("val_loss", "inner")),
        (lambda: W.sum(), "val_grad_alpha", dependence("val_loss", "outer")),
        (lambda: A.sum(), "train_hessian_product", dependence("train_loss", "inner")),
    ],
)
def test_wrong_losses(loss, oracle, message):
    with ModuleProblem(loss, loss, W, A) as problem:
        arguments = [torch.ones(3)] if "product" in oracle else []
        with pytest.raises(FastnasError) as raised:
            getattr(problem, oracle)(*arguments)
    assert str(raised.value) == f"hypergradient: {message}"


def test_a_loss_that_is_no_function():
    with pytest.raises(FastnasError) as raised:
        ModuleProblem(W.sum(), lambda: W.sum(), W, A)
    assert str(raised.value) == (
        "hypergradient: train_loss must be a function without arguments that returns the loss, got Tensor"
    )


def test_a_loss_of_one_element_is_a_scalar():
    with ModuleProblem(lambda: (W * A.sum()).sum().view(1, 1), lambda: W.sum(), W, A) as problem:
        assert problem.train_grad_w().tolist() == [0, 0, 0]
        assert problem.train_mixed_product(torch.ones(3)).tolist() == [3, 3]


@pytest.mark.parametrize(
    "loss",
    [
        lambda: Cube.apply(W).sum() * A.exp().sum(),
        lambda: Cube.apply(W).sum() + W.sum() * A.sum(),  # autograd takes it for a constant
        lambda: Cube.apply(W * A.sum()).sum(),  # autograd differentiates a part of it
        lambda: (W + 1).prod() * mixed_sum(A, [W.view(1, 3), W.view(1, 3)]).sum() + Cube.apply(W).sum(),
    ],
)
def test_a_loss_without_second_derivatives(loss):
    with ModuleProblem(loss, lambda: W.sum(), W, A) as problem:
        with pytest.raises(FastnasError) as raised:
            problem.train_hessian_product(torch.ones(3))
        assert str(raised.value) == (
            "hypergradient: train_loss cannot be differentiated twice (Cube gives its gradient without a graph); "
            "take differences, products=Products()"
        )
        assert cg(problem, steps=1, damping=1.0).shape == (2,)  # which works


def test_an_operation_whose_second_derivative_is_not_there():
    class Gradient(torch.autograd.Function):
        @staticmethod
        def forward(context, grad, x):
            return 3 * grad * x**2

        @staticmethod
        def backward(context, grad):
            raise RuntimeError("derivative for cube_backward is not implemented.\nA second line")

    class Differentiable(torch.autograd.Function):
        @staticmethod
        def forward(context, x):
            context.save_for_backward(x)
            return x**3

        @staticmethod
        def backward(context, grad):
            return Gradient.apply(grad, *context.saved_tensors)

    problem = ModuleProblem(lambda: Differentiable.apply(W).sum() + A.sum() * W.sum(), lambda: W.sum(), W, A)
    with problem, pytest.raises(FastnasError) as raised:
        problem.train_hessian_product(torch.ones(3))
    assert str(raised.value) == (
        "hypergradient: train_loss cannot be differentiated twice (derivative for cube_backward is not implemented); "
        "take differences, products=Products()"
    )
