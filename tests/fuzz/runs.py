"""Targets: what a run's folder holds - configuration, checkpoints, metrics."""

import hashlib
import json

import torch
from safetensors.torch import save

from fastnas.audit.state import stored_config
from fastnas.describe import describe
from fastnas.errors import FastnasError
from fastnas.retrain import RetrainConfig
from fastnas.retrain.folder import RetrainFolder
from fastnas.retrain.network import trained_network
from fastnas.runs.checkpoint import put_back, put_back_random_states, random_states, sealed
from fastnas.runs.folder import read_stored
from fastnas.search import SearchConfig
from fastnas.search.folder import RunFolder
from fastnas.spaces.published import PUBLISHED
from tests.fuzz.target import Target, place, text

SPLIT = b"\n<tensors>\n"
NEWEST = "checkpoints/00001-0000000"
CPU = torch.device("cpu")
CONFIG = SearchConfig.from_options({"channels": 2, "layers": 1, "threads": 1}).resolved()
TRAINED = RetrainConfig.from_options(
    {"genotype": "DARTS_V2", "channels": 2, "layers": 1, "threads": 1}
).resolved()
TOKENS = (
    *(
        b"NaN",
        b"-Infinity",
        b"null",
        b"true",
        b"1e999",
        b"-1",
        b"9" * 400,
        b"9" * 4400,
        b'""',
        b"[]",
        b"{}",
        b"[" * 2000,
        b"{",
    ),
    *(
        b'"\\ud800"',
        b'"\\u0000"',
        b"\x00",
        b"\xff",
        b'"~nobody-of-this-name"',
        b'"x"',
        b"0",
        b"0.5",
        b"1000000000000",
        b"\n",
        b'"cuda:9"',
    ),
)


def search_config(content: bytes) -> None:
    """A search's config.json, to go on with and to audit."""
    place("config/config.json", content)
    stored_config(place("config/x").parent).resolved()


def retrain_config(content: bytes) -> None:
    """A retraining's config.json."""
    read_stored(place("config/config.json", content), RetrainConfig, RetrainFolder.COMMAND).resolved()


def options(content: bytes) -> None:
    """Keywords, as Python's callers give them."""
    try:
        given = json.loads(content)
    except (ValueError, RecursionError):
        given = {"method": text(content)}
    given = given if isinstance(given, dict) else {"seed": given}
    SearchConfig.from_options(given).resolved()


def described_run(content: bytes) -> None:
    """A retraining's folder, as fastnas.describe reads it."""
    folder = place("trained/config.json", content).parent
    place("trained/genotype.json", json.dumps(PUBLISHED["DARTS_V2"].to_json()).encode())
    found = trained_network(folder)
    if found is None:
        raise FastnasError("that is no retraining's")
    describe(*found)


def checkpoint(content: bytes) -> None:
    """A checkpoint as it is."""
    _taken_up(*_parts(content))


def resealed_checkpoint(content: bytes) -> None:
    """A checkpoint whose checksums are those of what it holds: what was changed on purpose."""
    sidecar, data = _parts(content)
    try:
        found = json.loads(sidecar)
        if not isinstance(found, dict):
            raise ValueError
        found.pop("sha256", None)
        if isinstance(found.get("tensors"), dict):
            found["tensors"] |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        sidecar = sealed(found).encode()
    except (ValueError, RecursionError):
        pass
    _taken_up(sidecar, data)


def first_checkpoint(content: bytes) -> None:
    """A checkpoint and metrics of the first version."""
    data, _, rows = content.partition(SPLIT)
    folder = _folder()
    place("run-1/checkpoint.safetensors", data)
    place("run-1/metrics.jsonl", rows)
    _put_back(folder.newest(CONFIG))


def _parts(content: bytes) -> tuple[bytes, bytes]:
    sidecar, _, data = content.partition(SPLIT)
    return sidecar, data


def _folder() -> RunFolder:
    path = place("run-1/x").parent
    for file in ("checkpoint.safetensors", f"{NEWEST}.json", f"{NEWEST}.safetensors"):
        (path / file).unlink(missing_ok=True)
    return RunFolder(path)


def _taken_up(sidecar: bytes, data: bytes) -> None:
    folder = _folder()
    place(f"run-1/{NEWEST}.json", sidecar)
    place(f"run-1/{NEWEST}.safetensors", data)
    _put_back(folder.newest(CONFIG))


def _live() -> dict[str, torch.Tensor]:
    return {"weights": torch.zeros(3), "alphas": torch.zeros(2, dtype=torch.float64)}


def _put_back(state) -> None:
    if state is None:
        return
    before = torch.get_rng_state()
    try:
        put_back("the run", state.tensors, _live())
        put_back_random_states(state.tensors, CPU)
    finally:
        torch.set_rng_state(before)
    for row in state.rows:
        assert isinstance(row, dict)
    assert all(isinstance(number, float) for number in state.numbers.values())
    assert state.moment.epoch >= 0
    assert state.moment.step >= 0


def _configs(config) -> list[bytes]:
    command = RunFolder.COMMAND if config is CONFIG else RetrainFolder.COMMAND
    content = {"command": command, "fastnas": "0", "config": config.to_options()}
    more = {"reads": {"image_size": [8, 8], "classes": 10, "image_channels": 1}}
    return [json.dumps(content).encode(), json.dumps({**content, **more}, indent=1).encode()]


def _checkpoints() -> list[bytes]:
    row = {"epoch": 1, "train_loss": 1.5, "val_loss": 2.0, "genotype": "x"}
    data = save({**_live(), **random_states(CPU)})
    content = {
        "format": RunFolder.KIND.format,
        "fastnas": "0",
        "torch": "2",
        "epoch": 1,
        "step": 0,
        "config": CONFIG.to_options(),
        "numbers": {"loss": 0.5},
        "rows": [row],
        "tensors": {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()},
    }
    return [sealed(content).encode() + SPLIT + data]


def _first_checkpoints() -> list[bytes]:
    row = {"epoch": 1, "train_loss": 1.5, "val_loss": 2.0, "genotype": "x"}
    metadata = {"format": f"{RunFolder.KIND.mark}-1", "epoch": "1", "config": json.dumps(CONFIG.to_options())}
    data = save({**_live(), **random_states(CPU)}, metadata)
    return [data + SPLIT + json.dumps(row).encode() + b"\n"]


_NAMES = (
    b'"F32"',
    b'"F8_E4M3"',
    b'"BOOL"',
    b'"I64"',
    b'"C64"',
    b'"F4"',
    b"__metadata__",
    b'"shape":[3]',
    b"[0,12]",
    b"\xff" * 8,
)
TARGETS = (
    Target("config-search", search_config, lambda: _configs(CONFIG), TOKENS),
    Target("config-retrain", retrain_config, lambda: _configs(TRAINED), TOKENS),
    Target("options", options, lambda: [json.dumps(CONFIG.to_options()).encode(), b'{"seed": 3}'], TOKENS),
    Target("described-run", described_run, lambda: _configs(TRAINED), TOKENS),
    Target("checkpoint", checkpoint, _checkpoints, TOKENS),
    Target("checkpoint-resealed", resealed_checkpoint, _checkpoints, (*TOKENS, *_NAMES)),
    Target("checkpoint-first-version", first_checkpoint, _first_checkpoints, (*TOKENS, *_NAMES)),
)
