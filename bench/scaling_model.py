"""What a data-parallel step sends, counted on the estimators themselves, and how long that would take: a model.

One all-reduce an oracle, of what the oracle returns, and one a weight step. In a ring of N processes each sends and
receives 2 (N - 1) / N times the bytes, in 2 (N - 1) messages:

    t(N) = t_own + sum over all-reduces of [2 (N - 1) / N bytes / bandwidth + 2 (N - 1) latency]
           + 2 (N - 1) host latency

t_own is what one process takes for its own shard of the batch; the last term is the processes' agreement to go on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastnas.bilevel import METHODS, FunctionProblem, InnerSettings, InnerSgd, Watch, unroll
from fastnas.bilevel.inspected import Observed

NUMBER = 4  # bytes of a float32
PROBE = 64, 7  # P and H of the problem that estimators are counted on
MODELLED = tuple(name for name in METHODS if METHODS[name].gradients(InnerSettings(0.1)) is not None)


@dataclass(frozen=True)
class Links:
    """What joins the processes, the slowest link of the ring counting.

    Attributes:
        bandwidth: bytes a second, each way.
        latency: seconds of a message between two devices.
        host_latency: seconds of a message between two hosts' processes.
    """

    bandwidth: float
    latency: float = 5e-6
    host_latency: float = 50e-6


@dataclass(frozen=True)
class Traffic:
    """The all-reduces of one search step: (of w, of alpha), how many vectors of P and of H numbers each carries.

    Attributes:
        hypergradient: of the estimator, one an oracle.
        weight_steps: T, each a vector of P numbers, the loss and the hits.
    """

    hypergradient: tuple[tuple[int, int], ...]
    weight_steps: int

    def sizes(self, weights: int, alphas: int) -> list[int]:
        """Bytes of every all-reduce of a step, for P ``weights`` and H ``alphas``."""
        of_oracles = [NUMBER * (p * weights + h * alphas) for p, h in self.hypergradient]
        return of_oracles + [NUMBER * (weights + 2)] * self.weight_steps


class _Recorded(Observed):
    """Another problem's oracles, which notes how many vectors each returns."""

    def __init__(self, problem: FunctionProblem) -> None:
        super().__init__(problem)
        self.seen: list[tuple[int, int]] = []

    def _look(self, name: str, *results: Tensor) -> None:
        lengths = [len(result) for result in results]
        self.seen.append((lengths.count(PROBE[0]), lengths.count(PROBE[1])))


def traffic(name: str, *, inner_steps: int | None = None, neumann_terms: int = 2) -> Traffic:
    """What a step of the method ``name`` sends, by running it on a small quadratic problem.

    Args:
        name: an entry of ``METHODS``.
        inner_steps: T; None: the method's.
        neumann_terms: K. Solvers that end at a tolerance go on to their limit, of 20 steps.
    """
    method = METHODS[name]
    steps = inner_steps or method.inner_steps
    problem = _Recorded(_quadratic())
    trajectory = unroll(problem, InnerSgd(0.01, clip=1.0), steps)  # a search's steps are clipped
    problem.seen.clear()
    settings = InnerSettings(
        0.01, neumann_terms=neumann_terms, tolerance=1e-200, trajectory=trajectory, watch=Watch()
    )
    method.hypergradient(problem, settings)
    return Traffic(tuple(problem.seen), 0 if method.moves_weights else steps)


def _quadratic() -> FunctionProblem:
    """Curved in each direction by another amount, so that no solver is done before its limit."""
    weights, alphas = PROBE
    generator = torch.Generator().manual_seed(0)
    w, curvature = torch.rand(2, weights, generator=generator, dtype=torch.float64)
    mixed = torch.rand(weights, alphas, generator=generator, dtype=torch.float64)
    return FunctionProblem(
        lambda w, alpha: ((curvature + 0.1) * w * w).sum() + w @ (mixed @ alpha),
        lambda w, alpha: (w * w).sum() + (alpha * alpha).sum(),
        w,
        torch.ones(alphas, dtype=torch.float64),
    )


def sending(sizes: Sequence[int], processes: int, links: Links) -> float:
    """Seconds of a step's all-reduces of so many bytes, and of the agreement."""
    if processes == 1:
        return 0.0
    messages = 2 * (processes - 1)
    of_bytes = messages / processes * sum(sizes) / links.bandwidth
    return of_bytes + messages * (len(sizes) * links.latency + links.host_latency)


def step_time(own: float, sizes: Sequence[int], processes: int, links: Links) -> float:
    """Seconds of a step whose share takes one process ``own`` seconds."""
    return own + sending(sizes, processes, links)


def model_table(
    weights: int, alphas: int, owns: Sequence[float], processes: Sequence[int], links: Sequence[Links]
) -> str:
    """The model for every method in Markdown: what is sent, and the efficiency t_own / t(N)."""
    columns = [(n, link, own) for n in processes for link in links for own in owns]
    heads = [f"{n}, {link.bandwidth / 1e9:g} GB/s, {1e3 * own:g} ms" for n, link, own in columns]
    lines = [
        f"| method | all-reduces | of P | MB | {' | '.join(heads)} |",
        f"| --- | ---: | ---: | ---: |{' ---: |' * len(heads)}",
    ]
    for name in MODELLED:
        sent = traffic(name)
        sizes = sent.sizes(weights, alphas)
        large = sum(p for p, _ in sent.hypergradient) + sent.weight_steps
        shares = [f"{own / step_time(own, sizes, n, link):.0%}" for n, link, own in columns]
        lines.append(f"| `{name}` | {len(sizes)} | {large} | {sum(sizes) / 1e6:.1f} | {' | '.join(shares)} |")
    return "\n".join(lines) + "\n"
