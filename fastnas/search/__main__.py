"""``python -m fastnas.search``: the command line of a search."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from fastnas._command import clear_errors, explicit_resume, flag_value, rank
from fastnas._imports import IMPORT_HELP, take_imports
from fastnas.runs.shown import Shown
from fastnas.runs.summary import report_of
from fastnas.search import SearchConfig, read_config, run_search
from fastnas.search.summary import ending, quiet

DESCRIPTION = f"""Differentiable architecture search. Without arguments: iDARTS on scikit-learn's digits with a
small DARTS supernet. Prints the genotype it found and where the run is, and leaves a report there, report.html.
{IMPORT_HELP}"""


@dataclass(frozen=True)
class Command(Shown, SearchConfig):
    """A search, and what of it is shown."""


@clear_errors()
def main(arguments: list[str] | None = None) -> None:
    """Parses the flags, runs the search, prints what it has come to."""
    import tyro  # here: Ctrl-C during its 0.2 s leaves no traceback either

    typed = sys.argv[1:] if arguments is None else arguments
    arguments = explicit_resume(take_imports(typed))
    command = tyro.cli(
        Command,
        prog="python -m fastnas.search",
        description=DESCRIPTION,
        args=arguments,
        default=_defaults(arguments),
        config=(tyro.conf.OmitArgPrefixes,),
    )
    is_quiet, config = command.terminal.quiet, SearchConfig.from_options(command.to_options())
    result = run_search(config, progress=not is_quiet, arguments=typed)
    if rank():
        return
    report = report_of(result.out)
    print(quiet(result) if is_quiet else ending(result, report))


def _defaults(arguments: list[str]) -> Command:
    """What a flag that is not given means: the resumed run's value, or the ordinary default."""
    resume = flag_value(arguments, "--resume")
    if resume in (None, "None"):
        return Command()
    stored = read_config(Path(str(resume)) / "config.json").to_options()
    return Command.from_options({**stored, "out": None})


if __name__ == "__main__":
    main()
