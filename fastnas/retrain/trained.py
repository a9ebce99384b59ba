"""A trained network out of the folder that a retraining left, ready for other images."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from fastnas._paths import user_path
from fastnas.errors import FastnasError
from fastnas.retrain.folder import RetrainFolder
from fastnas.retrain.network import trained_network
from fastnas.spaces import Space
from fastnas.supernet import Supernet, build_supernet


class TrainedNetwork(nn.Module):
    """A network with what it needs to know of images: uint8 images (B, C, H, W) -> logits (B, classes).

    Attributes:
        network: what was trained, in plain PyTorch; it takes normalised images.
        classes: the classes' names, in the order of the logits.
        channels: C, 1 or 3.
        image_size: (H, W) of the images that it was trained on.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        network: Supernet,
        classes: tuple[str, ...],
        image_size: tuple[int, int],
        mean: tuple[float, ...],
        std: tuple[float, ...],
    ) -> None:
        super().__init__()
        self.network, self.classes, self.image_size, self.channels = network, classes, image_size, len(mean)
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != self.channels:
            raise FastnasError(
                f"a trained network takes uint8 images (B, {self.channels}, H, W), one as "
                f"read_image(...)[None], got {images.dtype} of shape {tuple(images.shape)}"
            )
        logits: Tensor = self.network((images / 255 - self.mean) / self.std)
        return logits


def load_network(path: str | Path) -> TrainedNetwork:
    """The network that a retraining on images left in the folder ``path``, in evaluation mode, on the CPU.

    ``net.classes[net(images).argmax(1)[0]]`` names the class of the first one.

    Raises:
        FastnasError: no such folder, a retraining that has not ended or was on text, or a file that was edited.
    """
    folder = RetrainFolder(user_path("a retraining's folder", path))
    found = trained_network(folder.path)
    if found is None:
        raise FastnasError(f"{folder.path} is no folder of a retraining: name the one that --out named")
    space, size = found
    if not (isinstance(space, Space) and isinstance(size, tuple)):
        raise FastnasError(f"{folder.path} holds a network of text, and load_network reads those of images")
    names, mean, std = _reads(folder)
    network = build_supernet(space, backend="reference")
    assert isinstance(network, Supernet)
    _fill(network, folder)
    return TrainedNetwork(network, names, size, mean, std).eval()


def _reads(folder: RetrainFolder) -> tuple[tuple[str, ...], tuple[float, ...], tuple[float, ...]]:
    """Names of the classes, mean and standard deviation of the channels."""
    reads = json.loads(folder.config_file.read_text(encoding="utf-8"))["reads"]
    try:
        names, mean, std = ([kind(x) for x in reads[key]] for key, kind in _KINDS.items())
        if (len(names), len(mean), len(std)) != (reads["classes"], *[reads["image_channels"]] * 2):
            raise ValueError
    except (KeyError, TypeError, ValueError):
        raise FastnasError(
            f"{folder.config_file} does not say how images are normalised and what the classes are called: it was "
            "edited, or written by an earlier version; train again"
        ) from None
    return tuple(names), tuple(mean), tuple(std)


_KINDS = {"class_names": str, "mean": float, "std": float}


def _fill(network: Supernet, folder: RetrainFolder) -> None:
    file = folder.path / "network.safetensors"
    if not file.is_file():
        raise FastnasError(
            f"{file} is missing, so the training has not ended; go on by python -m fastnas.retrain "
            f"--resume {folder.path}"
        )
    try:
        network.load_state_dict(load_file(file))
    except (SafetensorError, OSError, RuntimeError) as error:
        reason = str(error).splitlines()[0].rstrip(":.")
        raise FastnasError(f"{file} does not hold this network ({reason}); train again") from None
