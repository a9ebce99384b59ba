"""Triton kernels, one module per op; installed as ``fastnas.kernels``. None has landed yet."""
