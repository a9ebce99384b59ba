"""A weight of its own for every training example, learned from a few clean ones; two fifths are mislabelled.

    w*(a) = argmin over w of  mean_i sigmoid(a_i) cross-entropy(x_i, y_i; w) + decay |w|^2 / 2
    a     = argmin of         cross-entropy(clean validation digits; w*(a))

("Data hyper-cleaning": Franceschi et al. 2017, section 5; Shaban et al. 2019, section 5.1.) The hypergradient of one
weight is the influence of its example on the validation loss (Koh, Liang 2017), by which the tests check it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import tyro
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import fastnas
from examples.digits import Split, splits
from examples.minimise import minimise
from fastnas._command import clear_errors


@dataclass(frozen=True)
class Config:
    """Learns a weight for each training example and says how well they tell which labels are wrong."""

    steps: int = 20
    """Steps of Adam on the weights."""
    images: int = 500
    """Training images; two fifths of them get a wrong label."""
    clean: int = 200
    """Validation images, whose labels are right."""
    learning_rate: float = 0.5
    """Of Adam."""
    seed: int = 0
    """Of the split and of the wrong labels."""


class Cleaning:
    """The two losses and the parameters that they live on.

    Attributes:
        corrupted: (N,), which labels are wrong; the losses do not know it.
        scores: (N,), the outer parameters a; an example's weight is sigmoid(a_i).
    """

    decay = 0.01

    def __init__(self, images: int, clean: int, *, share: float = 0.4, seed: int = 0) -> None:
        truth, self.val, self.test = splits(images, clean, seed=seed)
        generator = torch.Generator().manual_seed(seed)
        self.corrupted = torch.zeros(images, dtype=torch.bool)
        self.corrupted[torch.randperm(images, generator=generator)[: round(share * images)]] = True
        shift = torch.randint(1, 10, (images,), generator=generator)  # never by 0: always another class
        self.train = Split(truth.x, torch.where(self.corrupted, (truth.y + shift) % 10, truth.y))
        self.model = nn.Linear(64, 10).double()
        nn.init.zeros_(self.model.weight)
        nn.init.zeros_(self.model.bias)
        self.scores = nn.Parameter(torch.zeros(images, dtype=torch.float64))

    def train_loss(self) -> Tensor:
        losses = cross_entropy(self.model(self.train.x), self.train.y, reduction="none")
        penalty = self.model.weight.square().sum() + self.model.bias.square().sum()
        return (self.scores.sigmoid() * losses).mean() + self.decay * penalty / 2

    def val_loss(self) -> Tensor:
        return cross_entropy(self.model(self.val.x), self.val.y)

    def solve(self, tolerance: float = 1e-6) -> None:
        minimise(self.train_loss, self.model, self.scores, tolerance=tolerance)

    def hypergradient(self, tolerance: float = 1e-4) -> Tensor:
        """d validation loss at the minimum / d scores, (N,); also added to ``scores.grad``."""
        (grad,) = fastnas.hypergradient(
            self.train_loss,
            self.val_loss,
            self.model,
            self.scores,
            method="cg",
            tolerance=tolerance,
            limit=500,
            accumulate=True,
        )
        return grad

    def accuracy(self, split: Split) -> float:
        return (self.model(split.x).argmax(1) == split.y).double().mean().item()

    def auc(self) -> float:
        """The share of pairs of a clean and a corrupted example in which the clean one weighs more."""
        clean, corrupted = self.scores[~self.corrupted], self.scores[self.corrupted]
        higher = (clean[:, None] > corrupted).double() + (clean[:, None] == corrupted).double() / 2
        return higher.mean().item()


def main(arguments: list[str] | None = None) -> None:
    """Prints the losses as they fall and how well the weights tell the wrong labels."""
    config = tyro.cli(Config, prog="python -m examples.data_cleaning", args=arguments)
    problem = Cleaning(config.images, config.clean, seed=config.seed)
    adam = torch.optim.Adam([problem.scores], config.learning_rate)
    problem.solve()
    print("step  validation loss  validation accuracy  test accuracy  AUC of the weights")
    for step in range(config.steps + 1):
        if step % 5 == 0 or step == config.steps:
            accuracies = problem.accuracy(problem.val), problem.accuracy(problem.test)
            print(
                f"{step:4}  {problem.val_loss().item():15.4f}  {accuracies[0]:19.1%}  {accuracies[1]:13.1%}  "
                f"{problem.auc():18.3f}"
            )
        if step < config.steps:
            problem.hypergradient()
            adam.step()
            adam.zero_grad()
            problem.solve()
    weights = problem.scores.detach().sigmoid()
    right, wrong = weights[~problem.corrupted].mean().item(), weights[problem.corrupted].mean().item()
    print(
        f"checked: a mean weight of {right:.2f} for right labels and {wrong:.2f} for wrong ones; no loss knew which"
    )


if __name__ == "__main__":
    with clear_errors():
        main()
