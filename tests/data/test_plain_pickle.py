"""The restricted reader: official pickles pass, and nothing that a pickle says is ever run."""

import builtins
import contextlib
import os
import pickle
import subprocess
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastnas.data.plain_pickle import load_plain_dict
from fastnas.errors import FastnasError
from tests.data import python2_pickle

LIMIT = 2**20
PIXELS = np.arange(24, dtype=np.uint8).reshape(4, 6)


def load(tmp_path: Path, content: bytes, limit: int = LIMIT) -> dict:
    file = tmp_path / "data_batch_1"
    file.write_bytes(content)
    return load_plain_dict(file, limit, steps=1000)


@pytest.mark.parametrize("order", ["C", "F"])
def test_reads_what_python_2_wrote(tmp_path: Path, order: str) -> None:
    pixels = np.asarray(PIXELS, order=order)
    content = python2_pickle.dumps(
        {"data": pixels, "labels": [3, 1, 2, 0], "filenames": ["a.png"], "batch_label": "one"}
    )
    assert b"numpy.core.multiarray" in content
    # The fixture itself is sound: Python's own reader agrees.
    np.testing.assert_array_equal(pickle.loads(content, encoding="bytes")[b"data"], PIXELS)
    found = load(tmp_path, content)
    np.testing.assert_array_equal(found["data"], PIXELS)
    assert found["labels"] == [3, 1, 2, 0]
    assert found["filenames"] == [b"a.png"]


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("module", ["numpy.core", "numpy._core"])
@pytest.mark.parametrize("dtype", ["u1", "<i8", ">i4"])
def test_reads_what_python_3_wrote(tmp_path: Path, protocol: int, module: str, dtype: str) -> None:
    pixels = PIXELS.astype(dtype)
    content = pickle.dumps({b"data": pixels, "labels": [1]}, protocol=protocol)
    written = np.ndarray.__reduce__(PIXELS)[0].__module__.removesuffix(".multiarray")
    if protocol < 4:  # names are lines of text: the other NumPy's path can be put in
        content = content.replace(f"c{written}.".encode(), f"c{module}.".encode())
    found = load(tmp_path, content)
    np.testing.assert_array_equal(found["data"], pixels)
    assert found["labels"] == [1]


def payloads(canary: Path) -> dict[str, tuple[bytes, str]]:
    """Attacks by name: the pickle, and the global that the refusal must name."""
    touch = f"touch {canary}"
    code = f"open({str(canary)!r}, 'w').close()"

    class Reduce:
        def __init__(self, function, *args) -> None:
            self.call = (function, args)

        def __reduce__(self):
            return self.call

    call, opcode = python2_pickle.call, python2_pickle.global_
    inner = opcode("os", "system") + b"(" + b"U" + bytes([len(touch)]) + touch.encode() + b"tR"
    evil_array = (
        b"\x80\x02}(U\x04data" + opcode("numpy.core.multiarray", "_reconstruct") + b"(" + inner + b"tRu."
    )
    return {
        "os.system": (call("os", "system", touch), "os.system"),
        "posix.system": (pickle.dumps(Reduce(os.system, touch)), "posix.system"),
        "python 2 eval": (call("__builtin__", "eval", code), "__builtin__.eval"),
        "builtins.eval": (call("builtins", "eval", code), "builtins.eval"),
        "builtins.exec": (pickle.dumps(Reduce(exec, code), protocol=4), "builtins.exec"),
        "subprocess": (pickle.dumps(Reduce(subprocess.call, ["touch", str(canary)])), "subprocess.call"),
        "as a value": (pickle.dumps({"data": Reduce(os.system, touch)}), "posix.system"),
        "as a key": (pickle.dumps({Reduce(os.system, touch): 1}), "posix.system"),
        "in a list": (pickle.dumps({"labels": [1, Reduce(os.system, touch)]}), "posix.system"),
        "inside of an array": (evil_array, "os.system"),
        "object array": (
            pickle.dumps({"data": np.array([Reduce(os.system, touch)], dtype=object)}, protocol=2),
            "posix.system",
        ),
        "through numpy": (
            call("numpy.testing._private.utils", "runstring", code),
            "numpy.testing._private.utils.runstring",
        ),
        "a dotted name": (b"\x80\x04\x8c\x05numpy\x8c\x11ndarray.__class__\x93.", "numpy.ndarray.__class__"),
        "getattr": (call("builtins", "getattr", 1, "real"), "builtins.getattr"),
        "codecs.lookup": (call("_codecs", "lookup", "rot13"), "_codecs.lookup"),
        "inst opcode": (b"(S'" + touch.encode() + b"'\nios\nsystem\n.", "os.system"),
    }


@pytest.mark.parametrize("name", sorted(payloads(Path("canary"))))
def test_refuses_and_runs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    canary = tmp_path / "canary"
    content, asked = payloads(canary)[name]
    ran: list[object] = []
    with monkeypatch.context() as patch:
        for module, function in (
            (os, "system"),
            (builtins, "eval"),
            (builtins, "exec"),
            (subprocess, "call"),
        ):
            patch.setattr(module, function, lambda *args: ran.append(args))
        with pytest.raises(FastnasError) as caught:
            load(tmp_path, content)
    assert not ran
    assert not canary.exists()
    assert f"asks for {asked}," in str(caught.value)
    assert str(tmp_path / "data_batch_1") in str(caught.value)


def test_the_attacks_are_real(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    for name in (
        "os.system",
        "builtins.eval",
        "as a value",
        "object array",
        "inside of an array",
        "inst opcode",
    ):
        try:
            pickle.loads(payloads(canary)[name][0])
        except TypeError:  # "inside of an array": after the command ran
            assert name == "inside of an array"
        assert canary.exists(), name
        canary.unlink()


def test_stand_ins_cannot_be_altered(tmp_path: Path) -> None:
    """BUILD would set attributes of what a global gives: it must find nothing to set."""
    good = python2_pickle.dumps({"data": PIXELS})
    for module, name in (
        ("numpy", "dtype"),
        ("numpy", "ndarray"),
        ("_codecs", "encode"),
        ("numpy.core.multiarray", "_reconstruct"),
    ):
        target = python2_pickle.global_(module, name)
        for state in (b"}X\x05\0\0\0_callNs", b"N}X\x05\0\0\0_callNs\x86"):
            with pytest.raises(FastnasError, match="not a readable pickle"):
                load(tmp_path, b"\x80\x02" + target + state + b"b.")
    np.testing.assert_array_equal(load(tmp_path, good)["data"], PIXELS)


def test_a_forged_dtype_state_never_reaches_numpy(tmp_path: Path) -> None:
    """An object dtype with its flags cleared would make NumPy take bytes for pointers."""
    content = python2_pickle.dumps({"data": PIXELS}).replace(b"U\x02u1", b"U\x02O8")
    with pytest.raises(FastnasError, match="array of type 'O8'"):
        load(tmp_path, content)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not a readable pickle of 0 bytes"),
        (b"hello", "not a readable pickle of 5 bytes"),
        (pickle.dumps([1, 2]), "a list, not a dictionary"),
        (pickle.dumps({1: 2}), "a key of type int"),
        (python2_pickle.dumps({"data": PIXELS})[:-30], "not a readable pickle"),
        (python2_pickle.dumps({"data": PIXELS}) + b"x", "bytes after the pickle's end"),
        (
            python2_pickle.dumps({"data": PIXELS}).replace(b"J\x06\0\0\0", b"J\x07\0\0\0"),
            r"shape \(4, 7\) with 24",
        ),
        (
            python2_pickle.dumps({"data": PIXELS}).replace(b"J\x06\0\0\0", b"J\xfa\xff\xff\xff"),
            "not a readable",
        ),
        (
            b"\x80\x02}(U\x04data"
            + python2_pickle.global_("numpy.core.multiarray", "_reconstruct")
            + b")Ru.",
            "without contents",
        ),
    ],
)
def test_damage_is_one_sentence(tmp_path: Path, content: bytes, words: str) -> None:
    with pytest.raises(FastnasError, match=words) as caught:
        load(tmp_path, content)
    assert str(tmp_path / "data_batch_1") in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x02}r\xff\xff\xff\x03.",
        b"\x80\x02}p99999999\n.",
        b"\x80\x04}U\x01a\x8e\xff\xff\xff\x3f\0\0\0\0s.",
    ],
)
def test_damaged_numbers_take_no_memory(tmp_path: Path, content: bytes) -> None:
    """A memo index of 67 million, which the reader in C makes a table for, and bytes of 1 GiB."""
    tracemalloc.start()
    try:
        with contextlib.suppress(FastnasError):
            assert load(tmp_path, content) == {}
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2**20


LEAVES = b"K\x01\x85" + b"2\x86" * 60  # a tuple of 2**60 leaves


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"}" + LEAVES + b"Ns.", "a key that is no text"),
        (b"}(" + LEAVES + b"Nu.", "a key that is no text"),
        (b"(" + LEAVES + b"Nd.", "a key that is no text"),
        (b"(" + LEAVES + b"\x91.", "a key that is no text"),
        (b"\x8f(" + LEAVES + b"\x90.", "a key that is no text"),
        (b"}\x8b\xa0\x86\x01\x00" + b"\x7f" * 100_000 + b"Ns.", "a key that is no text"),
        (python2_pickle.global_("numpy", "dtype") + LEAVES + b"\x85R.", "a dtype without a name"),
        (python2_pickle.global_("_codecs", "encode") + b"C\x01x" + LEAVES + b"\x86R.", "another encoding"),
        (b"]" * 2000, "more than 1000 steps"),
        (b"}\x96\xff\xff\xff\xff\x01\x00\x00\x00.", "KeyError: 150"),
    ],
)
def test_a_hundred_bytes_take_no_ages(tmp_path: Path, content: bytes, words: str) -> None:
    """Tuples of tuples of the same, which would be hashed or printed leaf by leaf; an object a byte; 8 GiB."""
    with pytest.raises(FastnasError, match=words) as caught:
        load(tmp_path, b"\x80\x04" + content)
    assert len(str(caught.value)) < 500


def test_an_array_of_leaves_is_not_printed(tmp_path: Path) -> None:
    good = python2_pickle.dumps({"data": PIXELS})
    shape = b"(J\x04\0\0\0J\x06\0\0\0t"
    assert good.count(shape) == 1
    for other in (LEAVES, b"(" + b"K\x01" * 9 + b"t"):
        with pytest.raises(FastnasError, match="array of no known shape"):
            load(tmp_path, good.replace(shape, other))


def test_an_oversized_file_is_not_opened(tmp_path: Path) -> None:
    with pytest.raises(FastnasError, match="at most 10 bytes, found 11 bytes"):
        load(tmp_path, b"x" * 11, limit=10)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_flipped_bytes_never_escape(tmp_path: Path, data: st.DataObject) -> None:
    content = bytearray(python2_pickle.dumps({"data": PIXELS, "labels": [0, 1, 2, 3], "names": ["a", "b"]}))
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        found = load(tmp_path, bytes(content))
    except FastnasError:
        return
    assert isinstance(found, dict)
