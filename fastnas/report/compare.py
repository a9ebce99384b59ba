"""Several runs beside each other: groups of like configurations, mean and spread of every curve, which cells agree."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fastnas.drawing import Weights
from fastnas.report.charts import Chart, Curve, colour_of
from fastnas.report.read import Run
from fastnas.report.settings import written
from fastnas.retrain.config import RetrainConfig
from fastnas.search.config import SearchConfig
from fastnas.spaces.genotype import Graph

# What does not make another experiment.
SAME = SearchConfig.FREE | RetrainConfig.FREE
SAME |= {"seed", "data", "graphs", "recompute", "table", "audit_every", "spectrum_every"}
_FIRST = ("kind", "space", "dataset", "method")  # options that say most about a group


@dataclass(frozen=True)
class Group:
    """Runs whose configurations are the same but for the seed.

    Attributes:
        name: what the group has and others have not.
        runs: of it.
    """

    name: str
    runs: tuple[Run, ...]


@dataclass(frozen=True)
class Agreement:
    """One cell of several runs.

    Attributes:
        name: of the cell.
        edges: of those that some run has, the ends, as their labels.
        by_run: of each edge, the primitive that each run has there, "" where it has none.
        shares: of each edge, how many of the runs have each primitive there, as a share, the largest first.
        consensus: what more than half of the runs have, as a graph; None: the runs' states differ.
        weights: of its edges, the shares.
    """

    name: str
    edges: tuple[tuple[str, str], ...]
    by_run: tuple[tuple[str, ...], ...]
    shares: tuple[tuple[tuple[str, float], ...], ...]
    consensus: Graph | None
    weights: Weights | None


def groups_of(runs: Sequence[Run]) -> list[Group]:
    """The runs by what differs in their configurations, in the order in which they came."""
    told = [{"kind": run.kind, **run.config} for run in runs]
    names = dict.fromkeys(name for options in told for name in options if name not in SAME)
    differing = [name for name in names if len({_key(options, (name,)) for options in told}) > 1]
    shown = _deciding(told, differing)
    found: dict[str, list[Run]] = {}
    for run, options in zip(runs, told, strict=True):
        label = ", ".join(f"{name} {written(options.get(name))}" for name in shown)
        found.setdefault(label, []).append(run)
    return [Group(name or "all runs", tuple(members)) for name, members in found.items()]


def _deciding(told: Sequence[Mapping[str, Any]], differing: Sequence[str]) -> tuple[str, ...]:
    """The one option by which alone the runs fall into the same groups, if there is one, else all that differ.

    Other options often follow from it, as the inner steps from the method.
    """
    whole = _partition(told, tuple(differing))
    for name in sorted(differing, key=lambda name: _FIRST.index(name) if name in _FIRST else len(_FIRST)):
        if _partition(told, (name,)) == whole:
            return (name,)
    return tuple(differing)


def _partition(told: Sequence[Mapping[str, Any]], names: tuple[str, ...]) -> list[int]:
    """The group of each run, counted in the order of their first members."""
    keys = [_key(options, names) for options in told]
    order = list(dict.fromkeys(keys))
    return [order.index(key) for key in keys]


def _key(options: Mapping[str, Any], names: tuple[str, ...]) -> str:
    return json.dumps([options.get(name) for name in names], sort_keys=True)


def statistics(columns: Sequence[Sequence[float]]) -> tuple[list[float], list[float | None]]:
    """Mean and standard deviation of the sample (n - 1) of each column; None where it has one value.

    >>> statistics([[1.0, 2.0, 3.0], [5.0]])
    ([2.0, 5.0], [1.0, None])
    """
    means = [float(np.mean(column)) for column in columns]
    return means, [float(np.std(column, ddof=1)) if len(column) > 1 else None for column in columns]


def compared(groups: Sequence[Group], charts: Mapping[str, Sequence[Chart]]) -> list[Chart]:
    """Every curve of the runs' charts, the mean of each group with a band of one standard deviation around it.

    Args:
        groups: of the runs.
        charts: of each run by its name; shares are not compared.
    """
    curves = _curves(charts)
    several = {chart.name for of in charts.values() for chart in of if len(chart.curves) > 1}
    known = [epoch for of in charts.values() for chart in of for epoch in chart.epochs]
    colours = colour_of([group.name for group in groups])
    found: list[Chart] = []
    for (name, label), chart in curves.items():
        means = [_mean(group, charts, name, label) for group in groups]
        epochs = tuple(sorted({epoch for mean in means for epoch in mean}))
        lines = tuple(
            _band(group.name, mean, epochs, colours[group.name])
            for group, mean in zip(groups, means, strict=True)
            if mean
        )
        title = f"{chart.title}: {label}" if name in several else chart.title
        ident = f"{name}-{len(found)}"
        unit = chart.unit if len({of.unit for of in _named(charts, name)}) == 1 else chart.plain_unit
        span = (min(known), max(known))
        found.append(
            replace(chart, name=ident, title=title, unit=unit, epochs=epochs, curves=lines, span=span)
        )
    return found


def _named(charts: Mapping[str, Sequence[Chart]], name: str) -> list[Chart]:
    return [chart for of in charts.values() for chart in of if chart.name == name]


def _curves(charts: Mapping[str, Sequence[Chart]]) -> dict[tuple[str, str], Chart]:
    """The first chart of each curve; what the first run has not stands behind what it follows in another."""
    order: list[tuple[str, str]] = []
    first: dict[tuple[str, str], Chart] = {}
    for of in charts.values():
        place = 0
        for chart in of:
            for curve in () if chart.stacked else chart.curves:
                key = chart.name, curve.label
                if key not in first:
                    first[key] = chart
                    order.insert(place, key)
                place = order.index(key) + 1
    return {key: first[key] for key in order}


def yardsticks(groups: Sequence[Group]) -> dict[str, str]:
    """With what ``--audit-every`` compared each group, by its name; nothing where it was the same for all."""
    found = {
        group.name: ", ".join(dict.fromkeys(name for run in group.runs for name in run.audited_against))
        for group in groups
    }
    found = {name: against for name, against in found.items() if against}
    return found if len(set(found.values())) > 1 else {}


def _mean(
    group: Group, charts: Mapping[str, Sequence[Chart]], name: str, label: str
) -> dict[int, tuple[float, float | None]]:
    """By epoch mean and spread of a curve over the runs of a group that have it."""
    values: dict[int, list[float]] = {}
    for run in group.runs:
        for chart in charts[run.name]:
            for curve in chart.curves if chart.name == name else ():
                for epoch, value in zip(chart.epochs, curve.values, strict=True):
                    if curve.label == label and value is not None:
                        values.setdefault(epoch, []).append(value)
    epochs = sorted(values)
    means, spreads = statistics([values[epoch] for epoch in epochs])
    return {e: found for e, *found in zip(epochs, means, spreads, strict=True)}  # type: ignore[misc]


def _band(
    label: str, found: Mapping[int, tuple[float, float | None]], epochs: tuple[int, ...], colour: str
) -> Curve:
    def side(sign: int) -> tuple[float | None, ...]:
        return tuple(
            found[epoch][0] + sign * (found[epoch][1] or 0.0) if epoch in found else None for epoch in epochs
        )

    banded = any(spread is not None for _, spread in found.values())
    return Curve(label, side(0), colour, side(-1) if banded else (), side(1) if banded else ())


def agreements(runs: Sequence[Run]) -> list[Agreement]:
    """Of each cell that all these runs have, which edges and primitives they agree on."""
    graphs = [
        {graph.name: graph for graph in run.genotype.graphs()} for run in runs if run.genotype is not None
    ]
    names = [name for name in (graphs[0] if graphs else {}) if all(name in of for of in graphs)]
    return [_agreement(name, [of[name] for of in graphs]) for name in names]


def _agreement(name: str, graphs: Sequence[Graph]) -> Agreement:
    tables: list[dict[tuple[str, str], str]] = []
    for graph in graphs:
        labels = _apart(graph.labels)
        tables.append({(labels[source], labels[target]): op or "✓" for source, target, op in graph.edges})
    order = _ends(graphs)
    edges = tuple(edge for edge in order if any(edge in table for table in tables))
    # An edge that all have by the kind of cell, such as those to its output, says nothing.
    edges = tuple(edge for edge in edges if any(table.get(edge, "") != "✓" for table in tables))
    by_run = tuple(tuple(table.get(edge, "") for table in tables) for edge in edges)
    shares = tuple(_shares(found) for found in by_run)
    consensus, weights = _consensus(name, graphs)
    return Agreement(name, edges, by_run, shares, consensus, weights)


def _shares(found: Sequence[str]) -> tuple[tuple[str, float], ...]:
    counted = {op: found.count(op) / len(found) for op in dict.fromkeys(found) if op}
    return tuple(sorted(counted.items(), key=lambda item: -item[1]))


def _ends(graphs: Sequence[Graph]) -> list[tuple[str, str]]:
    """All ends of edges, by target, then source, as the first graphs order their states."""
    found: dict[tuple[str, str], tuple[int, int]] = {}
    for graph in graphs:
        labels = _apart(graph.labels)
        for source, target, _ in graph.edges:
            found.setdefault((labels[source], labels[target]), (target, source))
    return sorted(found, key=lambda ends: found[ends])


def _apart(labels: Sequence[str]) -> Sequence[str]:
    """Labels, numbered where several are the same."""
    if len(set(labels)) == len(labels):
        return labels
    return tuple(f"{i} {label}" for i, label in enumerate(labels))


def _consensus(name: str, graphs: Sequence[Graph]) -> tuple[Graph | None, Weights | None]:
    """What more than half have, and the states between; None where the runs' states differ, or nothing is common."""
    if len({graph.labels for graph in graphs}) > 1:
        return None, None
    edges = list(dict.fromkeys(edge for graph in graphs for edge in graph.edges))
    shares = {edge: sum(edge in graph.edges for graph in graphs) / len(graphs) for edge in edges}
    kept = tuple(sorted((edge for edge in edges if shares[edge] > 0.5), key=lambda edge: (edge[1], edge[0])))
    named = {state for source, target, op in kept if op for state in (source, target)}
    kept = tuple(edge for edge in kept if edge[2] or edge[0] in named)
    if not named:
        return None, None
    states = sorted({state for source, target, _ in kept for state in (source, target)})
    labels = tuple(graphs[0].labels[state] for state in states)
    graph = Graph(name, labels, tuple((states.index(a), states.index(b), op) for a, b, op in kept))
    weights = tuple(shares[edge] if edge[2] else None for edge in kept)
    return graph, Weights(weights, (None,) * len(labels))
