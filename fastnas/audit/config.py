"""What an audit is told: the configuration of a search, and how far to go."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastnas.bilevel.radius import RADII
from fastnas.errors import FastnasError
from fastnas.search.config import (
    DataConfig,
    HypergradientConfig,
    NetworkConfig,
    OptimiserConfig,
    RunConfig,
    SearchConfig,
)
from fastnas.spaces import family


@dataclass(frozen=True)
class AuditOptions:
    """The audit."""

    checkpoint: Path | None = None
    """Audit the run in this folder where its newest checkpoint left it. Network, images and optimiser are the run's;
    None: a fresh supernet."""
    warm_up_steps: int = 12
    """Weight steps that a fresh supernet makes first; a checkpoint makes T."""
    minibatches: int | None = None
    """n, how many minibatches stand for the whole data set; None: 4, or 2 with --quick. At most an epoch's."""
    reference_steps: int | None = None
    """Conjugate-gradient steps of the references; None: 30, or 10 with --quick."""
    reference_damping: float | None = None
    """delta of the references, which solve with H + delta I; None: by H's spectrum."""
    quick: bool = False
    """Less than half of the work: fewer minibatches, radii, terms and steps."""
    json: bool = False
    """Print the result as JSON."""


@dataclass(frozen=True)
class AuditRun:
    """Where and how it runs."""

    seed: int = 0
    """Of weights, alpha, splits, batches and augmentation."""
    device: str = "auto"
    """cpu, cuda, cuda:N, or auto: a GPU if there is one."""
    threads: int | None = None
    """CPU threads; None: PyTorch's choice."""
    out: Path | None = None
    """Folder of audit.json, audit.txt and audit.svg; None: runs/<date>-<time>-audit-<space>-<dataset>, or the folder
    audit of the run."""


@dataclass(frozen=True)
class AuditConfig:
    """An audit, whole."""

    audit: AuditOptions = field(default_factory=AuditOptions)
    network: NetworkConfig = field(default_factory=NetworkConfig)
    images: DataConfig = field(default_factory=DataConfig)
    hypergradient: HypergradientConfig = field(default_factory=HypergradientConfig)
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)
    run: AuditRun = field(default_factory=AuditRun)

    def search(self) -> SearchConfig:
        """The search that is audited, resolved and checked. Without CUDA graphs: a replay allocates nothing that could
        be measured.

        Raises:
            FastnasError: a value that no search or no audit can have.
        """
        self._check()
        if family(self.network.space).reads == "text":
            raise FastnasError(f"an audit takes a space of images, and {self.network.space} reads text")
        run = RunConfig(self.run.seed, self.run.device, "off", self.run.threads)
        return SearchConfig(self.network, self.images, self.hypergradient, self.optimiser, run=run).resolved()

    def _check(self) -> None:
        options = self.audit
        for name, low in (("warm_up_steps", 0), ("minibatches", 1), ("reference_steps", 1)):
            value = getattr(options, name)
            if value is not None and value < low:
                raise FastnasError(f"--{name.replace('_', '-')} must be at least {low}, got {value}")
        damping = options.reference_damping
        if damping is not None and not (math.isfinite(damping) and damping >= 0):
            raise FastnasError(f"--reference-damping must be a finite number of at least 0, got {damping}")


@dataclass(frozen=True)
class Plan:
    """How far each part of an audit goes.

    Attributes:
        minibatches: n of the large batch.
        reference_steps: of conjugate gradients.
        probes: random vectors of a spectrum's trace and density.
        radii: of the sweep, from the largest.
        neumann_terms: the largest K.
        horizons: T of the reverse modes whose memory is measured.
        dense: whether the Hessian of up to 5,000 weights is written out.
    """

    minibatches: int
    reference_steps: int
    probes: int
    radii: tuple[float, ...]
    neumann_terms: int
    horizons: tuple[int, ...]
    dense: bool

    @classmethod
    def of(cls, options: AuditOptions, radius: float) -> Plan:
        """As ``options`` say; ``radius`` is the configured one, which the sweep always has."""
        quick = options.quick
        radii = {*RADII[1::2], radius} if quick else {*RADII, radius}
        return cls(
            minibatches=options.minibatches or (2 if quick else 4),
            reference_steps=options.reference_steps or (10 if quick else 30),
            probes=2 if quick else 4,
            radii=tuple(sorted(radii, reverse=True)),
            neumann_terms=8 if quick else 20,
            horizons=(1, 2, 4) if quick else (1, 2, 4, 8),
            dense=not quick,
        )


def defaults_of(stored: dict[str, Any], checkpoint: Path) -> AuditConfig:
    """What flags that are not given mean when the run in ``checkpoint`` is audited: its own values."""
    search = SearchConfig.from_options({**stored, "out": None, "resume": None})
    return AuditConfig(
        AuditOptions(checkpoint=checkpoint),
        search.network,
        search.images,
        search.hypergradient,
        search.optimiser,
        AuditRun(search.run.seed, search.run.device, search.run.threads),
    )
