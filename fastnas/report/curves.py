"""The charts of a run, out of its rows of metrics."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

from fastnas.report.alphas import History, Shares, entropies, genotype_shares, mean_weights
from fastnas.report.charts import Chart, Curve, colour_of
from fastnas.report.read import Run
from fastnas.tables import DATASETS

MIB = 1 << 20


class Plan(NamedTuple):
    """A chart whose curves are entries of the rows.

    Attributes:
        group: heading below which it stands.
        name, title, unit: the chart's.
        entries: of the rows, with their labels.
        factor: they are multiplied by.
        text: how a value is written.
        about: what it means.
    """

    group: str
    name: str
    title: str
    unit: str
    entries: dict[str, str]
    factor: float = 1.0
    text: str = "{:.4g}"
    about: str = ""


_SPLITS = {"train": "training", "val": "validation", "test": "test"}
LEARNING, ARCHITECTURE, HYPERGRADIENT, COST = (
    "Learning",
    "Architecture",
    "Hypergradient and curvature",
    "Time and memory",
)
FROM_ZERO = ("warnings", "seconds", "throughput", "drop-path")
MAY_BE_LOG = ("perplexity", "hypergradient", "audit-error", "hessian", "alpha-hessian")
GROUPS = (LEARNING, ARCHITECTURE, HYPERGRADIENT, COST)


def _of_splits(entry: str, more: dict[str, str] | None = None) -> dict[str, str]:
    return {f"{split}_{entry}": said for split, said in _SPLITS.items()} | (more or {})


PLANS = (
    Plan(
        LEARNING, "loss", "Loss", "nats", _of_splits("loss"), 1, "{:.4f}",
        "Mean cross-entropy: of the training steps as they were made, else at the end of the epoch.",
    ),
    Plan(
        LEARNING, "accuracy", "Accuracy", "%", _of_splits("accuracy", {"test_top5": "test, top 5"}), 100, "{:.2f}",
        "Images classified right. In a search the validation split is the one that alpha is trained on.",
    ),
    Plan(LEARNING, "perplexity", "Perplexity", "", _of_splits("perplexity"), 1, "{:.1f}", "exp of the loss, per word."),
    Plan(LEARNING, "learning-rate", "Learning rate of the weights", "", {"learning_rate": "learning rate"}),
    Plan(LEARNING, "drop-path", "Drop-path", "probability", {"drop_path": "drop-path"}),
    Plan(
        HYPERGRADIENT, "hypergradient", "Hypergradient", "norm", {"hypergradient_norm": "mean norm"}, 1, "{:.3g}",
        "Mean norm of the hypergradients of an epoch.",
    ),
    Plan(
        HYPERGRADIENT, "warnings", "Warnings of the estimator", "steps",
        {"hypergradient_warnings": "steps"}, 1, "{:.4g}",
        "Steps whose estimator noticed divergence or negative curvature.",
    ),
    Plan(
        HYPERGRADIENT, "audit", "Agreement with a better estimator", "cosine",
        {"audit_cosine": "hypergradient", "audit_term_cosine": "its second-order term"}, 1, "{:.3f}",
        "Cosine to the hypergradient of a better estimator on the same batches; 1 is agreement.",
    ),
    Plan(
        HYPERGRADIENT, "audit-error", "Relative error to a better estimator", "|g \N{MINUS SIGN} g*| / |g*|",
        {"audit_relative_error": "hypergradient"}, 1, "{:.3g}",
    ),
    Plan(
        HYPERGRADIENT, "hessian", "Spectrum of the weights' Hessian", "eigenvalue",
        {"hessian_lambda_max": "largest", "hessian_lambda_min": "smallest"}, 1, "{:.3g}",
        "Ends of the spectrum of the training loss in w.",
    ),
    Plan(
        HYPERGRADIENT, "alpha-hessian", "Spectrum of alpha's Hessian", "eigenvalue",
        {"alpha_hessian_lambda_max": "largest", "alpha_hessian_lambda_min": "smallest"}, 1, "{:.3g}",
        "Ends of the spectrum of the validation loss in alpha; a fast rise goes before a collapse.",
    ),
    Plan(COST, "seconds", "Time", "seconds an epoch", {"seconds": "epoch"}, 1, "{:.1f}"),
    Plan(
        COST, "throughput", "Throughput", "a second",
        {"images_per_second": "images", "words_per_second": "words"}, 1, "{:,.0f}",
    ),
    Plan(COST, "memory", "Peak memory", "MiB", {"peak_memory_bytes": "peak"}, 1 / MIB, "{:,.0f}"),
)  # fmt: skip


def charts_of(run: Run, found: Sequence[History]) -> dict[str, list[Chart]]:
    """The charts of a run below their headings; those that it has no numbers for are left out.

    Args:
        run: of a search or a retraining.
        found: its ``histories``.
    """
    charts: dict[str, list[Chart]] = {group: [] for group in GROUPS}
    if not run.rows:
        return charts
    for plan in PLANS:
        chart = planned(plan, run)
        if chart is not None:
            charts[plan.group].append(chart)
    charts[LEARNING] += _of_table(run)
    charts[ARCHITECTURE] += _of_architecture(run, found)
    return charts


def planned(plan: Plan, run: Run) -> Chart | None:
    """One chart of entries; None without numbers, or where there were no warnings."""
    curves: list[Curve] = []
    for entry, label in plan.entries.items():
        values = tuple(None if v is None else plan.factor * v for v in run.values(entry))
        if any(v is not None for v in values):
            curves.append(Curve(label, values, f"c{len(curves)}"))
    if not curves or (plan.name == "warnings" and not any(curves[0].values)):
        return None
    against = ", ".join(run.audited_against) if plan.name == "audit" else ""
    return Chart(
        plan.name,
        plan.title,
        f"{plan.unit} to {against}" if against else plan.unit,
        run.epochs,
        tuple(curves),
        text=plan.text,
        about=plan.about,
        from_zero=plan.name in FROM_ZERO,
        may_be_log=plan.name in MAY_BE_LOG,
        plain_unit=plan.unit,
    )


def _of_table(run: Run) -> Iterator[Chart]:
    """What a benchmark says of the epoch's cell: accuracy and regret, by data set."""
    tables = [row["table"] for row in run.rows if isinstance(row.get("table"), dict)]
    for data in dict.fromkeys(name for table in tables for name in table):
        title, ident = DATASETS.get(data, data), re.sub(r"[^a-z0-9]", "-", data.lower())
        for what, of, about in (
            ("Accuracy", "", "Of the epoch's cell, as the benchmark trained it."),
            ("Regret", "_regret", "What the best cell of the table has more, in percentage points."),
        ):
            curves = [
                Curve(said, run.values(f"table.{data}.{split}{of}"), f"c{i}")
                for i, (split, said) in enumerate(_SPLITS.items())
            ]
            known = tuple(curve for curve in curves if any(v is not None for v in curve.values))
            if known:
                unit = "percentage points" if of else "%"
                yield Chart(
                    f"table-{ident}{of.replace('_', '-')}", f"{what} in the table, {title}", unit, run.epochs, known,
                    text="{:.2f}", about=about,
                )  # fmt: skip


def _of_architecture(run: Run, found: Sequence[History]) -> Iterator[Chart]:
    entropy = planned(
        Plan(ARCHITECTURE, "entropy", "Entropy of alpha", "nats", {"alpha_entropy": "mean"}, 1, "{:.3f}",
             "Mean over the edges; it falls from log(primitives), where all weigh the same, towards 0, a decision."),
        run,
    )  # fmt: skip
    if entropy is not None:
        yield _with_entropies(entropy, found)
    weights, shares = mean_weights(found), genotype_shares(run) if run.kind == "search" else None
    names = list(
        dict.fromkeys([*(weights.primitives if weights else ()), *(shares.primitives if shares else ())])
    )
    stack = partial(_stacked, run=run, colours=colour_of(names))
    if weights is not None:
        yield stack(weights, "weights", "Mean softmax weight", "Mean over all edges of the supernet.")
    if shares is not None:
        yield stack(
            shares.ordered(names),
            "shares",
            "Primitives in the genotype",
            "Share of the edges of the epoch's genotype.",
        )


def _with_entropies(chart: Chart, found: Sequence[History]) -> Chart:
    """The mean entropy, and that of each parameter where there are a few."""
    if not 2 <= len(found) <= 4:
        return chart
    curves = list(chart.curves)
    for name, values in entropies(found).items():
        by_epoch = dict(zip(next(h.epochs for h in found if h.name == name), values.tolist(), strict=True))
        curves.append(
            Curve(name, tuple(by_epoch.get(e) for e in chart.epochs), f"c{len(curves)}", dashed=True)
        )
    return replace(chart, curves=tuple(curves))


def _stacked(
    shares: Shares, name: str, title: str, about: str, *, run: Run, colours: Mapping[str, str]
) -> Chart:
    """Shares of primitives; a primitive has the same colour in all of these."""
    curves = tuple(
        Curve(primitive, tuple(shares.shares[:, i].tolist()), colours[primitive])
        for i, primitive in enumerate(shares.primitives)
    )
    return Chart(name, title, "share", shares.epochs, curves, stacked=True, text="{:.1%}", about=about)
