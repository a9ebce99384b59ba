"""Search spaces as data, and the genotypes that a search in them ends with."""

from fastnas.spaces.description import (
    Alpha,
    Auxiliary,
    Cell,
    Edge,
    Head,
    Input,
    MatrixCell,
    Mixing,
    Pool,
    Residual,
    Space,
    Stem,
)
from fastnas.spaces.drawing import to_dot
from fastnas.spaces.family import SPACES, Family, family, make_network, make_space, read_genotype
from fastnas.spaces.genotype import CellString, Genotype
from fastnas.spaces.nasbench101 import CellMatrix
from fastnas.spaces.parts import with_auxiliary, with_imagenet_stem

__all__ = [
    "SPACES",
    "Alpha",
    "Auxiliary",
    "Cell",
    "CellMatrix",
    "CellString",
    "Edge",
    "Family",
    "Genotype",
    "Head",
    "Input",
    "MatrixCell",
    "Mixing",
    "Pool",
    "Residual",
    "Space",
    "Stem",
    "family",
    "make_network",
    "make_space",
    "read_genotype",
    "to_dot",
    "with_auxiliary",
    "with_imagenet_stem",
]
