"""NAS-Bench-101's discrete cells, executed (Ying et al. 2019, section 2.1 and appendix A)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastnas.spaces import MatrixCell
from fastnas.supernet.primitives import BatchNorm, Context, Statistics, conv_bn_relu, make_primitive


class MatrixCellModule(nn.Module):
    """A cell of vertices: each adds up what it reads, takes an operation, and the output puts vertices side by side.

    The input comes projected, by a 1x1 convolution of its own for each vertex that reads it; the output's is added.
    """

    def __init__(self, spec: MatrixCell, c_in: int, statistics: Statistics) -> None:
        super().__init__()
        self.spec = spec
        channels = vertex_channels(spec)
        self.projections = nn.ModuleDict()
        self.operations = nn.ModuleList()
        for vertex, reads in enumerate(spec.matrix[0]):
            if reads:
                norm = BatchNorm(channels[vertex], True, statistics)
                self.projections[str(vertex)] = conv_bn_relu(c_in, channels[vertex], 1, 1, norm)
        for vertex, name in enumerate(spec.operations, 1):
            context = Context(channels[vertex], 1, True, False, statistics)
            self.operations.append(make_primitive(name, context))
        self.channels = channels

    def forward(self, x: Tensor) -> Tensor:
        last = len(self.spec.matrix) - 1
        values = [x]
        for vertex in range(1, last):
            width = self.channels[vertex]
            summands = [
                # A vertex that feeds several may be a channel wider than this one.
                values[source][:, :width]
                for source in range(1, vertex)
                if self.spec.matrix[source][vertex]
            ]
            summands += [self.projections[str(vertex)](x)] if str(vertex) in self.projections else []
            values.append(self.operations[vertex - 1](sum(summands[1:], start=summands[0])))
        outputs = [values[vertex] for vertex in range(1, last) if self.spec.matrix[vertex][last]]
        projected = self.projections[str(last)](x) if str(last) in self.projections else None
        if not outputs:
            assert projected is not None
            return projected
        out = outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)
        return out if projected is None else out + projected


def vertex_channels(spec: MatrixCell) -> list[int]:
    """Channels of each vertex but the input (0 there).

    Those that feed the output share its channels out, the first ones getting the remainder; the others are as wide as
    the widest vertex that they feed.
    """
    last = len(spec.matrix) - 1
    channels = [0] * last + [spec.channels]
    feeding = [vertex for vertex in range(1, last) if spec.matrix[vertex][last]]
    for rank, vertex in enumerate(feeding):
        channels[vertex] = spec.channels // len(feeding) + (rank < spec.channels % len(feeding))
    for vertex in reversed(range(1, last)):
        if vertex not in feeding:
            channels[vertex] = max(channels[v] for v in range(vertex + 1, last) if spec.matrix[vertex][v])
    return channels
