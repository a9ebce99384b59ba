"""Reads pickles of plain data (CIFAR's python version, benchmark tables) without giving them anything to run.

A pickle is a program that may call whatever `Unpickler.find_class` hands out. The few names in `ANSWERS`
are answered here, and with stand-ins that only keep their arguments: NumPy's own reconstruction functions
are not reachable, since a crafted dtype state would be interpreted by C code. The stand-ins are turned into
arrays after the pickle has ended.
"""

from __future__ import annotations

import io
import math
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fastnas.errors import FastnasError

_ITEM_TYPES = ("u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8")


class Dtype:
    """What a pickled dtype said of itself: its type string and byte order."""

    __slots__ = ("byte_order", "kind")

    def __init__(self, kind: str | bytes, *_flags: object) -> None:
        self.kind = kind.decode("ascii") if isinstance(kind, bytes) else kind
        self.byte_order = "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        order = state[1]
        self.byte_order = order.decode("ascii") if isinstance(order, bytes) else order

    def resolve(self) -> np.dtype[Any]:
        if self.kind.lstrip("|") not in _ITEM_TYPES or self.byte_order not in ("<", ">", "|", "="):
            raise ValueError(f"array of type {self.kind!r}")
        return np.dtype(self.byte_order + self.kind.lstrip("|"))


class _Array:
    """What a pickled array said of itself."""

    __slots__ = ("state",)

    def __init__(self) -> None:
        self.state: tuple[Any, ...] | None = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.state = state

    def resolve(self) -> np.ndarray[Any, Any]:
        if self.state is None:
            raise ValueError("array without contents")
        _version, shape, dtype, fortran, raw = self.state
        if not isinstance(dtype, Dtype) or not isinstance(raw, bytes):
            raise ValueError("array whose contents are not plain numbers")
        item = dtype.resolve()
        if any(type(n) is not int or n < 0 for n in shape) or math.prod(shape) * item.itemsize != len(raw):
            raise ValueError(f"array of shape {shape} with {len(raw)} bytes")
        return np.frombuffer(raw, item).reshape(shape, order="F" if fortran else "C")


class Answer:
    """The only kind of callable that a pickle gets hold of; sealed, so that BUILD cannot alter it."""

    __slots__ = ("_call",)

    def __init__(self, call: Callable[..., object]) -> None:
        self._call = call

    def __call__(self, *args: object) -> object:
        return self._call(*args)

    def __setstate__(self, _state: object) -> None:
        raise pickle.UnpicklingError("a function's state cannot be set")


def _encode(text: str, encoding: str = "latin1") -> bytes:
    """`_codecs.encode` as Python 3 writes bytes in protocol 2: text whose code points are the bytes."""
    if encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"encoding {encoding!r}")
    return text.encode("latin1")


ANSWERS: dict[tuple[str, str], object] = {
    ("_codecs", "encode"): Answer(_encode),
    ("numpy", "dtype"): Answer(Dtype),
    # Only ever an argument of _reconstruct, never called.
    ("numpy", "ndarray"): "ndarray",
    ("numpy.core.multiarray", "_reconstruct"): Answer(lambda *_: _Array()),
    ("numpy._core.multiarray", "_reconstruct"): Answer(lambda *_: _Array()),
}


class Refused(Exception):
    """The pickle asked for a global that is not in the list."""


class PlainUnpickler(pickle._Unpickler):
    """The reader written in Python: the one in C takes as much memory as a damaged memo index says."""

    answers: Mapping[tuple[str, str], object] = ANSWERS

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.answers:
            raise Refused(f"{module}.{name}")
        return self.answers[module, name]


def load_plain_dict(path: Path, limit: int) -> dict[str, Any]:
    """The dictionary in a pickle of arrays and plain containers, its keys as text.

    Args:
        path: the pickle, of Python 2 or 3, protocol 0 to 4.
        limit: refuse a file of more than this many bytes.

    Returns:
        The dictionary; arrays among its values are read-only NumPy arrays of integers. Byte strings
        inside of the values stay bytes.

    Raises:
        FastnasError: the file is missing, damaged or too large, is no dictionary, or asks for any
            Python object beyond NumPy arrays (named in the message; nothing of it is run).
    """
    try:
        found = path.stat().st_size
        if found > limit:
            raise FastnasError(f"{path}: expected a pickle of at most {limit} bytes, found {found} bytes")
        # In memory, where a damaged length reads no more than there is.
        stream = io.BytesIO(path.read_bytes())
        content = PlainUnpickler(stream, fix_imports=False, encoding="bytes").load()
        if stream.read(1):
            raise ValueError("bytes after the pickle's end")
        if not isinstance(content, dict):
            raise ValueError(f"a {type(content).__name__}, not a dictionary")
        return {_text(key): _resolve(value) for key, value in content.items()}
    except FastnasError:
        raise
    except Refused as refusal:
        raise FastnasError(
            f"{path}: refused, because the pickle asks for {refusal}, "
            f"and data may hold arrays and plain containers only"
        ) from None
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise FastnasError(
            f"{path}: not a readable pickle of {found_bytes(path)} ({type(error).__name__}: {error})"
        ) from error


def found_bytes(path: Path) -> str:
    """The size of a file in words, for messages."""
    return f"{path.stat().st_size} bytes" if path.is_file() else "unknown size"


def _text(key: object) -> str:
    if isinstance(key, bytes):
        return key.decode("latin1")
    if isinstance(key, str):
        return key
    raise ValueError(f"a key of type {type(key).__name__}")


def _resolve(value: object) -> object:
    return value.resolve() if isinstance(value, _Array) else value
