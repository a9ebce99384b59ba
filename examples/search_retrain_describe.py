"""A whole experiment on a CPU in two minutes: search on digits, train what was found, say what it is.

Each step takes the run folder of the one before: the search leaves ``genotype.json`` in its own, the retraining reads
it there and leaves it in its own, beside the trained network and its result. Of the 1,797 digits the search sees 1,437;
the retraining, which draws them in the same order, trains on the same and tests on the others. On a command line:

    python -m fastnas.search   --images 1437 --out runs/found
    python -m fastnas.retrain  --genotype runs/found --out runs/trained
    python -m fastnas.describe --genotype runs/trained
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro

import fastnas
from fastnas import describe
from fastnas._command import clear_errors

SEEN = 1437  # images of search and retraining; the other 360, a fifth, are held out


@dataclass(frozen=True)
class Config:
    """Searches on scikit-learn's digits, trains the cells that it found and describes the network."""

    space: str = "darts"
    """Search space: darts, nasbench201, s1 or another of images."""
    method: str = "idarts"
    """Hypergradient of the search."""
    search_epochs: int | None = None
    """Of the search; None: its default."""
    images: int = SEEN
    """Digits that the search sees."""
    retrain_epochs: int | None = None
    """Of the training; None: its recipe's."""
    seed: int = 0
    """Of both."""
    device: str = "auto"
    """cpu, cuda, cuda:N, or auto: a GPU if there is one."""
    out: Path = Path("runs/example")
    """Folder of the two runs, ``search`` and ``retrain``."""
    progress: bool = True
    """Show the bars and a line an epoch."""


def main(arguments: list[str] | None = None) -> None:
    """Runs the three steps; the last line is what came out."""
    config = tyro.cli(Config, prog="python -m examples.search_retrain_describe", args=arguments)
    print("1. search", flush=True)
    found = fastnas.search(
        space=config.space,
        method=config.method,
        epochs=config.search_epochs,
        images=config.images,
        seed=config.seed,
        device=config.device,
        out=config.out / "search",
        progress=config.progress,
    )
    print(f"found {found.genotype}\n2. retrain", flush=True)
    trained = fastnas.retrain(
        genotype=found.out,
        epochs=config.retrain_epochs,
        seed=config.seed,
        device=config.device,
        out=config.out / "retrain",
        progress=config.progress,
    )
    print("3. describe", flush=True)
    describe.main(["--genotype", str(trained.out)])
    result = trained.result
    print(
        f"{result['parameters']:,} parameters, {result['multiply_adds']:,} multiply-adds, "
        f"{result['test_accuracy']:.1%} of {result['test_images']} digits that neither step had seen"
    )


if __name__ == "__main__":
    with clear_errors():
        main()
