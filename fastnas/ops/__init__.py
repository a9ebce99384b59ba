"""Fused operations as drop-in functions of tensors, each with its plain-PyTorch reference beside it."""

from fastnas.ops.mixed_sum import mixed_sum

__all__ = ["mixed_sum"]
