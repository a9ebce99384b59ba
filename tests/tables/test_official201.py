"""The official layouts of NAS-Bench-201, streamed; nothing in them is run."""

import bz2
import io
import os
import pickle

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastnas.errors import FastnasError
from fastnas.tables.__main__ import main
from fastnas.tables.convert import convert
from fastnas.tables.official201 import official_columns
from tests.tables import official201

OLD, NEW = ("less", "full"), ("12", "200")


@pytest.mark.parametrize("layout", ["torch.save until 1.6", "torch.save", "pbz2", "folder"])
def test_every_layout_gives_the_means_of_its_runs(tmp_path, layout):
    content, columns = official201.benchmark(OLD if "torch" in layout else NEW)
    if layout == "folder":
        path = official201.write_folder(tmp_path / "NATS-tss-v1_0-3ffb9-simple", content)
    elif layout == "pbz2":
        path = official201.write_pbz2(tmp_path / "NATS-tss-v1_0-3ffb9.pickle.pbz2", content)
    else:
        path = official201.write_pth(tmp_path / "NAS-Bench-201-v1_1-096897.pth", content, "until" in layout)
    seen = []
    cells, found = official_columns(path, seen.append)
    assert [str(cell) for cell in cells.values()] == list(official201.CELLS)
    assert found.keys() == columns.keys()
    for name in columns:
        np.testing.assert_allclose(found[name], columns[name], rtol=2**-24)
    assert seen == sorted(seen)
    assert len(seen) > 2


def small():
    """One cell, in a file of a few hundred entries."""
    content, _ = official201.benchmark(OLD, official201.CELLS[:1])
    run = next(iter(content["arch2infos"][0]["full"]["all_results"].values()))
    return content, run


def test_weights_are_passed_over(tmp_path):
    content, run = small()
    run["net_state_dict"] = {
        "stem.weight": torch.randn(3),
        "count": torch.tensor(7),
        "half": torch.ones(2).half(),
    }
    plain, _ = official_columns(official201.write_pth(tmp_path / "a.pth", content, legacy=True))
    again, _ = official_columns(official201.write_pth(tmp_path / "b.pth", content, legacy=False))
    assert plain == again


def test_what_version_1_0_lacks_is_nan(tmp_path):
    content, _ = small()
    results = content["arch2infos"][0]["less"]["all_results"]
    for key in [key for key in results if key[0] != "cifar10-valid"]:
        del results[key]
    _, found = official_columns(official201.write_pth(tmp_path / "a.pth", content, legacy=True))
    missing = {name for name, column in found.items() if np.isnan(column).any()}
    assert missing == {f"{data}12" for data in official201.COLUMNS.values()} - {"cifar10_val12"}


class Call:
    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    ("function", "arguments", "asked"),
    [
        (os.system, ("touch bomb",), "system,"),
        (eval, ("open('bomb', 'w')",), ".eval,"),
        (torch.load, ("bomb",), "torch.serialization.load,"),
        (np.frombuffer, (b"12",), "frombuffer,"),
    ],
)
@pytest.mark.parametrize("layout", ["legacy", "zip", "pbz2", "folder"])
def test_refuses_and_runs_nothing(tmp_path, monkeypatch, function, arguments, asked, layout):
    monkeypatch.chdir(tmp_path)
    content, run = small()
    run["latency"] = Call(function, *arguments)
    if layout == "folder":
        path = official201.write_folder(tmp_path / "simple", content)
    elif layout == "pbz2":
        path = official201.write_pbz2(tmp_path / "a.pickle.pbz2", content)
    else:
        path = official201.write_pth(tmp_path / "a.pth", content, layout == "legacy")
    with pytest.raises(FastnasError) as caught:
        official_columns(path)
    assert "refused, because the pickle asks for" in str(caught.value)
    assert asked in str(caught.value)
    assert not (tmp_path / "bomb").exists()


def test_the_attack_is_real(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content, run = small()
    run["latency"] = Call(os.system, "touch bomb")
    torch.load(official201.write_pth(tmp_path / "a.pth", content, legacy=True), weights_only=False)
    assert (tmp_path / "bomb").exists()


def test_stand_ins_cannot_be_altered_or_called_for_more(tmp_path):
    """BUILD, dotted names and item assignment on what the reader hands out."""
    path = tmp_path / "a.pickle.pbz2"
    for content in (
        b"\x80\x04ccollections\nOrderedDict\n}X\x05\0\0\0_callNsb.",
        b"\x80\x04\x8c\x0bcollections\x8c\x14OrderedDict.__init__\x93.",
        b"\x80\x04ctorch._utils\n_rebuild_tensor_v2\n)R}X\x01\0\0\0aNsb.",
        b"\x80\x04]K\x00K\x01s.",
        b"\x80\x04}r\xff\xff\xff\x03.",
        b"\x80\x04\x8e\xff\xff\xff\x7f\0\0\0\0.",
        b"\x80\x04cnumpy.core.multiarray\nscalar\nNC\x08\0\0\0\0\0\0\0\0\x86R.",
    ):
        path.write_bytes(bz2.compress(content))
        with pytest.raises(FastnasError, match=str(path)):
            official_columns(path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c, r: c.pop("meta_archs"), "it has no list of architectures"),
        (lambda c, r: c.update(meta_archs=["8:8:8:8:8"]), "not a NAS-Bench-201 architecture string"),
        (lambda c, r: c.pop("arch2infos"), "'arch2infos' is missing"),
        (lambda c, r: c.update(arch2infos={}), "it holds no training results"),
        (lambda c, r: c["arch2infos"].update({7: {}}), "it holds a cell 7, but there are 1 architectures"),
        (lambda c, r: c["arch2infos"][0].pop("full"), "cell 0 lacks the results of a training"),
        (lambda c, r: r.pop("eval_acc1es"), "cell 0 lacks cifar10_val200; is the file complete?"),
        (lambda c, r: r["eval_acc1es"].update({"x-valid@199": 10**400}), "cell 0 lacks cifar10_val200"),
        (lambda c, r: r["eval_acc1es"].update({"x-valid@199": [1]}), "cell 0 lacks cifar10_val200"),
        (lambda c, r: c["arch2infos"][0]["full"]["all_results"].update({9: r}), "a training run is called 9"),
        (lambda c, r: None, "it holds 1 of the 15,625 cells, and a table needs all"),
    ],
)
def test_a_file_with_a_part_missing_is_one_sentence(tmp_path, change, words):
    content, run = small()
    change(content, run)
    path = official201.write_pth(tmp_path / "a.pth", content, legacy=True)
    with pytest.raises(FastnasError, match=words):
        convert(path, tmp_path / "out.npz")
    assert [file.name for file in tmp_path.iterdir()] == ["a.pth"]


@pytest.mark.parametrize(
    "content", [b"", b"hello", pickle.dumps({}), pickle.dumps(1), b"PK\x03\x04", b"BZh9123"]
)
def test_files_of_another_kind(tmp_path, content, capsys):
    path = tmp_path / "a.pth"
    path.write_bytes(content)
    with pytest.raises(SystemExit):
        main(["convert", "--from", str(path), "--out", str(tmp_path / "out.npz")])
    assert f"error: {path}: not a readable benchmark file" in capsys.readouterr().err


def test_where_convert_does_not_write(tmp_path):
    source = tmp_path / "a.pth"
    source.touch()
    (tmp_path / "old.npz").touch()
    for out, words in (
        (tmp_path / "old.npz", "exists already"),
        (tmp_path / "new.txt", r"must end in .npz"),
        (tmp_path / "none" / "new.npz", "there is no folder"),
    ):
        with pytest.raises(FastnasError, match=words):
            convert(source, out)
    with pytest.raises(FastnasError, match="no such file or folder"):
        convert(tmp_path / "nowhere.pth", tmp_path / "new.npz")


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_flipped_bytes_never_escape(tmp_path, data):
    run = {"params": np.float64(1.5), "train_times": {0: 1.5, 1: 2.0}, "eval_acc1es": {"x-valid@199": 3.0}}
    content = {
        "meta_archs": list(official201.CELLS[:1]),
        "arch2infos": {0: {"200": {"all_results": {("a", 1): run}}}},
    }
    stream = io.BytesIO()
    torch.save(content, stream, _use_new_zipfile_serialization=False)
    raw = bytearray(stream.getvalue())
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "a.pth"
    path.write_bytes(raw)
    with pytest.raises(FastnasError):  # whole or not: a result of 200 epochs on cifar10 is missing
        official_columns(path)


@pytest.mark.parametrize("index", [1 << 20_000, (0, 1), -1], ids=["huge", "pair", "negative"])
def test_an_odd_number_of_a_cell(tmp_path, index):
    content, _ = small()
    content["arch2infos"][index] = {}
    with pytest.raises(FastnasError, match=r"there are 1 architectures|a key that is no"):
        official_columns(official201.write_pth(tmp_path / "a.pth", content, legacy=True))


def test_a_small_file_does_not_become_a_large_one(tmp_path):
    """Bombs of bzip2: an object a byte, pieces that are dropped again, a line without an end."""
    for opcode, words in (
        (b"]", "more than .* steps"),
        (b"B\0\0\0\1" + bytes(2**24) + b"0", "100 times as large"),
    ):
        path = tmp_path / "a.pickle.pbz2"
        path.write_bytes(bz2.compress(b"\x80\x04" + opcode * (2**24 // len(opcode) + 2)))
        with pytest.raises(FastnasError, match=words):
            official_columns(path)
    path.write_bytes(bz2.compress(b"\x80\x04S" + b"a" * 2**24))
    with pytest.raises(FastnasError, match="must be quoted"):
        official_columns(path)
