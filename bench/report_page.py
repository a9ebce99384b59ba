"""``python -m bench.report_page``: how large a report is, how long it takes to write, to open and to move in.

The runs are made up (``bench.made_run``), every epoch with another genotype. A report is opened by headless Chromium in
a fresh context each time: ``open`` is from the start of the navigation until the slider can be moved, ``move`` from the
slider's first event, to another epoch, until the frame that shows it has been drawn.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from playwright.sync_api import Browser, sync_playwright

from bench.chromium import MISSING, chromium, launched
from bench.made_run import make_run
from bench.measure import environment
from fastnas._command import clear_errors
from fastnas.errors import FastnasError
from fastnas.report import write_report

DESCRIPTION = "Size of a report, and the time it takes to write, to open in Chromium and to move its slider."

MOVE = """(epoch) => new Promise((done) => {
  const slider = document.querySelector(".slider"), begin = performance.now();
  slider.value = epoch;
  slider.dispatchEvent(new Event("input", { bubbles: true }));
  requestAnimationFrame(() => requestAnimationFrame(() => done(performance.now() - begin)));
})"""
# Buttons are shown by the script when it has read the page.
READY = """() => new Promise((done) => {
  const ready = () => document.querySelector(".copy:not([hidden])");
  const look = () => (ready() ? done(performance.now()) : requestAnimationFrame(look));
  look();
})"""


@dataclass(frozen=True)
class ReportPageConfig:
    """What to open, and how often."""

    epochs: tuple[int, ...] = (10, 50, 500)
    """Epochs of the runs."""
    space: str = "darts"
    """Search space."""
    rounds: int = 5
    """How often each is opened; the medians are shown."""


def measure(config: ReportPageConfig) -> list[dict[str, Any]]:
    """A row for each number of epochs: genotypes, seconds, bytes, milliseconds.

    Raises:
        FastnasError: there is no Chromium.
    """
    if chromium() is None:
        raise FastnasError(MISSING)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        browser = launched(playwright)
        try:
            return [row(config, epochs, Path(folder), browser) for epochs in config.epochs]
        finally:
            browser.close()


def row(config: ReportPageConfig, epochs: int, folder: Path, browser: Browser) -> dict[str, Any]:
    """A row of the table, of a run made in ``folder``."""
    run = make_run(folder / str(epochs), epochs=epochs, space=config.space)
    begin = time.perf_counter()
    file = write_report([run])
    seconds = time.perf_counter() - begin
    times = [_opened(browser, file, epochs) for _ in range(config.rounds)]
    return {
        "epochs": epochs,
        "genotypes": len({path.read_bytes() for path in (run / "genotypes").iterdir()}),
        "write_s": seconds,
        "bytes": file.stat().st_size,
        "open_ms": statistics.median(opened for opened, _ in times),
        "move_ms": statistics.median(moved for _, moved in times),
    }


def _opened(browser: Browser, file: Path, epochs: int) -> tuple[float, float]:
    """Milliseconds until a report can be moved in, and of its first move."""
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    try:
        page = context.new_page()
        page.goto(file.as_uri())
        return page.evaluate(READY), page.evaluate(MOVE, max(1, epochs // 2))
    finally:
        context.close()


def table(rows: list[dict[str, Any]], config: ReportPageConfig) -> str:
    """``measure``'s rows as Markdown."""
    where = environment()
    lines = [
        f"{config.space}, medians of {config.rounds}; {where['device']}, {torch.get_num_threads()} threads,"
        f" torch {where['torch']}, fastnas {where['fastnas']} ({where['commit']}).",
        "",
        "| epochs | genotypes | write, s | KiB | open, ms | move, ms |",
        "|---:|---:|---:|---:|---:|---:|",
    ]
    for of in rows:
        lines.append(
            f"| {of['epochs']} | {of['genotypes']} | {of['write_s']:.1f} | {of['bytes'] / 1024:,.0f} "
            f"| {of['open_ms']:.0f} | {of['move_ms']:.0f} |"
        )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    """Parses the flags, measures, prints the table."""
    with clear_errors():
        config = tyro.cli(
            ReportPageConfig,
            prog="python -m bench.report_page",
            description=DESCRIPTION,
            args=sys.argv[1:] if arguments is None else arguments,
        )
        print(table(measure(config), config))


if __name__ == "__main__":
    main()
