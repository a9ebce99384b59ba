"""What ``bench.cost`` measured, as Markdown tables and as one plot."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MIB = 1 << 20
# By name: how a column of the table and an axis are headed.
QUANTITIES = {
    "batch_size": "batch size (images)",
    "channels": "channels C",
    "layers": "layers (cells)",
    "inner_steps": "inner steps T",
    "neumann_terms": "Neumann terms K",
}
# Two colours that the colour-blind tell apart; the marker says it again.
STYLES: dict[str, dict[str, Any]] = {
    "fastnas": {"color": "#0072b2", "marker": "o"},
    "vanilla": {"color": "#d55e00", "marker": "s"},
}
Rows = dict[int, dict[str, dict[str, Any]]]  # value -> implementation -> row


def by_value(result: dict[str, Any], quantity: str) -> Rows:
    """The rows of one quantity, by value and implementation."""
    found: Rows = {}
    for row in result["rows"]:
        if row["quantity"] == quantity:
            found.setdefault(row["value"], {})[row["implementation"]] = row
    return found


def labels(result: dict[str, Any]) -> dict[str, str]:
    """What the implementations are called, those that were measured."""
    names = {"fastnas": f"fastnas {result['configuration']['backend']}", "vanilla": "plain PyTorch"}
    return {
        name: label
        for name, label in names.items()
        if name == "fastnas" or result["configuration"]["vanilla"]
    }


def measured_on(result: dict[str, Any], quantity: str) -> str:
    """What one call was, with the settings that stayed, as "idarts, batch 16, C = 16, 8 layers, K = 2"."""
    base = result["configuration"]["base"]
    method = next(row["method"] for row in result["rows"] if row["quantity"] == quantity)
    settings = {
        "batch_size": f"batch {base['batch_size']}",
        "channels": f"C = {base['channels']}",
        "layers": f"{base['layers']} layers",
        "inner_steps": f"T = {base['inner_steps']}",
        "neumann_terms": f"K = {base['neumann_terms']}",
    }
    if method != "idarts":
        del settings["inner_steps"], settings["neumann_terms"]
    return ", ".join([method, *(text for name, text in settings.items() if name != quantity)])


def machine(result: dict[str, Any]) -> str:
    """Where it was measured, and with what."""
    e, c = result["environment"], result["configuration"]
    side = c["base"]["image_size"]
    commit = re.sub(r"(?<=[0-9a-f]{12})[0-9a-f]+", "", e["commit"] or "unknown commit")  # "+changes" stays
    return (
        f"{c['space']} on {side}x{side} images, float32; {e['device']}, {e['threads']} threads, torch {e['torch']},"
        f" fastnas {e['fastnas']} ({commit}), {e['date'][:10]}"
    )


# ---------------------------------------------------------------------------- tables


def tables(result: dict[str, Any]) -> str:
    """One Markdown table a quantity; seconds are medians with the 20th and 80th percentiles."""
    parts = ["# Cost against work", machine(result)]
    parts += [
        f"Seconds of one call: the median of {result['configuration']['rounds']} (20th to 80th percentile)."
        " Memory: the peak that torch's allocator held during the first call, above what it held before."
    ]
    for quantity in QUANTITIES:
        rows = by_value(result, quantity)
        if rows:
            parts += [
                f"## {QUANTITIES[quantity]}",
                f"{measured_on(result, quantity)}.",
                table(result, quantity, rows),
            ]
    for entry in result["left_out"]:
        name = labels(result)[entry["implementation"]]
        parts.append(
            f"Left out: {name} at {QUANTITIES[entry['quantity']]} = {entry['value']}, which {entry['reason']}."
        )
    return "\n\n".join(parts) + "\n"


def table(result: dict[str, Any], quantity: str, rows: Rows) -> str:
    """One quantity's table; "-" for what was left out."""
    names = labels(result)
    head = [QUANTITIES[quantity]]
    for unit in ("s", "MiB"):
        head += [f"{label}, {unit}" for label in names.values()]
        head += [{"s": "times as fast", "MiB": "times less memory"}[unit]] if len(names) == 2 else []
    lines = [head, ["---:"] * len(head)]
    for value, sides in rows.items():
        cells = [str(value)]
        for key in ("seconds", "peak_bytes"):
            cells += [cell(sides[name], key) if name in sides else "-" for name in names]
            if len(names) == 2:
                whole = len(sides) == 2
                cells.append(
                    f"{number(sides['vanilla'], key) / number(sides['fastnas'], key):.2f}" if whole else "-"
                )
        lines.append(cells)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def number(row: dict[str, Any], key: str) -> float:
    """The median in seconds, or the peak in MiB."""
    return row["seconds"]["median"] if key == "seconds" else row["peak_bytes"] / MIB


def cell(row: dict[str, Any], key: str) -> str:
    """``number`` as the table shows it."""
    if key == "peak_bytes":
        return f"{number(row, key):.1f}"
    return f"{number(row, key):.3g} ({row['seconds']['p20']:.3g} to {row['seconds']['p80']:.3g})"


# ---------------------------------------------------------------------------- the plot


def save_plot(result: dict[str, Any], path: Path) -> None:
    """Small multiples as SVG: a column per quantity, seconds above, MiB below.

    All y axes are logarithmic and shared along a row: what is in proportion is a line of slope one, what does not
    depend on the quantity is level. T and K have linear x axes (K may be 0).
    """
    import matplotlib
    from matplotlib.figure import Figure

    shown = [quantity for quantity in QUANTITIES if by_value(result, quantity)]
    # The salt and the missing date make the file depend on the numbers alone.
    with matplotlib.rc_context({"svg.hashsalt": "fastnas", "font.size": 9}):
        figure = Figure(figsize=(1.2 + 2.5 * len(shown), 6.2), layout="constrained")
        axes = figure.subplots(2, len(shown), sharex="col", sharey="row", squeeze=False)
        for column, quantity in enumerate(shown):
            above, below = axes[0][column], axes[1][column]
            draw(above, result, quantity, "seconds")
            draw(below, result, quantity, "peak_bytes")
            settings = measured_on(result, quantity).replace(", ", "\n", 1)
            above.set_title(settings, fontsize=8)
            below.set_xlabel(QUANTITIES[quantity])
        axes[0][0].set_ylabel("time of one call (s)")
        axes[1][0].set_ylabel("peak memory (MiB)")
        handles, names = axes[0][0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside upper center", ncols=2, frameon=False)
        figure.supxlabel(wrapped(machine(result), 44 * len(shown)), fontsize=7, color="0.35")
        figure.savefig(path, format="svg", metadata={"Date": None})


def draw(axes: Axes, result: dict[str, Any], quantity: str, key: str) -> None:
    """One panel: a line per implementation; the bars on times reach from the 20th to the 80th percentile."""
    from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

    rows = by_value(result, quantity)
    for name, label in labels(result).items():
        values = [value for value, sides in rows.items() if name in sides]
        heights = [number(rows[value][name], key) for value in values]
        bars = None
        if key == "seconds":
            spreads = [rows[value][name]["seconds"] for value in values]
            bars = [
                [s["median"] - s["p20"] for s in spreads],
                [s["p80"] - s["median"] for s in spreads],
            ]
        axes.errorbar(
            values, heights, bars, label=label, markersize=4, linewidth=1.2, capsize=2, **STYLES[name]
        )
    axes.set_yscale("log")
    if quantity not in ("inner_steps", "neumann_terms"):
        axes.set_xscale("log", base=2)
    axes.set_xticks(list(rows))
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(color="0.88")
    axes.set_axisbelow(True)


def wrapped(text: str, width: int) -> str:
    """``text`` in lines of at most ``width`` characters."""
    return "\n".join(textwrap.wrap(text, width))
