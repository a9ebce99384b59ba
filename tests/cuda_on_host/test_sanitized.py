"""The CUDA kernels on the host, watched: ThreadSanitizer for races, AddressSanitizer for what lies outside an array.

A program without Python runs every op's cases (``cases_<op>.cpp``); another one makes mistakes, which must be seen.
"""

from __future__ import annotations

import functools
import os
import re
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.cuda_on_host.library import BUILD, ROOT, alone_in, compile_all

HERE = Path(__file__).parent
KERNELS = {path.name.removesuffix("_cuda.cu"): path for path in (ROOT / "csrc").rglob("*_cuda.cu")}
CASES = {path.stem.removeprefix("cases_"): path for path in HERE.glob("cases_*.cpp")}
WATCHED = {
    # GCC does not watch variables that, for all it knows, no other thread can reach, nor what a call returns into
    # memory: it must know less of pointers and inline more.
    "race": ["-fsanitize=thread", "-fno-tree-pta", "-finline-functions", "-finline-small-functions"],
    "memory": ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
}
# A product that one compiler fuses with a sum and another does not would be a difference between builds.
OPTIONS = ["-std=c++20", "-O1", "-g1", "-fno-omit-frame-pointer", "-ffp-contract=off", "-Wno-unknown-pragmas"]
REPORT = re.compile(r"WARNING: ThreadSanitizer|ERROR: AddressSanitizer|runtime error|terminate called")


@functools.cache
def program(name: str, kind: str) -> Path:
    sources = [HERE / f"{name}.cpp"]
    if name == "run_cases":
        sources += [path for op in sorted(KERNELS.keys() & CASES) for path in (KERNELS[op], CASES[op])]
    flags, folder = WATCHED[kind], BUILD / kind
    includes = [f"-I{HERE}", f"-I{ROOT / 'csrc'}"]
    target = folder / name
    with alone_in(folder):
        objects = compile_all(sources, folder, [*OPTIONS, "-DFASTNAS_WITH_CUDA", *flags, *includes])
        subprocess.run(["g++", *flags, *map(str, objects), "-o", str(target)], check=True)
    return target


def run(name: str, kind: str, *arguments: str, drop: str = "") -> tuple[int, str]:
    """``(exit status, what was printed)``."""
    environment = {key: value for key, value in os.environ.items() if key != "LD_PRELOAD"}
    environment |= {"TSAN_OPTIONS": "halt_on_error=1", "UBSAN_OPTIONS": "print_stacktrace=1"}
    # Fibers' stacks are none that AddressSanitizer makes.
    environment |= {"ASAN_OPTIONS": "detect_stack_use_after_return=0", "CUDA_ON_HOST_DROP": drop}
    command = [str(program(name, kind)), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if "unexpected memory mapping" in done.stderr:
        pytest.skip("ThreadSanitizer does not run on this system: " + done.stderr.splitlines()[0])
    return done.returncode, done.stdout + done.stderr


@functools.cache
def all_cases(kind: str) -> tuple[int, str]:
    return run("run_cases", kind)


def checksums(output: str) -> dict[str, str]:
    return dict(re.findall(r"^(\w+) ([0-9a-f]{16})$", output, flags=re.MULTILINE))


def test_every_launcher_has_cases():
    for op, path in KERNELS.items():
        assert op in CASES, f"{path.name} has no cases; write tests/cuda_on_host/cases_{op}.cpp"
    for op, path in CASES.items():
        assert list((ROOT / "csrc").glob(f"*/{op}.h")), (
            f"{path.name} is about no op: there is no csrc/*/{op}.h"
        )


@pytest.mark.parametrize("kind", WATCHED)
def test_nothing_is_reported(kind):
    status, output = all_cases(kind)
    assert status == 0, output
    assert not REPORT.search(output), output
    assert checksums(output).keys() == KERNELS.keys() & CASES


def test_results_depend_on_no_order_and_no_rest_in_shared_memory():
    assert checksums(all_cases("race")[1]) == checksums(all_cases("memory")[1])


def barriers_written() -> dict[str, bool]:
    """``{"folder/file.cuh:12": whether it is said to be spare}`` of all barriers in the sources."""
    found = {}
    for path in (ROOT / "csrc").rglob("*.cu*"):
        for number, line in enumerate(path.read_text().splitlines(), start=1):
            code, _, comment = line.partition("//")
            if "__syncthreads()" in code:
                place = f"{path.parent.name}/{path.name}:{number}"
                found[place] = comment.strip().startswith("spare:")
    return found


def barriers_met() -> dict[str, list[str]]:
    """``{"folder/file.cuh:12": [op, ...]}`` of all barriers that the cases came to."""
    met: dict[str, list[str]] = {}
    for op, place in re.findall(r"^barrier (\w+) (\S+)$", all_cases("race")[1], flags=re.MULTILINE):
        met.setdefault(place, []).append(op)
    return met


def test_every_barrier_is_reached():
    assert barriers_met().keys() == barriers_written().keys()


def test_every_barrier_is_missed():
    """A barrier that orders nothing any more is a race, so the cases use it and it is there for something."""

    def is_missed(place: str, ops: list[str]) -> bool:
        outputs = (run("run_cases", "race", op, drop=place)[1] for op in ops)
        return any("WARNING: ThreadSanitizer: data race" in output for output in outputs)

    met, spare = barriers_met(), barriers_written()
    assert met
    with ThreadPoolExecutor(2) as pool:
        missed = dict(zip(met, pool.map(is_missed, met.keys(), met.values()), strict=True))
    wrong = [f"{place} ({', '.join(met[place])})" for place in met if missed[place] == spare[place]]
    assert not wrong, (
        "without these barriers nothing is reported: take them out, write cases that need them, or say"
        f" '// spare: why' behind them (those marked so are needed, and the mark is wrong): {wrong}"
    )


@pytest.mark.parametrize("kind", WATCHED)
def test_no_mistake(kind):
    status, output = run("mistakes", kind, "none")
    assert status == 0, output
    assert not REPORT.search(output), output


@pytest.mark.parametrize(
    ("kind", "mistake", "report"),
    [
        ("race", "lost_barrier", "ThreadSanitizer: data race"),
        ("race", "same_place_early", "ThreadSanitizer: data race"),
        ("race", "same_place_late", "ThreadSanitizer: data race"),
        ("race", "neighbours_place", "ThreadSanitizer: data race"),
        ("race", "unset_shared", "out holds a number that is not finite"),
        ("memory", "too_far", "heap-buffer-overflow|insufficient space"),
        ("memory", "read_too_far", "heap-buffer-overflow|insufficient space"),
        ("memory", "too_far_shared", "global-buffer-overflow|insufficient space"),
        ("memory", "too_far_dynamic", "heap-buffer-overflow|insufficient space"),
        ("memory", "misaligned", "misaligned address"),
        *(
            (kind, *each)
            for kind in WATCHED
            for each in (
                ("ended_thread", "waits at the barrier cuda_on_host/mistakes.cpp:.* has ended"),
                ("two_barriers", "waits at the barrier cuda_on_host/mistakes.cpp:.* waits at cuda_on_host/"),
                ("no_blocks", "no GPU launches a grid of"),
                ("much_shared", "49153 bytes of dynamic shared memory, and 45056 are allowed"),
            )
        ),
    ],
)
def test_mistakes_are_reported(kind, mistake, report):
    status, output = run("mistakes", kind, mistake)
    assert status != 0
    assert re.search(report, output), output
