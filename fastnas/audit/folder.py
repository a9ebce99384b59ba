"""Where an audit leaves its results."""

from __future__ import annotations

import json
import os
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from fastnas.audit.config import AuditConfig
from fastnas.audit.plot import svg
from fastnas.errors import FastnasError
from fastnas.runs.checkpoint import write_atomically


class AuditFolder:
    """audit.json, audit.txt and audit.svg under ``path``, each replaced whole.

    The folder is made when the block begins, so that an hour's audit does not end at a folder that cannot be written;
    if nothing was saved and it was new, it is removed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._made = False

    @classmethod
    def of(cls, config: AuditConfig) -> AuditFolder:
        """``--out``, the folder audit of the run, or a dated one under runs/.

        Raises:
            FastnasError: it is a file.
        """
        stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
        dated = Path("runs") / f"{stamp}-audit-{config.network.space}-{config.images.dataset}"
        checkpoint = config.audit.checkpoint
        path = config.run.out or (dated if checkpoint is None else checkpoint / "audit")
        if path.exists() and not path.is_dir():
            raise FastnasError(f"--out {path} is a file; name a folder")
        return cls(path)

    def __enter__(self) -> AuditFolder:
        self._made = not self.path.exists()
        self.path.mkdir(parents=True, exist_ok=True)
        if not os.access(self.path, os.W_OK):
            raise FastnasError(f"--out {self.path} cannot be written to; name another folder")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._made and not any(self.path.iterdir()):
            self.path.rmdir()

    def save(self, result: dict[str, Any], text: str) -> None:
        """Writes the three."""
        write_atomically(self.path / "audit.json", json.dumps(result, indent=2, allow_nan=False) + "\n")
        write_atomically(self.path / "audit.txt", text + "\n")
        write_atomically(self.path / "audit.svg", svg(result))
