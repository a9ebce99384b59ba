"""Writes pickles opcode by opcode as Python 2's cPickle did: the official CIFAR files are such pickles.

Python 2 text is bytes (BINSTRING), and arrays name NumPy's old module path. Python 3 can write neither.
"""

import struct
from collections.abc import Mapping

import numpy as np


def dumps(value: object) -> bytes:
    """Protocol 2 of a dictionary, list, str, bytes, int or uint8 array."""
    return b"\x80\x02" + _emit(value) + b"."


def call(module: str, name: str, *args: object) -> bytes:
    """A whole protocol 2 pickle that calls ``module.name(*args)`` when it is loaded."""
    return b"\x80\x02" + global_(module, name) + _tuple(args) + b"R."


def global_(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def _emit(value: object) -> bytes:
    match value:
        case bool() | None:
            return {True: b"\x88", False: b"\x89", None: b"N"}[value]
        case int():
            return b"J" + struct.pack("<i", value)
        case str():
            return _emit(value.encode("latin1"))
        case bytes():
            short = len(value) < 256
            return (b"U" + bytes([len(value)]) if short else b"T" + struct.pack("<i", len(value))) + value
        case list():
            return b"](" + b"".join(map(_emit, value)) + b"e"
        case tuple():
            return _tuple(value)
        case Mapping():
            return b"}(" + b"".join(_emit(k) + _emit(v) for k, v in value.items()) + b"u"
        case np.ndarray():
            return _array(value)
    raise TypeError(type(value))


def _tuple(values: tuple[object, ...]) -> bytes:
    return b"(" + b"".join(map(_emit, values)) + b"t"


def _array(value: np.ndarray) -> bytes:
    new = global_("numpy.core.multiarray", "_reconstruct")
    new += b"(" + global_("numpy", "ndarray") + _emit((0,)) + _emit("b") + b"tR"
    dtype = global_("numpy", "dtype") + _tuple((value.dtype.str[1:], 0, 1)) + b"R"
    dtype += _tuple((3, value.dtype.str[0], None, None, None, -1, -1, 0)) + b"b"
    fortran = value.flags.f_contiguous and not value.flags.c_contiguous
    state = b"(" + _emit(1) + _emit(value.shape) + dtype + _emit(fortran)
    return new + state + _emit(value.tobytes("F" if fortran else "C")) + b"tb"
