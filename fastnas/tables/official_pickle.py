"""Streams the pickles in which NAS-Bench-201 is published, keeping what its caller asks for.

These are gigabytes of dictionaries, mostly of each epoch's loss of each training run. Entries that nobody needs are
dropped as their dictionary is filled, so the memory that is taken depends on what is kept, not on the file.
"""

from __future__ import annotations

import bz2
import io
import mmap
import os
import pickle
import struct
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

from fastnas.data.plain_pickle import ANSWERS, Answer, Dtype, PlainUnpickler, Refused, check_keys
from fastnas.errors import FastnasError

# torch.save before 1.6 begins with this number, its protocol and a note on the system, a pickle each.
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LARGEST_PIECE = 2**28
_LONGEST_LINE = 2**16  # of names and of numbers in decimal digits
# A small compressed file can stand for any number of bytes. Benchmarks' losses and accuracies hardly compress: an entry
# of a dictionary is two opcodes or three, and several bytes, compressed or not.
_MOST_BYTES = 100
_MOST_STEPS = 4
_OF_SMALL_FILES = 2**20  # steps, and 16 bytes for each
_NUMBERS = {"f2": "e", "f4": "f", "f8": "d", "i1": "b", "u1": "B", "i4": "i", "u4": "I", "i8": "q", "u8": "Q"}

Filter = Callable[[list[Any]], Iterator[tuple[Any, Any]]]


class Skipped:
    """Stands for a tensor, or what belongs to one; nothing of it is read."""

    def __setstate__(self, _state: object) -> None:
        raise pickle.UnpicklingError("a tensor's state cannot be set")


_SKIPPED = Skipped()


def _scalar(dtype: object, raw: object = None) -> float:
    """A NumPy number as a Python one."""
    if (
        not isinstance(dtype, Dtype)
        or dtype.kind not in _NUMBERS
        or dtype.byte_order not in ("<", ">", "=", "|")
    ):
        raise pickle.UnpicklingError("a NumPy scalar that is no plain number")
    order = dtype.byte_order if dtype.byte_order in "<>" else "="
    return struct.unpack(order + _NUMBERS[dtype.kind], raw)[0]  # type: ignore[arg-type]


def _pairs(pairs: Any = ()) -> dict[Any, Any]:
    """An OrderedDict of a list of pairs."""
    found = [(key, value) for key, value in pairs]
    check_keys(key for key, _ in found)
    return dict(found)


def _set(items: Any = ()) -> set[Any]:
    """A set of a list."""
    check_keys(items)
    return set(items)


_STORAGES = ("Float", "Double", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool")
_TORCH_NAMES = (
    ("torch._utils", "_rebuild_tensor"),
    ("torch._utils", "_rebuild_tensor_v2"),
    ("torch._utils", "_rebuild_parameter"),
    *(("torch", f"{kind}Storage") for kind in _STORAGES),
)
_OFFICIAL_ANSWERS: dict[tuple[str, str], object] = {
    **ANSWERS,
    ("collections", "OrderedDict"): Answer(_pairs),
    ("builtins", "set"): Answer(_set),
    ("__builtin__", "set"): Answer(_set),
    ("numpy.core.multiarray", "scalar"): Answer(_scalar),
    ("numpy._core.multiarray", "scalar"): Answer(_scalar),
    **{name: Answer(lambda *_: _SKIPPED) for name in _TORCH_NAMES},
}


class _Memo(list):
    """What a pickle may refer to again, by consecutive numbers, as its writers give them; 8 bytes each."""

    def __setitem__(self, i: Any, value: Any) -> None:
        if i != len(self):
            raise pickle.UnpicklingError(f"memo entry {i} follows {len(self)} others")
        self.append(value)


class _StreamedUnpickler(PlainUnpickler):
    answers = _OFFICIAL_ANSWERS
    dispatch: ClassVar[dict[int, Any]] = dict(PlainUnpickler.dispatch)

    def __init__(self, stream: Any, filtered: Filter, tick: Callable[[], object], steps: int) -> None:
        super().__init__(stream, steps)
        self.memo: Any = _Memo()
        self.filtered, self.tick = filtered, tick

    def persistent_load(self, _id: object) -> Any:
        return _SKIPPED

    def entries(self, items: list[Any]) -> Iterator[tuple[Any, Any]]:
        self.tick()
        return self.filtered(items)

    def load_text(self) -> None:
        (size,) = struct.unpack("<I", self.read(4))  # type: ignore[attr-defined]
        self._push_text(size)

    def load_short_text(self) -> None:
        self._push_text(self.read(1)[0])  # type: ignore[attr-defined]

    def _push_text(self, size: int) -> None:
        # One object for all of the same text: "ori-test@199" comes a hundred thousand times.
        text = self.read(size).decode("utf-8", "surrogatepass")  # type: ignore[attr-defined]
        self.append(sys.intern(text))  # type: ignore[attr-defined]

    dispatch[pickle.BINUNICODE[0]] = load_text
    dispatch[pickle.SHORT_BINUNICODE[0]] = load_short_text


def stream_dict(
    path: Path, entries: Filter, progress: Callable[[int], object] | None = None
) -> dict[Any, Any]:
    """The dictionary in a file of torch.save or in a pickle compressed by bzip2, as plain containers and numbers.

    Args:
        path: the file: torch's format before or after 1.6, or .pickle.pbz2.
        entries: gets keys and values in turn as a dictionary is filled, and gives the pairs that are kept.
        progress: is told how many bytes of the file have been read.

    Raises:
        FastnasError: the file is missing or damaged, is no dictionary, or asks for any Python object beyond plain
            containers, NumPy's numbers and tensors (named in the message; nothing of it is run).
    """
    try:
        steps = _OF_SMALL_FILES + _MOST_STEPS * path.stat().st_size
        with _opened(path) as (stream, position, legacy):
            tick = (lambda: progress(position())) if progress else (lambda: None)
            if legacy:
                _skip_preamble(stream, entries)
            content = _StreamedUnpickler(stream, entries, tick, steps).load()
    except FastnasError:
        raise
    except Refused as refusal:
        raise FastnasError(
            f"{path}: refused, because the pickle asks for {refusal}, and a benchmark may hold plain containers, "
            "numbers and tensors only"
        ) from None
    except FileNotFoundError:
        raise FastnasError(f"{path}: no such file") from None
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise FastnasError(
            f"{path}: not a readable benchmark file, it may be cut short or something else altogether "
            f"({type(error).__name__}: {error})"
        ) from None
    if not isinstance(content, dict):
        raise FastnasError(f"{path}: expected a dictionary, found a {type(content).__name__}")
    return content


def _skip_preamble(stream: Any, entries: Filter) -> None:
    def load() -> object:
        return _StreamedUnpickler(stream, entries, lambda: None, _OF_SMALL_FILES).load()

    magic = load()
    if type(magic) is not int or magic != _LEGACY_MAGIC:
        raise ValueError("it is no file of torch.save and no .pickle.pbz2")
    for _ in ("protocol", "system"):
        load()


class _Careful:
    """A decompressed stream that takes no memory for a length that only a damaged file can name, and has an end.

    Args:
        stream: what is read.
        packed: bytes of the file.
    """

    def __init__(self, stream: Any, packed: int) -> None:
        self._stream, self._left = stream, _MOST_BYTES * packed + 16 * _OF_SMALL_FILES

    def read(self, size: int) -> bytes:
        if size > _LARGEST_PIECE:
            raise ValueError(f"a piece of {size} bytes")
        return self._counted(self._stream.read(size))

    def readline(self) -> bytes:
        return self._counted(self._stream.readline(_LONGEST_LINE))

    def _counted(self, content: bytes) -> bytes:
        self._left -= len(content)
        if self._left < 0:
            raise ValueError(f"it would be more than {_MOST_BYTES} times as large without its compression")
        return content


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, Callable[[], int], bool]]:
    """The pickle's stream, how far the file has been read, and whether it is torch's older format."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        start = file.read(4)
        file.seek(0)
        if start[:3] == b"BZh":
            with bz2.BZ2File(file) as unpacked:
                yield _Careful(unpacked, size), file.tell, False
        elif start[:2] == b"PK":
            with zipfile.ZipFile(file) as archive:
                names = [name for name in archive.namelist() if name.endswith("/data.pkl")]
                if len(names) != 1:
                    raise ValueError("an archive, but not one of torch.save")
                with archive.open(names[0]) as member:
                    yield _Careful(io.BufferedReader(member, 2**20), size), file.tell, False
        elif not start:
            raise ValueError("the file is empty")
        else:
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as memory:
                yield memory, memory.tell, True
