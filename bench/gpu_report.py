"""``python -m bench.gpu_report PARTS FOLDER``: what ``bench/gpu_check.sh`` found, as one JSON file and one of Markdown.

Both are named after the device. Whatever part is missing or was cut off is said, and the rest is there. Nothing of
fastnas is imported, so that a build that failed is reported, too.
"""

from __future__ import annotations

import json
import re
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

from bench.commit import commit

MIB = 1 << 20
_TAIL = 30  # lines of a failed part's log that are kept


def collect(parts: Path) -> dict[str, Any]:
    """Everything in the folder ``parts``: status.tsv (name, exit status, seconds, limit) and the parts' files."""
    result: dict[str, Any] = {
        "device": "unknown GPU",
        "driver": "",
        "commit": commit() or "unknown",
        "parts": {},
    }
    for line in _text(parts / "status.tsv").splitlines():
        name, status, seconds, limit = line.split("\t")
        code = int(status)
        part: dict[str, Any] = {"status": code, "seconds": float(seconds), "limit_seconds": float(limit)}
        part["outcome"] = {0: "passed", 124: "cut off", 125: "skipped", 137: "cut off"}.get(code, "failed")
        if part["outcome"] != "passed":
            part["log"] = _text(parts / f"{name}.log").splitlines()[-_TAIL:]
        result["parts"][name] = part
    if gpu := _text(parts / "gpu.txt").strip():
        name, driver, *_ = (word.strip() for word in gpu.splitlines()[0].split(","))
        result |= {"device": name, "driver": driver}
    for name in ("doctor", "benchmark"):
        result[name] = _json(parts / f"{name}.json")
    result["tests"] = _tests(parts / "tests.xml")
    result["ok"] = bool(result["parts"]) and all(
        part["outcome"] in ("passed", "skipped") for part in result["parts"].values()
    )
    return result


def slug(device: str) -> str:
    """The device's name as a file's.

    >>> slug("NVIDIA H100 80GB HBM3")
    'nvidia-h100-80gb-hbm3'
    """
    return re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")


def markdown(result: dict[str, Any]) -> str:
    """The report for a reader."""
    lines = [
        f"# {result['device']}",
        "",
        f"Driver {result['driver'] or 'unknown'}, commit {result['commit']}",
    ]
    if isinstance(e := (result["doctor"] or {}).get("environment"), dict):
        lines[-1] += (
            f", extension built from {e['commit']}; fastnas {e['fastnas']}, torch {e['torch']}, triton "
            f"{e['triton'] or 'none'}, Python {e['python']}; compute capability {e['capability'] or 'none'}"
        )
    lines[-1] += ". Written by `bench/gpu_check.sh`."
    lines += ["", "| part | outcome | seconds | limit |", "|---|---|---|---|"]
    lines += [
        f"| {name} | {part['outcome']} | {part['seconds']:.0f} | {part['limit_seconds']:.0f} |"
        for name, part in result["parts"].items()
    ]
    if tests := result["tests"]:
        lines += [
            "",
            f"Tests: {tests['passed']} passed, {tests['failed']} failed, {tests['skipped']} skipped.",
        ]
        lines += [f"* failed: `{name}`" for name in tests["failures"]]
    sections = (
        ("Every operator against float64", _doctor_lines, result["doctor"]),
        ("Against plain PyTorch", benchmark_lines, result["benchmark"]),
    )
    for title, write, found in sections:
        if found is None:
            continue
        lines += ["", f"## {title}", ""]
        try:
            lines += write(found)
        except (KeyError, TypeError, ValueError) as error:
            lines.append(f"Not as expected, see the JSON file: {error!r}.")
    return "\n".join(lines) + "\n"


def _doctor_lines(doctor: dict[str, Any]) -> list[str]:
    lines = ["| operator | dtype | error | allowed | closest | |", "|---|---|---|---|---|---|"]
    for row in doctor["operators"]:
        if row["result"] is None:
            lines.append(f"| {row['operator']} | {row['dtype']} | | | {row['reason']} | {row['status']} |")
            continue
        error = "NaN" if row["error"] is None else f"{row['error']:.1e}"
        closest = f"{error} | {row['tolerance']:.1e} | {row['result']}"
        lines.append(f"| {row['operator']} | {row['dtype']} | {closest} | {row['status']} |")
    if doctor["lost"]:
        lines += ["", f"{doctor['lost']}: nothing was checked after that."]
    if doctor["bandwidth"]:
        rate = doctor["copy_bytes_per_second"] / 1e9
        lines += ["", f"A copy from device to device: {rate:.0f} GB/s, read and written.", ""]
        lines += ["| operator | dtype | MiB | µs | GB/s | of a copy as large |", "|---|---|---|---|---|---|"]
        lines += [
            f"| {row['operator']} | {row['dtype']} | {row['bytes'] / MIB:.1f} | {1e6 * row['seconds']:.1f} |"
            f" {row['rate'] / 1e9:.0f} | {100 * row['share']:.0f}% |"
            for row in doctor["bandwidth"]
        ]
    return lines


def benchmark_lines(benchmark: dict[str, Any]) -> list[str]:
    """``bench.gpu``'s results as Markdown."""
    c, e = benchmark["configuration"], benchmark["environment"]
    lines = [
        f"{e['device']}, torch {e['torch']}, fastnas {e['fastnas']} ({e['commit']}), {e['date']}; batch"
        f" {c['batch_size']} of {c['image_size']}x{c['image_size']}, C = {c['channels']}; medians, alternating in"
        " one run.",
    ]
    for group in benchmark["groups"]:
        method = group["method"]
        if method == "idarts":
            method += f" step (T = {c['inner_steps']}, K = {c['neumann_terms']})"
        elif method != "forward-backward":
            method += " step"
        lines += ["", f"### {group['space']}, {group['layers']} layers: {method}", ""]
        if group["reason"]:
            lines.append(f"Not measured: {group['reason']}.")
            continue
        lines += [
            "| | ms | p20 | p80 | speed | epoch s | kernels | peak MiB | native GB/s |",
            "|---|---|---|---|---|---|---|---|---|",
        ]
        lines += [_contender_line(row) for row in group["contenders"]]
        lines += ["", *(f"{row['name']}: {note}" for row in group["contenders"] for note in row["notes"])]
    cell = benchmark["cell"]
    if cell:
        lines += ["", "### torch.compile", ""]
        if cell["reason"]:
            lines.append(f"Not measured: {cell['reason']}.")
        else:
            lines += [f"Of {cell['what']}, forward + backward:", "", "| | ms | p20 | p80 | first call s |"]
            lines.append("|---|---|---|---|---|")
            for row in cell["contenders"]:
                s = row["seconds"]
                times = " | ".join(f"{1e3 * s[name]:.2f}" for name in ("median", "p20", "p80"))
                lines.append(f"| {row['name']} | {times} | {row['first_seconds']:.1f} |")
    for name, rows in benchmark["kernels"].items():
        lines += ["", f"### Kernels of a forward + backward, {name}", "", "| kernel | calls | ms | share |"]
        lines.append("|---|---|---|---|")
        lines += [
            f"| `{row['name'].replace('|', ' ')}` | {row['calls']} | {1e3 * row['seconds']:.3f}"
            f" | {100 * row['share']:.0f}% |"
            for row in rows[:10]
        ]
    return lines


def _contender_line(row: dict[str, Any]) -> str:
    if row["status"] != "measured":
        return f"| {row['name']} | {row['status']}: {row['reason']} | | | | | | | |"
    s = row["seconds"]
    cells = [f"{1e3 * s[name]:.2f}" for name in ("median", "p20", "p80")]
    cells.append(f"{row['speedup']:.2f}x" if row.get("speedup") else "")
    cells.append(f"{row['epoch_seconds']:.1f}" if row.get("epoch_seconds") else "")
    cells.append("" if row["kernels"] is None else str(row["kernels"]))
    cells.append("" if row["peak_bytes"] is None else f"{row['peak_bytes'] / MIB:.0f}")
    rate = row.get("native_bytes_per_second")
    cells.append("" if rate is None else f"{rate / 1e9:.0f}")
    return f"| {row['name']} | {' | '.join(cells)} |"


def _tests(path: Path) -> dict[str, Any] | None:
    """Counts and the names of failures in pytest's junit file; None if there is none."""
    try:
        cases = list(ElementTree.parse(path).iter("testcase"))
    except (OSError, ElementTree.ParseError):
        return None
    failures, texts = [], []
    for case in cases:
        for kind in ("failure", "error"):
            if (fault := case.find(kind)) is not None:
                failures.append(f"{case.get('classname')}::{case.get('name')}")
                texts.append("\n".join((fault.text or "").splitlines()[-_TAIL:]))
    skipped = sum(case.find("skipped") is not None for case in cases)
    passed = len(cases) - len(failures) - skipped
    return {
        "passed": passed,
        "failed": len(failures),
        "skipped": skipped,
        "failures": failures,
        "texts": texts,
    }


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def _json(path: Path) -> Any:
    try:
        return json.loads(_text(path))
    except ValueError:
        return None


def main(parts: str, folder: str) -> None:
    """Writes both files and prints their names."""
    result = collect(Path(parts))
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    path = target / f"{slug(result['device'])}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    path.with_suffix(".md").write_text(markdown(result))
    print(path, path.with_suffix(".md"), sep="\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
