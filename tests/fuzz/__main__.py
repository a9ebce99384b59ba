"""``python -m tests.fuzz``: every target under atheris, guided by coverage, for so many seconds each.

A target runs in a process of its own, which libFuzzer ends at the first fault; the input goes to the folder that
--crashes names. ``python -m tests.fuzz --target NAME FILE`` reads one such input again.
"""

import argparse
import importlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

CODE = ("fastnas", "PIL", "tyro")  # whose branches guide, with FIRST's
FIRST = ("pickle", "zipfile", "tokenize", "shlex")  # which torch imports, too
LARGEST = 2**16  # bytes of an input


def main() -> None:
    """Parses the flags; status 1 if a target has a fault."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    parser.add_argument("--target", action="append", help="only this one; again for more")
    parser.add_argument(
        "--crashes", type=Path, default=Path("build/fuzz"), help="folder of inputs with a fault"
    )
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("files", nargs="*", help="only read these inputs")
    arguments = parser.parse_args()
    try:
        import atheris  # noqa: F401
    except ImportError:
        sys.exit("error: fuzzing needs atheris: pip install -e '.[fuzz]' (Linux, Python 3.11 to 3.13)")
    if arguments.worker:
        _fuzz(arguments.target[0], arguments.seconds, arguments.crashes, arguments.files)
        return
    from tests.fuzz.targets import TARGETS

    arguments.crashes.mkdir(parents=True, exist_ok=True)
    names = arguments.target or list(TARGETS)
    unknown = set(names) - TARGETS.keys()
    if unknown:
        sys.exit(f"error: no target {', '.join(unknown)}; there are {', '.join(TARGETS)}")
    faults = [name for name in names if not _passed(name, arguments)]
    print(f"{len(names)} targets, faults in: {', '.join(faults) or 'none'}")
    sys.exit(bool(faults))


def _passed(name: str, arguments: argparse.Namespace) -> bool:
    print(f"fuzzing {name}", flush=True)
    command = [sys.executable, "-m", "tests.fuzz", "--worker", "--target", name]
    command += ["--seconds", str(arguments.seconds), "--crashes", str(arguments.crashes), *arguments.files]
    log = arguments.crashes / f"{name}.log"
    with log.open("w") as file:
        status = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, check=False).returncode
    if status == 0 and not arguments.files:
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.startswith("Done ")]
        print(f"  {lines[-1] if lines else 'ended early'}", flush=True)
        return bool(lines)
    print(f"  {'a fault, see' if status else 'see'} {log}", flush=True)
    return status == 0


def _fuzz(name: str, seconds: int, crashes: Path, files: list[str]) -> None:
    import atheris

    with atheris.instrument_imports(include=list(FIRST)):
        for module in FIRST:
            sys.modules.pop(module, None)
            importlib.import_module(module)
    import torch  # not instrumented: it would take minutes

    torch.set_num_threads(1)
    os.environ["FASTNAS_FIRST_USE_CHECK"] = "0"
    with atheris.instrument_imports(include=list(CODE)):
        from tests.fuzz.targets import TARGETS
        from tests.fuzz.watch import hold, refusal
    target = TARGETS[name]
    seeds = target.seeds()
    for seed in seeds:  # what is loaded at the first call is loaded then
        refusal(target.read, seed)
    with tempfile.TemporaryDirectory() as folder:
        corpus, dictionary = Path(folder) / "corpus", Path(folder) / "dictionary"
        corpus.mkdir()
        for i, seed in enumerate(seeds):
            (corpus / str(i)).write_bytes(seed)
        words = [token for token in target.tokens if len(token) <= 64]
        dictionary.write_text("".join(f'"{_escaped(word)}"\n' for word in words))
        options = [f"-max_total_time={seconds}", f"-max_len={LARGEST}", "-timeout=10", "-rss_limit_mb=4096"]
        options += [f"-artifact_prefix={crashes}/{name}-", f"-dict={dictionary}", "-print_final_stats=1"]
        atheris.Setup(
            [sys.argv[0], *options, *(files or [str(corpus)])], lambda content: hold(target.read, content)
        )
        atheris.Fuzz()


def _escaped(word: bytes) -> str:
    return "".join(f"\\x{byte:02x}" for byte in word)


if __name__ == "__main__":
    main()
