"""Chromium, as the tests of pages and their measurements start it: the system's own, headless, keeping to itself."""

from __future__ import annotations

import os
import shutil

from playwright.sync_api import Browser, Playwright

NAMES = ("chromium", "chromium-browser", "google-chrome")
MISSING = f"no Chromium: install it ({', '.join(NAMES)}), or let FASTNAS_BROWSER be its path"
# A browser that is not asked to fetch anything fetches nothing; as root it has no sandbox.
ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


def chromium() -> str | None:
    """Path of Chromium, what FASTNAS_BROWSER names or what the system has; None: it is not there."""
    if named := os.environ.get("FASTNAS_BROWSER"):
        return shutil.which(named)
    return next((path for name in NAMES if (path := shutil.which(name))), None)


def launched(playwright: Playwright) -> Browser:
    """Chromium, running.

    Raises:
        FileNotFoundError: there is none here.
    """
    path = chromium()
    if path is None:
        raise FileNotFoundError(MISSING)
    return playwright.chromium.launch(executable_path=path, args=list(ARGUMENTS))
