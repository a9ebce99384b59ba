"""The first use of a device: a second of checks, remembered, so that no search runs on a wrong kernel unawares."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import torch

from fastnas._extension import fastnas_C
from fastnas.build_info import build_info
from fastnas.doctor.checks import DeviceLostError, Finding, Measured, check
from fastnas.doctor.environment import environment
from fastnas.doctor.operators import OPERATORS
from fastnas.errors import FastnasError
from fastnas.ops._distrust import DISTRUSTED

_SWITCH = "FASTNAS_FIRST_USE_CHECK"


def check_first_use(device: torch.device) -> None:
    """Checks every operator on small shapes, once for each device, driver, torch and build.

    A wrong one is named on the standard error and runs as plain PyTorch from then on, and with it, if it is a part of
    the fused cell, the cells of supernets that are built afterwards. The outcome is kept in the user's cache folder
    (XDG_CACHE_HOME, else ~/.cache), in fastnas/. ``FASTNAS_FIRST_USE_CHECK=0`` leaves the check out.

    Raises:
        FastnasError: an operator left the device unusable, or the variable is neither 0 nor 1.
    """
    DISTRUSTED.clear()
    wanted = os.environ.get(_SWITCH, "1")
    if wanted not in ("0", "1"):
        raise FastnasError(f"{_SWITCH} must be 0 or 1, got {wanted!r}")
    if wanted == "0":
        return
    key = _key(device)
    path = _cache_folder() / f"first-use-{hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]}.json"
    findings = _read(path, key)
    if findings is None:
        try:
            findings = list(check(OPERATORS, device, small=True, cuda_build=bool(build_info().cuda)))
        except DeviceLostError as error:
            raise FastnasError(
                f"{error}; `python -m fastnas.doctor` shows more, --device cpu does without it"
            ) from None
        _write(path, key, findings)
    for operator in dict.fromkeys(finding.operator for finding in findings if finding.bad):
        DISTRUSTED.add(operator)
        print(f"warning: {_sentence(operator, findings, device)}", file=sys.stderr)


def _sentence(operator: str, findings: Sequence[Finding], device: torch.device) -> str:
    first = next(one for one in findings if one.operator == operator and one.bad)
    if first.worst is None:
        what = f"fails ({first.reason})"
    else:
        worst = first.worst
        what = f"computes wrong numbers ({worst.result} is off by {worst.error:.1e}, {worst.tolerance:.1e} is allowed)"
    return (
        f"{operator} in {first.dtype} {what} on this {device.type}: plain PyTorch takes its place, and is slower; "
        "`python -m fastnas.doctor` shows more"
    )


def _key(device: torch.device) -> dict[str, str]:
    """What the outcome depends on: the device, the software below, and the code that is checked."""
    known = asdict(environment(device))
    names = (
        "device",
        "capability",
        "driver",
        "processor",
        "cpu_capability",
        "torch",
        "triton",
        "fastnas",
        "commit",
    )
    return {name: str(known[name]) for name in names} | {"type": device.type, "code": _code()}


def _code() -> str:
    """A digest of the extension and of what calls it: a commit alone does not tell apart builds with changes."""
    package = Path(__file__).resolve().parents[1]
    files = [Path(fastnas_C.__file__)]
    for folder in ("ops", "kernels", "supernet", "doctor"):
        files += sorted((package / folder).glob("*.py"))
    digest = hashlib.blake2b(digest_size=16)
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME", "")
    # As the XDG specification says, a path that is not absolute counts as none.
    return (Path(base) if os.path.isabs(base) else Path(os.path.expanduser("~/.cache"))) / "fastnas"


def _read(path: Path, key: dict[str, str]) -> list[Finding] | None:
    """The findings that are kept for ``key``; None if there are none, or none that can be read."""
    try:
        kept = json.loads(path.read_text())
        if kept["key"] != key:
            return None
        findings = []
        for row in kept["findings"]:
            worst = None if row["worst"] is None else Measured(**row["worst"])
            findings.append(Finding(**(row | {"worst": worst})))
        checked = {finding.operator for finding in findings}
        return findings if checked == {operator.name for operator in OPERATORS} else None
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def _write(path: Path, key: dict[str, str], findings: Sequence[Finding]) -> None:
    """Keeps the findings, all of them or nothing; where the folder cannot be written, nothing."""
    text = json.dumps({"key": key, "findings": [asdict(finding) for finding in findings]}, indent=1)
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=".first-use-")
        try:
            with os.fdopen(handle, "w") as file:
                file.write(text)
            os.replace(name, path)
        except BaseException:
            with suppress(OSError):
                os.unlink(name)
            raise
