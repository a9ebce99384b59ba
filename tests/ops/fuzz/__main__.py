"""Runs random calls of every operator in a process of its own, which a fault may end.

A case is named "seed:operator:index"; ``--case`` repeats one.
"""

from __future__ import annotations

import argparse
import faulthandler
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

HANGS = 60  # seconds of one case


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m tests.ops.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=float, help="how long (default: all cases)")
    parser.add_argument("--cases", type=int, default=10**9, help="of each operator at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--operators", nargs="*", help="only these")
    parser.add_argument("--case", help="only this one")
    parser.add_argument("--go-on", action="store_true", help="after a fault that leaves the process alive")
    parser.add_argument("--at", type=Path, help=argparse.SUPPRESS)  # the worker, which writes the case there
    return parser.parse_args()


def _work(arguments: argparse.Namespace) -> int:
    import torch

    import fastnas.ops  # noqa: F401  (registers the references, too)
    from fastnas.build_info import build_info
    from tests.ops.fuzz.calls import CALLS
    from tests.ops.fuzz.case import FaultError, run

    if os.environ.get("FASTNAS_SANITIZE") == "1" and not build_info().sanitizers:
        print("FASTNAS_SANITIZE=1, but the fastnas_C that was loaded is no sanitized build")
        return 1
    faulthandler.enable()
    torch.set_num_threads(2)
    torch.use_deterministic_algorithms(True)  # fresh tensors are full of NaN
    names = arguments.operators or list(CALLS)
    cases = (f"{arguments.seed}:{name}:{k}" for k in range(arguments.cases) for name in names)
    found: Counter[str] = Counter()
    end = time.monotonic() + (arguments.seconds or float("inf"))
    with arguments.at.open("wb", buffering=0) as at:
        for case in [arguments.case] if arguments.case else cases:
            if time.monotonic() > end:
                break
            os.pwrite(at.fileno(), case.ljust(80).encode(), 0)
            try:
                outcome = run(case)
            except Exception as fault:
                print(f"fault in case {case}: {fault}", flush=True)
                if arguments.case or not isinstance(fault, FaultError):
                    traceback.print_exc()
                found["at fault"] += 1
                if arguments.go_on:
                    continue
                return 1
            if arguments.case:
                print(outcome)
            found["refused" if outcome.refused else "compared" if outcome.compared else "done"] += 1
    print(f"{sum(found.values())} calls: {', '.join(f'{n} {what}' for what, n in sorted(found.items()))}")
    return 1 if found["at fault"] else 0


def _watch(worker: subprocess.Popen[bytes], at: Path) -> str | None:
    """Waits for the worker; what it did not say itself."""
    while True:
        try:
            code = worker.wait(1)
        except subprocess.TimeoutExpired:
            if at.exists() and time.time() - at.stat().st_mtime > HANGS:
                worker.kill()
                return f"took more than {HANGS} s"
            continue
        return None if code in (0, 1) else f"ended the process, status {code}"


def main() -> int:
    arguments = _arguments()
    if arguments.at:
        return _work(arguments)
    with tempfile.TemporaryDirectory() as folder:
        at = Path(folder, "case")
        command = [sys.executable, "-m", "tests.ops.fuzz", *sys.argv[1:], "--at", str(at)]
        worker = subprocess.Popen(command)
        fault = _watch(worker, at)
        case = at.read_text().strip() if at.exists() else "none"
    if fault is None and worker.returncode == 0:
        return 0
    if fault is not None:
        print(f"fault in case {case}: {fault}")
    print(f"repeat it by: python -m tests.ops.fuzz --case {case}")
    return 1


if __name__ == "__main__":
    sys.exit(main())
