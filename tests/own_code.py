"""A user's own code, as tests run it: what it registers is gone behind them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from fastnas._imports import _IMPORTED
from fastnas.spaces import SPACES
from fastnas.spaces.genotype import OWN_PRIMITIVES
from fastnas.supernet.primitives import PRIMITIVES

OPERATORS = """
import torch
import fastnas


@fastnas.register_primitive("gate")
class Gate(torch.nn.Module):
    def __init__(self, context):
        super().__init__()
        self.pool = torch.nn.AvgPool2d(context.stride, context.stride, ceil_mode=True)
        self.gate = torch.nn.Conv2d(context.channels, context.channels, 1)
        self.norm = context.norm()

    def forward(self, x):
        x = self.pool(x)
        return self.norm(x * torch.sigmoid(self.gate(x.mean((2, 3), keepdim=True))))
"""


@contextmanager
def as_a_process() -> Iterator[None]:
    """Within it nothing of the user's is known but what is registered there, as in a process of its own."""
    tables = (SPACES, PRIMITIVES, OWN_PRIMITIVES, _IMPORTED)
    before, path = [dict(table) for table in tables], list(sys.path)
    try:
        yield
    finally:
        sys.path[:] = path
        for table, entries in zip(tables, before, strict=True):
            table.clear()
            table.update(entries)
