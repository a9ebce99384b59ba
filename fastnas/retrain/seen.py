"""Whether the search that found a cell has looked at the images that its network is tested on."""

from __future__ import annotations

from pathlib import Path

from fastnas.errors import FastnasError
from fastnas.retrain.config import NO_TEST_SET, RetrainConfig
from fastnas.search.checkpoint import read_config


def seen_by_the_search(config: RetrainConfig, train_images: int) -> str | None:
    """A sentence if the search, a folder that ``--genotype`` names, drew some of the images that are held out.

    Args:
        config: resolved.
        train_images: how many the network is trained on: those before the ones held out, in the seed's order.
    """
    images = config.images
    if images.dataset not in NO_TEST_SET or images.test_data is not None:
        return None
    run = Path(str(config.network.genotype))
    try:
        search = read_config(run / "config.json")
    except FastnasError:  # a genotype as text, or of another run
        return None
    its = search.images
    if (its.dataset, its.data) != (images.dataset, images.data):
        return None
    if its.images is not None and its.images <= train_images and search.run.seed == config.run.seed:
        return None
    return (
        f"the search in {run} has seen images that are held out here for the test: a search with "
        f"--images {train_images} --seed {config.run.seed} draws just the others"
    )
