"""Folders of runs as searches and retrainings leave them, written without any."""

import json

import torch
from safetensors.torch import save

from fastnas.search import SearchConfig
from fastnas.spaces import family, make_space
from fastnas.spaces.genotype import DARTS_PRIMITIVES


def write_search(path, *, epochs=4, seed=0, alphas=True, row=None, **options):
    """A search of ``epochs`` epochs whose numbers are drawn by ``seed``; its alphas by epoch."""
    config = SearchConfig.from_options(
        {"space": "darts", "epochs": epochs, "seed": seed, **options}
    ).resolved()
    path.mkdir(parents=True, exist_ok=True)
    content = {
        "command": "fastnas.search",
        "fastnas": "0.1.0",
        "torch": "2.13.0",
        "config": {**config.to_options(), "out": str(path)},
        "provenance": {"arguments": ["--epochs", str(epochs)], "python": "3.11.2", "commit": "0123abc"},
    }
    (path / "config.json").write_text(json.dumps(content))
    rng = torch.Generator().manual_seed(seed)
    space = config.network.space
    sizes = make_space(space, layers=config.network.layers, primitives=config.network.primitives).alphas
    alpha = {of.name: 1e-3 * torch.randn(of.shape, generator=rng) for of in sizes}
    derive = family(space, config.network.primitives).derive
    found, rows = {}, []
    for epoch in range(1, epochs + 1):
        alpha = {name: of + 0.1 * torch.randn(of.shape, generator=rng) for name, of in alpha.items()}
        genotype = derive(alpha)
        found[epoch] = alpha
        rows.append(
            {
                "epoch": epoch,
                "learning_rate": 0.025 / epoch,
                "train_loss": 2.0 / epoch + 0.01 * seed,
                "train_accuracy": 1 - 0.5 / epoch,
                "val_loss": 2.2 / epoch + 0.02 * seed,
                "val_accuracy": 0.9 - 0.5 / epoch + 0.01 * seed,
                "hypergradient_norm": 10.0**-epoch,
                "hypergradient_warnings": 0,
                "alpha_entropy": 2.0 - 0.1 * epoch,
                "skip_share": genotype.skip_share(),
                "seconds": 1.5,
                "images_per_second": 100.0,
                "peak_memory_bytes": 2**28,
                "genotype": str(genotype),
                **(row or {}),
            }
        )
        if alphas:
            (path / "alphas").mkdir(exist_ok=True)
            (path / f"alphas/epoch-{epoch:03d}.safetensors").write_bytes(save(alpha))
    (path / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    if rows:
        (path / "genotype.json").write_text(json.dumps({**genotype.to_json(), "space": space}))
    return found


def write_retraining(path, *, epochs=3):
    """A retraining of a cell of skip connections."""
    path.mkdir(parents=True)
    cell = [["skip_connect", 0], ["skip_connect", 1]] * 4
    genotype = {
        "space": "darts",
        "normal": cell,
        "normal_concat": [2, 3, 4, 5],
        "reduce": cell,
        "reduce_concat": [2, 3, 4, 5],
    }
    config = {"space": "darts", "genotype": "runs/x", "recipe": "digits", "dataset": "digits", "seed": 0}
    (path / "config.json").write_text(json.dumps({"command": "fastnas.retrain", "config": config}))
    (path / "genotype.json").write_text(json.dumps(genotype))
    rows = [
        {"epoch": e, "train_loss": 1 / e, "test_loss": 2 / e, "test_accuracy": 0.2 * e, "seconds": 1.0}
        for e in range(1, epochs + 1)
    ]
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (path / "result.json").write_text(json.dumps({"test_accuracy": 0.6, "parameters": 1234}))


def primitive_weights(alphas):
    """The mean softmax weight of each of DARTS' primitives over all edges, written down once more."""
    weights = torch.cat([alpha.double().softmax(-1) for alpha in alphas.values()])
    return dict(zip(DARTS_PRIMITIVES, weights.mean(0).tolist(), strict=True))
