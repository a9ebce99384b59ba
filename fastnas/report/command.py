"""The command line of ``python -m fastnas.report``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fastnas._command import clear_errors
from fastnas._imports import take_imports
from fastnas._paths import user_path
from fastnas.errors import FastnasError
from fastnas.report.page import GENERATOR, page
from fastnas.report.read import runs_of
from fastnas.report.server import serve
from fastnas.runs.files import write_atomically
from fastnas.runs.live import LOOPBACK

DESCRIPTION = """A report of a search or a retraining as one HTML file that needs no network: cells over the epochs,
curves, alpha, configuration. Of several runs, a comparison. What each chart means: docs/guide/report.md.
Primitives of your own need no code here; the weights in cells of your own space do: --import FILE.py|MODULE."""
NAME = "report.html"


@dataclass(frozen=True)
class ReportConfig:
    """The command line."""

    runs: tuple[Path, ...]
    """Folders of runs; a sweep's stands for its searches."""
    out: Path | None = None
    """The file; None: report.html in the folder of the run, or here if there are several."""
    serve: bool = False
    """Instead of writing a file, show the report in a browser while the runs go on, until Ctrl-C."""
    host: str = LOOPBACK
    """Address to listen on with --serve."""
    port: int = 0
    """Port to listen on; 0: any that is free."""


def write_report(paths: Sequence[str | Path], out: str | Path | None = None) -> Path:
    """Writes the report of the runs in ``paths``; whole or not at all.

    Args:
        paths: folders of searches, retrainings and sweeps.
        out: the file; None: report.html in the one run's folder, or in this one if there are several.

    Returns:
        Where it is.

    Raises:
        FastnasError: there is no run there, or ``out`` is something else than a report.
    """
    if not paths:
        raise FastnasError("a report needs a run: name its folder")
    folders = [user_path("RUN", path) for path in paths]
    file = _target(folders, out)
    write_atomically(file, page(runs_of(folders)))
    return file


def _target(folders: Sequence[Path], out: str | Path | None) -> Path:
    """Where the report goes: a file that is one already, or that does not exist, in a folder that does."""
    alone = folders[0] / NAME if len(folders) == 1 and folders[0].is_dir() else Path(NAME)
    file = alone if out is None else user_path("--out", out)
    if file.is_dir():
        raise FastnasError(f"--out {file} is a folder; name a file in it, such as {file / NAME}")
    if not file.parent.is_dir():
        raise FastnasError(f"--out {file}: there is no folder {file.parent}; make it, or name another file")
    if file.exists() and not is_report(file):
        raise FastnasError(f"{file} is no report of fastnas and is left as it is; name another file by --out")
    return file


def is_report(file: Path) -> bool:
    """Whether a file says of itself that it was made here."""
    try:
        with file.open("rb") as content:
            return f'name="generator" content="{GENERATOR} '.encode() in content.read(4096)
    except OSError:
        return False


@clear_errors()
def main(arguments: list[str] | None = None) -> None:
    """Parses the flags, writes the report, says where it is."""
    import tyro

    config = tyro.cli(
        ReportConfig,
        prog="python -m fastnas.report",
        description=DESCRIPTION,
        args=take_imports(sys.argv[1:] if arguments is None else arguments),
        config=(tyro.conf.PositionalRequiredArgs,),
    )
    if config.serve:
        if config.out is not None:
            raise FastnasError("--serve shows the report and writes no file: leave out --out, or --serve")
        return serve(config.runs, config.host, config.port)
    print(f"report:   {write_report(config.runs, config.out)}")
