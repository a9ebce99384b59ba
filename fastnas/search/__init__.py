"""The search loop: configuration, steps, checkpoints."""

from __future__ import annotations

from typing import Any

from fastnas.search.checkpoint import read_config
from fastnas.search.config import SearchConfig
from fastnas.search.folder import RunFolder
from fastnas.search.loop import SearchResult, run_search
from fastnas.search.step import SearchStep, StepReport


def search(*, progress: bool = False, **options: Any) -> SearchResult:
    """A search from Python: the same as ``python -m fastnas.search``, flag for keyword.

    ``fastnas.search(space="darts", dataset="cifar10", data="cifar", method="idarts", neumann_terms=2)``

    Args:
        progress: show the bar and a line an epoch.
        **options: the command line's flags with underscores; see ``SearchConfig``. With ``resume`` what is not
            given is the resumed run's.

    Returns:
        Genotype, alphas, metrics, the run's folder and the full configuration.

    Raises:
        FastnasError: a mistake in options or data, told in one sentence.
    """
    stored: dict[str, Any] = {}
    if options.get("resume") is not None:
        folder = RunFolder(SearchConfig.from_options({"resume": options["resume"]}).run.resume)  # type: ignore[arg-type]
        stored = {**read_config(folder.config_file).to_options(), "out": None}
    return run_search(SearchConfig.from_options({**stored, **options}), progress=progress)


__all__ = ["SearchConfig", "SearchResult", "SearchStep", "StepReport", "run_search", "search"]
