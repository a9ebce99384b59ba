"""Hypergradients of losses as everyone writes them: closures over live modules and parameters.

leaves     which tensors are inner and outer parameters, and what may be one
buffers    those of the modules that a loss calls, kept
problem    ``ModuleProblem``: two closures as the oracles of ``fastnas.bilevel``
function   ``hypergradient``, by any method or any solver
"""

from fastnas.hypergradient.function import hypergradient
from fastnas.hypergradient.problem import ModuleProblem

__all__ = ["ModuleProblem", "hypergradient"]
