"""An audit of the smallest supernet on a few digits: seconds."""

import json

import pytest

from fastnas.audit.__main__ import main

TINY = [
    "--space=nasbench201",
    "--channels=2",
    "--layers=1",
    "--images=128",
    "--batch-size=8",
    "--inner-steps=2",
    "--threads=1",
    "--device=cpu",
    "--dtype=float64",
    "--quick",
]


@pytest.fixture(scope="session")
def audited(tmp_path_factory):
    """(what --json printed, the folder) of one audit."""
    folder = tmp_path_factory.mktemp("audit") / "out"
    return audit_into(folder), folder


def audit_into(folder, *arguments):
    """What ``python -m fastnas.audit --json`` printed."""
    import contextlib
    import io

    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        main([*TINY, "--json", f"--out={folder}", *arguments])
    return json.loads(printed.getvalue())
