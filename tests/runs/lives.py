"""Runs in processes of their own, which tests kill: what a process is told to do, and what its run has come to."""

import json
import multiprocessing
import os
from pathlib import Path

import torch
from safetensors.torch import load_file

import fastnas
from fastnas.runs.folder import holds_run
from tests.checkpoints import newest

VOLATILE = ("second", "memory")

# Processes are copies of one that has imported everything and computed nothing: they begin at once.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["fastnas", "fastnas.retrain", "sklearn.datasets"])


def live(command, options, out):
    """Begins the run of ``fastnas.search`` or ``fastnas.retrain`` in ``out``, or goes on with it."""
    os.environ["FASTNAS_FIRST_USE_CHECK"] = "0"
    run = getattr(fastnas, command)
    return run(resume=out) if holds_run(out) else run(**options, out=out)


def life(command, options, out):
    """A process of ``live``, started."""
    process = PROCESSES.Process(target=live, args=(command, options, out))
    process.start()
    return process


def outcome(out: Path) -> tuple[list, dict]:
    """What a finished run has come to: its rows but for times and memory, and every tensor of its last checkpoint."""
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    lasting = [
        {name: value for name, value in row.items() if not any(word in name for word in VOLATILE)}
        for row in rows
    ]
    return lasting, load_file(newest(out))


def same(a: Path, b: Path) -> bool:
    """Whether two finished runs have come to the same, to the bit, with what their folders say of every epoch."""
    (rows, tensors), (others, theirs) = outcome(a), outcome(b)
    return (
        rows == others
        and tensors.keys() == theirs.keys()
        and all(torch.equal(tensors[name], theirs[name]) for name in tensors)
        and found(a) == found(b)
    )


def found(out: Path) -> dict[str, bytes]:
    """What a run wrote of architectures, by the files' names: genotypes, and alpha after every epoch."""
    files = [
        out / "genotype.json",
        *(out / "genotypes").glob("epoch-*"),
        *(out / "alphas").glob("epoch-*"),
    ]
    return {str(file.relative_to(out)): file.read_bytes() for file in files}
