"""``python -m bench.gpu``: fastnas against plain PyTorch on a GPU, every way that both can be run, in one go.

Plain PyTorch as it comes, in channels-last memory, with its passes in CUDA graphs, and one cell of it by torch.compile;
fastnas in float32 and bfloat16, with and without CUDA graphs. All start from the same weights, alphas and batches and
take turns. Nothing is timed before logits and gradients agree with float64. What cannot be run says why. The results
are written after every group, so that whatever a time limit cuts off, the rest is there.
"""

from __future__ import annotations

import dataclasses
import gc
import json
import subprocess
import sys
import time
import warnings
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bench.contenders import (
    FORWARD_BACKWARD,
    METHODS,
    Agreement,
    Contest,
    agreements,
    fastnas_model,
    full_float32,
    relative_error,
    require_agreement,
    vanilla_model,
)
from bench.gpu_contenders import CONTENDERS, Contender, Function, NotAvailableError
from bench.measure import alternate, environment, peak_bytes, spread, synchronize
from bench.native_work import native_work
from bench.vanilla import concat
from fastnas._command import clear_errors
from fastnas.doctor import environment as machine
from fastnas.errors import FastnasError

DESCRIPTION = """Times fastnas against plain PyTorch, every way that both can be run, in one go: forward + backward and
the search steps of every estimator."""

ONLY_FASTNAS = ("t1-t2",)
# By what a GPU's first minutes should show first.
ORDER = (FORWARD_BACKWARD, "idarts", "darts", "amended", "first-order", *ONLY_FASTNAS)
FLIPS = 1e-2  # a few flipped ReLUs move a gradient in float32 by less (one: 1e-6 to 1e-3)
TOP_KERNELS = 20
_COPIES = ("Memcpy", "Memset")


@dataclass(frozen=True)
class GpuConfig:
    """What to measure, and for how long."""

    device: str = "cuda"
    """cuda, cuda:N, or cpu (to try the benchmark out: what needs a GPU is not available there)."""
    batch_size: int = 64
    """Images in a minibatch."""
    channels: int = 16
    """C, channels of the first cells."""
    layers: int | None = None
    """Number of cells (nasbench201: N, cells in each of the three stages); None: 8 (5)."""
    image_size: int = 32
    """Side of the images in pixels."""
    inner_steps: int = 4
    """T, weight steps of an idarts step."""
    neumann_terms: int = 2
    """K of idarts."""
    spaces: tuple[str, ...] = ("darts", "nasbench201")
    """Search spaces."""
    methods: tuple[str, ...] = ORDER
    """forward-backward and search steps, in the order of their importance."""
    rounds: int = 20
    """Timed calls of each contender at the most; slow ones get fewer, 3 at the least."""
    seconds: float = 170
    """For all of it; no group is begun after that."""
    group_seconds: float = 12
    """For the timed calls of one group."""
    compile_seconds: float = 60
    """For torch.compile of one cell; 0: leave it out."""
    seed: int = 0
    """Of weights, alphas and batches."""
    out: Path | None = None
    """File for the results as JSON; None: print them."""

    def contests(self) -> list[Contest]:
        """The groups in the order in which they are measured; FastnasError for a mistake."""
        for method in self.methods:
            if method not in ORDER:
                raise FastnasError(f"unknown method {method!r}; known are {', '.join(ORDER)}")
        for name, bound in {"rounds": 3, "seconds": 0, "group_seconds": 0, "compile_seconds": 0}.items():
            if getattr(self, name) < bound:
                raise FastnasError(f"{name} must be at least {bound}, got {getattr(self, name)}")
        found = []
        for space in self.spaces:
            shared = {field.name for field in dataclasses.fields(Contest)} & set(vars(self))
            contest = Contest(space=space, **{name: getattr(self, name) for name in shared})
            contest.check()
            found += [dataclasses.replace(contest, method=method) for method in self.methods]
        # What matters most on all spaces, before the rest on any.
        return sorted(found, key=lambda contest: self.methods.index(contest.method) >= 2)


def measure_all(config: GpuConfig) -> dict[str, Any]:
    """All groups within the time, written to ``config.out`` after each."""
    begin = time.perf_counter()
    contests = config.contests()
    full_float32()
    result: dict[str, Any] = {
        "environment": environment(config.device)
        | {"driver": machine.driver_version() if "cuda" in config.device else ""},
        "configuration": {name: value for name, value in vars(config).items() if name != "out"},
        "groups": [],
        "kernels": {},
        "cell": None,
    }
    agreed: dict[str, list[Agreement]] = {}
    for contest in contests:
        left = config.seconds - (time.perf_counter() - begin)
        if left <= 0:
            group = _named(contest) | {"reason": "no time was left", "contenders": []}
        else:
            try:
                group = measure_group(
                    contest, config, min(config.group_seconds, left), agreed, result["kernels"]
                )
            except (FastnasError, RuntimeError) as error:  # a disagreement, a lack of memory
                group = _named(contest) | {"reason": _sentence(error), "contenders": []}
        result["groups"].append(group)
        result["seconds"] = time.perf_counter() - begin
        _write(config, result)
    if config.compile_seconds > 0:  # last: it may take all the time there is
        left = config.seconds - (time.perf_counter() - begin)
        result["cell"] = compiled_cell(config, min(config.compile_seconds, max(left, 1)))
        result["seconds"] = time.perf_counter() - begin
        _write(config, result)
    return result


def _named(contest: Contest) -> dict[str, Any]:
    return {
        "space": contest.space,
        "method": contest.method,
        "layers": contest.depth,
        "steps_per_epoch": contest.steps_per_epoch,
        "agreement": [],
        "reason": "",
    }


def measure_group(
    contest: Contest,
    config: GpuConfig,
    seconds: float,
    agreed: dict[str, list[Agreement]],
    kernels: dict[str, Any],
) -> dict[str, Any]:
    """One pass or one step of one space: every contender, taking turns.

    Args:
        contest: what each does.
        config: how often.
        seconds: for the timed calls.
        agreed: what was found of the spaces so far; all groups of a space start from the same weights.
        kernels: the kernels of a forward + backward by device time are entered here.

    Raises:
        FastnasError: fastnas and plain PyTorch disagree; nothing is timed then.
    """
    group = _named(contest)
    model = vanilla_model(contest)
    if contest.space not in agreed:
        agreed[contest.space] = agreements(contest, model, fastnas_model(contest, "fused", model))
    require_agreement(agreed[contest.space])
    group["agreement"] = [dataclasses.asdict(one) for one in agreed[contest.space]]
    rows = {one.name: _row(one) for one in CONTENDERS}
    ready: dict[str, Function] = {}
    for contender in CONTENDERS:
        if contender.vanilla and contest.method in ONLY_FASTNAS:
            rows[contender.name]["reason"] = f"plain PyTorch has no {contest.method} step here"
            continue
        _prepare(contender, contest, model, rows[contender.name], ready, kernels)
    once = sum(rows[name]["first_seconds"] for name in ready)
    rounds = max(3, min(config.rounds, int(seconds / max(once, 1e-9))))
    times = alternate(ready, rounds, 0, contest.device) if ready else {}
    for name, measured in times.items():
        row = rows[name]
        row |= {"status": "measured", "seconds": spread(measured), "rounds": rounds}
        if contest.steps_per_epoch:
            row["epoch_seconds"] = contest.steps_per_epoch * row["seconds"]["median"]
    for row in rows.values():
        # What a replayed graph does not tell again, its eager twin has told.
        twin = rows.get(row["name"].removesuffix(", CUDA graphs"), row)
        row["native_bytes"] = row["native_bytes"] or twin["native_bytes"]
        if row["status"] == "measured":
            if row["native_bytes"]:
                row["native_bytes_per_second"] = row["native_bytes"] / row["seconds"]["median"]
            base = rows["vanilla"]
            if base["status"] == "measured":
                row["speedup"] = base["seconds"]["median"] / row["seconds"]["median"]
    group["contenders"] = list(rows.values())
    ready.clear()
    _free(contest.device)
    return group


def _row(contender: Contender) -> dict[str, Any]:
    return {
        "name": contender.name,
        "status": "not available",
        "reason": "",
        "first_seconds": None,
        "peak_bytes": None,
        "kernels": None,
        "copies": None,
        "native_bytes": None,
        "difference": None,
        "notes": [],
    }


def _prepare(
    contender: Contender,
    contest: Contest,
    model: Any,
    row: dict[str, Any],
    ready: dict[str, Function],
    kernels: dict[str, Any],
) -> None:
    """Makes, warms up and counts one contender; enters it among those ``ready`` if all of that went well."""
    on_gpu = torch.device(contest.device).type == "cuda"
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            function = contender.make(contest, model)

            def first_calls() -> None:  # where graphs are captured, one of these allocates their memory
                for _ in range(1 + contender.warm_up):
                    function()

            row["peak_bytes"] = peak_bytes(first_calls, contest.device)
        # A capture that failed, say: what is timed then is not what the name promises.
        row["notes"] = sorted({str(one.message) for one in said if "fastnas" in one.filename})
        synchronize(contest.device)
        start = time.perf_counter()
        work = native_work(function)
        synchronize(contest.device)
        row["first_seconds"] = time.perf_counter() - start
        row["native_bytes"] = sum(one.bytes for one in work.values()) or None
        if contest.method == FORWARD_BACKWARD:
            row["difference"] = _difference(contender, function, ready)
    except NotAvailableError as reason:
        row["reason"] = str(reason)
        return
    except (RuntimeError, FastnasError, NotImplementedError) as error:
        row |= {"status": "failed", "reason": _sentence(error)}
        _free(contest.device)
        return
    ready[contender.name] = function
    if not on_gpu:
        return
    try:
        launched = device_events(function)
    except (RuntimeError, AssertionError) as error:
        row["notes"].append(f"its kernels could not be counted: {_sentence(error)}")
        return
    row["kernels"] = sum(calls for name, (calls, _) in launched.items() if not _is_copy(name))
    row["copies"] = sum(calls for name, (calls, _) in launched.items() if _is_copy(name))
    if contest.method == FORWARD_BACKWARD:
        kernels[f"{contest.space}: {contender.name}"] = top_kernels(launched)


def _difference(contender: Contender, function: Function, ready: dict[str, Function]) -> float | None:
    """Of all gradients of a pass to those of plain PyTorch as it comes, relative; NotAvailableError if it is large.

    The supernets themselves have been compared with float64 before: this is about graphs and memory formats.
    """
    if "vanilla" not in ready:
        return None
    mine, plain = (concat(list(one())).detach() for one in (function, ready["vanilla"]))  # type: ignore[call-overload]
    difference = relative_error(mine, plain.double())
    if "bfloat16" not in contender.name and not difference <= FLIPS:
        raise NotAvailableError(f"its gradients differ from plain PyTorch's by {difference:.2g}")
    return difference


def device_events(function: Function) -> dict[str, tuple[int, float]]:
    """Calls and seconds of everything that ran on the GPU during one call, by name; replayed graphs included."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        function()
        torch.cuda.synchronize()
    results = getattr(profiler.profiler, "kineto_results", None)
    assert results is not None
    # As kineto recorded them: profiler.events() would first build a tree of all of them.
    found: dict[str, tuple[int, float]] = defaultdict(lambda: (0, 0.0))
    for event in results.events():
        if event.device_type() == torch.autograd.DeviceType.CUDA:
            calls, seconds = found[event.name()]
            found[event.name()] = calls + 1, seconds + event.duration_ns() / 1e9
    return dict(found)


def _is_copy(name: str) -> bool:
    return name.startswith(_COPIES)


def top_kernels(events: dict[str, tuple[int, float]]) -> list[dict[str, Any]]:
    """The kernels that took the most of the device's time, and their share of all."""
    whole = sum(seconds for _, seconds in events.values())
    first = sorted(events.items(), key=lambda one: -one[1][1])[:TOP_KERNELS]
    return [
        {"name": name[:160], "calls": calls, "seconds": seconds, "share": seconds / whole if whole else 0.0}
        for name, (calls, seconds) in first
    ]


def compiled_cell(config: GpuConfig, seconds: float) -> dict[str, Any]:
    """``bench.gpu_cell`` in a process of its own, which can be ended when its time is over."""
    if torch.device(config.device).type != "cuda":
        return {"reason": "needs a GPU", "contenders": []}
    command = [sys.executable, "-m", "bench.gpu_cell", config.device, str(config.batch_size)]
    command += [str(config.channels), str(config.image_size)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        return {"reason": f"torch.compile did not end within {seconds:.0f} s", "contenders": []}
    if done.returncode:
        return {"reason": (done.stderr.strip().splitlines() or ["it failed"])[-1], "contenders": []}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _sentence(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _free(device: str) -> None:
    gc.collect()
    if torch.device(device).type == "cuda":
        with suppress(RuntimeError):  # a device that is lost
            torch.cuda.empty_cache()


def _write(config: GpuConfig, result: dict[str, Any]) -> None:
    if config.out is not None:
        config.out.parent.mkdir(parents=True, exist_ok=True)
        beside = config.out.with_name(config.out.name + ".part")
        beside.write_text(json.dumps(result, indent=1))
        beside.replace(config.out)


def main(arguments: list[str] | None = None) -> None:
    """Parses the flags, measures, writes."""
    with clear_errors():
        import tyro

        config = tyro.cli(
            GpuConfig,
            prog="python -m bench.gpu",
            description=DESCRIPTION,
            args=sys.argv[1:] if arguments is None else arguments,
        )
        result = measure_all(config)
        if config.out is None:
            print(json.dumps(result, indent=1))
        else:
            from bench.gpu_report import benchmark_lines

            print("\n".join(benchmark_lines(result)))
        if not any(row["status"] == "measured" for group in result["groups"] for row in group["contenders"]):
            raise FastnasError("nothing could be measured: the results say why")


assert set(METHODS) <= set(ORDER)

if __name__ == "__main__":
    main()
