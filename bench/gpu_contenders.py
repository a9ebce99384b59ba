"""The sides of the comparison on a GPU: plain PyTorch as it can be run, and fastnas as it can be run."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bench.contenders import (
    FORWARD_BACKWARD,
    QUANTITIES,
    VERIFIED_IMAGES,
    Contest,
    batches,
    fastnas_function,
    fastnas_model,
    fastnas_results,
    plain_results,
    relative_error,
    vanilla_function,
)
from bench.vanilla import Batch, ModelWithAlphas, Search, SearchSettings
from fastnas.supernet import Supernet

Function = Callable[[], object]


class NotAvailableError(Exception):
    """This contender cannot be run here; the message says why."""


@dataclass(frozen=True)
class Contender:
    """One side.

    Attributes:
        name: in the results.
        vanilla: plain PyTorch, else fastnas.
        warm_up: calls before anything is timed, beside the first: fastnas captures its graphs in them.
        make: (contest, the network in plain PyTorch with the common weights) -> one pass or step; raises
            NotAvailableError. What it needs of the network it copies.
    """

    name: str
    vanilla: bool
    warm_up: int
    make: Callable[[Contest, ModelWithAlphas], Function]


def _eager(contest: Contest, model: ModelWithAlphas) -> Function:
    return vanilla_function(contest, copy.deepcopy(model))


def _channels_last(contest: Contest, model: ModelWithAlphas) -> Function:
    moved = copy.deepcopy(model).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return vanilla_function(contest, moved)


class GraphedSearch(Search):
    """Plain PyTorch whose passes are CUDA graphs: forward and backward of each batch, for each set of gradients.

    What an estimator does between its passes, and the optimisers, stay eager: the length of a perturbation is a
    number on the host there. The second network of darts is made once, and its weights are written anew.
    """

    def __init__(self, model: ModelWithAlphas, settings: SearchSettings) -> None:
        super().__init__(model, settings)
        self._place: tuple[Any, torch.cuda.Stream] | None = (
            None  # the graphs' memory, and where they are captured
        )
        self._captured: dict[tuple[int, ...], tuple[torch.cuda.CUDAGraph, list[Tensor], object]] = {}
        self._unrolled: ModelWithAlphas | None = None

    def gradients(
        self, batch: Batch, wrt: Sequence[Tensor], model: ModelWithAlphas | None = None
    ) -> list[Tensor]:
        key = (id(batch[0]), id(model), len(wrt), id(wrt[0]))
        if key not in self._captured:
            self._captured[key] = self._capture(batch, wrt, model)
        graph, results, _ = self._captured[key]
        graph.replay()
        return list(torch._foreach_mul(results, 1.0))  # the next replay writes there

    def _capture(
        self, batch: Batch, wrt: Sequence[Tensor], model: ModelWithAlphas | None
    ) -> tuple[torch.cuda.CUDAGraph, list[Tensor], object]:
        if self._place is None:
            self._place = torch.cuda.graph_pool_handle(), torch.cuda.Stream()
        pool, stream = self._place
        # Running statistics that move in these passes move in eager ones, too, as often: they enter no result.
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(2):
                super().gradients(batch, wrt, model)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool, stream=stream):
            results = super().gradients(batch, wrt, model)
        return graph, results, (batch, wrt, model)  # kept alive: the key is made of their addresses

    def model_with(self, theta: Tensor) -> ModelWithAlphas:
        if self._unrolled is None:
            self._unrolled = copy.deepcopy(self.model)
        weights = [weight.data for weight in self._unrolled.parameters()]
        parts = theta.split([weight.numel() for weight in weights])
        torch._foreach_copy_(weights, [p.view_as(w) for p, w in zip(parts, weights, strict=True)])
        for mine, alpha in zip(self._unrolled.alphas, self.model.alphas, strict=True):
            mine.data.copy_(alpha.data)
        return self._unrolled


def _graphed(contest: Contest, model: ModelWithAlphas) -> Function:
    _need_gpu(contest)
    search = GraphedSearch(copy.deepcopy(model), SearchSettings(neumann_terms=contest.neumann_terms))
    val, *train = batches(contest, 1 + contest.weight_steps)
    if contest.method == FORWARD_BACKWARD:
        wanted = [*search.weights, *search.model.alphas]
        return lambda: search.gradients(train[0], wanted)
    step = getattr(search, f"{contest.method.replace('-', '_')}_step")
    return lambda: step(train, val)


def _fastnas(precision: torch.dtype | None, graphs: bool) -> Callable[[Contest, ModelWithAlphas], Function]:
    def make(contest: Contest, model: ModelWithAlphas) -> Function:
        if graphs or precision is not None:
            _need_gpu(contest)
        net = fastnas_model(contest, "fused", model)
        if precision is not None:
            require_precision(contest, model, net, precision)
        return fastnas_function(contest, net, graphs=graphs, precision=precision)

    return make


def require_precision(
    contest: Contest, model: ModelWithAlphas, net: Supernet, precision: torch.dtype
) -> None:
    """Raise NotAvailableError unless a pass in ``precision`` is as exact as plain PyTorch's in autocast."""
    images, labels = (part[:VERIFIED_IMAGES] for part in batches(contest, 1)[0])
    exact = plain_results(copy.deepcopy(model).double(), images.double(), labels)
    ours = fastnas_results(net, images, labels, precision)
    theirs = plain_results(copy.deepcopy(model), images, labels, precision)
    for name, mine, its, truth in zip(QUANTITIES, ours, theirs, exact, strict=True):
        off, plainly = (relative_error(one, truth) for one in (mine, its))
        if not off <= 2 * plainly + 4 * torch.finfo(precision).eps:
            raise NotAvailableError(
                f"in bfloat16 the {name} are off by {off:.2g} from float64, plain PyTorch's by {plainly:.2g}"
            )


def _need_gpu(contest: Contest) -> None:
    if torch.device(contest.device).type != "cuda":
        raise NotAvailableError("needs a GPU")


CONTENDERS: tuple[Contender, ...] = (
    Contender("vanilla", True, 0, _eager),
    Contender("vanilla, channels last", True, 0, _channels_last),
    Contender("vanilla, CUDA graphs", True, 1, _graphed),
    Contender("fastnas", False, 2, _fastnas(None, False)),
    Contender("fastnas, CUDA graphs", False, 4, _fastnas(None, True)),
    Contender("fastnas, bfloat16", False, 2, _fastnas(torch.bfloat16, False)),
    Contender("fastnas, bfloat16, CUDA graphs", False, 4, _fastnas(torch.bfloat16, True)),
)
