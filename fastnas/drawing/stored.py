"""The architecture parameters that a search left in its folder, and the space that they are of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from fastnas.errors import FastnasError
from fastnas.spaces import Space, make_space

if TYPE_CHECKING:
    from fastnas.search import SearchConfig


def searched_space(config: SearchConfig) -> Space:
    """The supernet of a search's configuration; its number of classes, which is the data's, is left open."""
    network = config.network
    return make_space(network.space, layers=network.layers, primitives=network.primitives)


def stored_alphas(folder: Path) -> tuple[dict[str, Tensor], Space] | None:
    """Those of the newest epoch whose genotype is the run's, or that an early stop went back to; None: none are there.

    Raises:
        FastnasError: they, or the run's configuration, cannot be read.
    """
    try:
        files = sorted((folder / "alphas").glob("epoch-*.safetensors"), reverse=True)
        if not files:
            return None
        config = _config(folder)
        back = _gone_back(folder, config)
        wanted = (folder / "genotype.json").read_bytes()
        for file in sorted(files, key=lambda file: file.stem != back):
            genotype = folder / "genotypes" / f"{file.stem}.json"
            if genotype.is_file() and genotype.read_bytes() == wanted:
                return load_file(file), searched_space(config)
    except FastnasError:
        raise
    except (OSError, ValueError, SafetensorError) as error:
        raise FastnasError(f"the alphas of the run {folder} cannot be read: {error}") from None
    return None


def _config(folder: Path) -> SearchConfig:
    from fastnas.search.checkpoint import read_config  # here: a search brings data sets and compilers along

    return read_config(folder / "config.json")


def _gone_back(folder: Path, config: SearchConfig) -> str:
    """The name of the epoch that an early stop went back to; "": none did."""
    from fastnas.search.curvature import observed
    from fastnas.search.early_stop import EarlyStop

    if not config.curvature.early_stop:
        return ""
    rule, stop = EarlyStop(), None
    for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        stop = stop or observed(rule, json.loads(line))
    return f"epoch-{stop.epoch:03d}" if stop is not None else ""
