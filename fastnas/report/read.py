"""A run's folder as a report reads it: nothing in it is trusted, and what is damaged is left out and said."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fastnas._imports import names_recorded
from fastnas._paths import user_path
from fastnas.errors import FastnasError
from fastnas.retrain.folder import RetrainFolder
from fastnas.search.folder import RunFolder
from fastnas.spaces import AnyGenotype, Space, make_space
from fastnas.spaces.choice import Choice
from fastnas.spaces.family import family
from fastnas.spaces.genotype import named_primitives

# What no run of ours exceeds, and a browser still shows.
MOST_BYTES = {"config.json": 2**20, "metrics.jsonl": 2**28, "genotype.json": 2**18, "result.json": 2**20}
MOST_EPOCHS = 20_000
MOST_ALPHA = 2**16  # numbers in the alphas of an epoch
LONGEST = 2**16  # characters of a text in a row
KINDS: dict[str, Literal["search", "retrain"]] = {
    RunFolder.COMMAND: "search",
    RetrainFolder.COMMAND: "retrain",
}

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Run:
    """A search or a retraining, as far as its folder says it.

    Attributes:
        path: its folder.
        name: what a page calls it.
        kind: "search" or "retrain".
        config: options by name, the defaults of that time filled in.
        versions: of fastnas and torch.
        provenance: how it was started, and where; empty in folders of older versions.
        rows: of metrics, epochs rising; numbers in them are finite.
        genotypes: of each row's epoch, None where it cannot be read; a retraining has the same in all.
        genotype: the run's own, which an early stop may have taken from an earlier epoch.
        alphas: by epoch and name (rows, options), before the softmax; of the epochs that have them.
        result: of a retraining that ended.
        notes: a sentence about each thing that was left out.
    """

    path: Path
    name: str
    kind: Literal["search", "retrain"]
    config: Mapping[str, Any]
    versions: Mapping[str, str]
    provenance: Mapping[str, Any]
    rows: tuple[Row, ...]
    genotypes: tuple[AnyGenotype | None, ...]
    genotype: AnyGenotype | None
    alphas: Mapping[int, Mapping[str, Tensor]]
    result: Mapping[str, Any]
    notes: tuple[str, ...] = field(default=())

    @property
    def epochs(self) -> tuple[int, ...]:
        """Of the rows."""
        return tuple(row["epoch"] for row in self.rows)

    @cached_property
    def space(self) -> Space | None:
        """The supernet as data; None: a space that is not known here, or a retraining."""
        if self.kind == "retrain":
            return None
        primitives, layers = self.config.get("primitives"), self.config.get("layers")
        try:
            with named_primitives(primitives):
                return make_space(
                    str(self.config.get("space")),
                    layers=layers if type(layers) is int else None,
                    primitives=primitives if _is_texts(primitives) else None,
                )
        except FastnasError:
            return None

    def values(self, name: str) -> tuple[float | None, ...]:
        """A number of every row, None where it is not there; ``name`` may lead into dictionaries by dots."""
        return tuple(number(row, name) for row in self.rows)

    @property
    def audited_against(self) -> tuple[str, ...]:
        """With what ``--audit-every`` compared its hypergradient; a damping, measured anew each time, has no number."""
        names = [row.get("audit_against") for row in self.rows]
        return tuple(
            dict.fromkeys(
                re.sub(r", damping .*", ", damped", name) for name in names if isinstance(name, str) and name
            )
        )


def read_run(path: str | Path) -> Run:
    """The run in the folder ``path``, a search or a retraining, whatever became of it.

    Raises:
        FastnasError: there is none, or its config.json cannot be read.
    """
    path = user_path("RUN", path)
    config_file = path / "config.json"
    if not config_file.is_file():
        what = "has no config.json" if path.is_dir() else "is no folder"
        raise FastnasError(f"{path} holds no run of a search or a retraining: it {what}")
    content = _json(config_file)
    if not isinstance(content, dict) or not isinstance(content.get("config"), dict):
        raise FastnasError(f"{config_file} holds no readable configuration: name another run")
    kind = KINDS.get(str(content.get("command", RunFolder.COMMAND)))
    if kind is None:
        raise FastnasError(f"{config_file}: {str(content['command'])!r} makes no runs that a report knows")
    notes: list[str] = []
    rows = tuple(_rows(path / "metrics.jsonl", notes))
    config = _plain(content["config"])
    with named_primitives([*_listed(config.get("primitives")), *names_recorded(content)]):
        genotype = _genotype_file(path / "genotype.json", config, notes)
        genotypes = _genotypes(rows, genotype, kind, config, notes)
    return Run(
        path=path,
        name=path.absolute().name or str(path),
        kind=kind,
        config=config,
        versions={name: str(content[name]) for name in ("fastnas", "torch") if name in content},
        provenance=_plain(content.get("provenance")),
        rows=rows,
        genotypes=genotypes,
        genotype=genotype,
        alphas=_all_alphas(path / "alphas", [row["epoch"] for row in rows], notes)
        if kind == "search"
        else {},
        result=_result(path / "result.json"),
        notes=tuple(notes),
    )


def runs_of(paths: Sequence[Path]) -> list[Run]:
    """The runs in these folders, those of a sweep in its place, each with a name of its own.

    Raises:
        FastnasError: one holds neither, or a run is there twice.
    """
    return _named([read_run(folder) for folder in folders_of(paths)])


def folders_of(paths: Sequence[Path]) -> list[Path]:
    """The folders of the runs that ``paths`` name, those of a sweep in its place.

    Raises:
        FastnasError: a sweep has no run yet, or a run is there twice.
    """
    folders = [folder for path in paths for folder in _folders(user_path("RUN", path))]
    absolute = [folder.absolute() for folder in folders]
    for i, folder in enumerate(absolute):
        if folder in absolute[:i]:
            raise FastnasError(f"{folders[i]} is named twice: name each run once")
    return folders


def number(row: Any, name: str) -> float | None:
    """A number of a row of metrics by its dotted name.

    >>> number({"table": {"cifar10": {"test": 93.5}}}, "table.cifar10.test")
    93.5
    """
    for part in name.split("."):
        row = row.get(part) if isinstance(row, dict) else None
    return float(row) if type(row) in (int, float) else None


def _folders(path: Path) -> list[Path]:
    """``path``, or the trials of the sweep in it that have begun."""
    if not (path / "sweep.yaml").is_file():
        return [path]
    trials = sorted(file.parent for file in (path / "trials").glob("*/config.json"))
    if not trials:
        raise FastnasError(f"no search of the sweep in {path} has begun yet")
    return trials


def _named(runs: list[Run]) -> list[Run]:
    """The same, names that are there twice made longer by the folder above."""
    names = [run.name for run in runs]
    return [replace(run, name=str(run.path)) if names.count(run.name) > 1 else run for run in runs]


def _rows(file: Path, notes: list[str]) -> Iterator[Row]:
    """The whole rows; of two with one epoch the later counts, and after a gap the rest does."""
    found: dict[int, Row] = {}
    try:
        lines = _text(file).splitlines() if file.is_file() else []
    except FastnasError as error:
        notes.append(str(error))
        lines = []
    for i, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        row = _row(line)
        if row is None:
            end = "; the run was killed while it wrote it" if i == len(lines) else ""
            notes.append(f"line {i} of {file.name} is no row of metrics and is left out{end}")
        else:
            found[row["epoch"]] = row
    for epoch in sorted(found)[:MOST_EPOCHS]:
        yield found[epoch]
    if len(found) > MOST_EPOCHS:
        notes.append(f"{file.name} tells of {len(found):,} epochs: the first {MOST_EPOCHS:,} are shown")


def _row(line: str) -> Row | None:
    try:
        row = _plain(json.loads(line))
    except (ValueError, RecursionError):
        return None
    epoch = row.get("epoch")
    return row if type(epoch) is int and 0 < epoch < 10**9 else None


def _plain(value: Any) -> dict[str, Any]:
    """A JSON object without what is no finite number, no short text and no container of such."""
    kept = _kept(value, 0)
    return kept if isinstance(kept, dict) else {}


def _kept(value: Any, depth: int) -> Any:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int | float):
        try:
            return value if math.isfinite(value) else None
        except OverflowError:  # a whole number of hundreds of digits
            return None
    if isinstance(value, str):
        return value[:LONGEST].encode("utf-8", "replace").decode()  # JSON may hold half of a surrogate pair
    if depth > 4 or not isinstance(value, dict | list):
        return None
    if isinstance(value, list):
        return [_kept(item, depth + 1) for item in value[:1000]]
    return {
        _kept(str(name)[:200], depth): _kept(item, depth + 1) for name, item in list(value.items())[:1000]
    }


def _genotypes(
    rows: Sequence[Row], own: AnyGenotype | None, kind: str, config: Mapping[str, Any], notes: list[str]
) -> tuple[AnyGenotype | None, ...]:
    if kind == "retrain":
        return (own,) * len(rows)
    parsed: dict[str, AnyGenotype | None] = {}
    for row in rows:
        text = str(row.get("genotype"))
        if text not in parsed:
            parsed[text] = _parsed(text, config)
            if parsed[text] is None:
                notes.append(f"the genotype of epoch {row['epoch']} cannot be read")
    return tuple(parsed[str(row.get("genotype"))] for row in rows)


def _parsed(text: str, config: Mapping[str, Any]) -> AnyGenotype | None:
    """A genotype of the run's space, or of one that is not known here; one that can be drawn."""
    try:
        kind = family(str(config.get("space"))).genotype
    except FastnasError:
        kind = Choice
    try:
        genotype: AnyGenotype = kind.parse(text)
        genotype.graphs()
    except (FastnasError, ValueError, RecursionError):
        return None
    return genotype


def _genotype_file(file: Path, config: Mapping[str, Any], notes: list[str]) -> AnyGenotype | None:
    if not file.is_file():
        return None
    try:
        text = _text(file)
    except FastnasError as error:
        notes.append(str(error))
        return None
    named = (_json_text(text) or {}).get("space")  # a retraining's configuration may leave it open
    genotype = _parsed(text, config if isinstance(config.get("space"), str) else {"space": named})
    if genotype is None:
        notes.append(f"{file.name} holds no genotype that can be read")
    return genotype


def _all_alphas(folder: Path, epochs: Sequence[int], notes: list[str]) -> dict[int, Mapping[str, Tensor]]:
    found: dict[int, Mapping[str, Tensor]] = {}
    damaged = []
    for epoch in epochs:
        file = folder / f"epoch-{epoch:03d}.safetensors"
        if file.is_file():
            alphas = _alphas(file)
            if alphas is None:
                damaged.append(str(epoch))
            else:
                found[epoch] = alphas
    if damaged:
        more = f" and {len(damaged) - 10} more" if len(damaged) > 10 else ""
        notes.append(f"the alphas of epoch {', '.join(damaged[:10])}{more} cannot be read")
    return found


def _alphas(file: Path) -> Mapping[str, Tensor] | None:
    """Matrices of finite numbers by name; sizes are looked at before anything is read."""
    try:
        if file.stat().st_size > 16 * MOST_ALPHA:
            return None
        with safe_open(str(file), framework="pt") as tensors:
            names = list(tensors.keys())
            shapes = [tensors.get_slice(name).get_shape() for name in names]
            if not names or any(len(shape) != 2 or min(shape) < 1 for shape in shapes):
                return None
            if sum(int(np.prod(shape)) for shape in shapes) > MOST_ALPHA:
                return None
            found = {name: tensors.get_tensor(name) for name in names}
    except (OSError, SafetensorError, ValueError):
        return None
    usable = all(alpha.is_floating_point() and bool(torch.isfinite(alpha).all()) for alpha in found.values())
    return {name: alpha.double() for name, alpha in found.items()} if usable else None


def _result(file: Path) -> dict[str, Any]:
    try:
        return _plain(_json(file)) if file.is_file() else {}
    except FastnasError:
        return {}


def _json(file: Path) -> Any:
    return _json_text(_text(file))


def _json_text(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _text(file: Path) -> str:
    """A file's text; what is not UTF-8 in it is replaced.

    Raises:
        FastnasError: it is too large, or cannot be read.
    """
    try:
        if (size := file.stat().st_size) > MOST_BYTES[file.name]:
            raise FastnasError(f"{file} has {size:,} bytes, which no run writes, and is left out")
        return file.read_bytes().decode("utf-8", "replace")
    except OSError as error:
        raise FastnasError(f"{file} cannot be read: {error.strerror or error}") from None


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)
