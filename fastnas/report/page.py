"""The report as one HTML file: it fetches nothing, and its policy forbids that anything does."""

from __future__ import annotations

import base64
import hashlib
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from fastnas._version import __version__
from fastnas.drawing import STYLE, Weights
from fastnas.drawing.layout import DIGITS
from fastnas.errors import FastnasError
from fastnas.report.alphas import History, histories
from fastnas.report.cells import Cells, Drawn, blank_drawing, cells_of, changes, drawing
from fastnas.report.charts import Chart, Painter
from fastnas.report.compare import agreements, compared, groups_of, statistics
from fastnas.report.curves import charts_of
from fastnas.report.figures import figures_of, head_of, readout_of
from fastnas.report.read import Run
from fastnas.report.settings import command_of, options_of, origin_of, result_of, typed, written

GENERATOR = "fastnas.report"  # what makes a file one that may be written anew
OPEN = 4  # heat maps that are not folded
CHANGES = 100  # of the genotype that are listed, the newest
WHOLE = 8  # runs of which a comparison shows everything
_TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class Shown:
    """A run as its part of the page has it.

    Attributes:
        ident: begins the identifiers of its elements.
        run, cells, histories, charts: what it was, and what is drawn of it.
    """

    ident: str
    run: Run
    cells: Cells
    histories: tuple[History, ...]
    charts: Mapping[str, Sequence[Chart]]


def page(runs: Sequence[Run], *, live: bool = False) -> str:
    """The whole HTML of a report; the same runs give the same text.

    Args:
        runs: one, or several to compare.
        live: for a server of a run in progress: the page holds ``templates/live.js``, too, which asks it again.

    Raises:
        FastnasError: there is no run.
    """
    if not runs:
        raise FastnasError("a report needs at least one run")
    shown = [_shown(run, f"r{i}") for i, run in enumerate(runs, start=1)]
    painter, several = Painter(), len(runs) > 1
    style, script = style_of_page(), script_of_page(live)
    return (
        _environment()
        .get_template("report.html")
        .render(
            title=runs[0].name if not several else f"{len(runs)} runs",
            live=live,
            first=min((run.epochs[0] for run in runs if run.rows), default=0),
            last=max((run.epochs[-1] for run in runs if run.rows), default=0),
            version=__version__,
            generator=GENERATOR,
            policy=_policy(style, script, live),
            style=Markup(style),
            script=Markup(script),
            comparison=_comparison(shown, painter) if several else None,
            runs=[_section(of, painter, whole=len(runs) <= WHOLE) for of in shown],
            several=several,
        )
    )


def style_of_page() -> str:
    """The page's one style sheet."""
    return STYLE + (_TEMPLATES / "report.css").read_text(encoding="utf-8")


def script_of_page(live: bool) -> str:
    """The page's one script."""
    names = ["report.js", *(["live.js"] if live else [])]
    return "\n".join((_TEMPLATES / name).read_text(encoding="utf-8") for name in names)


def _policy(style: str, script: str, live: bool) -> str:
    """What the page may do: nothing but its own style and script, and the pictures of numbers inside of it."""
    connect = "; connect-src 'self'" if live else ""
    return (
        f"default-src 'none'; style-src '{_digest(style)}'; script-src '{_digest(script)}'; img-src data:; "
        f"base-uri 'none'; form-action 'none'{connect}"
    )


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


@cache
def _environment() -> Environment:
    found = Environment(
        loader=PackageLoader("fastnas.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters["written"] = written
    return found


def _shown(run: Run, ident: str) -> Shown:
    found = histories(run)
    return Shown(ident, run, cells_of(run), found, charts_of(run, found))


def _section(of: Shown, painter: Painter, *, whole: bool) -> dict[str, Any]:
    """What the template needs for one run; of one of very many its cells and settings alone."""
    run = of.run
    chosen, rest = options_of(run)
    found = changes(run) if run.kind == "search" else []
    return {
        "ident": of.ident,
        "name": run.name,
        "path": str(run.path),
        "said": "search" if run.kind == "search" else "retraining",
        "head": head_of(run),
        "notes": run.notes,
        "readout": readout_of(run, -1) if run.rows else {},
        "epoch": run.epochs[-1] if run.rows else None,
        "cells": [_cell(of, i, drawn) for i, drawn in enumerate(of.cells.shown)],
        "charts": {
            group: [_chart(chart, painter, f"{of.ident}-{chart.name}") for chart in charts]
            for group, charts in (of.charts if whole else {}).items()
            if charts
        },
        "heat_maps": [
            _heat_map(of, i, history, painter) for i, history in enumerate(of.histories if whole else ())
        ],
        "open": OPEN,
        "genotype": str(run.genotype or (run.genotypes[-1] if run.genotypes else None) or ""),
        "changes": found[-CHANGES:],
        "changed": len(found),
        "chosen": chosen,
        "rest": rest,
        "origin": origin_of(run),
        "command": command_of(run),
        "typed": typed(run),
        "result": result_of(run),
        "table": _table(run) if whole else None,
        "payload": _packed(_payload(of, whole=whole)),
        "whole": whole,
    }


def _cell(of: Shown, i: int, drawn: Drawn) -> dict[str, Any]:
    ident = f"{of.ident}-cell-{i}"
    return {
        "name": drawn.graph.name,
        "slot": of.cells.names.index(drawn.graph.name),
        "wide": Markup(drawing(drawn.graph, drawn.weights, ident)),
        "narrow": Markup(drawing(drawn.graph, drawn.weights, f"{ident}-narrow", portrait=True)),
        "weighed": drawn.weights is not None,
    }


def _chart(chart: Chart, painter: Painter, ident: str) -> dict[str, Any]:
    return {
        "ident": ident,
        "title": chart.title,
        "about": chart.about,
        "svg": Markup(painter.chart(chart, ident)),
        "curves": [
            {
                "label": curve.label,
                "colour": curve.colour,
                "last": chart.written(_last(curve.values)),
                "dashed": curve.dashed,
            }
            for curve in chart.curves
        ],
    }


def _last(values: Sequence[float | None]) -> float | None:
    return values[-1] if values else None


def _heat_map(of: Shown, i: int, history: History, painter: Painter) -> dict[str, Any]:
    return {
        "name": history.name,
        "ident": f"{of.ident}-heat-{i}",
        "svg": Markup(painter.heat_map(history, f"{of.ident}-heat-{i}")),
        "least": f"{history.weights.min():.3g}",
        "most": f"{history.weights.max():.3g}",
    }


def _table(run: Run) -> dict[str, Any]:
    """All rows of metrics, their numbers alone; what is no number is elsewhere on the page."""
    names = list(
        dict.fromkeys(name for row in run.rows for name, v in row.items() if type(v) in (int, float))
    )
    rows = [
        [
            ""
            if row.get(name) is None
            else f"{row[name]:,}"
            if type(row[name]) is int
            else f"{row[name]:.6g}"
            for name in names
        ]
        for row in run.rows
    ]
    return {"names": names, "rows": rows}


def _payload(of: Shown, *, whole: bool) -> dict[str, Any]:
    """What the script shows of each epoch: texts that are ready, drawings, and weights as numbers."""
    run, cells = of.run, of.cells
    texts = list(dict.fromkeys(map(str, run.genotypes)))
    drawings = [
        blank_drawing(graph, weighed, f"{of.ident}-drawn-{i}")
        for i, (graph, weighed) in enumerate(zip(cells.graphs, cells.weighed, strict=True))
    ]
    return {
        "epochs": run.epochs,
        "readout": [list(readout_of(run, i).values()) for i in range(len(run.rows))],
        "wide": [wide for wide, _ in drawings],  # like beside like: what packs them looks back 32 kB
        "narrow": [narrow for _, narrow in drawings],
        "cells": cells.epochs,
        "digits": DIGITS,
        "weights": [[None if w is None else _numbers(w) for w in row] for row in cells.weights],
        "texts": texts,
        "genotypes": [texts.index(str(genotype)) for genotype in run.genotypes],
        "charts": {
            f"{of.ident}-{chart.name}": _values(chart)
            for charts in (of.charts if whole else {}).values()
            for chart in charts
        },
    }


def _values(chart: Chart) -> dict[str, Any]:
    return {
        "epochs": chart.epochs,
        "curves": [[chart.written(value) for value in curve.values] for curve in chart.curves],
    }


def _numbers(weights: Weights) -> list[list[float | None]]:
    return [[None if w is None else round(w, DIGITS) for w in of] for of in (weights.edges, weights.nodes)]


def _packed(payload: Mapping[str, Any]) -> str:
    """JSON that ``DecompressionStream`` unpacks: a thousand drawings have much in common."""
    text = json.dumps(payload, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return base64.b64encode(zlib.compress(text.encode(), 6)).decode()


def _comparison(shown: Sequence[Shown], painter: Painter) -> dict[str, Any]:
    runs = [of.run for of in shown]
    groups = groups_of(runs)
    by_run = {of.run.name: [chart for charts in of.charts.values() for chart in charts] for of in shown}
    charts = compared(groups, by_run)
    of_group = {run.name: group.name for group in groups for run in group.runs}
    return {
        "groups": [
            {
                "name": group.name,
                "runs": len(group.runs),
                "figures": _spread(group.runs),
                "colour": f"c{i % 8}",
            }
            for i, group in enumerate(groups)
        ],
        "runs": [
            {
                "ident": of.ident,
                "name": of.run.name,
                "group": of_group[of.run.name],
                "figures": figures_of(of.run),
            }
            for of in shown
        ],
        "figures": list(dict.fromkeys(name for run in runs for name in figures_of(run))),
        "charts": [_chart(chart, painter, f"all-{chart.name}") for chart in charts],
        "payload": _packed(
            {
                "epochs": sorted({e for run in runs for e in run.epochs}),
                "charts": {f"all-{c.name}": _values(c) for c in charts},
            }
        ),
        "named": [of for of in shown if of.run.genotype is not None],
        "agreements": [
            {
                "of": agreement,
                "svg": None
                if agreement.consensus is None
                else Markup(drawing(agreement.consensus, agreement.weights, f"all-cell-{i}")),
                "narrow": None
                if agreement.consensus is None
                else Markup(
                    drawing(agreement.consensus, agreement.weights, f"all-cell-{i}-narrow", portrait=True)
                ),
            }
            for i, agreement in enumerate(agreements(runs))
        ],
    }


def _spread(runs: Sequence[Run]) -> dict[str, str]:
    """Mean and standard deviation of each figure over the runs that have it."""
    found: dict[str, list[tuple[float, str]]] = {}
    for run in runs:
        for name, (value, text) in figures_of(run).items():
            found.setdefault(name, []).append((value, text))
    shown = {}
    for name, values in found.items():
        (mean,), (spread,) = statistics([[value for value, _ in values]])
        text = values[0][1]
        shown[name] = text.format(mean) + (
            "" if spread is None or name == "epochs" else f" ± {text.format(spread)}"
        )
    return shown
