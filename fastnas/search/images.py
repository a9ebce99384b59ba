"""The task of a search on images: classify them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastnas.data import Batches, Dataset, channel_statistics, load_dataset, split
from fastnas.errors import FastnasError
from fastnas.runs.options import filled
from fastnas.runs.ranks import ALONE, Ranks
from fastnas.runs.schedule import drop_path
from fastnas.search.config import SearchConfig, weight_dtype
from fastnas.spaces import make_space, with_auxiliary
from fastnas.supernet import Batch, Executor, Supernet, build_supernet


class ImageTask:
    """Batches of images and labels, cut out of one data set; see ``fastnas.search.task.Task``."""

    unit, bar_unit = "images", "img"

    def __init__(
        self,
        config: SearchConfig,
        device: torch.device,
        dataset: Dataset | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        self.config, self.device, self.ranks = config, device, ranks
        images, batch_size = config.images, filled(config.images.batch_size)
        self.dataset = dataset or load_dataset(images.dataset, images.data, image_size=images.image_size)
        weight_split, alpha_split = split(
            self.dataset, images.train_portion, limit=images.images, seed=config.run.seed
        )
        mean, std = channel_statistics(weight_split)
        weight_split, alpha_split = weight_split.to(device), alpha_split.to(device)
        self.train, self.val = (
            Batches(
                part,
                batch_size,
                mean=mean,
                std=std,
                augment=config.augment,
                generator=torch.Generator(device),
                shard=ranks.shard,
            )
            for part in (weight_split, alpha_split)
        )
        self.evaluation, self.weight_evaluation = (
            Batches.evaluation(part, batch_size, mean=mean, std=std, shard=ranks.shard)
            for part in (alpha_split, weight_split)
        )
        self.size = len(weight_split)
        self.dtype = weight_dtype(config.network.dtype)

    def check_inner_steps(self, inner_steps: int) -> None:
        """Raises a FastnasError if an epoch has fewer batches than an alpha step needs."""
        if inner_steps > len(self.train):
            raise FastnasError(
                f"--inner-steps {inner_steps} is more than the {len(self.train)} batches of "
                f"{self.config.images.batch_size} that the weight split of {self.size} images gives in an epoch; "
                "take fewer inner steps, a smaller --batch-size or more images"
            )

    def supernet(self) -> Supernet:
        """The supernet of the space for these images; weights from torch's current random state."""
        network = self.config.network
        space = make_space(
            network.space,
            channels=network.channels,
            layers=network.layers,
            classes=len(self.dataset.classes),
            image_channels=self.dataset.channels,
            primitives=network.primitives,
        )
        net = build_supernet(
            with_auxiliary(space) if network.auxiliary else space,
            backend=network.backend,
            dtype=self.dtype,
            device=self.device,
            recompute=network.recompute,
        )
        net.auxiliary_weight = filled(network.auxiliary)
        if network.drop_path:
            net.drop_path = torch.zeros((), dtype=torch.float32, device=self.device)
        return net

    def prepare(self, net: Executor, epoch: int) -> None:
        """Sets drop-path's probability."""
        if isinstance(net, Supernet) and net.drop_path is not None:
            final, epochs = filled(self.config.network.drop_path), filled(self.config.optimiser.epochs)
            net.drop_path.fill_(drop_path(final, epochs, epoch))

    def states(self, net: Executor) -> dict[str, Tensor]:
        """Nothing is carried from batch to batch."""
        return {}

    def size_flags(self) -> str:
        """The flags that say how large the supernet is, with their values."""
        return f"--channels {self.config.network.channels} --layers {self.config.network.layers}"

    def cast(self, batch: Batch) -> Batch:
        """A batch in the precision of the weights."""
        return batch[0].to(self.dtype), batch[1]

    def first_batches(self, net: Executor) -> tuple[Batch, Batch]:
        """The first images of either split, without augmentation."""
        train, val = (self.cast(next(iter(part))) for part in (self.weight_evaluation, self.evaluation))
        return train, val

    @torch.no_grad()
    def evaluate(self, net: Executor, check: Callable[[], None]) -> dict[str, Any]:
        """Loss and accuracy over alpha's whole split, in evaluation mode, without augmentation.

        Each rank's BatchNorms have seen its own shards: the mean of their running statistics is what all evaluate with.
        """
        with self.ranks.averaged(net.running.flat):
            return self._evaluate(net, check)

    def _evaluate(self, net: Executor, check: Callable[[], None]) -> dict[str, Any]:
        net.eval()
        loss = torch.zeros((), dtype=self.dtype, device=self.device)
        correct = torch.zeros((), dtype=torch.int64, device=self.device)
        for images, labels in map(self.cast, self.evaluation):
            check()
            if not len(labels):  # the last batch may have fewer images than there are ranks
                continue
            logits = net(images)
            loss += F.cross_entropy(logits, labels, reduction="sum")
            correct += (logits.argmax(1) == labels).sum()
        net.train()
        count = len(self.evaluation.dataset)
        total, hits = self.ranks.sum_(torch.stack([loss, correct])).tolist()
        return {"val_loss": total / count, "val_accuracy": hits / count}

    def metrics(self, train_loss: float, hits: float, found: dict[str, Any]) -> dict[str, Any]:
        """Losses and accuracies of both splits."""
        return {"train_loss": train_loss, "train_accuracy": hits, **found}

    def shown(self, loss: float, hits: float) -> dict[str, str]:
        """What the progress bar shows of a step."""
        return {"loss": f"{loss:.3f}", "acc": f"{100 * hits:.1f}%"}

    def shown_of(self, row: dict[str, Any]) -> dict[str, str]:
        """What it shows of the epoch before."""
        return {"val acc": f"{100 * row['val_accuracy']:.1f}%"}

    def line(self, row: dict[str, Any]) -> list[str]:
        """Losses and accuracies of an epoch."""
        return [
            f"{split} loss {row[f'{split}_loss']:.3f} acc {100 * row[f'{split}_accuracy']:.1f}%"
            for split in ("train", "val")
        ]
