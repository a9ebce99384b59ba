"""fastnas: a fast, trustworthy core for differentiable architecture search."""

from fastnas._version import __version__
from fastnas.errors import FastnasError

__all__ = ["FastnasError", "__version__"]
