"""Folders as searches leave them, without the searches: for pages that are made of them. None of it is measured."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastnas.search import SearchConfig
from fastnas.search.folder import RunFolder
from fastnas.spaces import AnyGenotype, Space, family, make_space

PROVENANCE = {
    "arguments": ["--images", "600"],
    "python": "3.11.2",
    "platform": "Linux",
    "commit": "0" * 40,
    "device": "cpu",
    "threads": 1,
    "started": "2026-01-01T00:00:00+00:00",
}


def make_run(
    path: Path, *, epochs: int, noise: float = 0.4, seed: int = 0, extras: bool = False, **options: Any
) -> Path:
    """A search's folder of so many epochs at ``path``, written by what searches write theirs by.

    Alpha walks at random from zero, and each epoch's lies ``noise`` beside the walk: with noise in a large space every
    genotype is another one. The other numbers are curves with noise, too.

    Args:
        path: the folder; it must not exist.
        epochs: rows of metrics, genotypes and alphas.
        noise: standard deviation.
        seed: of all of it.
        extras: audits and spectra are in the rows, too.
        **options: of the search's configuration.
    """
    asked = {"space": "darts", "images": 600, "seed": seed, **options, "epochs": epochs, "out": path}
    config = SearchConfig.from_options(asked).resolved()
    name, primitives = config.network.space, config.network.primitives
    folder, space = RunFolder(path), make_space(name, primitives=primitives, layers=config.network.layers)
    folder.start(config, provenance=PROVENANCE)
    derive = family(name, primitives).derive
    with folder.resumable():
        for epoch, alphas in enumerate(_walk(space, epochs, noise, seed), start=1):
            genotype = derive(alphas)
            folder.record(config, _row(epoch, epochs, genotype, alphas, seed, extras), genotype, alphas)
    return path


def _walk(space: Space, epochs: int, noise: float, seed: int) -> Iterator[dict[str, Tensor]]:
    generator = np.random.default_rng(seed)
    walked = {alpha.name: np.zeros(alpha.shape) for alpha in space.alphas}
    for _ in range(epochs):
        for alpha in walked.values():
            alpha += generator.normal(0, 0.8 / math.sqrt(epochs), alpha.shape)
        yield {
            name: torch.from_numpy(alpha + generator.normal(0, noise, alpha.shape)).float()
            for name, alpha in walked.items()
        }


def _row(
    epoch: int, epochs: int, genotype: AnyGenotype, alphas: Mapping[str, Tensor], seed: int, extras: bool
) -> dict[str, Any]:
    """What a search of images writes of an epoch."""
    generator = np.random.default_rng((seed, epoch))
    share = epoch / epochs
    probabilities = [torch.softmax(alpha.double(), dim=-1) for alpha in alphas.values()]
    entropies = [-(p * p.log()).sum(-1).mean().item() for p in probabilities]
    text = str(genotype)
    row = {
        "epoch": epoch,
        "learning_rate": 0.001 + 0.012 * (1 + math.cos(math.pi * (epoch - 1) / epochs)),
        "train_loss": 2.2 * math.exp(-3 * share) + 0.02 * generator.random(),
        "train_accuracy": 1 - 0.9 * math.exp(-4 * share) - 0.01 * generator.random(),
        "val_loss": 2.2 * math.exp(-2.5 * share) + 0.1 * generator.random(),
        "val_accuracy": 0.95 - 0.85 * math.exp(-4 * share) - 0.02 * generator.random(),
        "hypergradient_norm": 10 ** (-3 * share) * (0.5 + generator.random()),
        "hypergradient_warnings": int(generator.integers(0, 3)),
        "alpha_entropy": sum(entropies) / len(entropies),
        "skip_share": text.count("skip_connect") / max(1, text.count("_")),
        "seconds": 10 + generator.random(),
        "images_per_second": 60 + generator.random(),
        "peak_memory_bytes": 600_000_000,
        "genotype": text,
    }
    return {**row, **_extras(generator)} if extras else row


def _extras(generator: np.random.Generator) -> dict[str, Any]:
    cosine = 0.9 + 0.1 * generator.random()
    return {
        "audit_against": "idarts, exact products",
        "audit_cosine": cosine,
        "audit_relative_error": math.sqrt(1 - cosine**2),
        "audit_term_cosine": 0.6 * cosine,
        "hessian_lambda_max": 10 + generator.random(),
        "hessian_lambda_min": -generator.random(),
        "hessian_asymmetry": 1e-7,
        "alpha_hessian_lambda_max": 0.03 * generator.random(),
        "alpha_hessian_lambda_min": -0.01 * generator.random(),
        "alpha_hessian_asymmetry": 1e-8,
    }
