"""The folder of a run: its configuration, metrics, genotypes and checkpoint."""

from __future__ import annotations

import json
import shlex
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

from fastnas._version import __version__
from fastnas.errors import FastnasError
from fastnas.search.checkpoint import load_checkpoint, read_config, save_checkpoint, write_atomically
from fastnas.search.config import SearchConfig
from fastnas.search.step import SearchStep
from fastnas.spaces import Genotype
from fastnas.spaces.genotype import CellString


class RunFolder:
    """Files of one run under ``path``.

    config.json              the full configuration and the versions
    metrics.jsonl            one row an epoch
    genotypes/epoch-NNN.json the genotype after every epoch
    genotype.json            the newest of them
    checkpoint.safetensors   the newest state; replaced whole
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config_file = path / "config.json"
        self.metrics_file = path / "metrics.jsonl"
        self.checkpoint_file = path / "checkpoint.safetensors"

    @classmethod
    def for_config(cls, config: SearchConfig) -> RunFolder:
        """The folder that ``config`` names: the run to resume, ``out``, or a dated one under runs/.

        Raises:
            FastnasError: a new run into a folder that is not empty, or no run where one should be resumed.
        """
        run = config.run
        if run.resume is not None:
            if run.out is not None and run.out.absolute() != run.resume.absolute():
                raise FastnasError(
                    f"--resume {run.resume} goes on in that folder: leave out --out {run.out}, or name the same"
                )
            folder = cls(run.resume)
            differing = read_config(folder.config_file).differences(config)
            if differing:
                raise FastnasError(
                    f"the run in {run.resume} has another configuration: it differs in {', '.join(differing)}; "
                    "leave these options out to resume it, or choose another --out for a new run"
                )
            return folder
        path = run.out
        if path is None:
            stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
            path = Path(
                f"runs/{stamp}-{config.network.space}-{config.hypergradient.method}-{config.images.dataset}"
            )
        if path.exists() and not path.is_dir():
            raise FastnasError(f"--out {path} is a file; name a folder")
        if path.is_dir() and any(path.iterdir()):
            if (path / "config.json").exists():
                raise FastnasError(
                    f"--out {path} already holds a run: choose another folder, or go on with it by --resume {path}"
                )
            raise FastnasError(f"--out {path} is not empty: choose another folder")
        return cls(path)

    def start(self, config: SearchConfig) -> None:
        """Makes the folder and writes config.json; nothing remains of it if that fails."""
        made = not self.path.exists()
        self.path.mkdir(parents=True, exist_ok=True)
        try:
            options = {**config.to_options(), "out": str(self.path), "resume": None}
            content = {"fastnas": __version__, "torch": torch.__version__, "config": options}
            write_atomically(self.config_file, json.dumps(content, indent=2) + "\n")
            (self.path / "genotypes").mkdir()
        except BaseException:
            self.config_file.unlink(missing_ok=True)
            if made:
                self.path.rmdir()
            raise

    def restore(self, step: SearchStep, config: SearchConfig) -> tuple[int, list[dict[str, Any]]]:
        """Puts the newest checkpoint into ``step``; returns the epochs done and their metrics.

        Rows of later epochs, written before a stop that came before their checkpoint, are dropped.
        """
        epoch = load_checkpoint(self.checkpoint_file, step, config) if self.checkpoint_file.exists() else 0
        rows = [row for row in self._rows() if row["epoch"] <= epoch]
        if [row["epoch"] for row in rows] != list(range(1, epoch + 1)):
            raise FastnasError(
                f"{self.metrics_file} does not hold the {epoch} epochs of the checkpoint; it was cut short or edited"
            )
        (self.path / "genotypes").mkdir(exist_ok=True)
        if self.metrics_file.exists():
            write_atomically(self.metrics_file, "".join(json.dumps(row) + "\n" for row in rows))
        return epoch, rows

    def save(
        self, step: SearchStep, config: SearchConfig, row: dict[str, Any], genotype: Genotype | CellString
    ) -> None:
        """Records the end of epoch ``row["epoch"]``; the checkpoint comes last and seals it."""
        text = json.dumps(genotype.to_json(), indent=2) + "\n"
        write_atomically(self.path / "genotypes" / f"epoch-{row['epoch']:03d}.json", text)
        write_atomically(self.path / "genotype.json", text)
        with self.metrics_file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        save_checkpoint(self.checkpoint_file, step, config, row["epoch"])

    def resume_command(self) -> str:
        """What to type to go on with this run."""
        return f"python -m fastnas.search --resume {shlex.quote(str(self.path))}"

    def _rows(self) -> list[dict[str, Any]]:
        if not self.metrics_file.exists():
            return []
        rows = []
        for line in self.metrics_file.read_text(encoding="utf-8").splitlines():
            try:
                row = json.loads(line)
                rows.append(row if isinstance(row.get("epoch"), int) else {"epoch": -1})
            except (ValueError, AttributeError):  # a row cut short by a stop; its epoch has no checkpoint
                continue
        return rows
