"""matplotlib's SVG made small and dressed by the page: no identifiers, no styles, colours of the page."""

from __future__ import annotations

import re
from collections.abc import Mapping
from xml.etree import ElementTree
from xml.sax.saxutils import escape, quoteattr

_SVG = "{http://www.w3.org/2000/svg}"
_LINK = "{http://www.w3.org/1999/xlink}href"
_NUMBER = re.compile(r"-?\d+\.\d+(?:e-?\d+)?")
_KEPT = ("fill", "stroke", "stroke-width", "stroke-dasharray", "fill-opacity", "stroke-opacity", "opacity")
_FONT_SIZE = "10px"  # is the page's for charts


def elements(source: str, colours: Mapping[str, str]) -> str:
    """The shapes and texts of a figure in the order in which they are painted, without what carried them.

    Markers stand where they are used, clips are dropped: nothing of a chart may lie outside of its axes.

    Args:
        source: what ``savefig(format="svg")`` wrote, text as text.
        colours: what stands for each colour ("#000001") on the page ("var(--ink)").
    """
    root = ElementTree.fromstring(source)
    markers = {path.get("id"): path for path in root.iter(f"{_SVG}path") if path.get("id")}
    parts: list[str] = []
    for parent in root.iter():
        if parent.tag in (f"{_SVG}defs", f"{_SVG}clipPath"):
            continue
        for element in parent:
            part = _element(element, markers, colours)
            if part:
                parts.append(part)
    return "".join(parts)


def _element(
    element: ElementTree.Element,
    markers: Mapping[str | None, ElementTree.Element],
    colours: Mapping[str, str],
) -> str:
    tag, style = element.tag.removeprefix(_SVG), _style(element.get("style", ""))
    if tag == "path":
        return f'<path d="{_path(element.get("d", ""))}"{_attributes(style, colours)}/>'
    if tag == "use":
        marker = markers[element.get(_LINK, "")[1:]]
        style = {**_style(marker.get("style", "")), **style}
        at = f"translate({_short(element.get('x', '0'))} {_short(element.get('y', '0'))})"
        return f'<path transform="{at}" d="{_path(marker.get("d", ""))}"{_attributes(style, colours)}/>'
    if tag == "text":
        return _text(element, style, colours)
    if tag == "image":
        link = re.sub(r"\s", "", element.get(_LINK, ""))
        size = f'width="{element.get("width")}" height="{element.get("height")}"'
        return f'<image href={quoteattr(link)} {size} transform="{element.get("transform", "")}"/>'
    return ""


def _text(element: ElementTree.Element, style: dict[str, str], colours: Mapping[str, str]) -> str:
    size = style.get("font-size", _FONT_SIZE)
    more = "" if size == _FONT_SIZE else f' font-size="{size}"'
    anchor = style.get("text-anchor", "start")
    more += "" if anchor == "start" else f' text-anchor="{anchor}"'
    fill = style.get("fill")
    more += "" if fill is None else f' fill="{colours.get(fill, fill)}"'
    x, y = _short(element.get("x", "0")), _short(element.get("y", "0"))
    return f'<text x="{x}" y="{y}"{more}>{escape("".join(element.itertext()))}</text>'


def _style(text: str) -> dict[str, str]:
    pairs = (part.partition(":") for part in text.split(";") if part.strip())
    return {name.strip(): value.strip() for name, _, value in pairs}


def _attributes(style: Mapping[str, str], colours: Mapping[str, str]) -> str:
    """As attributes: a page that allows no styles of elements shows them."""
    return "".join(f' {name}="{colours.get(style[name], style[name])}"' for name in _KEPT if name in style)


def _path(d: str) -> str:
    return re.sub(r" ?\n", "", _NUMBER.sub(lambda found: _short(found[0]), d)).replace(" L ", "L").strip()


def _short(number: str) -> str:
    """A coordinate to a tenth of a pixel."""
    return f"{float(number):.1f}".removesuffix(".0")
