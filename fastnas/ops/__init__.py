"""Fused operations as drop-in functions of tensors, each with its plain-PyTorch reference beside it."""

from fastnas.ops.finite_difference import difference_, perturb_
from fastnas.ops.highway_sum import highway_sum
from fastnas.ops.mixed_sum import mixed_sum
from fastnas.ops.neumann import neumann_step_
from fastnas.ops.normalised_mixed_sum import normalised_mixed_sum
from fastnas.ops.optimiser import adam_step_, sgd_step_
from fastnas.ops.separable_stage import separable_stage
from fastnas.ops.shared_pooling import shared_pooling
from fastnas.ops.vector_norm import vector_norm
from fastnas.ops.virtual_step import virtual_step_

__all__ = [
    "adam_step_",
    "difference_",
    "highway_sum",
    "mixed_sum",
    "neumann_step_",
    "normalised_mixed_sum",
    "perturb_",
    "separable_stage",
    "sgd_step_",
    "shared_pooling",
    "vector_norm",
    "virtual_step_",
]
