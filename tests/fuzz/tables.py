"""Targets: benchmark tables, compact and official."""

import bz2
import io
import json
import pickle
import struct

import numpy as np
import torch

from fastnas.spaces import CellMatrix
from fastnas.tables import cell_hash, load_table, official101
from fastnas.tables import tfrecord as reader
from fastnas.tables.nasbench101 import OPERATIONS, Nasbench101Table, pack_cell
from fastnas.tables.official201 import official_columns
from fastnas.tables.official_pickle import stream_dict
from fastnas.tables.report import cell_report
from tests.fuzz import pickles
from tests.fuzz.target import Target, place
from tests.tables import official101 as records101
from tests.tables import official201 as records201

CELLS = (
    CellMatrix(((0, 1), (0, 0)), ("input", "output")),
    CellMatrix(((0, 1, 1), (0, 0, 1), (0, 0, 0)), ("input", "maxpool3x3", "output")),
)


def compact(content: bytes) -> None:
    """A compact table; of one that is read every cell is shown."""
    table = load_table(place("table.npz", content))
    for index in range(min(table.cells, 3)):
        cell_report(table.row(index), table.cells)


def tfrecord(content: bytes) -> None:
    """NAS-Bench-101's record file as it is: nearly everything stops at a checksum."""
    official101.read_official(place("nasbench.tfrecord", content))


def records(content: bytes) -> None:
    """The records of such a file, with good checksums, each behind a line's end."""
    framed = b"".join(map(_framed, content.split(b"\n")))
    official101.read_official(place("framed.tfrecord", framed))


def official(content: bytes) -> None:
    """NAS-Bench-201's file, whatever its layout."""
    official_columns(place("official.pth", content))


def official_pickle(content: bytes) -> None:
    """NATS-Bench's pickle, compressed here."""
    official_columns(place("official.pickle.pbz2", bz2.compress(content, 1)))


def official_folder(content: bytes) -> None:
    """NATS-Bench's folder, a file of a cell."""
    place("simple/meta.pickle.pbz2", bz2.compress(pickle.dumps({"meta_archs": list(records201.CELLS[:1])})))
    official_columns(place("simple/000000.pickle.pbz2", bz2.compress(content, 1)).parent)


def everything_kept(content: bytes) -> None:
    """The reader of these, asked to keep all that it finds."""
    stream_dict(
        place("kept.pickle.pbz2", bz2.compress(content, 1)),
        lambda items: zip(items[::2], items[1::2], strict=True),
    )  # type: ignore[arg-type,return-value]


def protocol_buffers(content: bytes) -> None:
    """A message of Protocol Buffers; what is none raises ValueError, which its reader makes a sentence of."""
    try:
        list(reader.fields(content))
    except ValueError as error:
        assert type(error) is ValueError  # noqa: PT017


def _framed(content: bytes) -> bytes:
    length = struct.pack("<Q", len(content))
    sums = reader.masked(reader.crc32c([length, content]))
    return length + struct.pack("<I", int(sums[0])) + content + struct.pack("<I", int(sums[1]))


def _record(cell: CellMatrix) -> bytes:
    runs = [(0.0, 1.0, 0.5, 0.5, 0.5)] * 3
    return records101.record(cell_hash(cell), 108, cell.matrix, cell.operations, runs, 10**6)


def _records() -> list[bytes]:
    return [b"\n".join(map(_record, CELLS)), _record(CELLS[1]), json.dumps([None] * 5).encode()]


def _table() -> Nasbench101Table:
    order = sorted(CELLS, key=lambda cell: bytes.fromhex(cell_hash(cell)))
    packed = [pack_cell(cell) for cell in order]
    runs = np.full((len(CELLS), 1, 3), 90, dtype=np.float32)
    return Nasbench101Table(
        {
            "epochs": np.array([108], dtype=np.int32),
            "hashes": np.array([list(bytes.fromhex(cell_hash(cell))) for cell in order], dtype=np.uint8),
            "edges": np.array([edges for edges, _ in packed], dtype=np.int32),
            "operations": np.array([operations for _, operations in packed], dtype=np.uint8),
            "params": np.array([10, 20], dtype=np.int32),
            **{name: runs for name in ("train", "val", "test", "seconds")},
        }
    )


def _compact() -> list[bytes]:
    path = place("seed.npz")
    _table().save(path)
    found = [path.read_bytes()]
    arrays = dict(np.load(path))
    for changed in (
        {"op_names": np.array(OPERATIONS).astype("S")},
        {"epochs": np.array([108, 4], dtype=np.uint8)},
    ):
        stream = io.BytesIO()
        np.savez(stream, **(arrays | changed))  # stored, not compressed: mutations reach the numbers
        found.append(stream.getvalue())
    return found


def _small() -> dict:
    content, _ = records201.benchmark(cells=records201.CELLS[:1])
    for training in content["arch2infos"][0].values():
        for run in training["all_results"].values():
            for name in ("train_acc1es", "train_acc5es", "train_losses", "eval_times", "eval_losses"):
                run[name] = {}
            kept = list(run["eval_acc1es"].items())[-6:]
            run["eval_acc1es"] = {
                key: value
                for key, value in run["eval_acc1es"].items()
                if key in dict(kept) or "199" in key or "@11" in key
            }
            run["train_times"] = {0: 7.25}
    return content


def _pickles() -> list[bytes]:
    content = _small()
    return [*(pickle.dumps(content, protocol) for protocol in (0, 2, 4)), *pickles.payloads().values()]


def _cell_pickles() -> list[bytes]:
    info = _small()["arch2infos"][0]
    return [*(pickle.dumps(info, protocol) for protocol in (2, 4)), *pickles.payloads().values()]


def _files() -> list[bytes]:
    content = _small()
    found = [bz2.compress(pickle.dumps(content, 4)), b"BZh9", b"PK\x03\x04"]
    for legacy in (True, False):
        stream = io.BytesIO()
        torch.save(content, stream, _use_new_zipfile_serialization=not legacy)
        found.append(stream.getvalue())
    return found


_MESSAGE = records101.metrics([(0.0, 1.0, 0.5, 0.5, 0.5)] * 3, 10**6)
_JSON = (
    b"null",
    b"NaN",
    b"1e999",
    b"-1",
    b'""',
    b"[]",
    b"{}",
    b"[" * 500,
    b"9" * 4000,
    b'"\\ud800"',
    b"108",
    b"true",
    b"\n",
    b"1" * 49,
)
TARGETS = (
    Target(
        "table-compact",
        compact,
        _compact,
        (
            b"'|O'",
            b"'<U0'",
            b"'|S1'",
            b"'<f8'",
            b"'>i4'",
            b"(2,)",
            b"(2, 1, 3)",
            b"\x93NUMPY",
            b"\xff" * 4,
            b"\x00\x00\xc0\x7f",
        ),
    ),
    Target(
        "table-tfrecord",
        tfrecord,
        lambda: [b"".join(map(_framed, _records()[0].split(b"\n")))],
        (b"\x00" * 8, b"\xff" * 8),
    ),
    Target("table-records", records, _records, _JSON),
    Target("table-official", official, _files, pickles.TOKENS),
    Target("table-official-pickle", official_pickle, _pickles, pickles.TOKENS),
    Target("table-official-folder", official_folder, _cell_pickles, pickles.TOKENS),
    Target("table-everything-kept", everything_kept, _cell_pickles, pickles.TOKENS),
    Target(
        "table-protocol-buffers",
        protocol_buffers,
        lambda: [_MESSAGE],
        (b"\xff" * 9, b"\x80" * 11, b"\x0a\xff\xff\xff\x7f", b"\x0b", b"\x0d"),
    ),
)
