"""The reduced spaces S1 to S4 of RobustDARTS (Zela et al. 2020, section 3): DARTS' cells, few primitives an edge.

They are spaces in which DARTS fails. S1 has two on each edge, other ones on each; S2 {skip_connect, sep_conv_3x3};
S3 {none, skip_connect, sep_conv_3x3}; S4 {noise, sep_conv_3x3}. A genotype is derived as DARTS does.
"""

from __future__ import annotations

from collections.abc import Mapping

from fastnas.spaces.darts import EDGES, KINDS, shared_cells
from fastnas.spaces.description import Edge, Space

# The two primitives of each edge of S1, by target then source, as in its authors' spaces.py.
_S1 = {
    "normal": """
        skip_connect dil_conv_3x3, skip_connect dil_conv_5x5,
        skip_connect dil_conv_5x5, skip_connect sep_conv_3x3, skip_connect dil_conv_3x3,
        max_pool_3x3 skip_connect, skip_connect sep_conv_3x3, skip_connect sep_conv_3x3, skip_connect dil_conv_3x3,
        skip_connect sep_conv_3x3, max_pool_3x3 skip_connect, skip_connect dil_conv_3x3, dil_conv_3x3 dil_conv_5x5,
        dil_conv_3x3 dil_conv_5x5""",
    "reduce": """
        max_pool_3x3 avg_pool_3x3, max_pool_3x3 dil_conv_3x3,
        max_pool_3x3 avg_pool_3x3, max_pool_3x3 avg_pool_3x3, skip_connect dil_conv_5x5,
        max_pool_3x3 avg_pool_3x3, max_pool_3x3 sep_conv_3x3, skip_connect dil_conv_3x3, skip_connect dil_conv_5x5,
        max_pool_3x3 avg_pool_3x3, max_pool_3x3 avg_pool_3x3, skip_connect dil_conv_5x5, skip_connect dil_conv_5x5,
        skip_connect dil_conv_5x5""",
}
_OTHERS = {
    "s2": "skip_connect sep_conv_3x3",
    "s3": "none skip_connect sep_conv_3x3",
    "s4": "noise sep_conv_3x3",
}


def _edges(lists: Mapping[str, str]) -> dict[str, tuple[Edge, ...]]:
    return {
        kind: tuple(
            Edge(edge.source, edge.target, tuple(names.split()))
            for edge, names in zip(EDGES, lists[kind].split(","), strict=True)
        )
        for kind in KINDS
    }


SPACES = {
    "s1": _edges(_S1),
    **{name: _edges(dict.fromkeys(KINDS, ",".join([names] * 14))) for name, names in _OTHERS.items()},
}


def supernet(name: str, channels: int, layers: int, classes: int, image_channels: int = 3) -> Space:
    """The supernet of "s1" to "s4": DARTS', with the primitives of ``SPACES``.

    In S1 a column of alpha stands for another primitive on each edge; the cell's edges say which.
    """
    return shared_cells(f"robustdarts-{name}", SPACES[name], channels, layers, classes, image_channels)
