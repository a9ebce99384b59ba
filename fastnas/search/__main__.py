"""``python -m fastnas.search``: the command line of a search."""

from __future__ import annotations

import sys
from pathlib import Path

from fastnas._command import clear_errors, flag_value
from fastnas.errors import FastnasError
from fastnas.search import SearchConfig, read_config, run_search
from fastnas.search.table import ranks

DESCRIPTION = """Differentiable architecture search. Without arguments: iDARTS on scikit-learn's digits with a
small DARTS supernet. Prints the genotype it found and where the run is."""


@clear_errors()
def main(arguments: list[str] | None = None) -> None:
    """Parses the flags, runs the search, prints its genotype."""
    import tyro  # here: Ctrl-C during its 0.2 s leaves no traceback either

    arguments = _explicit_resume(sys.argv[1:] if arguments is None else arguments)
    config = tyro.cli(
        SearchConfig,
        prog="python -m fastnas.search",
        description=DESCRIPTION,
        args=arguments,
        default=_defaults(arguments),
        config=(tyro.conf.OmitArgPrefixes,),
    )
    result = run_search(config)
    print(f"\ngenotype: {result.genotype}")
    if result.table is not None:
        print(ranks(result.table, result.genotype))
    print(f"run:      {result.out}")


def _explicit_resume(arguments: list[str]) -> list[str]:
    """A bare ``--resume`` gets the folder of ``--out``."""
    if "--resume" not in arguments or flag_value(arguments, "--resume") is not None:
        return arguments
    out = flag_value(arguments, "--out")
    if out is None:
        raise FastnasError("--resume needs the folder of the run: --resume runs/NAME")
    at = arguments.index("--resume")
    return [*arguments[: at + 1], out, *arguments[at + 1 :]]


def _defaults(arguments: list[str]) -> SearchConfig:
    """What a flag that is not given means: the resumed run's value, or the ordinary default."""
    resume = flag_value(arguments, "--resume")
    if resume in (None, "None"):
        return SearchConfig()
    stored = read_config(Path(str(resume)) / "config.json").to_options()
    return SearchConfig.from_options({**stored, "out": None})


if __name__ == "__main__":
    main()
