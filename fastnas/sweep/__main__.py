"""``python -m fastnas.sweep``: many searches, one table."""

from __future__ import annotations

import importlib.util
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

from fastnas._command import clear_errors
from fastnas._imports import IMPORT_HELP, take_imports
from fastnas.errors import FastnasError

DESCRIPTION = f"""Many searches at once on Ray Tune, seeds, estimators, hyperparameters, and one table with mean and
standard deviation. docs/sweeps.md says what a sweep's file has. {IMPORT_HELP}"""
EXTRA = {"yaml": "PyYAML", "ray": "Ray Tune"}


@dataclass(frozen=True)
class Arguments:
    """The command line."""

    sweep: str
    """A sweep's YAML file, or the name of a paper's: idarts-table-3, idarts-figure-2, idarts-figure-4, amended-eta."""
    out: Path | None = None
    """Folder of the sweep, made new; None: runs/sweep-NAME. On a cluster all machines must see it."""
    resume: bool = False
    """Go on with the sweep in that folder, if there is one: trials that have ended are kept, those that were stopped or
    failed go on from their checkpoints, and trials that the file has more of now are run."""
    dry_run: bool = False
    """List every search and check its options, and run none."""
    override: tuple[str, ...] = ()
    """KEY=VALUE each, in place of what the file says: an option of the search, or grid.OPTION, resources.gpus, seeds,
    report and so on."""
    ray_address: str | None = None
    """Of a running Ray cluster, or auto; None: a Ray of its own on this machine."""
    max_concurrent: int | None = None
    """Trials at once; None: what the resources of a trial allow."""
    quiet: bool = False
    """Print nothing but the table, and warnings and errors on the standard error."""


@clear_errors()
def main(arguments: list[str] | None = None) -> None:
    """Parses the flags, runs the sweep, prints its table; status 1 if a trial failed."""
    import tyro

    given = sys.argv[1:] if arguments is None else arguments
    parsed = tyro.cli(
        Arguments,
        prog="python -m fastnas.sweep",
        description=DESCRIPTION,
        args=take_imports(given),
        config=(tyro.conf.PositionalRequiredArgs,),
    )
    needed = [module for module in EXTRA if not (module == "ray" and parsed.dry_run)]
    missing = [EXTRA[module] for module in needed if importlib.util.find_spec(module) is None]
    if missing:
        raise FastnasError(
            f'python -m fastnas.sweep needs {" and ".join(missing)}: pip install ".[sweep]" in the source folder'
        )
    if parsed.max_concurrent is not None and parsed.max_concurrent < 1:
        raise FastnasError(f"--max-concurrent must be at least 1, got {parsed.max_concurrent}")
    from fastnas.sweep.description import read_sweep
    from fastnas.sweep.run import listing, run_sweep

    sweep = read_sweep(parsed.sweep, parsed.override)
    if parsed.dry_run:
        print(listing(sweep))
        return
    text, failed = run_sweep(
        sweep,
        parsed.out or Path("runs") / f"sweep-{sweep.name}",
        resume=parsed.resume,
        ray_address=parsed.ray_address,
        max_concurrent=parsed.max_concurrent,
        quiet=parsed.quiet,
        command=_command(parsed, given),
    )
    print(f"\n{text}")
    if failed:
        sys.exit(1)


def _command(parsed: Arguments, arguments: list[str]) -> str:
    """What to type to go on."""
    more = [] if parsed.resume else ["--resume"]
    return f"python -m fastnas.sweep {shlex.join([*arguments, *more])}"


if __name__ == "__main__":
    main()
