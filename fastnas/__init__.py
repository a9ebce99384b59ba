"""fastnas: a fast, trustworthy core for differentiable architecture search."""

from fastnas._command import interrupted_quietly
from fastnas._version import __version__
from fastnas.errors import FastnasError

with interrupted_quietly():  # torch takes seconds to import
    from fastnas.drawing import draw
    from fastnas.hypergradient import hypergradient
    from fastnas.retrain import RetrainResult, load_network, retrain
    from fastnas.search import SearchResult, search
    from fastnas.supernet import register_primitive

__all__ = [
    "FastnasError",
    "RetrainResult",
    "SearchResult",
    "__version__",
    "draw",
    "hypergradient",
    "load_network",
    "register_primitive",
    "retrain",
    "search",
]
