"""The checkpoints of a run, as the tests look at them and take them away."""

import shutil
from pathlib import Path


def sealed(run: Path) -> list[Path]:
    """The .json files of its checkpoints, the oldest first."""
    return sorted((run / "checkpoints").glob("*.json"))


def newest(run: Path) -> Path:
    """The tensors of the newest one."""
    return sealed(run)[-1].with_suffix(".safetensors")


def forget(run: Path) -> None:
    """Takes all of them away, and the metrics, as if the run had been stopped before the first."""
    shutil.rmtree(run / "checkpoints")
    (run / "metrics.jsonl").unlink()
