"""Which sources a figure was taken from."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path


def commit() -> str | None:
    """The commit of the sources, with ``+changes`` where files differ from it; None outside git.

    FASTNAS_COMMIT says it for a copy of the sources without git.
    """
    if given := os.environ.get("FASTNAS_COMMIT"):
        return given
    here = Path(__file__).resolve().parent

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=here, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return None
