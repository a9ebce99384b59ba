"""An L2 coefficient of its own for every weight of a logistic regression, learned from a validation set.

    w*(a) = argmin over w of  cross-entropy(training digits; w) + sum_i exp(a_i) w_i^2 / 2
    a     = argmin of         cross-entropy(validation digits; w*(a))

640 hyperparameters, where a grid search has one or two. (Bengio 2000; Pedregosa 2016; Lorraine et al. 2020.)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import tyro
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import fastnas
from examples.digits import splits
from examples.minimise import minimise
from fastnas._command import clear_errors


@dataclass(frozen=True)
class Config:
    """Learns one L2 coefficient a weight and checks the hypergradient against training again."""

    steps: int = 12
    """Steps of Adam on the 640 coefficients."""
    images: int = 150
    """Training images; as many for validation, the others for the test."""
    learning_rate: float = 0.2
    """Of Adam, on the logarithms of the coefficients."""
    seed: int = 0
    """Of the split."""


class Regression:
    """The two losses and the parameters that they live on."""

    def __init__(self, images: int, seed: int = 0) -> None:
        self.train, self.val, self.test = splits(images, images, seed=seed)
        self.model = nn.Linear(64, 10).double()
        nn.init.zeros_(self.model.weight)
        nn.init.zeros_(self.model.bias)
        self.log_decay = nn.Parameter(torch.full((10, 64), -5.0, dtype=torch.float64))

    def train_loss(self) -> Tensor:
        penalty = (self.log_decay.exp() * self.model.weight.square()).sum() / 2
        # The bias has a small one that stays: without it a constant added to all logits would change nothing.
        return (
            cross_entropy(self.model(self.train.x), self.train.y)
            + penalty
            + 5e-3 * self.model.bias.square().sum()
        )

    def val_loss(self) -> Tensor:
        return cross_entropy(self.model(self.val.x), self.val.y)

    def solve(self, tolerance: float = 1e-10) -> None:
        minimise(self.train_loss, self.model, self.log_decay, tolerance=tolerance)

    def hypergradient(self, tolerance: float = 1e-8) -> Tensor:
        """d validation loss at the minimum / d log_decay, (10, 64); also added to ``log_decay.grad``."""
        (grad,) = fastnas.hypergradient(
            self.train_loss,
            self.val_loss,
            self.model,
            self.log_decay,
            method="cg",
            tolerance=tolerance,
            limit=500,
            accumulate=True,
        )
        return grad

    def by_training_again(self, entry: tuple[int, int], step: float = 1e-3) -> float:
        """One entry of the hypergradient by central differences of trainings to convergence."""
        losses = []
        for sign in (1, -1):
            with torch.no_grad():
                self.log_decay[entry] += sign * step
            self.solve()
            losses.append(self.val_loss().item())
            with torch.no_grad():
                self.log_decay[entry] -= sign * step
        self.solve()
        return (losses[0] - losses[1]) / (2 * step)

    def accuracy(self) -> float:
        return (self.model(self.test.x).argmax(1) == self.test.y).double().mean().item()


def largest(grad: Tensor, count: int) -> list[tuple[int, int]]:
    """Where the entries of largest magnitude are."""
    return [divmod(int(i), grad.shape[1]) for i in grad.abs().flatten().topk(count).indices]


def check(problem: Regression, grad: Tensor, count: int = 4) -> float:
    """The largest relative error of the ``count`` largest entries, against training again."""
    errors = []
    for entry in largest(grad, count):
        again = problem.by_training_again(entry)
        errors.append(abs(grad[entry].item() / again - 1))
    return max(errors)


def main(arguments: list[str] | None = None) -> None:
    """Prints a check, and the losses as they fall."""
    config = tyro.cli(Config, prog="python -m examples.weight_decay", args=arguments)
    torch.manual_seed(config.seed)
    problem = Regression(config.images, config.seed)
    problem.solve()
    grad = problem.hypergradient()
    error = check(problem, grad)
    adam = torch.optim.Adam([problem.log_decay], config.learning_rate)
    print("step  training loss  validation loss  test accuracy")
    for step in range(config.steps + 1):
        if step % 3 == 0 or step == config.steps:
            losses = problem.train_loss().item(), problem.val_loss().item()
            print(f"{step:4}  {losses[0]:13.4f}  {losses[1]:15.4f}  {problem.accuracy():13.1%}")
        if step < config.steps:
            adam.step()
            adam.zero_grad()
            problem.solve(tolerance=1e-5)
            problem.hypergradient(tolerance=1e-3)
    print(f"checked: 4 of 640 hypergradients against training again, largest relative error {error:.1e}")


if __name__ == "__main__":
    with clear_errors():
        main()
