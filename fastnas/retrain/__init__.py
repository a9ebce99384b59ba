"""Training the discrete network of a genotype from its first weights, by the papers' recipes."""

from __future__ import annotations

from typing import Any

from fastnas.retrain.config import RetrainConfig
from fastnas.retrain.folder import RetrainFolder, read_config
from fastnas.retrain.run import RetrainResult, run_retrain
from fastnas.retrain.trained import TrainedNetwork, load_network
from fastnas.spaces import AnyGenotype


def retrain(*, progress: bool = False, **options: Any) -> RetrainResult:
    """A retraining from Python: the same as ``python -m fastnas.retrain``, flag for keyword.

    ``fastnas.retrain(genotype="DARTS_V2", dataset="cifar10", data="cifar")``, ``fastnas.retrain(genotype=found.out)``
    or ``fastnas.retrain(genotype=found.genotype, space="darts")`` after ``found = fastnas.search()``

    Args:
        progress: show the bar and a line an epoch.
        **options: the command line's flags with underscores; see ``RetrainConfig``. With ``resume`` what is not
            given is the resumed run's.

    Returns:
        The result, metrics, the run's folder and the full configuration.

    Raises:
        FastnasError: a mistake in options or data, told in one sentence.
    """
    stored: dict[str, Any] = {}
    if options.get("resume") is not None:
        folder = RetrainFolder(RetrainConfig.from_options({"resume": options["resume"]}).run.resume)  # type: ignore[arg-type]
        stored = {**read_config(folder.config_file).to_options(), "out": None}
    if isinstance(options.get("genotype"), AnyGenotype):
        options["genotype"] = str(options["genotype"])
    return run_retrain(RetrainConfig.from_options({**stored, **options}), progress=progress)


__all__ = ["RetrainConfig", "RetrainResult", "TrainedNetwork", "load_network", "retrain", "run_retrain"]
