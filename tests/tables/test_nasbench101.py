"""NAS-Bench-101: its hash, its record files, and the compact file made of them."""

import itertools
import json
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastnas.errors import FastnasError
from fastnas.spaces import CellMatrix
from fastnas.tables import cell_hash, load_table
from fastnas.tables.__main__ import main
from fastnas.tables.convert import convert
from fastnas.tables.nasbench101 import OPERATIONS, matrix_hash, pack_cell, unpack_cell
from fastnas.tables.tfrecord import crc32c, fields
from tests.tables import official101

# The first cell of the benchmark's file: its hash, three runs of 108 epochs, and the weights of its network.
FIRST = CellMatrix(
    (
        (0, 1, 0, 0, 1, 1, 0),
        (0, 0, 1, 0, 0, 0, 0),
        (0, 0, 0, 1, 0, 0, 1),
        (0, 0, 0, 0, 0, 1, 0),
        (0, 0, 0, 0, 0, 1, 0),
        (0, 0, 0, 0, 0, 0, 1),
        (0, 0, 0, 0, 0, 0, 0),
    ),
    (
        "input",
        "conv3x3-bn-relu",
        "maxpool3x3",
        "conv3x3-bn-relu",
        "conv3x3-bn-relu",
        "conv1x1-bn-relu",
        "output",
    ),
)
FIRST_HASH, FIRST_PARAMETERS = "00005c142e6f48ac74fdcf73e3439874", 8_555_530
STRAIGHT = CellMatrix(((0, 1, 1), (0, 0, 1), (0, 0, 0)), ("input", "maxpool3x3", "output"))
EMPTY = CellMatrix(((0, 1), (0, 0)), ("input", "output"))


def permuted(cell, order):
    """The same graph with its inner vertices in another order."""
    places = [0, *order, len(cell.matrix) - 1]
    matrix = tuple(tuple(cell.matrix[i][j] for j in places) for i in places)
    return matrix, tuple(cell.operations[i] for i in places)


def test_the_published_hash_whatever_the_order_of_the_vertices():
    assert cell_hash(FIRST) == FIRST_HASH
    seen = 0
    for order in itertools.permutations(range(1, 6)):
        matrix, operations = permuted(FIRST, order)
        if all(not matrix[i][j] for i in range(7) for j in range(i + 1)):
            assert cell_hash(CellMatrix(matrix, operations)) == FIRST_HASH
            seen += 1
    assert seen > 2


def test_vertices_on_no_way_to_the_output_do_not_count():
    dangling = CellMatrix(
        ((0, 1, 1, 1), (0, 0, 0, 1), (0, 0, 0, 0), (0, 0, 0, 0)),
        ("input", "maxpool3x3", "conv3x3-bn-relu", "output"),
    )
    assert cell_hash(dangling) == cell_hash(STRAIGHT)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        # a chain read from the other end; a chain with a bridge; which of two branches has the operation
        (([[0, 1, 0], [0, 0, 1], [0, 0, 0]], [1, 0, 0]), ([[0, 1, 0], [0, 0, 1], [0, 0, 0]], [0, 0, 1])),
        (
            ([[0, 1, 0, 1], [0, 0, 1, 0], [0, 0, 0, 1], [0] * 4], [-1, 1, 0, -2]),
            ([[0, 1, 0, 1], [0, 0, 1, 0], [0, 0, 0, 1], [0] * 4], [-1, 0, 1, -2]),
        ),
        (
            ([[0, 1, 1, 0], [0, 0, 1, 1], [0, 0, 0, 1], [0] * 4], [-1, 0, 0, -2]),
            ([[0, 1, 1, 1], [0, 0, 1, 1], [0, 0, 0, 1], [0] * 4], [-1, 0, 0, -2]),
        ),
    ],
)
def test_other_graphs_have_other_hashes(one, other):
    assert matrix_hash(*one) != matrix_hash(*other)


def records():
    """Records of the benchmark's layout, and by hash and epochs the (train, val, test, seconds) of each run."""
    draw = np.random.default_rng(0)
    out, numbers = [], {}
    for cell in (FIRST, STRAIGHT, EMPTY):
        digest = cell_hash(cell)
        for _, epochs in itertools.product(range(3), (12, 108)):
            runs = [(epoch, *draw.uniform(0.1, 1, 4)) for epoch in (0, epochs / 2, epochs)]
            _, seconds, train, val, test = runs[-1]
            numbers.setdefault(digest, {}).setdefault(epochs, []).append((train, val, test, seconds))
            out.append(
                official101.record(digest, epochs, cell.matrix, cell.operations, runs, FIRST_PARAMETERS)
            )
    return out, numbers


@pytest.fixture(scope="module")
def compact(tmp_path_factory):
    folder = tmp_path_factory.mktemp("records")
    source = official101.write(folder / "nasbench_full.tfrecord", records()[0])
    convert(source, folder / "table.npz")
    return folder / "table.npz"


def test_converted_records_are_found_by_any_isomorphic_cell(compact):
    table, numbers = load_table(compact), records()[1]
    assert (table.cells, table.epochs) == (3, (12, 108))
    for cell in (FIRST, STRAIGHT, EMPTY):
        row = table.row(str(cell))
        assert (row.hash, row.arch, row.parameters) == (cell_hash(cell), cell, FIRST_PARAMETERS)
        for epochs, runs in numbers[row.hash].items():
            train, val, test, seconds = np.array(runs).T
            found = row.results[epochs]
            assert found.val.accuracy == pytest.approx(100 * val.mean(), abs=1e-4)
            assert found.test.accuracy == pytest.approx(100 * test.mean(), abs=1e-4)
            assert found.val_runs == pytest.approx(100 * val, abs=1e-4)
            assert found.test_runs == pytest.approx(100 * test, abs=1e-4)
            assert found.train == pytest.approx(100 * train.mean(), abs=1e-4)
            assert found.train_seconds == pytest.approx(seconds.mean(), abs=1e-4)
        best = max(np.mean([run[1] for run in by[108]]) for by in numbers.values())
        regret = 100 * (best - np.mean([run[1] for run in numbers[row.hash][108]]))
        assert row.standings["cifar10"]["val"].regret == pytest.approx(regret, abs=1e-4)
    ranks = [row.results[108].test.rank for row in table.top(3, split="test")]
    assert ranks == [1, 2, 3]


def test_a_cell_that_the_table_does_not_have(compact):
    other = CellMatrix(STRAIGHT.matrix, ("input", "conv3x3-bn-relu", "output"))
    with pytest.raises(FastnasError, match="the table of 3 cells does not have"):
        load_table(compact).row(other)


def test_the_command_line(compact, capsys):
    main(["nasbench101", "--file", str(compact), "--arch", str(FIRST), "--json"])
    found = json.loads(capsys.readouterr().out)
    assert (found["hash"], found["arch"]["operations"]) == (FIRST_HASH, list(FIRST.operations))
    main(["nasbench101", "--file", str(compact), "--arch", str(FIRST)])
    words = capsys.readouterr().out.split()
    for training in load_table(compact).row(FIRST).results.values():
        for number in (training.train, training.val.accuracy, training.test.regret, *training.test_runs):
            assert f"{number:.3f}" in words
    main(["nasbench101", "--file", str(compact), "--top", "1"])
    assert "matrix" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["nasbench201", "--file", str(compact), "--top", "1"])
    assert "is NAS-Bench-101's, which does not have the cells of space nasbench201" in capsys.readouterr().err


@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_packed_cells_come_back(data):
    size = data.draw(st.integers(2, 7))
    inner = data.draw(st.lists(st.sampled_from(OPERATIONS), min_size=size - 2, max_size=size - 2))
    # A path through all vertices, so that none is left out, and up to two bridges.
    matrix = [[int(j == i + 1) for j in range(size)] for i in range(size)]
    for i, j in data.draw(
        st.lists(st.tuples(st.integers(0, size - 1), st.integers(0, size - 1)), max_size=2)
    ):
        if i < j:
            matrix[i][j] = 1
    cell = CellMatrix(tuple(map(tuple, matrix)), ("input", *inner, "output"))
    assert unpack_cell(*pack_cell(cell)) == cell


def test_checksums_are_castagnolis():
    """RFC 3720, B.4, and pieces of many lengths against the polynomial bit by bit."""
    assert crc32c([bytes(32), b"\xff" * 32, bytes(range(32))]).tolist() == [
        0x8A9136AA,
        0x62A8AB43,
        0x46DD794E,
    ]
    draw = np.random.default_rng(0)
    pieces = [draw.bytes(size) for size in (0, 5, 1, 40, 5, 0, 12)]
    assert crc32c(pieces).tolist() == [official101.crc32c(piece) for piece in pieces]


def test_wire_format():
    message = official101.metrics([(1, 2.5, 0.5, 0.25, 0.125)], 8_555_530) + b"\x35abcd"
    (_, evaluation), *others = fields(message)
    assert list(fields(evaluation)) == [
        (1, 1.0),
        (2, 2.5),
        (3, 0.5),
        (4, 0.25),
        (5, 0.125),
        (6, b"model.ckpt-1"),
    ]
    assert others == [(2, 8_555_530), (3, 1.0), (6, b"abcd")]
    for damaged in (message[:-1], b"\x80", b"\x0b", b"\xff" * 12):
        with pytest.raises(ValueError, match=r"cut short|wire type"):
            list(fields(damaged))


def flipped(raw, place):
    return raw[:place] + bytes([raw[place] ^ 1]) + raw[place + 1 :]


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda raw: b"", "the file is empty"),
        (lambda raw: b"hello, this is text", r"not a record file \(.tfrecord\)"),
        (lambda raw: raw[:-3], "is cut short; is the download complete"),
        (lambda raw: raw[: -len(official101.framed(records()[0][-1])) + 5], "is cut short"),
        (lambda raw: flipped(raw, 9), "the checksum of record 0"),
        (lambda raw: flipped(raw, 40), "the checksum of record 0"),
        (lambda raw: raw[: -len(official101.framed(records()[0][-1]))], "trained from 2 to 3 times"),
        (lambda raw: official101.framed(b"[1, 2]"), "record 0 is none of NAS-Bench-101"),
        (lambda raw: official101.framed(b"{"), "record 0 is none of NAS-Bench-101"),
        (
            lambda raw: official101.framed(records()[0][0].replace(b"maxpool3x3", b"maxpool5x5")),
            "unknown operation 'maxpool5x5'",
        ),
        (
            lambda raw: official101.framed(records()[0][0].replace(b"maxpool3x3", b"conv3x3-bn-relu")),
            f"the hash {FIRST_HASH} is not that of its cell",
        ),
        (
            lambda raw: official101.framed(records()[0][0].replace(b", 12,", b", 13,")),
            "a training of 13 epochs",
        ),
        (lambda raw: struct.pack("<Q", 2**63) + raw[8:], r"not a record file"),
        (lambda raw: official101.framed(b'["00", 108, 1, 1, ""]'), "record 0 is none of NAS-Bench-101"),
        (
            lambda raw: official101.framed(one(108, FIRST_PARAMETERS, 1e300)),
            "record 0 is none of NAS-Bench-101",
        ),
        (
            lambda raw: official101.framed(one(108, 2**31, 0.5)),
            "3 evaluations instead of 3, 2147483648 parameters",
        ),
        (
            lambda raw: official101.framed(one(108, FIRST_PARAMETERS, 1.5)),
            "test must lie between 0 and 100, got 150",
        ),
    ],
)
def test_a_damaged_record_file_is_one_sentence(tmp_path, damage, words):
    path = tmp_path / "nasbench_full.tfrecord"
    path.write_bytes(damage(b"".join(map(official101.framed, records()[0]))))
    with pytest.raises(FastnasError, match=words) as caught:
        convert(path, tmp_path / "table.npz")
    assert str(path) in str(caught.value)
    assert list(tmp_path.iterdir()) == [path]


def one(epochs, parameters, test):
    runs = [(epoch, 1.0, 0.5, 0.5, test) for epoch in (0, epochs / 2, epochs)]
    return official101.record(FIRST_HASH, epochs, FIRST.matrix, FIRST.operations, runs, parameters)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("params", None, "the array 'params' is missing"),
        ("hashes", lambda a: a[::-1], "hashes must be sorted, each of them once"),
        ("hashes", lambda a: a[:, 1:], r"hashes must have shape \(any, 16\), got \(3, 15\)"),
        ("val", lambda a: a + 100, "val must lie between 0 and 100"),
        ("test", lambda a: a[:2], r"test must have shape \(3, 2, 3\), got \(2, 2, 3\)"),
        ("epochs", lambda a: a[::-1], "epochs in rising order"),
        ("operations", lambda a: a + 9, "operations must lie between 0 and 3"),
        ("op_names", lambda a: a[::-1], "op_names must be conv3x3-bn-relu, conv1x1-bn-relu, maxpool3x3"),
    ],
)
def test_a_compact_file_that_is_none(tmp_path, compact, name, value, words):
    contents = dict(np.load(compact, allow_pickle=False))
    if value is None:
        del contents[name]
    else:
        contents[name] = value(contents[name])
    np.savez(tmp_path / "table.npz", **contents)
    with pytest.raises(FastnasError, match=words):
        load_table(tmp_path / "table.npz")


def test_a_record_of_a_few_megabytes_is_refused(tmp_path):
    """A batch of records takes the longest one's memory for each of them."""
    path = official101.write(tmp_path / "a.tfrecord", [b"{}"])
    with path.open("ab") as file:
        file.write(struct.pack("<QI", 2**22, 0) + bytes(2**22 + 4))
    with pytest.raises(
        FastnasError, match=r"the record at byte 18 is too long for NAS-Bench-101: 4,194,304 bytes"
    ):
        convert(path, tmp_path / "out.npz")
