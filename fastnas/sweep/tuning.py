"""A sweep's trials on Ray Tune: on this machine, or on a cluster that shares the sweep's folder."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# Read when Ray is imported or begins: nothing is sent anywhere, no further files, and Ctrl-C is the sweep's.
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["RAY_AIR_NEW_OUTPUT"] = "0"
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "1")  # as ever, and silently

import ray
from ray import tune
from ray.tune.experiment import Trial as TuneTrial

from fastnas._imports import imported
from fastnas.errors import FastnasError
from fastnas.runs.interrupt import Interrupt
from fastnas.sweep.description import Resources
from fastnas.sweep.folder import Outcome, SweepFolder
from fastnas.sweep.trial import run_trial
from fastnas.sweep.trials import Trial

RETRIES = 2  # of a trial whose process or machine was lost; it goes on from its checkpoint


class SearchTrainable(tune.Trainable):
    """A whole search in one step, in the main thread of a process that Ray starts."""

    def setup(self, config: dict[str, Any]) -> None:
        """Keeps the trial."""
        self.trial = config["trial"]

    def step(self) -> dict[str, Any]:
        """Runs it to its end; what became of it is in the sweep's folder."""
        run_trial(
            Path(self.trial["folder"]), self.trial["name"], self.trial["options"], self.trial["imports"]
        )
        return {"done": True}


class Unsaved:
    """What Tune pickles with its own state and nobody reads again: a sweep is resumed by its trials' folders."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class Progress(Unsaved, tune.Callback):
    """Says of every trial how it ended; one whose process was lost for good has no other to say so."""

    def __init__(self, folder: SweepFolder, say: Callable[[str, Outcome], None]) -> None:
        self.folder, self.say = folder, say

    def on_trial_complete(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any
    ) -> None:
        """The trial has written its outcome, or was told to stop."""
        name = trial.config["trial"]["name"]
        outcome = self.folder.outcome(name)
        if outcome is not None:
            self.say(name, outcome)

    def on_trial_error(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        """Its process ended without an outcome, more often than it is begun again."""
        name = trial.config["trial"]["name"]
        outcome = Outcome(
            sentence=f"its process was lost {RETRIES + 1} times (out of memory, or a crash); "
            "--resume goes on from its checkpoint"
        )
        self.folder.write(name, outcome)
        self.say(name, outcome)


class Stopper(Unsaved, tune.Stopper):
    """After Ctrl-C or SIGTERM: the trials that run are told to save and to end, and no other begins."""

    def __init__(self, folder: SweepFolder, interrupt: Interrupt) -> None:
        self.folder, self.interrupt = folder, interrupt

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """No trial is stopped by its result."""
        return False

    def stop_all(self) -> bool:
        """Whether either has come."""
        stopping = bool(self.interrupt.pending)
        if stopping and not self.folder.stop_file.exists():
            self.folder.stop_file.touch()
            print("\nstopping: the searches that run save and end", file=sys.stderr)
        return stopping


@contextmanager
def connected(address: str | None) -> Iterator[None]:
    """A Ray within it: the cluster at ``address``, the one that this process already has, or a new one on this machine.

    Raises:
        FastnasError: there is none at the address.
    """
    if ray.is_initialized():
        yield
        return
    _check_answers(address)
    ours = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(
            address=address or "local",
            log_to_driver=False,
            logging_level=logging.ERROR,
            include_dashboard=None if address else False,
        )
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise FastnasError(f"--ray-address {address}: no Ray there: {' '.join(str(error).split())}") from None
    signal.signal(signal.SIGTERM, ours)  # Ray's would end the process at once
    try:
        yield
    finally:
        ray.shutdown()


def _check_answers(address: str | None) -> None:
    """Raises FastnasError if nothing listens at HOST:PORT: Ray itself would try for minutes."""
    host, colon, port = (address or "").rpartition(":")
    if not (colon and port.isdigit() and "/" not in host):
        return
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except (OSError, OverflowError):
        raise FastnasError(
            f"--ray-address {address}: nothing answers there; ray status tells a cluster's address"
        ) from None


def check_resources(resources: Resources) -> None:
    """Raises FastnasError if no trial could ever begin on the Ray that is connected."""
    for key, ours, its in (("cpus", resources.cpus, "CPU"), ("gpus", resources.gpus, "GPU")):
        largest = max(node["Resources"].get(its, 0) for node in ray.nodes() if node["Alive"])
        if ours > largest:
            raise FastnasError(
                f"resources: {key} is {ours:g} and no machine of this Ray has more than {largest:g}; "
                f"take --override resources.{key}={largest:g}"
            )


def run_trials(
    trials: list[Trial],
    folder: SweepFolder,
    resources: Resources,
    *,
    say: Callable[[str, Outcome], None],
    interrupt: Interrupt,
    max_concurrent: int | None = None,
) -> None:
    """Runs each trial to its outcome, as many at once as the resources allow.

    Args:
        trials: those that have no outcome yet.
        folder: of the sweep, on every machine that takes part.
        resources: of one trial.
        say: called with the name and the outcome of each as it ends.
        interrupt: its pending flag ends the trials, each saved.
        max_concurrent: of trials at once; None: what the resources allow.
    """
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # what fails is in the table
    path = folder.path.absolute()
    everywhere = {"folder": str(path), "imports": imported()}
    given = [{**everywhere, "name": trial.name, "options": trial.options} for trial in trials]
    tune.Tuner(
        tune.with_resources(SearchTrainable, {"cpu": resources.cpus, "gpu": resources.gpus}),
        param_space={"trial": tune.grid_search(given)},
        tune_config=tune.TuneConfig(
            max_concurrent_trials=max_concurrent,
            trial_name_creator=_name,
            trial_dirname_creator=_name,
        ),
        run_config=tune.RunConfig(
            name="ray",
            storage_path=str(path),
            failure_config=tune.FailureConfig(max_failures=RETRIES),
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            callbacks=[Progress(folder, say)],
            stop=Stopper(folder, interrupt),
            verbose=0,
        ),
    ).fit()


def _name(trial: TuneTrial) -> str:
    return str(trial.config["trial"]["name"])
