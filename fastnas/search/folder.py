"""The folder of a search: its configuration, metrics, genotypes and checkpoints."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from fastnas.errors import FastnasError
from fastnas.runs.checkpoint import State
from fastnas.runs.files import naming, remove_parts, write_atomically
from fastnas.runs.folder import Folder
from fastnas.runs.options import Options
from fastnas.search.checkpoint import COMMAND, SEARCH
from fastnas.search.config import SearchConfig
from fastnas.spaces import AnyGenotype, read_genotype


class RunFolder(Folder):
    """Files of one search under ``path``. One process at a time works in it: it holds a lock to its end.

    config.json              the full configuration, the versions and where the run comes from (``provenance``)
    metrics.jsonl            one row an epoch
    genotypes/epoch-NNN.json the genotype after every epoch
    genotype.json            the newest of them, or that which an early stop went back to
    alphas/epoch-NNN.safetensors  alpha after every epoch
    checkpoints/             the newest three states
    """

    COMMAND = COMMAND
    DOING = "searching"
    ROW = frozenset({"epoch", "train_loss", "val_loss", "genotype"})
    KIND = SEARCH

    @classmethod
    def for_config(cls, config: SearchConfig) -> RunFolder:
        """The folder that ``config`` names: the run to resume, ``out``, or a dated one under runs/.

        Raises:
            FastnasError: a new run into a folder that is not empty, or no run where one should be resumed.
        """
        name = f"{config.network.space}-{config.hypergradient.method}-{config.images.dataset}"
        return cls.named(config, out=config.run.out, resume=config.run.resume, name=name)

    def start(
        self,
        config: SearchConfig,
        measured: Mapping[str, float] | None = None,
        provenance: Mapping[str, Any] | None = None,
    ) -> None:
        """Makes the folder and writes config.json; if that fails, what it wrote is removed.

        Args:
            config: of the run.
            measured: what the search measured before it began, for ``measured``.
            provenance: of the run.

        Raises:
            FastnasError: another process has taken the folder in the meantime.
        """
        more = {"provenance": provenance, "measured": measured}
        self.make(config, {name: dict(values) for name, values in more.items() if values})

    def fill(self) -> None:
        """Makes the folder of the genotypes."""
        (self.path / "genotypes").mkdir(exist_ok=True)

    def taken_up(self, config: Options) -> State | None:
        """As every run's; what was written of epochs behind the state is removed, as their rows are."""
        state = super().taken_up(config)
        epochs = 0 if state is None else state.moment.epoch
        for folder in (self.path / "genotypes", self.path / "alphas"):
            remove_parts(folder)
            for file in folder.glob("epoch-*"):
                number = file.stem.removeprefix("epoch-")
                if number.isdecimal() and int(number) > epochs:
                    with naming(file):
                        file.unlink(missing_ok=True)
        return state

    def record(
        self, config: SearchConfig, row: dict[str, Any], genotype: AnyGenotype, alphas: Mapping[str, Tensor]
    ) -> None:
        """Writes what epoch ``row["epoch"]`` found; a checkpoint behind it seals that.

        A genotype's file names the space that was searched: several share a format.
        """
        text = json.dumps({**genotype.to_json(), "space": config.network.space}, indent=2) + "\n"
        write_atomically(self._genotype_file(row["epoch"]), text)
        write_atomically(self.path / "genotype.json", text)
        self._alphas_file(row["epoch"]).parent.mkdir(exist_ok=True)
        write_atomically(self._alphas_file(row["epoch"]), save(dict(alphas)))
        self.add_row(row)

    def measured(self, name: str) -> float:
        """What the search measured before it began, out of config.json.

        Raises:
            FastnasError: it is not there.
        """
        try:
            value = float(json.loads(self.config_file.read_text(encoding="utf-8"))["measured"][name])
        except (OSError, ValueError, KeyError, TypeError):
            value = math.nan
        if not (math.isfinite(value) and value > 0):
            raise FastnasError(
                f"{self.config_file} does not hold the {name} that the run measured at its start; it was edited"
            )
        return value

    def go_back(self, epoch: int, space: str) -> tuple[AnyGenotype, dict[str, Tensor]]:
        """Makes the architecture of ``epoch`` the run's; its genotype and alphas.

        Raises:
            FastnasError: what the run wrote after that epoch cannot be read.
        """
        file = self._alphas_file(epoch)
        try:
            alphas = load_file(file)
        except (OSError, SafetensorError) as error:
            raise FastnasError(f"the alphas of epoch {epoch} cannot be read from {file}: {error}") from None
        genotype = read_genotype(space, self._genotype_file(epoch))
        write_atomically(self.path / "genotype.json", self._genotype_file(epoch).read_bytes())
        return genotype, alphas

    def _genotype_file(self, epoch: int) -> Path:
        return self.path / "genotypes" / f"epoch-{epoch:03d}.json"

    def _alphas_file(self, epoch: int) -> Path:
        return self.path / "alphas" / f"epoch-{epoch:03d}.safetensors"
