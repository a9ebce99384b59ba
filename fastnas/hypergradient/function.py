"""``fastnas.hypergradient``: one call for losses as everyone writes them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from fastnas.bilevel import (
    InnerSettings,
    InnerSgd,
    Inspected,
    Method,
    Products,
    Trajectory,
    Watch,
    implicit,
    unroll,
)
from fastnas.bilevel import _arguments as check
from fastnas.bilevel import method as method_of
from fastnas.bilevel.solvers import Solver
from fastnas.errors import FastnasError
from fastnas.hypergradient.leaves import Parameters
from fastnas.hypergradient.problem import Closure, ModuleProblem, check_loss

EXACT = Products("exact", "exact")


def hypergradient(
    train_loss: Closure | Sequence[Closure],
    val_loss: Closure,
    inner: Parameters,
    outer: Parameters,
    *,
    method: str | Solver = "cg",
    inner_optimiser: InnerSgd | None = None,
    steps: int | None = None,
    keep: bool = False,
    accumulate: bool = False,
    products: Products = EXACT,
    gamma: float | None = None,
    neumann_terms: int = 2,
    eta: float = 0.1,
    tolerance: float = 1e-3,
    limit: int = 20,
    damping: float = 0.0,
    rank: int = 10,
    reverse_steps: int = 1,
    watch: Watch | None = None,
) -> tuple[Tensor, ...]:
    """d L2 / d outer, of any module and any two losses, by any of the estimators.

        min over outer of L2(inner*(outer), outer),    inner* = argmin over inner of L1(inner, outer)

    Taken at the present inner parameters: for the implicit methods make them a minimum of the training loss first, with
    any optimiser. With ``steps`` or several training losses the weights first make so many steps of
    ``inner_optimiser``, which is what ``reverse`` and ``truncated-reverse`` go back through. docs/hypergradients.md
    says which method is for what, when it is exact, and what it costs.

    Afterwards inner and outer parameters, the buffers of the modules (BatchNorm's running statistics) and torch's
    random state are bit-identical to before, also if a loss raises.

    Args:
        train_loss: L1: a function without arguments that returns a scalar computed from the live parameters, the same
            minibatch each time. Several: one for each weight step, in their order; the last is L1 of the hypergradient.
        val_loss: L2, one such function.
        inner: a module (those of its parameters that require a gradient), a tensor or several.
        outer: likewise. All parameters are leaves, float32 or float64, of one dtype, on one device.
        method: a name of ``fastnas.bilevel.METHODS``, or a solver ``solve(matvec, b) -> x`` of H x = b, where
            ``matvec(u)`` = H u on flat vectors.
        inner_optimiser: of the weight steps (``steps``; ``darts``; its learning rate is the default of gamma).
        steps: T >= 0 weight steps before, on ``train_loss``; None: none, or one for each of several losses.
        keep: leave the inner parameters where the steps brought them (buffers do not follow).
        accumulate: also add the result to the ``.grad`` of the outer parameters, as ``backward()`` does.
        products: second-order products exact, by differentiating twice, or by differences: ``Products()``.
        gamma: > 0, less than 2/lambda_max (``idarts``, ``neumann``); None: the learning rate.
        neumann_terms: K (``idarts``).
        eta: amplitude (``amended``).
        tolerance: of the residual, relative (``cg``, ``neumann``).
        limit: the most steps or terms, >= 1 (``cg``, ``neumann``).
        damping: added to H (``cg``, ``neumann``; ``nystroem``, where 0 means 0.01).
        rank: k (``nystroem``).
        reverse_steps: K (``truncated-reverse``).
        watch: gets what was noticed; None: warnings say it.

    Returns:
        One tensor for each outer parameter, in their order, of its shape: as ``torch.autograd.grad`` returns them.

    Raises:
        FastnasError: an argument, a parameter or a loss is not as above, each told in one sentence; or
            (``NotFiniteError``) a gradient is NaN or infinite.

    Example:
        The weight decay exp(decay) of a ridge regression on one point, at its solution w* = 1/2:

        >>> model, decay = torch.nn.Linear(1, 1, bias=False), torch.zeros((), requires_grad=True)
        >>> _ = torch.nn.init.constant_(model.weight, 0.5)
        >>> x, target = torch.ones(1, 1), torch.ones(1, 1)
        >>> def train_loss():
        ...     return (model(x) - target).square().mean() + decay.exp() * model.weight.square().sum()
        >>> def val_loss():
        ...     return (model(x) - 1.5 * target).square().mean()
        >>> hypergradient(train_loss, val_loss, model, decay)  # 2 (w* - 3/2) dw*/ddecay = -2 (-1/4)
        (tensor(0.5000),)
        >>> sgd = InnerSgd(learning_rate=0.2)
        >>> hypergradient(train_loss, val_loss, model, decay, method="reverse", inner_optimiser=sgd, steps=20)
        (tensor(0.5000),)
    """
    _check_kinds(method, inner_optimiser, products)
    check.count("hypergradient", "limit", limit, least=1)
    check.count("hypergradient", "reverse_steps", reverse_steps)
    losses = _step_losses(train_loss, steps)
    last = train_loss if callable(train_loss) else losses[-1]
    entry = method_of(method) if isinstance(method, str) else None
    _check_optimiser(entry, inner_optimiser, gamma, len(losses))
    optimiser = InnerSgd(0.0) if inner_optimiser is None else inner_optimiser
    seen = Watch() if watch is None else watch
    with ModuleProblem(last, val_loss, inner, outer, keep_graph=True) as problem:
        settings = InnerSettings(
            learning_rate=optimiser.learning_rate,
            momentum=optimiser.momentum,
            momentum_buffer=torch.zeros_like(problem.w) if optimiser.momentum else None,
            weight_decay=optimiser.weight_decay,
            eta=eta,
            gamma=gamma,
            neumann_terms=neumann_terms,
            products=products,
            tolerance=tolerance,
            limit=limit,
            damping=damping,
            rank=rank,
            reverse_steps=reverse_steps,
            watch=seen,
        )
        recorded = entry.recorded_steps(settings, len(losses)) if entry else 0
        trajectory = _weight_steps(problem, losses, optimiser, settings.momentum_buffer, recorded)
        inspected = Inspected(problem)
        if isinstance(method, str):
            settings = dataclasses.replace(settings, trajectory=trajectory)
            flat = method_of(method).hypergradient(inspected, settings)
        else:
            flat = implicit(inspected, solve=method, products=products)
        inspected.check(flat)
        if keep:
            problem.commit()
        grads = problem.outer_views(flat)
        if accumulate:
            problem.accumulate(grads)
    if watch is None:
        seen.warn()
    return grads


def _check_kinds(method: object, optimiser: object, products: object) -> None:
    """Raise unless each is what the name says: another library's optimiser is a likely mistake."""
    if not isinstance(method, str) and not callable(method):
        raise FastnasError(
            "hypergradient: method must be a name of fastnas.bilevel.METHODS or a solver of H x = b, "
            f"got {type(method).__name__}"
        )
    kinds: list[tuple[str, object, type]] = [("products", products, Products)]
    if optimiser is not None:
        kinds.append(("inner_optimiser", optimiser, InnerSgd))
    for name, value, kind in kinds:
        if not isinstance(value, kind):
            raise FastnasError(
                f"hypergradient: {name} must be a fastnas.bilevel.{kind.__name__}, got {type(value).__name__}"
            )


def _step_losses(train_loss: Closure | Sequence[Closure], steps: int | None) -> list[Closure]:
    """The training loss of each weight step."""
    if steps is not None:
        check.count("hypergradient", "steps", steps)
    if callable(train_loss):
        return [train_loss] * (steps or 0)
    losses = list(train_loss) if isinstance(train_loss, Sequence) else [train_loss]
    for loss in losses:
        check_loss("train_loss", loss)
    if not losses or steps not in (None, len(losses)):
        raise FastnasError(
            f"hypergradient: {len(losses)} training losses cannot make {steps or 'any'} steps; give one for each step"
        )
    return losses


def _check_optimiser(
    entry: Method | None, optimiser: InnerSgd | None, gamma: float | None, steps: int
) -> None:
    """Raise unless the method has what it needs of the weight steps."""
    name = "a solver" if entry is None else entry.name
    if name in ("reverse", "truncated-reverse") and not steps:
        raise FastnasError(
            f"hypergradient: {name} goes back through weight steps: give steps and inner_optimiser"
        )
    if optimiser is None and (steps or name == "darts"):
        raise FastnasError(
            f"hypergradient: {name if name == 'darts' else 'a weight step'} needs inner_optimiser, "
            "for example InnerSgd(learning_rate=0.1)"
        )
    if optimiser is None and gamma is None and name in ("idarts", "idarts-release", "neumann"):
        raise FastnasError(
            f"hypergradient: {name} needs gamma, below 2/lambda_max of the training loss's Hessian"
        )


def _weight_steps(
    problem: ModuleProblem,
    losses: Sequence[Closure],
    optimiser: InnerSgd,
    buffer: Tensor | None,
    recorded: int,
) -> Trajectory:
    """Moves w by a step on each of the losses; the last ``recorded`` are in the result."""
    trajectory = Trajectory(optimiser, recorded)
    for loss in losses:
        at = problem.on(loss)
        trajectory.record(at)
        unroll(at, optimiser, 1, momentum_buffer=buffer, last=0)
    return trajectory
