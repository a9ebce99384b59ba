"""``python -m bench.exact_products``: what exact second-order products cost beside the differences that they replace.

H u and the mixed product d2L1/dalpha dw u of one minibatch, three ways, from the same weights, alphas and batch:
exact by tangents through the fused kernels, the central difference of two gradients by the fused kernels (radius 0.01),
and exact by double backward through the reference executor. They take turns, so that a machine that slows down slows
all. The error is that against tangents in float64; nothing is timed before both exact ways agree with it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from torch import Tensor

from bench.contenders import Contest, batches, full_float32, relative_error
from bench.measure import Function, alternate, environment, peak_bytes, spread
from fastnas._command import clear_errors
from fastnas.bilevel import hessian_vector_product, mixed_product
from fastnas.errors import FastnasError
from fastnas.spaces import make_space
from fastnas.supernet import Supernet, SupernetProblem, build_supernet

MIB = 1 << 20
RESULT = Path(__file__).parent / "results" / "exact-products.md"
DESCRIPTION = """Times exact second-order products by tangents against central differences and double backward, taking
turns, and measures the peak memory and the error of each. Ratios are those of medians."""
TANGENTS, DIFFERENCE, DOUBLE = "tangents", "central difference", "double backward"
PRODUCTS = {"H u": "train_hessian_product", "mixed": "train_mixed_product"}
DIFFERENCES = {"H u": hessian_vector_product, "mixed": mixed_product}
# Far above what float32 leaves of a product, far below what a wrong one would show.
AGREES = 1e-2


@dataclass(frozen=True)
class ExactProductsConfig:
    """What to run, and how often."""

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
    threads: int | None = None
    """Threads of the CPU; None: torch's own choice."""
    rounds: int = 5
    """Timed calls of each side."""
    warmup: int = 1
    """Calls of each side before them."""
    seed: int = 0
    """Of weights, alphas, batch and u."""
    write: bool = False
    """Write the table to bench/results/exact-products.md, too."""

    def check(self) -> Contest:
        """What is run; FastnasError for what cannot be."""
        names = ("space", "channels", "layers", "batch_size", "image_size", "seed")
        contest = Contest(**{name: getattr(self, name) for name in names})
        contest.check()
        for name, bound in {"rounds": 1, "warmup": 0, "threads": 1}.items():
            value = getattr(self, name)
            if value is not None and value < bound:
                raise FastnasError(f"{name} must be at least {bound}, got {value}")
        return contest


def measure(config: ExactProductsConfig) -> dict[str, Any]:
    """Check, then measure memory and time.

    Returns:
        ``rows``: one a product and way, with ``product``, ``way``, median, p20 and p80 in seconds, ``ratio`` to the
        central difference's median, peak ``bytes`` above what was held before, relative ``error``; ``configuration``,
        ``environment``.

    Raises:
        FastnasError: a wrong configuration, or an exact product that is wrong.
    """
    contest = config.check()
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    full_float32()
    fused, reference, wide = _problems(contest)
    u = torch.randn(len(fused.w), generator=torch.Generator().manual_seed(config.seed + 1))
    rows = []
    for product, name in PRODUCTS.items():
        functions = _ways(product, name, fused, reference, u)
        exact = getattr(wide, name)(u.double())
        errors = {way: relative_error(function(), exact) for way, function in functions.items()}
        for way in (TANGENTS, DOUBLE):
            if not errors[way] < AGREES:
                raise FastnasError(f"{product} by {way} is {errors[way]:.1e} off, so nothing was timed")
        rows += _rows(product, functions, errors, config)
    return {
        "rows": rows,
        "configuration": vars(config) | {"layers": contest.depth},
        "environment": environment(),
    }


def _problems(contest: Contest) -> tuple[SupernetProblem, SupernetProblem, SupernetProblem]:
    """Of the fused and the reference executor in float32, and of the fused one in float64: the same numbers."""
    space = make_space(contest.space, channels=contest.channels, layers=contest.depth)
    torch.manual_seed(contest.seed)
    fused = build_supernet(space)
    nets: list[Supernet] = [fused, build_supernet(space, backend="reference")]
    nets.append(build_supernet(space, dtype=torch.float64))
    problems = []
    (images, labels), *_ = batches(contest, 1)
    for net in nets:
        net.weights.flat.copy_(fused.weights.flat)
        net.alphas.flat.copy_(fused.alphas.flat)
        batch = images.to(net.weights.flat.dtype), labels
        problems.append(SupernetProblem(net, batch, batch))
    return problems[0], problems[1], problems[2]


def _ways(
    product: str, name: str, fused: SupernetProblem, reference: SupernetProblem, u: Tensor
) -> dict[str, Callable[[], Tensor]]:
    return {
        TANGENTS: lambda: getattr(fused, name)(u),
        DIFFERENCE: lambda: DIFFERENCES[product](fused, u),
        DOUBLE: lambda: getattr(reference, name)(u),
    }


def _rows(
    product: str, functions: Mapping[str, Function], errors: Mapping[str, float], config: ExactProductsConfig
) -> list[dict[str, Any]]:
    peaks = {way: peak_bytes(function) for way, function in functions.items()}
    times = alternate(functions, config.rounds, config.warmup)
    spreads = {way: spread(seconds) for way, seconds in times.items()}
    beside = spreads[DIFFERENCE]["median"]
    return [
        {
            "product": product,
            "way": way,
            **spreads[way],
            "ratio": spreads[way]["median"] / beside,
            "bytes": peaks[way],
            "error": errors[way],
        }
        for way in functions
    ]


def table(result: dict[str, Any]) -> str:
    """``measure``'s result for a reader, in Markdown."""
    c, e = result["configuration"], result["environment"]
    lines = [
        f"Second-order products on {c['space']}, C = {c['channels']}, {c['layers']} layers, batch {c['batch_size']} of "
        f"{c['image_size']}x{c['image_size']}, float32; {e['device']}, {e['threads']} threads, torch {e['torch']}, "
        f"fastnas {e['fastnas']} ({e['commit']}), {e['date']}.",
        "",
        f"Medians of {c['rounds']} calls that took turns, by `python -m bench.exact_products`; the ratio is to the "
        "central difference, the error is relative, of one draw, and against float64: a ReLU that rounding flips moves "
        "an exact product, as it moves a gradient, by 1e-4 to 1e-3, and which of two exact ways meets one is luck.",
        "",
        "| product | by | ms | p20 | p80 | ratio | peak MiB | error |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in result["rows"]:
        median, p20, p80 = (f"{1e3 * row[key]:.0f}" for key in ("median", "p20", "p80"))
        lines.append(
            f"| {row['product']} | {row['way']} | {median} | {p20} | {p80} | {row['ratio']:.2f} "
            f"| {row['bytes'] / MIB:.0f} | {row['error']:.0e} |"
        )
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> None:
    """Parses the flags, measures, prints."""
    with clear_errors():
        config = tyro.cli(
            ExactProductsConfig,
            prog="python -m bench.exact_products",
            description=DESCRIPTION,
            args=sys.argv[1:] if arguments is None else arguments,
        )
        text = table(measure(config))
        print(text, end="")
        if config.write:
            RESULT.write_text(text)


if __name__ == "__main__":
    main()
