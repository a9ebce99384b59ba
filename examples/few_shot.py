"""Implicit MAML: where to start from so that a few examples of a new task will do.

    w_t*(theta) = argmin over w of  mean squared error(support examples of task t; w) + strength |w - theta|^2 / 2
    theta       = argmin of         mean over tasks of mean squared error(query examples of task t; w_t*(theta))

(Rajeswaran et al. 2019, "Meta-Learning with Implicit Gradients".) The tasks are linear, y = x'u with u around a common
mean and fewer support examples than weights, so that everything has a closed form:

    w_t* = (A + strength I)^-1 (b + strength theta),    A = 2 X'X/n,  b = 2 X'y/n
    d query loss / d theta = strength (A + strength I)^-1 dL2/dw
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import tyro
from torch import Tensor, nn
from torch.nn.functional import mse_loss

import fastnas
from examples.minimise import minimise
from fastnas._command import clear_errors


@dataclass(frozen=True)
class Config:
    """Learns the start of linear tasks by implicit MAML and checks every hypergradient against its closed form."""

    steps: int = 30
    """Steps of gradient descent on theta, each on ``tasks`` new tasks."""
    tasks: int = 8
    """Tasks a step."""
    support: int = 5
    """Examples that a task gives; it has 10 weights."""
    strength: float = 0.5
    """Of the pull towards theta."""
    learning_rate: float = 0.5
    """Of theta."""
    seed: int = 0
    """Of the tasks."""


@dataclass(frozen=True)
class Task:
    """Support and query examples of one linear map: x (N, 10), y (N, 1)."""

    x: Tensor
    y: Tensor
    x_query: Tensor
    y_query: Tensor


class Tasks:
    """Linear maps around a common mean.

    Attributes:
        mean: (1, 10), what a good start is near.
        spread: of the maps around it.
    """

    def __init__(self, support: int, *, spread: float = 0.3, seed: int = 0) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.support, self.spread = support, spread
        self.mean = 2 * self._normal(1, 10)

    def draw(self) -> Task:
        weights = self.mean + self.spread * self._normal(1, 10)
        x, x_query = self._normal(self.support, 10), self._normal(20, 10)
        return Task(x, x @ weights.T, x_query, x_query @ weights.T)

    def _normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator, dtype=torch.float64)


class Learner:
    """A linear model that adapts to a task from the start ``theta``."""

    def __init__(self, strength: float) -> None:
        self.strength = strength
        self.model = nn.Linear(10, 1, bias=False).double()
        self.theta = nn.Linear(10, 1, bias=False).double()
        nn.init.zeros_(self.theta.weight)

    def train_loss(self, task: Task) -> Tensor:
        pull = (self.model.weight - self.theta.weight).square().sum()
        return mse_loss(self.model(task.x), task.y) + self.strength * pull / 2

    def val_loss(self, task: Task) -> Tensor:
        return mse_loss(self.model(task.x_query), task.y_query)

    def adapt(self, task: Task) -> None:
        self.model.load_state_dict(self.theta.state_dict())
        minimise(lambda: self.train_loss(task), self.model, self.theta.weight)

    def hypergradient(self, task: Task, share: float = 1.0) -> Tensor:
        """d share * query loss / d theta, (1, 10), at the adapted model; also added to theta's ``.grad``."""
        (grad,) = fastnas.hypergradient(
            lambda: self.train_loss(task),
            lambda: share * self.val_loss(task),
            inner=self.model,
            outer=self.theta,
            method="cg",
            tolerance=1e-10,
            accumulate=True,
        )
        return grad

    def closed_form(self, task: Task) -> Tensor:
        """The same by the formula above."""
        theta = self.theta.weight.detach().T
        curvature = 2 * task.x.T @ task.x / len(task.x) + self.strength * torch.eye(10, dtype=torch.float64)
        w = torch.linalg.solve(curvature, 2 * task.x.T @ task.y / len(task.x) + self.strength * theta)
        slope = 2 * task.x_query.T @ (task.x_query @ w - task.y_query) / len(task.x_query)
        return self.strength * torch.linalg.solve(curvature, slope).T


def query_loss(learner: Learner, tasks: list[Task]) -> float:
    """The mean query loss after adapting to each of the tasks."""
    losses = []
    for task in tasks:
        learner.adapt(task)
        losses.append(learner.val_loss(task).item())
    return sum(losses) / len(losses)


def main(arguments: list[str] | None = None) -> None:
    """Prints the query loss on new tasks as it falls."""
    config = tyro.cli(Config, prog="python -m examples.few_shot", args=arguments)
    tasks, learner = Tasks(config.support, seed=config.seed), Learner(config.strength)
    unseen, error = [tasks.draw() for _ in range(20)], 0.0
    print("step  query loss on 20 unseen tasks  distance of theta to the tasks' mean")
    sgd = torch.optim.SGD(learner.theta.parameters(), config.learning_rate)
    for step in range(config.steps + 1):
        if step % 10 == 0 or step == config.steps:
            distance = (learner.theta.weight - tasks.mean).norm().item()
            print(f"{step:4}  {query_loss(learner, unseen):29.4f}  {distance:36.3f}")
        if step < config.steps:
            sgd.zero_grad()
            for _ in range(config.tasks):
                task = tasks.draw()
                learner.adapt(task)
                got, wanted = (
                    learner.hypergradient(task, 1 / config.tasks),
                    learner.closed_form(task) / config.tasks,
                )
                error = max(error, ((got - wanted).norm() / wanted.norm()).item())
            sgd.step()
    count = config.steps * config.tasks
    print(f"checked: {count} hypergradients against the closed form, largest relative error {error:.1e}")


if __name__ == "__main__":
    with clear_errors():
        main()
