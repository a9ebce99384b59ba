"""Training a recurrent genotype's language model: SGD, then averaged SGD (Merity et al. 2018), as DARTS does."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from itertools import islice
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from fastnas._measure import peak_memory
from fastnas.bilevel import NotFiniteError, Watch
from fastnas.data import Corpus, Windows, read_corpus, streams, window
from fastnas.errors import FastnasError
from fastnas.retrain.config import RetrainConfig
from fastnas.retrain.trainer import Tally
from fastnas.runs.guard import Guard
from fastnas.runs.interrupt import Interrupt
from fastnas.runs.notices import Notices
from fastnas.runs.optimiser import Sgd
from fastnas.runs.options import filled
from fastnas.runs.ranks import ALONE, Ranks
from fastnas.runs.saving import Saving
from fastnas.spaces.family import AnyGenotype
from fastnas.spaces.recurrent import RecurrentGenotype, network
from fastnas.supernet import build_recurrent, gradients, mean_loss, narrow, perplexity
from fastnas.supernet.anomaly import account, random_state, step_watched

EVALUATION_STREAMS = 10
SCATTER = 5  # standard deviation of a window's length
LONGEST = 20  # words by which it may be longer than bptt


class TextTrainer:
    """Corpus, network and optimiser of a retraining on text (the protocol ``Trainer``).

    The learning rate stays what it is, times a window's length over ``bptt``. From the epoch on in which the validation
    loss is above the lowest of all but the last ``patience`` epochs, the network that is tested is the mean of the
    weights after each step since then. The result is that of the weights with the lowest validation loss.
    """

    unit = "word"

    def __init__(
        self,
        config: RetrainConfig,
        genotype: AnyGenotype,
        device: torch.device,
        interrupt: Interrupt,
        corpus: Corpus | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        from fastnas.describe import (
            describe,  # here: `python -m fastnas.describe` is to find it not yet imported
        )

        self.config, self.device, self.interrupt, self.ranks = config, device, interrupt, ranks
        self.tally: Tally | None = None
        assert isinstance(genotype, RecurrentGenotype)
        run, optimiser, text = config.run, config.optimiser, config.text
        if run.compile == "on":
            raise FastnasError("--compile on is for images: leave it out")
        corpus = corpus or read_corpus(config.images.dataset, config.images.data)
        batch_size = filled(config.images.batch_size)
        ranks.check_divides(batch_size)
        self.train = streams(corpus.train, batch_size)[:, ranks.shard.of(batch_size)].contiguous().to(device)
        evaluated = ranks.shard.of(EVALUATION_STREAMS)
        self.valid, self.test = (
            streams(part, EVALUATION_STREAMS, "a number of streams of")[:, evaluated].contiguous().to(device)
            for part in (corpus.valid, corpus.test)
        )
        self.test_text = corpus.test.to(device)
        self.size = (len(self.train) - 1) * batch_size
        space = network(
            genotype,
            filled(text.hidden_size),
            words=len(corpus.words),
            dropout=text.rates,
            slowness=filled(text.slowness),
        )
        self.reads: dict[str, Any] = {"words": len(corpus.words)}
        described = describe(space)
        self.parameters, self.macs = described.parameters, described.macs
        torch.manual_seed(run.seed)
        self.precision = torch.bfloat16 if run.dtype == "bf16" else None
        dtype = torch.float64 if run.dtype == "float64" else torch.float32
        self.net = build_recurrent(space, backend="reference", dtype=dtype, device=device)
        w = self.net.weights.flat
        self.optimiser = Sgd(
            w,
            momentum=filled(optimiser.momentum),
            weight_decay=filled(optimiser.weight_decay),
            clip=optimiser.grad_clip or math.inf,
            nesterov=bool(optimiser.nesterov),
        )
        self.guard = Guard(self.optimiser, self.net.running.flat)
        self.notices = Notices(0, device)
        self.average, self.best = torch.zeros_like(w), torch.zeros_like(w)
        # On the CPU: 1 + the steps in the mean, 0 before it begins; all epochs' validation losses, infinite at first.
        self.averaged = torch.zeros((), dtype=torch.int64)
        self.losses = torch.full((config.epochs,), math.inf, dtype=torch.float64)
        if ranks.size > 1:
            torch.manual_seed(ranks.own_seed(run.seed))  # weights are alike, masks are not

    def epoch(self, epoch: int, bar: tqdm[Any], saving: Saving) -> dict[str, Any]:
        """Trains on the whole text in windows of random lengths, then validates and tests; the row of metrics."""
        rate, bptt = filled(self.config.optimiser.learning_rate), filled(self.config.text.bptt)
        if self.tally is None:
            loss = torch.zeros((), dtype=torch.float64, device=self.device)
            self.tally = Tally({"loss": loss, "hidden": self.net.initial_state(self.train.shape[1])})
        tally, sums = self.tally, self.tally.tensors
        self.notices = Notices(epoch, self.device, tally.steps, say=self.ranks.is_first)
        windows = window_lengths(len(self.train), bptt, self.config.run.seed, epoch)
        for start, length in islice(windows, tally.steps, None):
            saving.between_steps()
            words, targets = window(self.train, start, length)
            watch, hidden = Watch(), sums["hidden"]
            with self.notices.naming():
                its_loss, sums["hidden"] = self.step(words, hidden, targets, rate * length / bptt, watch)
            watch.send()
            self.notices.add(watch)
            count = len(targets) * self.ranks.size
            sums["loss"] += its_loss * count
            tally.steps, tally.seen = tally.steps + 1, tally.seen + count
            if bar.update(count):  # reading the number waits for the device
                bar.set_postfix(
                    {"loss": f"{its_loss.item():.3f}", "perplexity": f"{perplexity(its_loss.item()):.1f}"}
                )
        saving.between_steps()
        self.notices.finish()
        trained = tally.seconds
        with saving.state_kept():
            losses = self._losses()
        row: dict[str, Any] = {
            "epoch": epoch,
            "learning_rate": rate,
            "averaged_steps": max(int(self.averaged) - 1, 0),
            "train_loss": sums["loss"].item() / tally.seen,
            **self._judged(epoch, *losses),
        }
        for name in ("train_loss", "val_loss", "test_loss"):
            if not math.isfinite(row[name]):
                raise NotFiniteError(f"epoch {epoch}: {name} became {row[name]}")
        self.tally = None
        return row | {
            "seconds": tally.seconds,
            "words_per_second": tally.seen / trained,
            "peak_memory_bytes": peak_memory(self.device),
        }

    def step(
        self, words: Tensor, hidden: Tensor, targets: Tensor, rate: float, watch: Watch | None = None
    ) -> tuple[Tensor, Tensor]:
        """One step of SGD, and of the mean once there is one; the loss before it, and the next hidden state.

        Where the step is not finite, nothing moves, and the watch says so when it is read; without one it is read at
        once, which waits for the device.
        """
        batch, random = {"the words": words, "the hidden state": hidden}, random_state(self.net)
        self.net.train()
        self.optimiser.set_rate(rate)
        self.guard.begin()

        def again() -> Tensor:
            return self._value(words, hidden, targets)[0]

        with step_watched(self.config.run.detect_anomaly, self.net, again, batch):
            total, loss = self._value(words, hidden, targets)
            (grad,) = gradients(total, self.net.weights)
        carried = self.net.carried()[0].to(hidden.dtype)
        hits = torch.zeros((), dtype=torch.int64, device=self.device)  # nobody counts words that were right
        seen, loss, _ = self.guard.move_with(self.ranks, total, grad, loss.detach(), hits)
        self.guard.report(watch, seen, partial(account, self.net, again, batch, random))
        if self.averaged:
            self._add_to_average()
        return loss, carried

    def _value(self, words: Tensor, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """A step's forward pass: what it differentiates, and the loss without the penalty in it."""
        with narrow(self.device, self.precision):
            logits = self.net(words, hidden)
        loss, penalty = F.cross_entropy(logits.to(hidden.dtype), targets), self.net.penalty(targets)
        return loss if penalty is None else loss + penalty, loss

    def _add_to_average(self) -> None:
        with torch.no_grad():
            self.average.lerp_(self.net.weights.flat, 1 / int(self.averaged))
        self.averaged += 1

    def _losses(self) -> tuple[float, float]:
        """Validation and test loss of the network that is tested."""
        bptt = filled(self.config.text.bptt)
        with self._tested():
            val, test = (
                mean_loss(
                    self.net, Windows(text, bptt, drop_last=False), self.interrupt.check, self.ranks.sum_
                )
                for text in (self.valid, self.test)
            )
        return val, test

    def _judged(self, epoch: int, val: float, test: float) -> dict[str, float]:
        """The row's entries of these losses; the best network is kept, and averaging begins when it is time to."""
        if val < self.losses.min():
            with self._tested():
                self.best.copy_(self.net.weights.flat)
        if not self.averaged and averaging_begins(
            self.losses[: epoch - 1].tolist(), val, filled(self.config.text.patience)
        ):
            self.averaged += 1
        self.losses[epoch - 1] = val
        return {
            "val_loss": val,
            "val_perplexity": perplexity(val),
            "test_loss": test,
            "test_perplexity": perplexity(test),
        }

    @contextmanager
    def _tested(self) -> Iterator[None]:
        """Within it the network has the mean of its weights, if there is one."""
        if self.averaged <= 1:
            yield
            return
        w = self.net.weights.flat
        saved = w.clone()
        w.copy_(self.average)
        try:
            yield
        finally:
            w.copy_(saved)

    def line(self, row: Mapping[str, Any]) -> list[str]:
        """The row for people, phrase by phrase."""
        return [
            f"train loss {row['train_loss']:.3f}",
            f"val perplexity {row['val_perplexity']:.2f}",
            f"test perplexity {row['test_perplexity']:.2f}",
            *(["mean of weights"] if row["averaged_steps"] else []),
        ]

    def tensors(self) -> dict[str, Tensor]:
        """Weights, their mean, the best of them, the losses so far and the momentum, live."""
        state = {
            "weights": self.net.weights.flat,
            "average": self.average,
            "averaged": self.averaged,
            "best": self.best,
            "losses": self.losses,
        }
        return state | {f"sgd.{name}": tensor for name, tensor in self.optimiser.state().items()}

    def weights(self) -> dict[str, Tensor]:
        """The weights of the epoch with the lowest validation loss, by name."""
        return {name: self.net.weights.part(self.best, name) for name in self.net.weights.tensors}

    def result(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """Perplexities at the weights with the lowest validation loss, the test's in one stream; cost and speed."""
        best = min(rows, key=lambda row: row["val_loss"])
        self.net.weights.flat.copy_(self.best)
        text = Windows(streams(self.test_text, 1), filled(self.config.text.bptt), drop_last=False)
        test = mean_loss(self.net, text, self.interrupt.check)
        return {
            "test_loss": test,
            "test_perplexity": perplexity(test),
            "val_perplexity": best["val_perplexity"],
            "best_epoch": best["epoch"],
            "test_words": len(self.test_text) - 1,
            "multiply_adds": self.macs,
            "words_per_second": len(rows) / sum(1 / row["words_per_second"] for row in rows),
        }


def window_lengths(rows: int, bptt: int, seed: int, epoch: int) -> Iterator[tuple[int, int]]:
    """Begin and length of an epoch's windows over ``rows`` of text: about ``bptt`` words, one time in 20 half of it.

    Normal with a standard deviation of 5, at least 5 and at most bptt + 20 words (Merity et al. 2018, section 5); a
    function of seed and epoch alone. The last one may be longer than what is left.
    """
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    begin = 0
    while begin < rows - 2:  # one word to read and one to say are left out, as DARTS does
        usual = bptt if torch.rand((), generator=generator) < 0.95 else bptt / 2
        length = int(torch.normal(float(usual), SCATTER, (1,), generator=generator))
        length = min(max(SCATTER, length), bptt + LONGEST)
        yield begin, length
        begin += length


def averaging_begins(losses: list[float], newest: float, patience: int) -> bool:
    """Whether the newest validation loss is above the lowest of all but the last ``patience`` before it.

    >>> averaging_begins([5.0, 4.0, 3.0], 4.5, 1), averaging_begins([5.0, 4.0, 3.0], 4.5, 3)
    (True, False)
    """
    return len(losses) > patience and newest > min(losses[:-patience])
