"""``python -m bench.speedup``: fastnas against plain PyTorch on this machine, the figure to quote.

Both sides start from the same weights, alphas and batches and take turns, so that a machine that slows down
slows both. Nothing is timed before logits and gradients agree.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from dataclasses import dataclass
from typing import Any

import torch
import tyro

from bench.contenders import (
    Agreement,
    Contest,
    agreements,
    check_backend,
    fastnas_function,
    fastnas_model,
    full_float32,
    require_agreement,
    vanilla_function,
    vanilla_model,
)
from bench.measure import alternate, environment, peak_bytes, spread
from fastnas._command import clear_errors
from fastnas.errors import FastnasError

MIB = 1 << 20
DESCRIPTION = """Times fastnas against plain PyTorch, taking turns, and measures the peak memory of both. The ratio
is that of the medians."""


@dataclass(frozen=True)
class SpeedupConfig:
    """What to compare, and how often."""

    space: str = "darts"
    """Search space: darts or nasbench201."""
    channels: int = 16
    """C, channels of the first cells."""
    layers: int | None = None
    """Number of cells (nasbench201: N, cells in each of the three stages); None: 8 (5)."""
    batch_size: int = 16
    """Images in a minibatch."""
    image_size: int = 32
    """Side of the images in pixels."""
    device: str = "cpu"
    """cpu, cuda or cuda:N."""
    threads: int | None = None
    """Threads of the CPU; None: torch's own choice."""
    method: str = "forward-backward"
    """forward-backward, or a whole search step of first-order, darts, amended or idarts."""
    inner_steps: int = 4
    """T, weight steps of an idarts step."""
    neumann_terms: int = 2
    """K of idarts."""
    backend: str = "fused"
    """The executor of fastnas: fused or reference."""
    recompute: bool = False
    """fastnas computes each cell's activations again in the backward pass instead of keeping them."""
    rounds: int = 5
    """Timed calls of each side."""
    warmup: int = 1
    """Calls of each side before them."""
    seed: int = 0
    """Of weights, alphas and batches."""
    json: bool = False
    """Print one JSON object instead of a table."""

    def check(self) -> Contest:
        """The contest; FastnasError for one that cannot be held."""
        fields = {field.name for field in dataclasses.fields(Contest)}
        contest = Contest(**{name: value for name, value in vars(self).items() if name in fields})
        contest.check()
        check_backend(self.backend)
        for name, bound in {"rounds": 1, "warmup": 0, "threads": 1}.items():
            value = getattr(self, name)
            if value is not None and value < bound:
                raise FastnasError(f"{name} must be at least {bound}, got {value}")
        return contest


def compare(config: SpeedupConfig) -> dict[str, Any]:
    """Check that both sides agree, then measure memory and time.

    Returns:
        ``vanilla_s``, ``fastnas_s``: medians in seconds, with ``_p20`` and ``_p80``; ``ratio`` of the medians;
        ``vanilla_bytes``, ``fastnas_bytes``: peak memory of the first call, above what was held before it;
        ``memory_ratio``; ``steps_per_epoch`` (None for one pass); ``agreement``, ``configuration``,
        ``environment``.

    Raises:
        FastnasError: a wrong configuration, or the two sides disagree.
    """
    contest = config.check()
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    full_float32()
    model = vanilla_model(contest)
    net = fastnas_model(contest, config.backend, model, config.recompute)
    found = agreements(contest, model, net)
    require_agreement(found)
    functions = {"vanilla": vanilla_function(contest, model), "fastnas": fastnas_function(contest, net)}
    # The first call: where CUDA graphs are captured it is the one that allocates.
    peaks = {name: peak_bytes(function, contest.device) for name, function in functions.items()}
    times = alternate(functions, config.rounds, config.warmup, contest.device)
    spreads = {name: spread(t) for name, t in times.items()}
    result: dict[str, Any] = {}
    for name, s in spreads.items():
        result |= {f"{name}_s": s["median"], f"{name}_s_p20": s["p20"], f"{name}_s_p80": s["p80"]}
    return result | {
        "ratio": spreads["vanilla"]["median"] / spreads["fastnas"]["median"],
        "vanilla_bytes": peaks["vanilla"],
        "fastnas_bytes": peaks["fastnas"],
        "memory_ratio": peaks["vanilla"] / peaks["fastnas"],
        "steps_per_epoch": contest.steps_per_epoch,
        "agreement": [dataclasses.asdict(agreement) for agreement in found],
        "configuration": vars(config) | {"layers": contest.depth},
        "environment": environment(contest.device),
    }


def table(result: dict[str, Any]) -> str:
    """``compare``'s result for a reader."""
    c, e = result["configuration"], result["environment"]
    method = c["method"]
    if method == "idarts":
        method += f" (T = {c['inner_steps']}, K = {c['neumann_terms']})"
    lines = [
        f"{method} on {c['space']}, C = {c['channels']}, {c['layers']} layers,"
        f" batch {c['batch_size']} of {c['image_size']}x{c['image_size']}, float32",
        f"{e['device']}, {e['threads']} threads, torch {e['torch']}, fastnas {e['fastnas']} ({e['commit']})",
        "",
        f"{'':18}{'median ms':>12}{'p20':>10}{'p80':>10}{'peak MiB':>12}{'epoch s':>10}",
    ]
    for name, label in (("vanilla", "plain PyTorch"), ("fastnas", f"fastnas {c['backend']}")):
        median, p20, p80 = (1e3 * result[f"{name}_s{part}"] for part in ("", "_p20", "_p80"))
        steps = result["steps_per_epoch"]
        epoch = "-" if steps is None else f"{steps * median / 1e3:.0f}"
        lines.append(
            f"{label:18}{median:12.1f}{p20:10.1f}{p80:10.1f}{result[f'{name}_bytes'] / MIB:12.1f}{epoch:>10}"
        )
    lines += ["", f"{result['ratio']:.2f}x as fast, {result['memory_ratio']:.2f}x less memory at the peak"]
    lines.append("relative errors against float64 (median of five draws):")
    for row in result["agreement"]:
        a = Agreement(**row)
        vanilla, fastnas = (sorted(errors)[len(errors) // 2] for errors in (a.vanilla, a.fastnas))
        lines.append(f"  {a.quantity:18}plain PyTorch {vanilla:.1e}   fastnas {fastnas:.1e}")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    """Parses the flags, measures, prints."""
    with clear_errors():
        config = tyro.cli(
            SpeedupConfig,
            prog="python -m bench.speedup",
            description=DESCRIPTION,
            args=sys.argv[1:] if arguments is None else arguments,
        )
        result = compare(config)
        print(json.dumps(result) if config.json else table(result))


if __name__ == "__main__":
    main()
