"""Charts as inline SVG: matplotlib draws, the page's custom properties colour, a script moves the cursor."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import escape, quoteattr

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fastnas.report.alphas import History
from fastnas.report.svg import elements

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH, HEIGHT = 360, 230
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 22, 34
HEAT_WIDTH, HEAT_LEFT = 560, 152
ROW = 13  # pixels of a row of a heat map
COLOURS = 8  # of curves, --c0 to --c7
MARKED = 40  # points up to which each is marked
LEAST_SPAN = 0.01  # of an axis, relative to the values on it
DECADES = 100  # the ratio from which a scale is logarithmic
ACCENT = (0x2F, 0x7F, 0xD1)  # of heat maps, as opaque as the weight: it reads on light and on dark paper
_RC: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "fastnas",
    "svg.image_inline": True,
    "font.size": 10,
    "axes.unicode_minus": True,
    "axes.formatter.useoffset": False,
    "path.simplify": True,
    "text.parse_math": False,
}


@dataclass(frozen=True)
class Curve:
    """One line of a chart.

    Attributes:
        label: in the legend.
        values: one an epoch; None: there is none.
        colour: custom property, without its dashes.
        low, high: of a band around it.
        dashed: it is drawn so.
    """

    label: str
    values: tuple[float | None, ...]
    colour: str = "c0"
    low: tuple[float | None, ...] = ()
    high: tuple[float | None, ...] = ()
    dashed: bool = False


@dataclass(frozen=True)
class Chart:
    """Curves over epochs, or shares on top of each other.

    Attributes:
        name: identifier on a page, with that of its run.
        title: what it shows.
        unit: of the values, above their axis.
        epochs: of the values of all curves.
        curves: at least one.
        stacked: their values are shares, filled from 0 to 1.
        text: how a value is written, a format.
        about: what it means, in a sentence.
        from_zero: its axis begins there.
        may_be_log: its axis is logarithmic where the values span decades.
        plain_unit: where it differs between the runs of a comparison, what stands for the unit.
        span: first and last epoch of the axis; None: those of the values.
    """

    name: str
    title: str
    unit: str
    epochs: tuple[int, ...]
    curves: tuple[Curve, ...]
    stacked: bool = False
    text: str = "{:.4g}"
    about: str = ""
    from_zero: bool = False
    may_be_log: bool = False
    plain_unit: str = ""
    span: tuple[int, int] | None = None

    def written(self, value: float | None) -> str:
        """A value of it."""
        return "–" if value is None else self.text.format(value)

    @property
    def words(self) -> str:
        """What it shows, for who does not see it: first, last, lowest and highest value of each curve."""
        return " ".join(self._of(curve) for curve in self.curves)

    def _of(self, curve: Curve) -> str:
        known = [(e, v) for e, v in zip(self.epochs, curve.values, strict=True) if v is not None]
        if not known:
            return f"{curve.label}: nothing."
        low, high = min(known, key=lambda found: found[1]), max(known, key=lambda found: found[1])
        ends = [("first", known[0]), ("last", known[-1]), ("lowest", low), ("highest", high)]
        said = ", ".join(f"{what} {self.written(value)} (epoch {epoch})" for what, (epoch, value) in ends)
        return f"{curve.label}: {said}."


class Painter:
    """Draws charts on one figure, which takes longer to make than to clear."""

    def __init__(self) -> None:
        self._figure = Figure(dpi=72)
        self._figure.patch.set_visible(False)

    def chart(self, chart: Chart, ident: str) -> str:
        """``chart`` as one ``<svg>``; ``ident`` begins its identifiers."""
        colours = _Colours()
        with matplotlib.rc_context(_RC):
            axes = self._axes(WIDTH, HEIGHT, colours, len(chart.epochs))
            low, high = _ends(chart.span or chart.epochs)
            axes.set_xlim(low, high)
            if chart.stacked:
                _stack(axes, chart, colours)
            else:
                _lines(axes, chart, colours)
            axes.set_title(
                chart.unit,
                loc="left",
                fontsize=10,
                color=colours("muted"),
                x=-LEFT / (WIDTH - LEFT - RIGHT),
                pad=7,
            )
            drawn = elements(self._saved(), colours.properties)
        return _svg(drawn, ident, WIDTH, HEIGHT, LEFT, (low, high), chart.title, chart.words)

    def heat_map(self, history: History, ident: str) -> str:
        """The weights of an architecture parameter over the epochs as one ``<svg>``: a row an option of a row of it."""
        options = [(r, c) for r, row in enumerate(history.columns) for c, name in enumerate(row) if name]
        left, height = HEAT_LEFT, TOP + BOTTOM + ROW * len(options)
        low, high = history.epochs[0] - 0.5, history.epochs[-1] + 0.5
        colours = _Colours()
        with matplotlib.rc_context(_RC):
            axes = self._axes(HEAT_WIDTH, height, colours, len(history.epochs), left)
            axes.imshow(
                _pixels(history, options),
                interpolation="none",
                aspect="auto",
                extent=(low, high, len(options), 0),
            )
            axes.set_xlim(low, high)
            axes.set_yticks([])
            axes.grid(visible=False)
            ends = [k for k in range(1, len(options)) if options[k][0] != options[k - 1][0]]
            axes.hlines(ends, low, high, color=colours("grid"), linewidth=1)
            drawn = elements(self._saved(), colours.properties)
        labels = _row_labels(history, options, left)
        words = _heat_words(history, options)
        title = f"Softmax weights of {history.name}"
        return _svg(drawn + labels, ident, HEAT_WIDTH, height, left, (low, high), title, words)

    def _axes(self, width: int, height: int, colours: _Colours, epochs: int, left: int = LEFT) -> Axes:
        self._figure.clear()
        self._figure.set_size_inches(width / 72, height / 72)
        box = (
            left / width,
            BOTTOM / height,
            (width - left - RIGHT) / width,
            (height - TOP - BOTTOM) / height,
        )
        axes = self._figure.add_axes(box)
        axes.patch.set_visible(False)
        axes.set_axisbelow(True)
        axes.grid(color=colours("grid"), linewidth=1)
        axes.tick_params(length=0, labelcolor=colours("muted"), pad=4)
        for side, spine in axes.spines.items():
            spine.set_visible(side == "bottom")
            spine.set_edgecolor(colours("muted"))
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
        axes.set_xlabel("epoch", color=colours("muted"), labelpad=3)
        return axes

    def _saved(self) -> str:
        buffer = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        self._figure.savefig(buffer, format="svg", metadata=nothing)
        return buffer.getvalue()


class _Colours:
    """A colour of matplotlib's for each custom property of the page."""

    def __init__(self) -> None:
        self.properties = {"#000000": "var(--ink)"}
        self._by_name: dict[str, str] = {}

    def __call__(self, name: str) -> str:
        if name not in self._by_name:
            stand_in = f"#{len(self.properties):06x}"
            self._by_name[name], self.properties[stand_in] = stand_in, f"var(--{name})"
        return self._by_name[name]


def _lines(axes: Axes, chart: Chart, colours: _Colours) -> None:
    values = [v for curve in chart.curves for v in (*curve.values, *curve.low, *curve.high) if v is not None]
    if chart.may_be_log:
        _scale(axes, values)
    for curve in chart.curves:
        x, y = _known(chart.epochs, curve.values)
        colour = colours(curve.colour)
        if curve.low:
            band = [_known(chart.epochs, side) for side in (curve.low, curve.high)]
            axes.fill_between(band[0][0], band[0][1], band[1][1], color=colour, alpha=0.18, linewidth=0)
        marker = "o" if len(x) <= MARKED else ""
        axes.plot(
            x,
            y,
            marker=marker,
            markersize=3.2,
            color=colour,
            linewidth=1.7,
            linestyle=(0, (4, 2)) if curve.dashed else "-",
        )
    if axes.get_yscale() == "linear":
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
        axes.yaxis.set_major_formatter(_tick)
        axes.set_ylim(*_room(axes.get_ylim(), values, from_zero=chart.from_zero))


def _room(ends: tuple[float, float], values: Sequence[float], *, from_zero: bool) -> tuple[float, float]:
    """Ends of a linear axis: a line that hardly moves looks like one, and nothing below zero where no value is."""
    low, high = ends
    least = LEAST_SPAN * max(map(abs, values), default=1.0) or 1.0
    if high - low < least:
        middle = (low + high) / 2
        low, high = middle - least / 2, middle + least / 2
    if min(values, default=0.0) >= 0 and (low < 0 or from_zero):
        low = 0.0
    return low, high


def _stack(axes: Axes, chart: Chart, colours: _Colours) -> None:
    heights = np.array([[v or 0.0 for v in curve.values] for curve in chart.curves])
    epochs = np.array(chart.epochs, float)
    if len(epochs) == 1:  # a share of one epoch is a bar
        epochs, heights = np.array(_ends(chart.epochs)), np.repeat(heights, 2, axis=1)
    axes.stackplot(epochs, heights, colors=[colours(curve.colour) for curve in chart.curves], linewidth=0)
    axes.set_ylim(0, 1)
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.yaxis.set_major_formatter(_percent)


def _scale(axes: Axes, values: Sequence[float]) -> None:
    """Logarithmic where the values span decades, to both sides of zero if they have both signs."""
    sizes = sorted(abs(v) for v in values if v)
    if not sizes or sizes[-1] < DECADES * sizes[len(sizes) // 20]:
        return
    if min(values) > 0:
        axes.set_yscale("log", nonpositive="mask")
    else:
        axes.set_yscale("symlog", linthresh=max(sizes[len(sizes) // 20], sizes[-1] * 1e-6))
    axes.yaxis.set_major_formatter(_tick)
    axes.minorticks_off()


def _tick(value: float, _: object = None) -> str:
    """A number below a tick, short enough for the margin."""
    if value and not 1e-3 <= abs(value) < 1e5:
        return f"{value:.1e}".replace(".0e", "e").replace("e-0", "e-").replace("e+0", "e").replace("e+", "e")
    return f"{value:,.6g}".replace("-", "\N{MINUS SIGN}")


def _percent(value: float, _: object = None) -> str:
    return f"{value:.0%}"


def _known(epochs: Sequence[int], values: Sequence[float | None]) -> tuple[list[int], list[float]]:
    known = [(e, v) for e, v in zip(epochs, values, strict=True) if v is not None]
    return [e for e, _ in known], [v for _, v in known]


def _ends(epochs: Sequence[int]) -> tuple[float, float]:
    """Of the axis, room for a single epoch included."""
    first, last = epochs[0], epochs[-1]
    return (first - 0.5, last + 0.5) if first == last else (float(first), float(last))


def _pixels(history: History, options: Sequence[tuple[int, int]]) -> np.ndarray:
    """(options, epochs, RGBA): clear at the least weight, opaque at the most; clear where there are no alphas."""
    columns = np.asarray(history.epochs) - history.epochs[0]
    image = np.zeros((len(options), columns[-1] + 1, 4), np.uint8)
    image[..., :3] = ACCENT
    weights = np.stack([history.weights[:, r, c] for r, c in options])
    low, high = weights.min(), weights.max()
    image[:, columns, 3] = np.rint(255 * (weights - low) / (high - low if high > low else 1.0))
    return image


def _row_labels(history: History, options: Sequence[tuple[int, int]], left: int) -> str:
    """The edges and their primitives beside the rows of a heat map."""
    parts = []
    for k, (r, c) in enumerate(options):
        y = TOP + ROW * k + ROW - 3
        if k == 0 or options[k - 1][0] != r:
            parts.append(
                f'<text x="0" y="{y}" fill="var(--ink)" font-weight="600">{escape(history.rows[r])}</text>'
            )
        label = escape(history.columns[r][c])
        parts.append(f'<text x="{left - 6}" y="{y}" text-anchor="end" fill="var(--muted)">{label}</text>')
    return "".join(parts)


def _heat_words(history: History, options: Sequence[tuple[int, int]]) -> str:
    """The strongest option of each row at the last epoch."""
    parts = []
    for r, row in enumerate(history.rows):
        weights = {c: history.weights[-1, r, c] for of, c in options if of == r}
        best = max(weights, key=lambda c: weights[c])
        parts.append(f"{row}: {history.columns[r][best]} {weights[best]:.2f}")
    return f"Strongest after epoch {history.epochs[-1]}: {'; '.join(parts)}."


def _svg(
    drawn: str,
    ident: str,
    width: int,
    height: int,
    left: int,
    ends: tuple[float, float],
    title: str,
    words: str,
) -> str:
    """The ``<svg>``: a script finds in it where epochs are, and the cursor, which stands at the last of them."""
    name, x = quoteattr(ident)[1:-1], width - RIGHT
    at = (x - left) / (ends[1] - ends[0]) if not math.isclose(ends[0], ends[1]) else 0.0
    half = 0.5 * at if ends[1] % 1 else 0.0
    return (
        f'<svg class="chart" viewBox="0 0 {width} {height}" role="img" aria-labelledby="{name}-title {name}-desc" '
        f'data-first="{ends[0]:g}" data-last="{ends[1]:g}" data-left="{left}" data-right="{x}">'
        f'<title id="{name}-title">{escape(title)}</title><desc id="{name}-desc">{escape(words)}</desc>{drawn}'
        f'<line class="cursor" x1="{x - half:g}" x2="{x - half:g}" y1="{TOP}" y2="{height - BOTTOM}"/></svg>'
    )


def colour_of(names: Sequence[str]) -> Mapping[str, str]:
    """A custom property for each of several things, in their order, those of curves one after the other."""
    return {name: f"c{i % COLOURS}" for i, name in enumerate(names)}
