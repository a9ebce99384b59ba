"""Bilevel problems and their hypergradients: any inner and outer parameters, not only architectures.

problem     the oracles on flat vectors, and an autograd implementation of them
products    Hessian-vector and mixed products: ``Products`` says which, by differences (difference) or exact
estimators  those of a fixed form: first_order, darts, amended, t1_t2
implicit    those that solve with the Hessian: implicit, idarts, neumann, cg, nystroem, exact
solvers     what they solve with: ``solve(matvec, b)``
unrolled    those that go back through weight steps: reverse, truncated_reverse; unroll and inner_steps make the steps
release     idarts_release, the authors' code as it is
twice       whether a loss can be differentiated twice
watch       divergence and negative curvature, noticed and said
inspected   oracles watched for NaN and infinity
agreement   cosine and relative error of an estimate
radius      differences of every radius beside exact products, and the best one
methods     all of them by name, with what they cost
spectrum    the ends, trace and density of a symmetric operator's spectrum, from its products alone
"""

from fastnas.bilevel.agreement import Agreement, agreement
from fastnas.bilevel.difference import hessian_vector_product, mixed_product
from fastnas.bilevel.estimators import amended, darts, first_order, t1_t2
from fastnas.bilevel.implicit import cg, exact, idarts, implicit, neumann, nystroem
from fastnas.bilevel.inspected import Inspected, NotFiniteError
from fastnas.bilevel.methods import METHODS, InnerSettings, Method, method
from fastnas.bilevel.problem import (
    BilevelProblem,
    FunctionProblem,
    TwiceDifferentiable,
    restored,
    toy_problem,
)
from fastnas.bilevel.products import Curvature, Products
from fastnas.bilevel.radius import RADII, RadiusRow, radius_sweep, recommended_radius
from fastnas.bilevel.release import idarts_release
from fastnas.bilevel.spectrum import Ends, Spectrum, Tridiagonal, ends, lanczos, spectrum
from fastnas.bilevel.unrolled import (
    InnerSgd,
    Trajectory,
    inner_steps,
    reverse,
    truncated_reverse,
    unroll,
)
from fastnas.bilevel.watch import HypergradientWarning, Watch

__all__ = [
    "METHODS",
    "RADII",
    "Agreement",
    "BilevelProblem",
    "Curvature",
    "Ends",
    "FunctionProblem",
    "HypergradientWarning",
    "InnerSettings",
    "InnerSgd",
    "Inspected",
    "Method",
    "NotFiniteError",
    "Products",
    "RadiusRow",
    "Spectrum",
    "Trajectory",
    "Tridiagonal",
    "TwiceDifferentiable",
    "Watch",
    "agreement",
    "amended",
    "cg",
    "darts",
    "ends",
    "exact",
    "first_order",
    "hessian_vector_product",
    "idarts",
    "idarts_release",
    "implicit",
    "inner_steps",
    "lanczos",
    "method",
    "mixed_product",
    "neumann",
    "nystroem",
    "radius_sweep",
    "recommended_radius",
    "restored",
    "reverse",
    "spectrum",
    "t1_t2",
    "toy_problem",
    "truncated_reverse",
    "unroll",
]
