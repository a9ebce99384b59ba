"""The task of a search on text: say the next word."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastnas.data import Corpus, Windows, read_corpus, streams
from fastnas.errors import FastnasError
from fastnas.runs.options import filled
from fastnas.runs.ranks import ALONE, Ranks
from fastnas.search.config import SearchConfig, weight_dtype
from fastnas.spaces.recurrent import supernet
from fastnas.supernet import Batch, Executor, RecurrentNetwork, build_recurrent, mean_loss, perplexity

EVALUATION_STREAMS = 10


class TextTask:
    """Windows of the training text for the weights, of the validation text for alpha (a ``search.task.Task``)."""

    unit, bar_unit = "words", "word"

    def __init__(
        self,
        config: SearchConfig,
        device: torch.device,
        corpus: Corpus | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        self.config, self.device, self.ranks = config, device, ranks
        self.corpus = corpus or read_corpus(config.images.dataset, config.images.data)
        self.streams, self.bptt = filled(config.images.batch_size), filled(config.text.bptt)
        train, val = (
            streams(part, self.streams)[:, ranks.shard.of(self.streams)].contiguous().to(device)
            for part in (self.corpus.train, self.corpus.valid)
        )
        self.train, self.val = Windows(train, self.bptt), Windows(val, self.bptt)
        evaluated = streams(self.corpus.valid, EVALUATION_STREAMS, "a number of streams of")
        evaluated = evaluated[:, ranks.shard.of(EVALUATION_STREAMS)].contiguous().to(device)
        self.evaluation = Windows(evaluated, self.bptt, drop_last=False)
        self.size = (len(train) - 1) * self.streams
        self.dtype = weight_dtype(config.network.dtype)

    def check_inner_steps(self, inner_steps: int) -> None:
        """Raises a FastnasError if an epoch has fewer batches than an alpha step needs."""
        if inner_steps > len(self.train):
            raise FastnasError(
                f"--inner-steps {inner_steps} is more than the {len(self.train)} windows of {self.bptt} words that "
                f"{self.streams} streams of the training text give in an epoch; take fewer inner steps, a smaller "
                "--batch-size or a smaller --bptt"
            )

    def supernet(self) -> RecurrentNetwork:
        """The supernet for this vocabulary; weights from torch's current random state."""
        text = self.config.text
        space = supernet(
            filled(text.hidden_size),
            words=len(self.corpus.words),
            dropout=text.rates,
            slowness=filled(text.slowness),
        )
        return build_recurrent(
            space, backend=self.config.network.backend, dtype=self.dtype, device=self.device
        )

    def prepare(self, net: Executor, epoch: int) -> None:
        """Every epoch is like the first."""

    def states(self, net: Executor) -> dict[str, Tensor]:
        """The hidden states of both streams, at first zero."""
        return {stream: self._begin(net, self.streams // self.ranks.size) for stream in ("train", "val")}

    def _begin(self, net: Executor, count: int) -> Tensor:
        assert isinstance(net, RecurrentNetwork)
        return net.initial_state(count)

    def size_flags(self) -> str:
        """The flags that say how large the supernet is, with their values."""
        return f"--hidden-size {self.config.text.hidden_size}"

    def cast(self, batch: Batch) -> Batch:
        """Words have no precision."""
        return batch

    def first_batches(self, net: Executor) -> tuple[Batch, Batch]:
        """The first windows of both texts, from a hidden state of zeros."""
        (words, targets), (val_words, val_targets) = next(iter(self.train)), next(iter(self.val))
        begin = self._begin(net, words.shape[1])
        return (words, begin, targets), (val_words, begin, val_targets)

    @torch.no_grad()
    def evaluate(self, net: Executor, check: Callable[[], None]) -> dict[str, Any]:
        """Mean loss over the validation text in ten streams, in evaluation mode, and its exponential."""
        assert isinstance(net, RecurrentNetwork)
        with self.ranks.averaged(net.running.flat):  # each rank's BatchNorm has seen its own streams
            loss = mean_loss(net, self.evaluation, check, self.ranks.sum_)
        return {"val_loss": loss, "val_perplexity": perplexity(loss)}

    def metrics(self, train_loss: float, hits: float, found: dict[str, Any]) -> dict[str, Any]:
        """Losses and perplexities of both texts."""
        return {"train_loss": train_loss, "train_perplexity": perplexity(train_loss), **found}

    def shown(self, loss: float, hits: float) -> dict[str, str]:
        """What the progress bar shows of a step."""
        return {"loss": f"{loss:.3f}", "perplexity": f"{perplexity(loss):.1f}"}

    def shown_of(self, row: dict[str, Any]) -> dict[str, str]:
        """What it shows of the epoch before."""
        return {"val perplexity": f"{row['val_perplexity']:.1f}"}

    def line(self, row: dict[str, Any]) -> list[str]:
        """Losses and perplexities of an epoch."""
        return [
            f"{split} loss {row[f'{split}_loss']:.3f} perplexity {row[f'{split}_perplexity']:.1f}"
            for split in ("train", "val")
        ]
