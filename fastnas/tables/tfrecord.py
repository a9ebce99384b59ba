"""TensorFlow's record files and Protocol Buffers' wire format, read without either.

A record is: its length (8 bytes, little-endian), a checksum of these, the content, a checksum of it. The checksums are
CRC-32C (Castagnoli), rotated and shifted by a constant so that a checksum of data with checksums in it stays good.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from fastnas.errors import FastnasError

_POLYNOMIAL = 0x82F63B78  # Castagnoli's, bits reversed
_MASK = 0xA282EAD8
_LONGEST = (
    2**16
)  # bytes of a record; NAS-Bench-101's have about 1,000, and a batch takes the longest's for each of its own
_BATCH = 4096  # records whose checksums are computed side by side


def _table() -> np.ndarray:
    entries: np.ndarray = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        entries = (entries >> 1) ^ (entries & 1) * np.uint32(_POLYNOMIAL)
    return entries


_TABLE = _table()


def crc32c(pieces: list[bytes]) -> np.ndarray:
    """The CRC-32C of each of ``pieces``, uint32; a byte of all of them at a time.

    >>> [hex(value) for value in crc32c([b"123456789", b""])]
    ['0xe3069283', '0x0']
    """
    lengths = np.array([len(piece) for piece in pieces], dtype=np.int64)
    order = np.argsort(-lengths, kind="stable")
    padded = np.zeros((len(pieces), int(lengths.max(initial=0))), dtype=np.uint8)
    for row, i in enumerate(order):
        padded[row, : lengths[i]] = np.frombuffer(pieces[i], np.uint8)
    state = np.full(len(pieces), 0xFFFFFFFF, dtype=np.uint32)
    # Longest first: those that a column belongs to are the first so many.
    living = np.searchsorted(-lengths[order], -np.arange(padded.shape[1]), side="left")
    for column, count in enumerate(living):
        part = state[:count]
        state[:count] = _TABLE[(part ^ padded[:count, column]) & 0xFF] ^ (part >> 8)
    found = np.empty_like(state)
    found[order] = ~state
    return found


def masked(checksums: np.ndarray) -> np.ndarray:
    """Checksums, uint32, as a record holds them."""
    rotated = (checksums >> 15) | (checksums << 17)
    return rotated + np.uint32(_MASK)


def records(path: Path, progress: Callable[[int], object] | None = None) -> Iterator[bytes]:
    """The contents of a record file, each of them checked.

    Args:
        path: the file.
        progress: is told how many bytes have been read.

    Raises:
        FastnasError: the file is missing, empty, cut short, a record is too long, or a checksum is wrong.
    """
    if not path.is_file():
        raise FastnasError(f"{path}: no such file")
    if not path.stat().st_size:
        raise FastnasError(f"{path}: the file is empty")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as memory:
        end = 0
        while end < len(memory):
            begin = end
            heads, contents, sums, end = _batch(path, memory, begin)
            _check(path, heads, [pair[0] for pair in sums], begin)
            _check(path, contents, [pair[1] for pair in sums], begin)
            yield from contents
            if progress:
                progress(end)


def _batch(
    path: Path, memory: mmap.mmap, place: int
) -> tuple[list[bytes], list[bytes], list[tuple[int, int]], int]:
    heads: list[bytes] = []
    contents: list[bytes] = []
    sums: list[tuple[int, int]] = []
    while place < len(memory) and len(contents) < _BATCH:
        head = memory[place : place + 12]
        if len(head) == 12:
            length, head_sum = struct.unpack("<QI", head)
        if len(head) < 12 or length > len(memory) - place - 16:
            if not contents and place == 0:
                raise FastnasError(f"{path}: not a record file (.tfrecord)")
            raise FastnasError(f"{path}: the record at byte {place} is cut short; is the download complete?")
        if length > _LONGEST:
            raise FastnasError(
                f"{path}: the record at byte {place} is too long for NAS-Bench-101: {length:,} bytes"
            )
        content = memory[place + 12 : place + 12 + length]
        (content_sum,) = struct.unpack("<I", memory[place + 12 + length : place + 16 + length])
        heads.append(head[:8])
        contents.append(content)
        sums.append((head_sum, content_sum))
        place += 16 + length
    return heads, contents, sums, place


def _check(path: Path, pieces: list[bytes], sums: list[int], begin: int) -> None:
    wrong = np.flatnonzero(masked(crc32c(pieces)) != np.array(sums, dtype=np.uint32))
    if len(wrong):
        raise FastnasError(
            f"{path}: the checksum of record {wrong[0]} from byte {begin} on is wrong; is the download complete?"
        )


def fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """The fields of a Protocol Buffers message in their order: (number, value).

    A value is an int (varint), a float (64 bits, taken as double), or bytes (text, bytes or a message); 32-bit values
    are left as bytes.

    Raises:
        ValueError: it is no such message.

    >>> list(fields(bytes([0x10, 0x96, 0x01, 0x0A, 0x02]) + b"hi"))
    [(2, 150), (1, b'hi')]
    """
    place = 0
    while place < len(message):
        key, place = _varint(message, place)
        kind = key & 7
        if kind == 0:
            value, place = _varint(message, place)
            yield key >> 3, value
            continue
        if kind == 2:
            size, place = _varint(message, place)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            raise ValueError(f"a field of wire type {kind}")
        content = message[place : place + size]
        if len(content) < size:
            raise ValueError("a field is cut short")
        place += size
        yield key >> 3, struct.unpack("<d", content)[0] if kind == 1 else content


def _varint(message: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if place >= len(message) or shift > 63:
            raise ValueError("a number is cut short")
        byte = message[place]
        value |= (byte & 0x7F) << shift
        place += 1
        if byte < 0x80:
            return value, place
        shift += 7
