"""The architecture parameters that a search left in its folder, and the space that they are of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from fastnas.errors import FastnasError
from fastnas.spaces import Space, make_space


def searched_space(config: Any) -> Space:
    """The supernet of a search's configuration; its number of classes, which is the data's, is left open."""
    network = config.network
    return make_space(network.space, layers=network.layers, primitives=network.primitives)


def stored_alphas(folder: Path) -> tuple[dict[str, Tensor], Space] | None:
    """Those of the newest epoch whose genotype is the run's; None: ``folder`` holds none."""
    try:
        files = sorted((folder / "alphas").glob("epoch-*.safetensors"), reverse=True)
        wanted = (folder / "genotype.json").read_bytes() if files else b""
        for file in files:
            genotype = folder / "genotypes" / f"{file.stem}.json"
            if genotype.is_file() and genotype.read_bytes() == wanted:
                return load_file(file), _space(folder)
    except (OSError, ValueError, SafetensorError) as error:
        raise FastnasError(f"the alphas of the run {folder} cannot be read: {error}") from None
    return None


def _space(folder: Path) -> Space:
    from fastnas.search import SearchConfig  # here: a search brings torch's compiler and data sets along
    from fastnas.search.checkpoint import read_config

    config: SearchConfig = read_config(folder / "config.json")
    return searched_space(config)
