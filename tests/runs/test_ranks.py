"""What the processes of a run agree on, and how a mistake or the end of one of them reaches the others."""

import os
import signal
from itertools import chain

import pytest
import torch

from fastnas.data import Shard
from fastnas.errors import FastnasError, RepeatedError
from fastnas.runs import ranks as module
from fastnas.runs.ranks import ALONE, LostRankError, Ranks
from tests.several_ranks import on_ranks


def raised(call):
    """The exception, as plain text: its class and what it says."""
    try:
        return call()
    except FastnasError as error:
        return type(error).__name__, str(error)


def meetings(ranks):
    rank = ranks.rank
    found = {
        "sum": ranks.sum_(torch.tensor([rank, 1.0])).tolist(),
        "empty": ranks.sum_(torch.empty(0)).tolist(),
        "average": ranks.average_(torch.tensor([rank, 3.0], dtype=torch.float64)).tolist(),
        "step": [
            part.tolist()
            for part in ranks.of_step(
                torch.tensor([1.0 + rank]),
                torch.tensor(4.0 * rank),
                torch.tensor(rank + 1),
                [0.75, 0.25][rank],
            )
        ],
        "most": ranks.most([rank, 1 - rank, 0]),
        "gather": ranks.gather({"rank": rank, "text": "é" * rank}),
        "stacked": ranks.stacked(torch.tensor([rank, 7], dtype=torch.uint8)).tolist(),
        "first": ranks.first(lambda: ["runs/x", os.getpid()])[0],
        "handed out": ranks.hand_out_(torch.tensor([5 + rank])).item(),
        "agreed": ranks.agreed(lambda: rank),
    }

    flat = torch.tensor([rank, 3.0])
    with ranks.averaged(flat):
        found["within"] = flat.tolist()
    found["behind"] = flat.tolist()
    ranks.check_alike({"seed": 1})
    found["alike"] = raised(lambda: ranks.check_alike({"seed": 1, "out": f"runs/{rank}"}))

    def mistake(on):
        if rank == on:
            raise FastnasError(f"rank {rank} is wrong")

    found["mistake on 1"] = raised(lambda: ranks.agreed(lambda: mistake(1)))
    found["mistake on 0"] = raised(lambda: ranks.first(lambda: mistake(0)))
    tensors = {"weights": torch.arange(5.0), "alpha": torch.tensor([-0.0, float("nan")])}
    ranks.check_same(tensors, "after step 3")
    tensors["alpha"][0] = 0.0 if rank else -0.0  # equal, but not the same
    found["differing"] = raised(lambda: ranks.check_same(tensors, "after step 4"))
    return found


def test_meetings():
    zero, one = on_ranks(2, meetings)
    differing = {"agreed", "alike", "behind", "mistake on 0", "mistake on 1"}
    assert {k: v for k, v in zero.items() if k not in differing} == {
        k: v for k, v in one.items() if k not in differing
    }
    assert zero["sum"] == [1.0, 2.0]
    assert zero["empty"] == []
    assert zero["average"] == [0.5, 3.0]
    assert zero["step"] == [[0.75 * 1 + 0.25 * 2], 0.25 * 4, 3]
    assert zero["most"] == [1, 1, 0]
    assert zero["within"] == [0.5, 3.0]
    assert (zero["behind"], one["behind"]) == ([0.0, 3.0], [1.0, 3.0])
    assert [zero["alike"][0], one["alike"][0]] == ["FastnasError", "RepeatedError"]
    assert zero["alike"][1] == one["alike"][1]
    assert zero["alike"][1].startswith(
        "rank 1 runs with another configuration than rank 0: it differs in out;"
    )
    assert zero["gather"] == [{"rank": 0, "text": ""}, {"rank": 1, "text": "é"}]
    assert zero["stacked"] == [[0, 7], [1, 7]]
    assert zero["first"] == "runs/x"
    assert zero["handed out"] == 5
    assert (zero["agreed"], one["agreed"]) == (0, 1)
    assert zero["mistake on 1"] == ("RepeatedError", "rank 1 is wrong")
    assert one["mistake on 1"] == ("FastnasError", "rank 1 is wrong")
    assert zero["mistake on 0"] == ("FastnasError", "rank 0 is wrong")
    assert one["mistake on 0"] == ("RepeatedError", "rank 0 is wrong")
    name, sentence = zero["differing"]
    assert name == "FastnasError"
    assert sentence.startswith("rank 1 has other alpha than rank 0, after step 4:")


def killed(ranks):
    ranks.sum_(torch.zeros(1))
    if ranks.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return raised(lambda: ranks.sum_(torch.zeros(1)))


def test_a_killed_rank_is_one_sentence_on_the_others():
    zero, one, two = on_ranks(3, killed)
    assert one is None
    for name, sentence in (zero, two):
        assert name == LostRankError.__name__
        assert sentence.startswith("another process of this run has ended or does not answer")
        assert "\n" not in sentence


def test_alone_nothing_is_touched():
    tensor = torch.tensor([1.0, 2.0])
    assert ALONE.sum_(tensor) is tensor
    assert ALONE.average_(tensor) is tensor
    assert ALONE.hand_out_(tensor) is tensor
    assert tensor.tolist() == [1.0, 2.0]
    assert ALONE.most([15, 0]) == [15, 0]
    assert ALONE.gather({1, 2}) == [{1, 2}]  # JSON is not asked
    assert ALONE.first(lambda: 7) == 7
    with pytest.raises(FastnasError) as found:
        ALONE.agreed(lambda: ALONE.check_divides(0) or Ranks(0, 3).check_divides(8))
    assert not isinstance(found.value, RepeatedError)
    assert "--batch-size 8 " in str(found.value)
    assert "multiple of 3" in str(found.value)
    ALONE.check_same({"weights": tensor}, "at once")


@pytest.fixture
def environment(monkeypatch):
    """``environment(**variables)`` is what torchrun left."""
    module.launched.cache_clear()
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    yield lambda **variables: [monkeypatch.setenv(name, value) for name, value in variables.items()]
    module.launched.cache_clear()


def test_without_torchrun_no_group_is_made(environment):
    assert module.launched() is ALONE
    environment(WORLD_SIZE="1", RANK="0")
    module.launched.cache_clear()
    assert module.launched() is ALONE
    assert not torch.distributed.is_initialized()


@pytest.mark.parametrize(
    ("variables", "sentence"),
    [
        ({"WORLD_SIZE": "2", "RANK": "0"}, "MASTER_ADDR is not set: start the processes by torchrun"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE must be a number"),
        (
            {"WORLD_SIZE": "2", "RANK": "x", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"},
            "RANK must be a number",
        ),
    ],
)
def test_half_an_environment_is_a_mistake(environment, variables, sentence):
    environment(**variables)
    with pytest.raises(FastnasError, match=sentence):
        module.launched()


def test_each_process_takes_the_gpu_of_its_number(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    taken = []
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    assert Ranks(5, 8, local=1).device("auto") == torch.device("cuda", 1)
    assert taken == [1]
    assert Ranks(5, 8, local=1).device("cpu") == torch.device("cpu")
    assert ALONE.device("cuda:1") == torch.device("cuda", 1)
    with pytest.raises(FastnasError, match="take --device cuda"):
        Ranks(1, 2, local=1).device("cuda:1")
    with pytest.raises(FastnasError, match="process number 2 on a machine with 2 GPUs"):
        Ranks(2, 4, local=2).device("cuda")


def test_shards_are_a_partition():
    for count in range(12):
        for size in (1, 2, 3, 5):
            parts = [list(range(20))[Shard(rank, size).of(count, 4)] for rank in range(size)]
            assert list(chain(*parts)) == list(range(4, 4 + count))
            assert max(map(len, parts)) - min(map(len, parts)) <= 1
