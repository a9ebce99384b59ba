"""Recurrent networks: a language model with a cell of highway updates, mixed (a supernet) or not."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastnas.ops.highway_sum import _highway_sum_ref, highway_sum
from fastnas.spaces.recurrent import RecurrentSpace
from fastnas.supernet.executor import Executor, initial_alpha
from fastnas.supernet.primitives import BatchNorm

INITIAL = 0.04  # weights begin uniform between -0.04 and 0.04, as DARTS' do

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "relu": torch.relu,
    "sigmoid": torch.sigmoid,
    "identity": lambda h: h,
}


class RecurrentNetwork(Executor):
    """Executes a :class:`RecurrentSpace`: words (L, B) and hidden state (B, units) -> logits (L B, words).

    The logits are by time step, then stream, as the targets of ``fastnas.data.text.window``. In training mode every
    mask of dropout is drawn at the beginning of a forward pass, whose draws so depend on the shape of the batch and the
    random state alone, and holds for all of its time steps.

    Args:
        space: the description that it executes.
        dtype, device: of weights, architecture parameters and running statistics.

    Attributes:
        weights: ``embedding`` (words, units), which is the decoder's matrix, too; its ``bias`` (words,); ``entry``
            (2 units, 2 units), from input and hidden state to state 0; ``nodes`` (nodes, units, 2 units). In the last
            two the first half of the columns is the gate c, the second h.
    """

    space: RecurrentSpace
    classifies = False

    def __init__(
        self,
        space: RecurrentSpace,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__()
        self.space = space
        units = space.units
        self.embedding = _uniform(space.words, units)
        self.bias = nn.Parameter(torch.zeros(space.words))
        self.entry = _uniform(2 * units, 2 * units)
        self.nodes = _uniform(space.nodes, units, 2 * units)
        self.norm = BatchNorm(units, False, self._statistics) if space.normalise else None
        self._gather({alpha.name: initial_alpha(alpha) for alpha in space.alphas}, dtype, device)
        self._hidden: Tensor | None = None
        self._penalty: Tensor | None = None

    def initial_state(self, streams: int) -> Tensor:
        """The hidden state before the first word: zeros, (streams, units)."""
        return self.embedding.new_zeros(streams, self.space.units)

    def forward(self, words: Tensor, hidden: Tensor) -> Tensor:
        masks = self._masks(words.shape[1])
        inputs = self._embedded(words) * masks["embedding"]
        outputs = self.unrolled(inputs * masks["input"], hidden, masks["state"])
        self._hidden = outputs[-1].detach()
        self._penalty = self._slowness(outputs) if self.training else None
        flat = (outputs * masks["output"]).flatten(0, 1)
        return F.linear(flat, self.embedding, self.bias)

    def unrolled(self, inputs: Tensor, hidden: Tensor, mask: Tensor) -> Tensor:
        """The cell's outputs (L, B, units) for masked inputs (L, B, units), beginning with ``hidden`` (B, units).

        ``mask`` (B, units) is of the states.
        """
        mixing = self.mixing()
        outputs = []
        for entering in inputs.unbind():
            hidden = self.cell(entering, hidden, mask, mixing)
            outputs.append(hidden)
        return torch.stack(outputs)

    def mixing(self) -> tuple[Tensor, ...] | None:
        """What weighs the primitives but ``none``, of each node's edges (sources, 4); None for a discrete network."""
        if not len(self.alphas):
            return None
        weights = self.alphas["cell"].softmax(-1)[:, 1:]
        return weights.split(list(range(1, self.space.nodes + 1)))

    def cell(self, entering: Tensor, hidden: Tensor, mask: Tensor, mixing: Sequence[Tensor] | None) -> Tensor:
        """One time step: masked input and hidden state (B, units) -> the next hidden state."""
        gate, value = (torch.cat((entering, hidden * mask), -1) @ self.entry).chunk(2, -1)
        state = hidden + gate.sigmoid() * (value.tanh() - hidden)
        states = [self._normalised(state)]
        for i, weights in enumerate(self.nodes.unbind()):
            if mixing is None:
                states.append(self._highway(i, states, mask, weights))
            else:
                sources = torch.stack(states)
                raw = (sources * mask) @ weights
                states.append(self._normalised(self.node(mixing[i], sources, raw)))
        return torch.stack([states[i] for i in self.space.output]).mean(0)

    def node(self, mixing: Tensor, sources: Tensor, raw: Tensor) -> Tensor:
        """A node (B, units) of the supernet: mixing (S, 4), sources (S, B, units), their products (S, B, 2 units)."""
        return _highway_sum_ref(mixing, sources, raw)

    def _highway(self, i: int, states: Sequence[Tensor], mask: Tensor, weights: Tensor) -> Tensor:
        """Node i of a discrete network."""
        edge = self.space.edges[i]
        source = states[edge.source]
        gate, value = ((source * mask) @ weights).chunk(2, -1)
        return source + gate.sigmoid() * (ACTIVATIONS[edge.primitives[0]](value) - source)

    def penalty(self, targets: Tensor) -> Tensor | None:
        """``slowness`` times the mean of |h_t - h_(t-1)|^2, in training mode (Merity et al. 2018)."""
        penalty, self._penalty = self._penalty, None  # it holds the graph
        return penalty

    def carried(self) -> tuple[Tensor, ...]:
        """The hidden state (B, units) behind the last word."""
        return () if self._hidden is None else (self._hidden,)

    def _slowness(self, outputs: Tensor) -> Tensor | None:
        if not self.space.slowness or len(outputs) < 2:
            return None
        return self.space.slowness * (outputs[1:] - outputs[:-1]).square().mean()

    def _normalised(self, state: Tensor) -> Tensor:
        return state if self.norm is None else self.norm(state)

    def _embedded(self, words: Tensor) -> Tensor:
        probability = self.space.dropout.words
        if not (self.training and probability):
            return F.embedding(words, self.embedding)
        kept = _mask((len(self.embedding), 1), probability, self.embedding)
        return F.embedding(words, self.embedding * kept)

    def _masks(self, streams: int) -> dict[str, Tensor]:
        """The masks that hold for all time steps, (B, units) each: 0 or 1 / (1 - p); ones in evaluation mode."""
        shape = (streams, self.space.units)
        return {
            name: _mask(shape, getattr(self.space.dropout, name) if self.training else 0.0, self.embedding)
            for name in ("embedding", "input", "state", "output")
        }


class FusedRecurrentNetwork(RecurrentNetwork):
    """:class:`RecurrentNetwork` whose supernet's nodes are one op each way (``highway_sum``); differentiable once.

    Within ``twice_differentiable`` it runs as the reference. A discrete network is the reference's anyway.
    """

    _composed = False

    def node(self, mixing: Tensor, sources: Tensor, raw: Tensor) -> Tensor:
        """A node of the supernet, by the op."""
        return super().node(mixing, sources, raw) if self._composed else highway_sum(mixing, sources, raw)

    @contextmanager
    def twice_differentiable(self) -> Iterator[None]:
        """Within it a forward pass may be differentiated twice."""
        self._composed = True
        try:
            yield
        finally:
            self._composed = False


def _mask(shape: tuple[int, ...], probability: float, like: Tensor) -> Tensor:
    if not probability:
        return torch.ones(shape, dtype=like.dtype, device=like.device)
    return torch.empty(shape, dtype=like.dtype, device=like.device).bernoulli_(1 - probability) / (
        1 - probability
    )


def _uniform(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.empty(shape).uniform_(-INITIAL, INITIAL))


@torch.no_grad()
def mean_loss(
    net: RecurrentNetwork,
    windows: Iterable[tuple[Tensor, Tensor]],
    check: Callable[[], None],
    together: Callable[[Tensor], Tensor] | None = None,
) -> float:
    """Mean cross-entropy of the next word, in evaluation mode; the hidden state goes from window to window.

    Args:
        net: the network.
        windows: of some streams, in order.
        check: called before each; may raise.
        together: gives the sum of all processes' vectors, where each has some of the streams, or none of them.
    """
    mode = net.training
    net.eval()
    total, hidden = torch.zeros(2, dtype=torch.float64, device=net.weights.flat.device), None
    for words, targets in windows:
        check()
        if not len(targets):
            continue
        hidden = net.initial_state(words.shape[1]) if hidden is None else hidden
        total[0] += F.cross_entropy(net(words, hidden), targets, reduction="sum")
        total[1] += len(targets)
        (hidden,) = net.carried()
    net.train(mode)
    loss, count = (total if together is None else together(total)).tolist()
    return loss / count


def perplexity(loss: float) -> float:
    """exp(loss), infinite where that is too large for a number."""
    return math.exp(loss) if loss < 700 else math.inf
