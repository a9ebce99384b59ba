"""The folder of a retraining."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save

from fastnas.errors import FastnasError
from fastnas.retrain.config import RetrainConfig
from fastnas.retrain.trainer import Trainer
from fastnas.runs.checkpoint import Kind
from fastnas.runs.files import write_atomically
from fastnas.runs.folder import Folder, read_stored
from fastnas.spaces.family import AnyGenotype

RETRAIN = Kind("fastnas-retrain", "retraining", 2)


class RetrainFolder(Folder):
    """Files of one retraining under ``path``. One process at a time works in it: it holds a lock to its end.

    config.json              the full configuration, the versions, where the run comes from (``provenance``), and what
                             the data say of the network
    genotype.json            what is trained
    metrics.jsonl            one row an epoch
    checkpoints/             the newest three states
    result.json              at the end: accuracies, parameters, multiply-adds, throughput
    network.safetensors      at the end: weights and running statistics
    """

    COMMAND = "fastnas.retrain"
    DOING = "training"
    ROW = frozenset({"epoch", "train_loss", "test_loss", "seconds"})
    KIND = RETRAIN

    @classmethod
    def for_config(cls, config: RetrainConfig) -> RetrainFolder:
        """The folder that a resolved ``config`` names: the run to resume, ``out``, or a dated one under runs/.

        Raises:
            FastnasError: a new run into a folder that is not empty, or no run where one should be resumed.
        """
        name = f"retrain-{config.network.space}-{config.images.dataset}"
        return cls.named(config, out=config.run.out, resume=config.run.resume, name=name)

    @property
    def genotype_file(self) -> Path:
        """Where the genotype lies."""
        return self.path / "genotype.json"

    @property
    def result_file(self) -> Path:
        """Where the result lies, once there is one."""
        return self.path / "result.json"

    def start(
        self,
        config: RetrainConfig,
        genotype: AnyGenotype,
        reads: Mapping[str, Any],
        provenance: Mapping[str, Any],
    ) -> None:
        """Makes the folder and writes config.json, with ``provenance``, ``Trainer.reads`` and the genotype in it, and
        genotype.json.

        Raises:
            FastnasError: another process has taken the folder in the meantime.
        """
        more = {"provenance": dict(provenance), "reads": dict(reads), "genotype": genotype.to_json()}
        self.make(config, more)

    def fill(self) -> None:
        """Writes genotype.json, out of config.json."""
        if self.genotype_file.exists():
            return
        try:
            genotype = json.loads(self.config_file.read_text(encoding="utf-8"))["genotype"]
        except (OSError, ValueError, KeyError):
            raise FastnasError(
                f"{self.path} holds neither genotype.json nor config.json's copy of it"
            ) from None
        write_atomically(self.genotype_file, json.dumps(genotype, indent=2) + "\n")

    def finish(self, trainer: Trainer, result: dict[str, Any]) -> None:
        """Writes the network and the result."""
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in trainer.weights().items()}
        write_atomically(self.path / "network.safetensors", save(tensors))
        write_atomically(self.result_file, json.dumps(result, indent=2) + "\n")


def read_config(path: Path) -> RetrainConfig:
    """The configuration that a retraining's config.json holds.

    Raises:
        FastnasError: it cannot be read, or is a search's.
    """
    return read_stored(path, RetrainConfig, RetrainFolder.COMMAND)
