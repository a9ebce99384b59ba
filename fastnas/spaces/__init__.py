"""Search spaces as data, and the genotypes that a search in them ends with."""

from fastnas.spaces.choice import Choice
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
from fastnas.spaces.family import SPACES, Family, family, make_network, make_space, register
from fastnas.spaces.genotype import AnyGenotype, CellString, Genotype
from fastnas.spaces.nasbench101 import CellMatrix
from fastnas.spaces.parts import with_auxiliary, with_imagenet_stem
from fastnas.spaces.reading import find_genotype, read_genotype
from fastnas.spaces.s2 import CellSequence

__all__ = [
    "SPACES",
    "Alpha",
    "AnyGenotype",
    "Auxiliary",
    "Cell",
    "CellMatrix",
    "CellSequence",
    "CellString",
    "Choice",
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
    "find_genotype",
    "make_network",
    "make_space",
    "read_genotype",
    "register",
    "to_dot",
    "with_auxiliary",
    "with_imagenet_stem",
]
