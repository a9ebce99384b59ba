"""``python -m fastnas.doctor``: what is here, is every operator right on it, how fast is a GPU's memory used."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from fastnas._command import clear_errors
from fastnas._devices import named_device
from fastnas.build_info import build_info
from fastnas.doctor.bandwidth import Bandwidth, bandwidths, copy_rate
from fastnas.doctor.checks import DeviceLostError, Finding, check
from fastnas.doctor.environment import environment
from fastnas.doctor.operators import OPERATORS

DESCRIPTION = """Compares every operator, forward and backward, with its plain-PyTorch reference in float64 on this
device, and on a GPU the memory-bound ones with a copy from device to device. Exits with status 1 if one is wrong."""


@dataclass(frozen=True)
class DoctorConfig:
    """What to look at."""

    device: str = "auto"
    """auto (a GPU where there is one), cpu, cuda or cuda:N."""
    quick: bool = False
    """Small shapes only, and no bandwidths."""
    json: bool = False
    """Print one JSON object."""


def examine(device: torch.device, *, quick: bool = False) -> dict[str, Any]:
    """Everything that the doctor finds, as what ``--json`` prints.

    Args:
        device: what the operators run on.
        quick: small shapes only, and no bandwidths.

    Returns:
        ``ok``; ``environment`` and ``build``; ``operators``, a row for each and dtype with ``status`` ("ok", "wrong",
        "failed", "missing"), ``result``, ``error``, ``tolerance`` and ``reason``; ``bandwidth``, empty on a CPU, with
        ``copy_bytes_per_second`` None there; ``lost``: why the checks ended early, "" if they did not.
    """
    findings: list[Finding] = []
    lost = ""
    try:
        for finding in check(OPERATORS, device, small=quick, cuda_build=bool(build_info().cuda)):
            findings.append(finding)
            if finding.bad:  # at once: whoever is cut off has seen it
                print(
                    f"{finding.operator}, {finding.dtype}: {finding.status} {finding.reason}", file=sys.stderr
                )
    except DeviceLostError as error:
        lost = str(error)
    measured: list[Bandwidth] = []
    copy = None
    if device.type == "cuda" and not quick and not lost:
        try:
            copy, measured = copy_rate(device), bandwidths(device)
        except RuntimeError as error:
            lost = f"the bandwidths could not be measured: {error}"
    return {
        "ok": not lost and not any(finding.bad for finding in findings),
        "device": str(device),
        "environment": asdict(environment(device)),
        "build": asdict(build_info()),
        "operators": [_row(finding) for finding in findings],
        "lost": lost,
        "copy_bytes_per_second": copy,
        "bandwidth": [asdict(one) | {"rate": one.rate, "share": one.share} for one in measured],
    }


def _row(finding: Finding) -> dict[str, Any]:
    worst = finding.worst
    # JSON has no NaN and no infinity.
    error = None if worst is None or worst.error != worst.error else min(worst.error, sys.float_info.max)
    return {
        "operator": finding.operator,
        "dtype": finding.dtype,
        "status": finding.status,
        "result": worst and worst.result,
        "error": error,
        "tolerance": worst and min(worst.tolerance, sys.float_info.max),
        "reason": finding.reason,
    }


def _table(found: dict[str, Any], device: torch.device) -> str:
    lines = [
        str(environment(device)),
        "",
        "built",
        *(f"  {line}" for line in str(build_info()).splitlines()),
        "",
    ]
    lines.append(f"{'operator':<21} {'dtype':<9} {'error':>9} {'allowed':>9}  {'closest':<22} {'':<7}")
    for row in found["operators"]:
        head = f"{row['operator']:<21} {row['dtype']:<9}"
        if row["result"] is None:
            lines.append(f"{head} {row['status'].upper()}: {row['reason']}")
            continue
        error = "NaN" if row["error"] is None else f"{row['error']:.1e}"
        status = "ok" if row["status"] == "ok" else row["status"].upper()
        lines.append(f"{head} {error:>9} {row['tolerance']:>9.1e}  {row['result']:<22} {status}".rstrip())
    if found["lost"]:
        lines += ["", f"{found['lost']}: nothing was checked after that"]
    if found["bandwidth"]:
        copy = found["copy_bytes_per_second"]
        lines += ["", f"a copy from device to device: {copy / 1e9:.0f} GB/s, read and written", ""]
        lines.append(f"{'operator':<31} {'dtype':<9} {'MiB':>7} {'us':>8} {'GB/s':>7}  of a copy as large")
        lines += [
            f"{row['operator']:<31} {row['dtype']:<9} {row['bytes'] / 2**20:>7.1f} {1e6 * row['seconds']:>8.1f}"
            f" {row['rate'] / 1e9:>7.0f}  {100 * row['share']:.0f}%"
            for row in found["bandwidth"]
        ]
    lines += ["", _verdict(found)]
    return "\n".join(lines)


def _verdict(found: dict[str, Any]) -> str:
    def named(rows: Sequence[dict[str, Any]]) -> str:
        return ", ".join(f"{row['operator']} in {row['dtype']}" for row in rows)

    bad = [row for row in found["operators"] if row["status"] in ("wrong", "failed")]
    missing = [row for row in found["operators"] if row["status"] == "missing"]
    if bad:
        return f"not right on this device: {named(bad)}"
    without = f"; without a kernel here: {named(missing)}" if missing else ""
    return f"every operator that runs here is right{without}"


def main(arguments: list[str] | None = None) -> None:
    """Parses the flags, examines, prints; exits with status 1 if an operator is wrong."""
    with clear_errors():
        import tyro

        config = tyro.cli(
            DoctorConfig,
            prog="python -m fastnas.doctor",
            description=DESCRIPTION,
            args=sys.argv[1:] if arguments is None else arguments,
        )
        device = named_device(config.device)
        found = examine(device, quick=config.quick)
        print(json.dumps(found, indent=1, allow_nan=False) if config.json else _table(found, device))
    if not found["ok"]:
        sys.exit(1)


if __name__ == "__main__":
    main()
