"""Training a genotype's network on images."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from fastnas._measure import peak_memory
from fastnas.bilevel import NotFiniteError, Watch
from fastnas.data.batches import Batch
from fastnas.errors import FastnasError
from fastnas.retrain.config import RetrainConfig
from fastnas.retrain.network import network_of
from fastnas.retrain.sources import Source, source_of
from fastnas.retrain.trainer import Tally
from fastnas.runs.guard import Guard
from fastnas.runs.interrupt import Interrupt
from fastnas.runs.notices import Notices
from fastnas.runs.optimiser import Sgd
from fastnas.runs.ranks import ALONE, Ranks
from fastnas.runs.saving import Saving
from fastnas.runs.schedule import drop_path, learning_rate
from fastnas.spaces.family import AnyGenotype
from fastnas.supernet import Supernet, build_supernet, check_auxiliary, gradients, narrow
from fastnas.supernet.anomaly import account, random_state, step_watched

Heads = Callable[[Tensor], tuple[Tensor, Tensor | None]]


class ImageTrainer:
    """Data, network and optimiser of a retraining on images (the protocol ``Trainer``)."""

    unit = "img"

    def __init__(
        self,
        config: RetrainConfig,
        genotype: AnyGenotype,
        device: torch.device,
        interrupt: Interrupt,
        source: Source | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        from fastnas.describe import (
            describe,  # here: `python -m fastnas.describe` is to find it not yet imported
        )

        self.config, self.device, self.interrupt, self.ranks = config, device, interrupt, ranks
        self.tally: Tally | None = None
        self.batch_size = config.images.batch_size or 1
        ranks.check_divides(self.batch_size)
        self.source = source or source_of(config, device, ranks.shard)
        self.space = network_of(config, genotype, self.source.classes, self.source.channels)
        self.size = self.source.train_images
        self.reads: dict[str, Any] = {
            "classes": self.source.classes,
            "image_channels": self.source.channels,
            "image_size": self.source.size,
            "class_names": self.source.names,
            "mean": self.source.mean,
            "std": self.source.std,
        }
        described = describe(self.space, self.source.size)
        self.parameters, self.macs = described.parameters, described.macs
        if self.space.auxiliary is not None:
            check_auxiliary(self.space.auxiliary, *described.stages[self.space.auxiliary.stage].output[1:])
        _check_batches(self.size, self.batch_size, ranks.size)
        torch.manual_seed(config.run.seed)
        run, optimiser = config.run, config.optimiser
        self.dtype = torch.float64 if run.dtype == "float64" else torch.float32
        self.precision = torch.bfloat16 if run.dtype == "bf16" else None
        self.net = build_supernet(self.space, backend="reference", dtype=self.dtype, device=device)
        if config.network.drop_path:
            self.net.drop_path = torch.zeros((), dtype=torch.float32, device=device)
        self.optimiser = Sgd(
            self.net.weights.flat,
            momentum=optimiser.momentum or 0.0,
            weight_decay=optimiser.weight_decay or 0.0,
            clip=optimiser.grad_clip or math.inf,
            nesterov=bool(optimiser.nesterov),
        )
        self.guard = Guard(self.optimiser, self.net.running.flat)
        self.notices = Notices(0, device)
        if device.type == "cuda" and not run.deterministic:
            torch.backends.cudnn.benchmark = True  # all batches but the last have one shape
        self.compiled = compiled_heads(self.net, config, device)
        if ranks.size > 1:
            torch.manual_seed(ranks.own_seed(run.seed))  # weights are alike, masks are not

    def epoch(self, epoch: int, bar: tqdm[Any], saving: Saving) -> dict[str, Any]:
        """Trains on all images that are left of it, tests on all test images; the row of metrics."""
        if self.net.drop_path is not None:
            self.net.drop_path.fill_(
                drop_path(self.config.network.drop_path or 0.0, self.config.epochs, epoch)
            )
        if self.tally is None:
            self.tally = Tally({"loss": self._zero(self.dtype), "correct": self._zero(torch.int64)})
        tally = self.tally
        self.notices = Notices(epoch, self.device, tally.steps, say=self.ranks.is_first)
        loss, correct = tally.tensors["loss"], tally.tensors["correct"]
        steps = math.ceil(self.size / self.batch_size)
        for batch in self._cast(self.source.train(epoch, tally.steps)):
            saving.between_steps()
            watch, rate = Watch(), self.learning_rate(epoch, tally.steps / steps)
            count = min(self.batch_size, self.size - tally.steps * self.batch_size)
            with self.notices.naming():
                its_loss, its_correct = self.step(batch, rate, watch, count)
            watch.send()
            self.notices.add(watch)
            loss += its_loss * count
            correct += its_correct
            tally.steps, tally.seen = tally.steps + 1, tally.seen + count
            if bar.update(count):  # reading the numbers waits for the device
                bar.set_postfix(
                    {"loss": f"{its_loss.item():.3f}", "acc": f"{100 * correct.item() / tally.seen:.1f}%"}
                )
        saving.between_steps()
        self.notices.finish()
        row: dict[str, Any] = {
            "epoch": epoch,
            "learning_rate": self.learning_rate(epoch),
            "drop_path": 0.0 if self.net.drop_path is None else self.net.drop_path.item(),
            "train_loss": loss.item() / tally.seen,
            "train_accuracy": correct.item() / tally.seen,
        }
        trained = tally.seconds
        with saving.state_kept():
            row |= self._test()
        for name in ("train_loss", "test_loss"):
            if not math.isfinite(row[name]):
                raise NotFiniteError(f"epoch {epoch}: {name} became {row[name]}")
        self.tally = None
        return row | {
            "seconds": tally.seconds,
            "images_per_second": tally.seen / trained,
            "peak_memory_bytes": peak_memory(self.device),
        }

    def learning_rate(self, epoch: int, within: float = 0.0) -> float:
        """Of a step, ``within`` being the share of its epoch that was done before it."""
        o = self.config.optimiser
        return learning_rate(
            o.schedule or "", o.learning_rate or 0.0, o.epochs or 0, epoch, within, o.warm_up_epochs or 0
        )

    def step(
        self, batch: Batch, rate: float, watch: Watch | None = None, count: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """One step of SGD; the head's loss before it and how many images it got right, left on the device.

        Of ``count`` images of all ranks together, None: as many as this one has.

        Where the step is not finite, nothing moves, and the watch says so when it is read; without one it is read at
        once, which waits for the device.
        """
        random, by_name = random_state(self.net), {"the images": batch[0], "the labels": batch[1]}
        self.net.train()
        self.optimiser.set_rate(rate)
        self.guard.begin()

        def again() -> Tensor:
            return self._value(batch, self.net.heads)[0]

        with step_watched(self.config.run.detect_anomaly, self.net, again, by_name):
            loss, head, logits = self._value(batch, self._heads(batch[0]))
            (grad,) = gradients(loss, self.net.weights)
        hits = (logits.detach().argmax(1) == batch[1]).sum()
        share = len(batch[1]) / (count or len(batch[1]))
        seen, head, hits = self.guard.move_with(self.ranks, loss, grad, head.detach(), hits, share)
        self.guard.report(watch, seen, partial(account, self.net, again, by_name, random))
        return head, hits

    def _value(self, batch: Batch, heads: Heads) -> tuple[Tensor, Tensor, Tensor]:
        """A step's forward pass: what it differentiates, the head's part of it, and the head's logits."""
        images, labels = batch
        with narrow(self.device, self.precision):
            logits, auxiliary = heads(images)
        smoothing = self.config.optimiser.label_smoothing or 0.0
        head = F.cross_entropy(logits.to(self.dtype), labels, label_smoothing=smoothing)
        loss = head
        if auxiliary is not None:
            weight = self.config.network.auxiliary or 0.0
            loss = head + weight * F.cross_entropy(
                auxiliary.to(self.dtype), labels, label_smoothing=smoothing
            )
        return loss, head, logits

    @torch.no_grad()
    def _test(self) -> dict[str, float]:
        """Loss and accuracy over all test images, in evaluation mode, by the ranks' mean statistics."""
        with self.ranks.averaged(self.net.running.flat):
            return self._tested()

    def _tested(self) -> dict[str, float]:
        self.net.eval()
        loss = self._zero(self.dtype)
        hits = self._zero(torch.int64, 2)
        for images, labels in self._cast(self.source.test()):
            self.interrupt.check()
            if not len(labels):  # the last batch may have fewer images than there are ranks
                continue
            with narrow(self.device, self.precision):
                logits, _ = self._heads(images)(images)
            loss += F.cross_entropy(logits.to(self.dtype), labels, reduction="sum")
            right = logits.topk(min(5, logits.shape[1])).indices == labels[:, None]
            hits += torch.stack([right[:, 0].sum(), right.sum()])
        top1, top5 = (self.ranks.sum_(hits).double() / self.source.test_images).tolist()
        total = self.ranks.sum_(loss).item()
        row = {"test_loss": total / self.source.test_images, "test_accuracy": top1}
        return row if self.source.classes <= 5 else row | {"test_top5": top5}  # of five all are right

    def _heads(self, images: Tensor) -> Heads:
        """Compiled for whole batches; the last one of a pass runs as it is, in less time than a second compilation."""
        return self.compiled if len(images) * self.ranks.size == self.batch_size else self.net.heads

    def _cast(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        return ((images.to(self.dtype), labels) for images, labels in batches)

    def _zero(self, dtype: torch.dtype, *shape: int) -> Tensor:
        return torch.zeros(shape, dtype=dtype, device=self.device)

    def line(self, row: Mapping[str, Any]) -> list[str]:
        """The row for people, phrase by phrase."""
        return [
            f"train loss {row['train_loss']:.3f} acc {100 * row['train_accuracy']:.1f}%",
            f"test loss {row['test_loss']:.3f} acc {100 * row['test_accuracy']:.2f}%",
        ]

    def tensors(self) -> dict[str, Tensor]:
        """Weights, running statistics and momentum, live."""
        state = {"weights": self.net.weights.flat, "running": self.net.running.flat}
        return state | {f"sgd.{name}": tensor for name, tensor in self.optimiser.state().items()}

    def weights(self) -> dict[str, Tensor]:
        """Weights and running statistics by name, as the network's modules call them."""
        return {**self.net.weights.tensors, **self.net.running.tensors}

    def result(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """Accuracies of the last epoch and of the best one, cost and speed."""
        best = max(rows, key=lambda row: row["test_accuracy"])
        return {
            "test_accuracy": rows[-1]["test_accuracy"],
            **{name: rows[-1][name] for name in ("test_top5",) if name in rows[-1]},
            "best_test_accuracy": best["test_accuracy"],
            "best_epoch": best["epoch"],
            "test_images": self.source.test_images,
            "multiply_adds": self.macs,
            "images_per_second": len(rows) / sum(1 / row["images_per_second"] for row in rows),
        }


def _check_batches(images: int, batch_size: int, processes: int) -> None:
    if batch_size > images:
        raise FastnasError(
            f"--batch-size {batch_size} is more than the {images} training images; choose a smaller one"
        )
    if (images % batch_size or batch_size) == 1:
        raise FastnasError(
            f"--batch-size {batch_size} leaves one of the {images} training images for a batch of its own, and batch "
            "normalisation needs two; choose another size"
        )
    if processes > 1 and (last := images % batch_size or batch_size) < 2 * processes:
        raise FastnasError(
            f"--batch-size {batch_size} leaves {last} of the {images} training images for the last batch, fewer than "
            f"the two for each of {processes} processes that batch normalisation needs; choose another size"
        )


def compiled_heads(net: Supernet, config: RetrainConfig, device: torch.device) -> Heads:
    """``net.heads``, by torch.compile if the configuration says so: auto is on a GPU. Not to detect anomalies."""
    if config.run.detect_anomaly:
        return net.heads
    if config.run.compile == "on" or (config.run.compile == "auto" and device.type == "cuda"):
        heads: Heads = torch.compile(net.heads, dynamic=False)
        return heads
    return net.heads
