"""``--deterministic``: torch's switches, for the run alone, and cuBLAS' variable; on a CPU the same bits without it."""

import os

import pytest
import torch

import fastnas
from fastnas.errors import FastnasError
from fastnas.retrain import retrain
from fastnas.runs.deterministic import WORKSPACE, deterministic, unrestricted
from tests.corpora import write_corpus
from tests.retrain import test_text as retrained_text
from tests.retrain.conftest import TINY as RETRAIN
from tests.search import test_text as searched_text
from tests.search.conftest import TINY as SEARCH

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def switches():
    cudnn = torch.backends.cudnn
    memory = torch.utils.deterministic.fill_uninitialized_memory
    return torch.are_deterministic_algorithms_enabled(), memory, cudnn.deterministic, cudnn.benchmark


def test_the_switches_are_set_and_put_back():
    before = switches()
    with deterministic(True, CPU) as device:
        assert device == CPU
        assert switches() == (True, False, True, False)
        with unrestricted():
            assert not torch.are_deterministic_algorithms_enabled()
        assert torch.are_deterministic_algorithms_enabled()
    assert switches() == before
    with deterministic(False, CPU):
        assert switches() == before


def test_an_operator_without_a_deterministic_version_is_one_sentence():
    before = switches()
    wanted = (
        "^--deterministic: put_ has no deterministic implementation on cpu; leave the option out, or take"
    )
    with pytest.raises(FastnasError, match=wanted), deterministic(True, CPU):
        torch.zeros(3).put_(torch.tensor([1, 1]), torch.ones(2))
    assert switches() == before
    with pytest.raises(RuntimeError, match="another"), deterministic(True, CPU):
        raise RuntimeError("another")


def test_cublas_is_told_before_cuda_begins(monkeypatch):
    monkeypatch.delenv(WORKSPACE, raising=False)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    with deterministic(True, CUDA):
        assert os.environ[WORKSPACE] == ":4096:8"
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    with deterministic(True, CUDA):  # it was told
        pass
    wanted = f"^--deterministic needs {WORKSPACE}=:4096:8 in the environment before CUDA begins; set it"
    for other in (None, ":0:0"):
        monkeypatch.delenv(WORKSPACE) if other is None else monkeypatch.setenv(WORKSPACE, other)
        with pytest.raises(FastnasError, match=wanted), deterministic(True, CUDA):
            pass
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize("kind", ["search", "search text", "retrain", "retrain text"])
def test_two_runs_are_the_same_to_the_bit(kind, tmp_path):
    threads = torch.get_num_threads()
    run = fastnas.search if kind.startswith("search") else retrain
    options = {
        "search": SEARCH,
        "search text": searched_text.TINY,
        "retrain": RETRAIN,
        "retrain text": retrained_text.TINY,
    }
    more = {"data": write_corpus(tmp_path / "text")} if kind.endswith("text") else {"images": 40}
    found = []
    try:
        for name, wanted in (("one", False), ("other", False), ("third", True)):
            changes = {
                **more,
                "threads": 1 if kind == "search" else 2,
                "epochs": 1,
                "out": tmp_path / name,
                "deterministic": wanted,
            }
            result = run(**{**options[kind], **changes})
            found.append(
                [
                    {k: v for k, v in row.items() if "second" not in k and "memory" not in k}
                    for row in result.metrics
                ]
            )
    finally:
        torch.set_num_threads(threads)
    assert found[0] == found[1] == found[2]
    assert not torch.are_deterministic_algorithms_enabled()
