"""The folder of a run: its configuration, metrics, genotypes and checkpoint."""

from __future__ import annotations

import fcntl
import json
import math
import shlex
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from fastnas._version import __version__
from fastnas.errors import FastnasError
from fastnas.search.checkpoint import load_checkpoint, naming, read_config, save_checkpoint, write_atomically
from fastnas.search.config import SearchConfig
from fastnas.search.step import SearchStep
from fastnas.spaces import Genotype
from fastnas.spaces.family import read_genotype
from fastnas.spaces.genotype import CellString

# What every row of metrics has, whatever else it has.
_KEYS = {"epoch", "train_loss", "train_accuracy", "val_loss", "val_accuracy", "genotype"}
_LOCK = ".lock"


class RunFolder:
    """Files of one run under ``path``. One process at a time works in it: it holds a lock to its end.

    config.json              the full configuration and the versions
    metrics.jsonl            one row an epoch
    genotypes/epoch-NNN.json the genotype after every epoch
    genotype.json            the newest of them, or that which an early stop went back to
    alphas/epoch-NNN.safetensors  with --early-stop: alpha after every epoch
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
        path = run.out or _dated_path(config)
        try:
            str(path).encode()
        except UnicodeEncodeError:
            raise FastnasError(f"--out {str(path)!r} is not valid UTF-8; choose another name") from None
        if path.exists() and not path.is_dir():
            raise FastnasError(f"--out {path} is a file; name a folder")
        _check_empty(path)
        return cls(path)

    def start(self, config: SearchConfig, measured: dict[str, float] | None = None) -> None:
        """Makes the folder and writes config.json; if that fails, what it wrote is removed.

        Args:
            config: of the run.
            measured: what the search measured before it began, for ``measured``.

        Raises:
            FastnasError: another process has taken the folder in the meantime.
        """
        made = not self.path.exists()
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock()
        _check_empty(self.path)
        try:
            options = {**config.to_options(), "out": str(self.path), "resume": None}
            content: dict[str, Any] = {"fastnas": __version__, "torch": torch.__version__, "config": options}
            if measured:
                content["measured"] = measured
            write_atomically(self.config_file, json.dumps(content, indent=2) + "\n")
            (self.path / "genotypes").mkdir()
        except BaseException:
            self.config_file.unlink(missing_ok=True)
            (self.path / _LOCK).unlink(missing_ok=True)
            if made:
                self.path.rmdir()
            raise

    def _lock(self) -> None:
        # Held until the process ends, however it ends.
        self._lock_file = (self.path / _LOCK).open("w")
        try:
            fcntl.flock(self._lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FastnasError(
                f"another process is searching in {self.path}: wait for it, or stop it"
            ) from None

    def restore(self, step: SearchStep, config: SearchConfig) -> tuple[int, list[dict[str, Any]]]:
        """Puts the newest checkpoint into ``step``; returns the epochs done and their metrics.

        Rows of later epochs, written before a stop that came before their checkpoint, are dropped.
        """
        self._lock()
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
        write_atomically(self._genotype_file(row["epoch"]), text)
        write_atomically(self.path / "genotype.json", text)
        if config.curvature.early_stop:
            alphas = {name: alpha.detach().cpu().clone() for name, alpha in step.net.alphas.tensors.items()}
            self._alphas_file(row["epoch"]).parent.mkdir(exist_ok=True)
            write_atomically(self._alphas_file(row["epoch"]), save(alphas))
        with naming(self.metrics_file), self.metrics_file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        save_checkpoint(self.checkpoint_file, step, config, row["epoch"])

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

    def go_back(self, epoch: int, space: str) -> tuple[Genotype | CellString, dict[str, Tensor]]:
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

    def resume_command(self) -> str:
        """What to type to go on with this run."""
        return f"python -m fastnas.search --resume {shlex.quote(str(self.path))}"

    def _rows(self) -> list[dict[str, Any]]:
        if not self.metrics_file.exists():
            return []
        rows = []
        for line in self.metrics_file.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                row = json.loads(line)
            except ValueError:  # cut short by a stop; its epoch has no checkpoint
                continue
            if isinstance(row, dict) and row.keys() >= _KEYS and isinstance(row["epoch"], int):
                rows.append(row)
        return rows


def _dated_path(config: SearchConfig) -> Path:
    """runs/<date>-<time>-<space>-<method>-<dataset>, numbered if that second has one already."""
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    name = f"{stamp}-{config.network.space}-{config.hypergradient.method}-{config.images.dataset}"
    paths = (Path("runs") / (name if i == 1 else f"{name}-{i}") for i in range(1, 1000))
    return next(path for path in paths if not path.exists())


def _check_empty(path: Path) -> None:
    if not path.is_dir() or not any(entry.name != _LOCK for entry in path.iterdir()):
        return
    if (path / "config.json").exists():
        raise FastnasError(
            f"--out {path} already holds a run: choose another folder, or go on with it by --resume {path}"
        )
    raise FastnasError(f"--out {path} is not empty: choose another folder")
