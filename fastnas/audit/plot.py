"""What an audit found, as one picture of eight panels."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import matplotlib
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MIB = 1 << 20
# Colours that the colour-blind tell apart; markers and dashes say it again.
BLUE, ORANGE, GREEN, GREY = "#0072b2", "#d55e00", "#009e73", "0.45"
PRODUCTS = {"hessian": ("H v", "-", "o"), "mixed": ("mixed product", "--", "s")}


def svg(result: dict[str, Any]) -> bytes:
    """The picture of ``result``, as SVG; it depends on the numbers alone."""
    with matplotlib.rc_context({"svg.hashsalt": "fastnas", "font.size": 8, "axes.titlesize": 9}):
        figure = Figure(figsize=(17, 8.2), layout="constrained")
        axes = figure.subplots(2, 4)
        cosines_against_radius(axes[0][0], result)
        errors_against_radius(axes[0][1], result)
        cosines_against_images(axes[0][2], result)
        density(axes[0][3], result["spectra"][0])
        estimators(axes[1][0], result)
        neumann(axes[1][1], result)
        memory(axes[1][2], result)
        density(axes[1][3], result["spectra"][1])
        for panel in axes.flat:
            panel.grid(color="0.9")
            panel.set_axisbelow(True)
        figure.suptitle(_title(result), fontsize=9)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def cosines_against_radius(axes: Axes, result: dict[str, Any]) -> None:
    """Differences beside exact products of the same images."""
    _radius_lines(axes, result, "cosine")
    axes.axvline(result["recommended_radius"], color=GREY, linewidth=0.8, linestyle=":")
    axes.set_title("differences: cosine to the exact product")
    axes.set_ylim(-0.05, 1.05)


def errors_against_radius(axes: Axes, result: dict[str, Any]) -> None:
    """The same, their relative error: r^2 where nothing has a kink, r^-1/2 where switches are counted."""
    _radius_lines(axes, result, "relative_error")
    axes.set_yscale("log")
    axes.set_title("differences: relative error")
    axes.legend(frameon=False, fontsize=7)


def cosines_against_images(axes: Axes, result: dict[str, Any]) -> None:
    """More and more images beside the exact product over all: exact ones and differences."""
    kinds = {None: ("exact", BLUE)}
    configured = result["config"]["difference_radius"]
    if configured != "auto":
        kinds[configured] = (f"r = {configured:.3g}", ORANGE)
    kinds[result["recommended_radius"]] = (f"r = {result['recommended_radius']:.3g}", GREEN)
    for radius, (label, colour) in kinds.items():
        rows = [row for row in result["sweep"] if row["network"] == "kinked" and row["radius"] == radius]
        for product, (name, dash, marker) in PRODUCTS.items():
            heights = [row[f"{product}_over_all"]["cosine"] for row in rows]
            images = [row["images"] for row in rows]
            axes.plot(
                images, heights, dash, marker=marker, color=colour, markersize=4, label=f"{label}, {name}"
            )
    axes.set_xscale("log", base=2)
    axes.set_xticks(sorted({row["images"] for row in result["sweep"] if row["network"] == "kinked"}))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("images")
    axes.set_ylim(-0.05, 1.05)
    axes.set_title("cosine to the exact product over all images")
    axes.legend(frameon=False, fontsize=7)


def estimators(axes: Axes, result: dict[str, Any]) -> None:
    """Each method's second-order term beside that of reference B, a marker for each kind of products."""
    rows = [row for row in result["estimators"] if row["to"] and row["to"]["B"]["term"]["cosine"] is not None]
    methods = list(dict.fromkeys(row["method"] for row in rows))[::-1]
    kinds = list(dict.fromkeys(row["products"] for row in rows if row["products"] != "-"))
    for kind, colour, marker in zip(kinds, (BLUE, ORANGE, GREEN), "os^", strict=False):
        chosen = [row for row in rows if row["products"] == kind]
        cosines = [row["to"]["B"]["term"]["cosine"] for row in chosen]
        heights = [methods.index(row["method"]) for row in chosen]
        axes.scatter(cosines, heights, 22, color=colour, marker=marker, label=kind)
    axes.set_yticks(range(len(methods)), methods)
    axes.set_title("second-order term: cosine to reference B")
    axes.axvline(1, color=GREY, linewidth=0.8)
    axes.legend(frameon=False, fontsize=7, loc="best")


def density(axes: Axes, spectrum: dict[str, Any]) -> None:
    """How many eigenvalues lie where: most near 0, and some far from it, so the axis is logarithmic."""
    places, heights = spectrum["density"]["lambda"], spectrum["density"]["value"]
    axes.plot(places, heights, color=BLUE)
    axes.set_yscale("log")
    axes.set_ylim(bottom=max(heights) * 1e-7 or 1)
    axes.axvline(0, color=GREY, linewidth=0.8)
    axes.set_xlabel("lambda")
    axes.set_title(f"density of the eigenvalues of {spectrum['name']}")


def neumann(axes: Axes, result: dict[str, Any]) -> None:
    """Error against K, the bound dashed."""
    for curve, colour in zip(result["neumann"]["curves"], (BLUE, ORANGE), strict=True):
        terms = [point["terms"] for point in curve["points"]]
        label = f"gamma = {curve['gamma']:.3g} ({curve['name']})"
        axes.plot(
            terms,
            [point["error"] for point in curve["points"]],
            "o-",
            color=colour,
            markersize=3,
            label=label,
        )
        if curve["bounded"]:
            bounds = [point["bound"] for point in curve["points"]]
            axes.plot(terms, bounds, "--", color=colour, label="Theorem 1's bound")
    axes.set_yscale("log")
    axes.set_xlabel("K")
    axes.set_title(f"Neumann series: |g_K - g|, damping {result['neumann']['damping']:.3g}")
    axes.legend(frameon=False, fontsize=7)


def memory(axes: Axes, result: dict[str, Any]) -> None:
    """Peak memory against T."""
    styles = {"reverse": (ORANGE, "o"), "truncated-reverse": (GREEN, "s"), "idarts": (BLUE, "^")}
    for method, (colour, marker) in styles.items():
        rows = [row for row in result["reverse"] if row["method"] == method]
        heights = [row["peak_bytes"] / MIB for row in rows]
        axes.plot(
            [row["steps"] for row in rows], heights, marker=marker, color=colour, markersize=4, label=method
        )
    axes.set_xlabel("T")
    axes.set_ylim(bottom=0)
    axes.set_title("peak memory of T weight steps and a hypergradient (MiB)")
    axes.legend(frameon=False, fontsize=7)


def _radius_lines(axes: Axes, result: dict[str, Any], key: str) -> None:
    sizes = sorted({row["images"] for row in result["sweep"] if row["network"] == "kinked"})
    smooth = next(row["images"] for row in result["sweep"] if row["network"] == "smooth")
    groups = {("kinked", sizes[-1]): GREEN, ("kinked", sizes[0]): BLUE, ("smooth", smooth): ORANGE}
    for (network, images), colour in groups.items():
        rows = [
            row
            for row in result["sweep"]
            if (row["network"], row["images"]) == (network, images) and row["radius"] is not None
        ]
        radii = [row["radius"] for row in rows]
        for product, (name, dash, marker) in PRODUCTS.items():
            heights = [row[product][key] for row in rows]
            label = f"{network}, {images} images, {name}"
            axes.plot(radii, heights, dash, marker=marker, color=colour, markersize=3, label=label)
    axes.set_xscale("log")
    axes.set_xlabel("r")


def _title(result: dict[str, Any]) -> str:
    c, s = result["config"], result["state"]
    return (
        f"{c['space']}, C = {c['channels']}, {c['layers']} layers, {s['weights']:,} weights; {c['dataset']}, "
        f"batches of {s['batch_size']}; {c['dtype']}; epoch {s['epoch']} and {s['weight_steps']} weight steps"
    )
