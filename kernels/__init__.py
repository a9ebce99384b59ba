"""Triton kernels, one module per op, installed as ``fastnas.kernels``: ``neumann`` and ``virtual_step``.

``fastnas.ops`` imports them at the first call on CUDA tensors. With TRITON_INTERPRET=1 in the environment before that
they run on the CPU.
"""
