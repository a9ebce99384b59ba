"""``python -m fastnas.retrain``: the command line of a retraining."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from fastnas._command import clear_errors, explicit_resume, flag_value, rank
from fastnas._imports import IMPORT_HELP, take_imports
from fastnas.retrain import RetrainConfig, run_retrain
from fastnas.retrain.folder import read_config
from fastnas.retrain.summary import ending, quiet
from fastnas.runs.shown import Shown
from fastnas.runs.summary import report_of

DESCRIPTION = f"""Trains the discrete network of a genotype from its first weights and tests it: by the papers' recipes
for CIFAR, ImageNet and NAS-Bench-201, or by a small one on scikit-learn's digits. --genotype takes the folder of a
search. Prints the result and where the run is, and leaves a report there, report.html.
{IMPORT_HELP}"""


@dataclass(frozen=True)
class Command(Shown, RetrainConfig):
    """A retraining, and what of it is shown."""


@clear_errors()
def main(arguments: list[str] | None = None) -> None:
    """Parses the flags, trains, prints the result."""
    import tyro  # here: Ctrl-C during its 0.2 s leaves no traceback either

    typed = sys.argv[1:] if arguments is None else arguments
    arguments = explicit_resume(take_imports(typed))
    command = tyro.cli(
        Command,
        prog="python -m fastnas.retrain",
        description=DESCRIPTION,
        args=arguments,
        default=_defaults(arguments),
        config=(tyro.conf.OmitArgPrefixes,),
    )
    is_quiet, config = command.terminal.quiet, RetrainConfig.from_options(command.to_options())
    found = run_retrain(config, progress=not is_quiet, arguments=typed)
    if rank():
        return
    report = report_of(found.out)
    print(quiet(found) if is_quiet else ending(found, report))


def _defaults(arguments: list[str]) -> Command:
    """What a flag that is not given means: the resumed run's value, or the ordinary default."""
    resume = flag_value(arguments, "--resume")
    if resume in (None, "None"):
        return Command()
    stored = read_config(Path(str(resume)) / "config.json").to_options()
    return Command.from_options({**stored, "out": None})


if __name__ == "__main__":
    main()
