"""Reads pickles of plain data (CIFAR's python version, benchmark tables) without giving them anything to run.

A pickle is a program that may call whatever `Unpickler.find_class` hands out. The few names in `ANSWERS`
are answered here, and with stand-ins that only keep their arguments: NumPy's own reconstruction functions
are not reachable, since a crafted dtype state would be interpreted by C code. The stand-ins are turned into
arrays after the pickle has ended.

A pickle may also refer to one part many times, so that a hundred bytes stand for a tuple of 2**60 leaves: nothing
hashes, compares or prints what it holds, but for keys of a few plain parts.
"""

from __future__ import annotations

import io
import math
import pickle
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from fastnas.errors import FastnasError

_ITEM_TYPES = ("u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8")
_MOST_AXES = 8
_MOST_KEY_PARTS = 8
_LARGEST_KEY = 2**62  # of numbers; the hash of a longer one takes as long as it is
# Of protocol 5, which no data set is written in; the first takes the memory that a damaged length says.
_UNKNOWN = (pickle.BYTEARRAY8, pickle.NEXT_BUFFER, pickle.READONLY_BUFFER)


class Dtype:
    """What a pickled dtype said of itself: its type string and byte order."""

    __slots__ = ("byte_order", "kind")

    def __init__(self, kind: str | bytes, *_flags: object) -> None:
        self.kind = _word(kind)
        self.byte_order = "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.byte_order = _word(state[1])

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
        if len(shape) > _MOST_AXES or any(type(n) is not int or not 0 <= n < 2**63 for n in shape):
            raise ValueError("array of no known shape")
        if math.prod(shape) * item.itemsize != len(raw):
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
        raise pickle.UnpicklingError("another encoding than latin1")
    return text.encode("latin1")


def _word(value: object) -> str:
    """What a dtype says of itself in a few letters."""
    text = value.decode("ascii") if isinstance(value, bytes) else value
    if not isinstance(text, str) or len(text) > 8:
        raise pickle.UnpicklingError("a dtype without a name")
    return text


def check_keys(keys: Iterable[object]) -> None:
    """Raises UnpicklingError unless all are text, bytes, numbers of 62 bits, or tuples of a few of these."""
    for key in keys:
        parts = key if type(key) is tuple else (key,)
        if len(parts) > _MOST_KEY_PARTS or not all(map(_is_plain, parts)):
            raise pickle.UnpicklingError(
                "a key that is no text, bytes or number, and no tuple of a few of these"
            )


def _is_plain(part: object) -> bool:
    return type(part) in (str, bytes) or (type(part) is int and abs(part) < _LARGEST_KEY)


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


class _Steps(dict[int, Any]):
    """What to do at each opcode, so many times."""

    def __init__(self, dispatch: Mapping[int, Any], most: int) -> None:
        super().__init__(dispatch)
        self.most = self.left = most

    def __getitem__(self, code: int) -> Any:
        self.left -= 1
        if self.left < 0:
            raise pickle.UnpicklingError(f"more than {self.most} steps")
        return super().__getitem__(code)


class PlainUnpickler(pickle._Unpickler):
    """The reader written in Python: the one in C takes as much memory as a damaged memo index says.

    Args:
        stream: of the pickle.
        steps: the most opcodes; each may take some hundred bytes of memory.
    """

    answers: Mapping[tuple[str, str], object] = ANSWERS
    dispatch: ClassVar[dict[int, Any]] = {
        code: load for code, load in pickle._Unpickler.dispatch.items() if bytes([code]) not in _UNKNOWN
    }

    def __init__(self, stream: Any, steps: int) -> None:
        super().__init__(stream, fix_imports=False, encoding="bytes")
        self.dispatch = _Steps(self.dispatch, steps)  # type: ignore[misc]

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.answers:
            raise Refused(f"{module}.{name}")
        return self.answers[module, name]

    def entries(self, items: list[Any]) -> Iterable[tuple[Any, Any]]:
        """What of keys and values in turn goes into a dictionary."""
        return zip(items[::2], items[1::2], strict=True)

    def load_dict(self) -> None:
        items = self.pop_mark()  # type: ignore[attr-defined]
        self.append({})  # type: ignore[attr-defined]
        self._fill(items)

    def load_setitems(self) -> None:
        self._fill(self.pop_mark())  # type: ignore[attr-defined]

    def load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()  # type: ignore[attr-defined]
        self._fill([key, value])

    def load_additems(self) -> None:
        items = self.pop_mark()  # type: ignore[attr-defined]
        check_keys(items)
        target = self.stack[-1]  # type: ignore[attr-defined]
        if type(target) is not set:
            raise pickle.UnpicklingError("members of something that is no set")
        target.update(items)

    def load_frozenset(self) -> None:
        items = self.pop_mark()  # type: ignore[attr-defined]
        check_keys(items)
        self.append(frozenset(items))  # type: ignore[attr-defined]

    def _fill(self, items: list[Any]) -> None:
        target = self.stack[-1]  # type: ignore[attr-defined]
        if type(target) is not dict:
            raise pickle.UnpicklingError("entries of something that is no dictionary")
        kept = list(self.entries(items))
        check_keys(key for key, _ in kept)
        target.update(kept)

    dispatch[pickle.DICT[0]] = load_dict
    dispatch[pickle.SETITEMS[0]] = load_setitems
    dispatch[pickle.SETITEM[0]] = load_setitem
    dispatch[pickle.ADDITEMS[0]] = load_additems
    dispatch[pickle.FROZENSET[0]] = load_frozenset


def load_plain_dict(path: Path, limit: int, steps: int) -> dict[str, Any]:
    """The dictionary in a pickle of arrays and plain containers, its keys as text.

    Args:
        path: the pickle, of Python 2 or 3, protocol 0 to 4.
        limit: refuse a file of more than this many bytes.
        steps: and one of more than so many opcodes, each of which may take some hundred bytes of memory.

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
        content = PlainUnpickler(stream, steps).load()
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
