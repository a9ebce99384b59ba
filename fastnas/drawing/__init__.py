"""Cells drawn as graphs: SVG, PNG, PDF and text."""

from fastnas.drawing.drawing import Drawing, draw
from fastnas.drawing.svg import STYLE, cell_svg
from fastnas.drawing.text import text_drawing
from fastnas.drawing.weights import Weights, weights_of

__all__ = ["STYLE", "Drawing", "Weights", "cell_svg", "draw", "text_drawing", "weights_of"]
