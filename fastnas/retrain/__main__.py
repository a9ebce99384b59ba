"""``python -m fastnas.retrain``: the command line of a retraining."""

from __future__ import annotations

import sys
from pathlib import Path

from fastnas._command import clear_errors, explicit_resume, flag_value, rank
from fastnas._imports import IMPORT_HELP, take_imports
from fastnas.retrain import RetrainConfig, run_retrain
from fastnas.retrain.folder import read_config

DESCRIPTION = f"""Trains the discrete network of a genotype from its first weights and tests it: by the papers' recipes
for CIFAR, ImageNet and NAS-Bench-201, or by a small one on scikit-learn's digits. --genotype takes the folder of a
search. Prints the result and where the run is. {IMPORT_HELP}"""


@clear_errors()
def main(arguments: list[str] | None = None) -> None:
    """Parses the flags, trains, prints the result."""
    import tyro  # here: Ctrl-C during its 0.2 s leaves no traceback either

    typed = sys.argv[1:] if arguments is None else arguments
    arguments = explicit_resume(take_imports(typed))
    config = tyro.cli(
        RetrainConfig,
        prog="python -m fastnas.retrain",
        description=DESCRIPTION,
        args=arguments,
        default=_defaults(arguments),
        config=(tyro.conf.OmitArgPrefixes,),
    )
    found = run_retrain(config, arguments=typed)
    if rank():
        return
    lines = [f"{name.replace('_', ' ')}: {_shown(value)}" for name, value in found.result.items()]
    print("\n" + "\n".join([*lines, f"run: {found.out}"]))


def _shown(value: object) -> str:
    return (
        f"{value:,}" if isinstance(value, int) else f"{value:.4g}" if isinstance(value, float) else str(value)
    )


def _defaults(arguments: list[str]) -> RetrainConfig:
    """What a flag that is not given means: the resumed run's value, or the ordinary default."""
    resume = flag_value(arguments, "--resume")
    if resume in (None, "None"):
        return RetrainConfig()
    stored = read_config(Path(str(resume)) / "config.json").to_options()
    return RetrainConfig.from_options({**stored, "out": None})


if __name__ == "__main__":
    main()
