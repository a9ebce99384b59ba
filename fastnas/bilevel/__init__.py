"""Bilevel problems and their hypergradients: any inner and outer parameters, not only architectures.

problem     the three oracles on flat vectors, and an autograd implementation of them
difference  Hessian-vector and mixed products by central differences
estimators  first_order, darts, amended, idarts, t1_t2, and inner_steps
methods     the estimators by name, with what they cost
spectrum    the ends, trace and density of a symmetric operator's spectrum, from its products alone
"""

from fastnas.bilevel.difference import hessian_vector_product, mixed_product
from fastnas.bilevel.estimators import amended, darts, first_order, idarts, inner_steps, t1_t2
from fastnas.bilevel.methods import METHODS, InnerSettings, Method, method
from fastnas.bilevel.problem import BilevelProblem, FunctionProblem, restored, toy_problem
from fastnas.bilevel.spectrum import Ends, Spectrum, Tridiagonal, ends, lanczos, spectrum

__all__ = [
    "METHODS",
    "BilevelProblem",
    "Ends",
    "FunctionProblem",
    "InnerSettings",
    "Method",
    "Spectrum",
    "Tridiagonal",
    "amended",
    "darts",
    "ends",
    "first_order",
    "hessian_vector_product",
    "idarts",
    "inner_steps",
    "lanczos",
    "method",
    "mixed_product",
    "restored",
    "spectrum",
    "t1_t2",
    "toy_problem",
]
