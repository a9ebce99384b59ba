"""The network that a retraining trains, as data: from its configuration, or from the folder that it left."""

from __future__ import annotations

import json
from pathlib import Path

from fastnas.errors import FastnasError
from fastnas.retrain.config import RetrainConfig
from fastnas.retrain.folder import RetrainFolder, read_config
from fastnas.spaces import AnyGenotype, Space, make_network, read_genotype, with_auxiliary, with_imagenet_stem


def network_of(config: RetrainConfig, genotype: AnyGenotype, classes: int, image_channels: int) -> Space:
    """The network that a resolved configuration trains, as data."""
    network, imagenet = config.network, config.images.dataset == "imagenet"
    space = make_network(
        config.space,
        genotype,
        channels=network.channels,
        layers=network.layers,
        classes=classes,
        image_channels=image_channels,
    )
    if imagenet:
        space = with_imagenet_stem(space)
    if network.auxiliary:
        space = with_auxiliary(space, 2 if imagenet else 3, normalise_last=not imagenet)
    return space


def trained_network(path: Path) -> tuple[Space, int | tuple[int, int]] | None:
    """The network that was trained in the folder ``path`` and the size of its images; None: that is no retraining's.

    Raises:
        FastnasError: the folder's config.json was cut short or edited.
    """
    folder = RetrainFolder(path)
    try:
        content = json.loads(folder.config_file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(content, dict) or content.get("command") != RetrainFolder.COMMAND:
        return None
    config, reads = read_config(folder.config_file), content.get("reads", {})
    genotype = read_genotype(config.space, folder.genotype_file)
    try:
        if "words" in reads:
            words = _whole(reads["words"])
            return make_network(config.space, genotype, channels=config.text.hidden_size, classes=words), 32
        height, width = map(_whole, reads["image_size"])
        classes, image_channels = _whole(reads["classes"]), _whole(reads["image_channels"])
        return network_of(config, genotype, classes, image_channels), (height, width)
    except (KeyError, TypeError, ValueError):
        raise FastnasError(
            f"{folder.config_file} does not say what the network reads; it was edited"
        ) from None


def _whole(value: object) -> int:
    if type(value) is not int:
        raise TypeError("no whole number")
    return value
