"""Kinds of primitives, and their colours on light and on dark paper.

Hues and lightnesses are such that colour-blind readers tell the kinds apart; a primitive's name is always there, too.
"""

from __future__ import annotations

import re

CONVOLUTION, POOLING, SKIP, NONE, OTHER, PLAIN = KINDS = (
    "convolution",
    "pooling",
    "skip",
    "none",
    "other",
    "plain",
)

# Of a kind: its line and border, and the paper below its name.
LIGHT = {
    "ink": "#1d252d",
    "paper": "#ffffff",
    "muted": "#5f6b76",
    "node": "#eef1f4",
    "input": "#dfe5ea",
    "convolution": "#005a96",
    "convolution-paper": "#e5f1f9",
    "pooling": "#b84f00",
    "pooling-paper": "#fdefe2",
    "skip": "#12906c",
    "skip-paper": "#e2f4ee",
    "none": "#75808a",
    "none-paper": "#ffffff",
    "other": "#6d1f5f",
    "other-paper": "#f8eaf3",
    "plain": "#5f6b76",
    "plain-paper": "#ffffff",
}
DARK = {
    "ink": "#e8ecef",
    "paper": "#12171c",
    "muted": "#9aa6b1",
    "node": "#242c34",
    "input": "#323d47",
    "convolution": "#3f8fd0",
    "convolution-paper": "#10293b",
    "pooling": "#f0a04b",
    "pooling-paper": "#3a2510",
    "skip": "#3fc79c",
    "skip-paper": "#0d3026",
    "none": "#87929d",
    "none-paper": "#12171c",
    "other": "#e8a0d0",
    "other-paper": "#371d2d",
    "plain": "#9aa6b1",
    "plain-paper": "#12171c",
}


def kind_of(primitive: str) -> str:
    """Of the primitive called so: "plain" where there is none, "other" what is neither of the rest, as activations.

    >>> [kind_of(name) for name in ("sep_conv_3x3", "maxpool3x3", "identity", "tanh")]
    ['convolution', 'pooling', 'skip', 'other']
    """
    if primitive in ("", "none"):
        return NONE if primitive else PLAIN
    if primitive in ("skip_connect", "identity"):
        return SKIP
    if "conv" in primitive:
        return CONVOLUTION
    return POOLING if "pool" in primitive else OTHER


def css_name(primitive: str) -> str:
    """``primitive`` as the end of a CSS class."""
    return re.sub(r"[^A-Za-z0-9_-]", "-", primitive)


def stroke_width(weight: float | None) -> float:
    """Of an edge, in pixels."""
    return 1.6 if weight is None else round(1.0 + 4.0 * weight, 2)
