"""FunctionProblem, restored, and the toys against autograd."""

import pytest
import torch

from fastnas.bilevel import FunctionProblem, idarts, inner_steps, restored, t1_t2, toy_problem
from fastnas.errors import FastnasError
from tests.bilevel.problems import AmendedToy, QuadraticProblem

SPECTRUM = torch.tensor([0.5, 1.0, 2.0, 4.0])


def double(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_function_problem_agrees_with_oracles_written_by_hand():
    by_hand = QuadraticProblem(SPECTRUM, curvature=0.3)
    problem = FunctionProblem(by_hand.train_loss, by_hand.val_loss, by_hand.w, by_hand.alpha)
    torch.testing.assert_close(problem.train_grad_w(), by_hand.train_grad_w(), rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(problem.train_grad_alpha(), by_hand.train_grad_alpha(), rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(problem.val_grads(), by_hand.val_grads(), rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(problem.val_grad_alpha(), by_hand.val_grads()[1], rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("a", [1.0, -3.0])
def test_public_toy_agrees_with_the_one_by_hand(a):
    public, by_hand = toy_problem(a), AmendedToy(a)
    for point in (a, a + 0.5):
        public.w.fill_(point)
        by_hand.w.fill_(point)
        torch.testing.assert_close(public.train_grad_w(), by_hand.train_grad_w())
        torch.testing.assert_close(public.train_grad_alpha(), by_hand.train_grad_alpha())
        torch.testing.assert_close(public.val_grads(), by_hand.val_grads())


def test_parameters_are_live_and_moved_in_place():
    w, alpha = double(1, 2), double(3)
    problem = FunctionProblem(lambda w, a: a[0] * (w**2).sum() / 2, lambda w, a: w.sum(), w, alpha)
    assert problem.w.data_ptr() == w.data_ptr()
    assert problem.alpha.data_ptr() == alpha.data_ptr()
    alpha.fill_(5)
    assert torch.equal(problem.train_grad_w(), double(5, 10))
    inner_steps(problem, steps=1, learning_rate=0.1)
    torch.testing.assert_close(w, double(0.5, 1))


def test_works_on_parameters_that_require_grad_and_under_no_grad():
    w, alpha = double(1, 2).requires_grad_(), double(3).requires_grad_()
    problem = FunctionProblem(lambda w, a: a[0] * (w**2).sum() / 2, lambda w, a: w.sum(), w, alpha)
    with torch.no_grad():
        assert torch.equal(problem.train_grad_w(), double(3, 6))
    hypergradient = t1_t2(problem)  # -(d2L1/dalpha dw = w) . (1, 1)
    torch.testing.assert_close(hypergradient, double(-3), rtol=1e-10, atol=0)
    assert not hypergradient.requires_grad
    assert w.grad is None
    assert alpha.grad is None


def test_a_hand_written_problem_may_hold_parameters_that_require_grad():
    problem = AmendedToy(1.0)
    problem.w.requires_grad_()
    with torch.no_grad():
        wanted = idarts(AmendedToy(1.0), gamma=0.2)
    oracle = problem.train_grad_w
    problem.train_grad_w = lambda: oracle().detach()
    for name in ("train_grad_alpha", "val_grads"):
        setattr(problem, name, torch.no_grad()(getattr(problem, name)))
    torch.testing.assert_close(idarts(problem, gamma=0.2), wanted, rtol=0, atol=0)
    inner_steps(problem, steps=1, learning_rate=0.1, weight_decay=0.5)
    torch.testing.assert_close(problem.w.detach(), double(0.95))


def test_results_are_the_callers_own():
    # w + alpha hands autograd one tensor for both gradients; w.sum() an expanded one of stride 0.
    problem = FunctionProblem(
        lambda w, a: w.sum() + a.sum(), lambda w, a: ((w + a) ** 2).sum(), double(1, 2), double(3, 4)
    )
    grad_w, grad_alpha = problem.val_grads()
    grad_w.zero_()
    assert torch.equal(grad_alpha, double(8, 12))
    first = problem.train_grad_w()
    first.add_(double(1, 2))
    assert torch.equal(first, double(2, 3))
    assert torch.equal(problem.train_grad_w(), double(1, 1))


def test_an_argument_that_a_loss_ignores_has_gradient_zero():
    problem = FunctionProblem(lambda w, a: (w**2).sum(), lambda w, a: (a**3).sum(), double(1, 2), double(3))
    assert torch.equal(problem.train_grad_alpha(), double(0))
    grad_w, grad_alpha = problem.val_grads()
    assert torch.equal(grad_w, double(0, 0))
    assert torch.equal(grad_alpha, double(27))


def test_ridge_regression_weight_decay_by_idarts():
    """Hyperparameter optimisation, no architecture in sight: d val/d log decay against its closed form."""
    generator = torch.Generator().manual_seed(1)
    x, y, x_val, y_val = (
        torch.randn(*s, generator=generator).double() for s in ((20, 3), (20,), (9, 3), (9,))
    )
    alpha = double(0.7).log()

    def train(w, a):
        return ((x @ w - y) ** 2).sum() / 2 + a[0].exp() * (w @ w) / 2

    def val(w, a):
        return ((x_val @ w - y_val) ** 2).sum() / 2

    hessian = x.T @ x + 0.7 * torch.eye(3, dtype=torch.float64)
    w = torch.linalg.solve(hessian, x.T @ y)
    wanted = -0.7 * w @ torch.linalg.solve(hessian, x_val.T @ (x_val @ w - y_val))
    problem = FunctionProblem(train, val, w.clone(), alpha)
    got = idarts(problem, gamma=1 / 40, neumann_terms=200)
    torch.testing.assert_close(got, wanted.view(1), rtol=1e-8, atol=0)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_restored_puts_every_bit_back_when_the_block_raises(error):
    problem = AmendedToy(1.0)
    problem.w = double(0.1, -0.0, float("nan"), float("inf"), 1e-310)
    before, address = problem.w.clone(), problem.w.data_ptr()

    def move_and_raise():
        with restored(problem) as saved:
            assert saved.data_ptr() != address
            problem.w.mul_(3).add_(1)
            raise error

    with pytest.raises(error):
        move_and_raise()
    assert problem.w.data_ptr() == address
    assert torch.equal(problem.w.view(torch.int64), before.view(torch.int64))


def test_restored_nests():
    problem = AmendedToy(1.0)
    with restored(problem):
        problem.w.fill_(2)
        with restored(problem):
            problem.w.fill_(3)
        assert problem.w.item() == 2
    assert problem.w.item() == 1


def total(w, a):
    return w.sum() + a.sum()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1, total, double(1), double(1)), "train_loss must be a function of (w, alpha), got int"),
        ((total, None, double(1), double(1)), "val_loss must be a function of (w, alpha), got NoneType"),
        ((total, total, [1.0], double(1)), "w must be a tensor, got list"),
        (
            (total, total, torch.ones(2, 3), double(1)),
            "w must be one flat vector, got shape (2, 3); flatten it first",
        ),
        (
            (total, total, double(1), torch.ones(())),
            "alpha must be one flat vector, got shape (); flatten it first",
        ),
        (
            (total, total, torch.ones(2).bfloat16(), double(1)),
            "w must be float32 or float64, got torch.bfloat16",
        ),
        (
            (total, total, double(1), torch.ones(2).long()),
            "alpha must be float32 or float64, got torch.int64",
        ),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(FastnasError) as raised:
        FunctionProblem(*arguments)
    assert str(raised.value) == f"FunctionProblem: {message}"


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda w, a: w * 2, "must return a scalar tensor, got shape (2,)"),
        (lambda w, a: 3.0, "must return a scalar tensor, got float"),
        (
            lambda w, a: w.detach().sum(),
            "depends on neither w nor alpha; compute it from the tensors it is given, "
            "without detach, item or no_grad",
        ),
    ],
)
def test_wrong_losses(loss, message):
    w, alpha = double(1, 2), double(3)
    with pytest.raises(FastnasError) as raised:
        FunctionProblem(loss, total, w, alpha).train_grad_w()
    assert str(raised.value) == f"FunctionProblem: train_loss {message}"
    with pytest.raises(FastnasError) as raised:
        FunctionProblem(total, loss, w, alpha).val_grads()
    assert str(raised.value) == f"FunctionProblem: val_loss {message}"
