"""``python -m fastnas.search``: the command line of a search."""

from __future__ import annotations

import sys
from pathlib import Path

from fastnas._command import clear_errors, explicit_resume, flag_value, rank
from fastnas._imports import IMPORT_HELP, take_imports
from fastnas.search import SearchConfig, read_config, run_search
from fastnas.search.table import ranks

DESCRIPTION = f"""Differentiable architecture search. Without arguments: iDARTS on scikit-learn's digits with a
small DARTS supernet. Prints the genotype it found and where the run is. {IMPORT_HELP}"""


@clear_errors()
def main(arguments: list[str] | None = None) -> None:
    """Parses the flags, runs the search, prints its genotype."""
    import tyro  # here: Ctrl-C during its 0.2 s leaves no traceback either

    typed = sys.argv[1:] if arguments is None else arguments
    arguments = explicit_resume(take_imports(typed))
    config = tyro.cli(
        SearchConfig,
        prog="python -m fastnas.search",
        description=DESCRIPTION,
        args=arguments,
        default=_defaults(arguments),
        config=(tyro.conf.OmitArgPrefixes,),
    )
    result = run_search(config, arguments=typed)
    if rank():
        return
    print(f"\ngenotype: {result.genotype}")
    if result.table is not None:
        print(ranks(result.table, result.genotype))
    print(f"run:      {result.out}")


def _defaults(arguments: list[str]) -> SearchConfig:
    """What a flag that is not given means: the resumed run's value, or the ordinary default."""
    resume = flag_value(arguments, "--resume")
    if resume in (None, "None"):
        return SearchConfig()
    stored = read_config(Path(str(resume)) / "config.json").to_options()
    return SearchConfig.from_options({**stored, "out": None})


if __name__ == "__main__":
    main()
