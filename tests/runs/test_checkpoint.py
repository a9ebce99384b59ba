"""Checkpoints: every point at which writing one can fail, every way to damage one, older and newer versions."""

import errno
import itertools
import json
import os
import random
import resource
import shutil
import signal
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import fastnas
from fastnas import FastnasError
from fastnas.runs.checkpoint import (
    KEPT,
    Checkpoints,
    Kind,
    Moment,
    State,
    put_back_random_states,
    sealed,
)
from fastnas.runs.files import PART
from fastnas.runs.first_version import read_first_version
from fastnas.search import SearchConfig
from fastnas.search.checkpoint import SEARCH
from tests.checkpoints import newest
from tests.checkpoints import sealed as sealed_files
from tests.runs.lives import PROCESSES, live, same

CONFIG = SearchConfig()
TINY = {
    "channels": 2,
    "layers": 1,
    "images": 32,
    "batch_size": 4,
    "epochs": 2,
    "method": "first-order",
    "threads": 1,
    "device": "cpu",
}


def state(epoch, step=0):
    """One that tells when it is of."""
    tensors = {"w": torch.full((100,), float(epoch)), "rng.cpu": torch.get_rng_state()}
    rows = [{"epoch": i, "loss": 0.1 * i} for i in range(1, epoch + 1)]
    return State(Moment(epoch, step), tensors, rows, {"seen": step} if step else {})


def checkpoints(path):
    return Checkpoints(path / "checkpoints", SEARCH)


def write(path, *moments):
    for moment in moments:
        checkpoints(path).write(state(*moment), CONFIG.to_options())


def read(path, said=None):
    """The moment of the newest whole one, its content checked; None if there is none."""
    found = checkpoints(path).newest(CONFIG, [].append if said is None else said.append)
    if found is None:
        return None
    like = state(*found.moment)
    assert torch.equal(found.tensors["w"], like.tensors["w"])
    assert (found.rows, found.numbers) == (like.rows, like.numbers)
    return found.moment


# What the system is asked for while a checkpoint is written: each of these calls may be the last, or fail.
CALLS = [
    (os, name) for name in ("open", "fsync", "chmod", "replace", "unlink", "mkdir", "rename", "rmdir")
] + [(tempfile, "mkstemp"), (os, "fdopen")]


def on_call(number, action, after=False):
    """Lets the ``number``-th of ``CALLS`` be struck by ``action``, before it or ``after`` it; what undoes that."""
    count, before = itertools.count(1), [(owner, name, getattr(owner, name)) for owner, name in CALLS]

    def struck(call):
        def made(*arguments, **options):
            now = next(count) == number
            if now and not after:
                action()
            try:
                return call(*arguments, **options)
            finally:
                if now and after:
                    action()

        return made

    for owner, name, call in before:
        setattr(owner, name, struck(call))

    def undo():
        for owner, name, call in before:
            setattr(owner, name, call)
        return next(count) > number

    return undo


def dies(path, number, after):
    """A process that is killed at a call."""
    on_call(number, lambda: os.kill(os.getpid(), signal.SIGKILL), after)
    write(path, (2, 3))


@pytest.mark.parametrize("after", [False, True], ids=["before", "behind"])
def test_a_kill_at_any_call_of_the_system_leaves_a_whole_checkpoint(tmp_path, after):
    write(tmp_path, (1, 0), (1, 5), (2, 0))
    seen = []
    for number in itertools.count(1):
        out = tmp_path / str(number)
        shutil.copytree(tmp_path / "checkpoints", out / "checkpoints")
        process = PROCESSES.Process(target=dies, args=(out, number, after))
        process.start()
        process.join()
        seen.append(read(out))
        checkpoints(out).clear()
        names = {file.name for file in (out / "checkpoints").iterdir()}
        assert not any(name.endswith(PART) for name in names)
        assert {name.partition(".")[0] for name in names if name.endswith(".safetensors")} == {
            name.partition(".")[0] for name in names if name.endswith(".json")
        }
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
        write(out, (2, 3), (3, 0))
        assert read(out) == (3, 0)
    # First the one before, from some call on the new one; and never another.
    assert seen == sorted(seen)
    assert [seen[0], seen[-1]] == [(2, 0), (2, 3)]
    assert len(seen) > 12


def fails():
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_call_that_fails_names_the_file_and_leaves_what_was_there(tmp_path):
    write(tmp_path, (1, 0), (1, 5), (2, 0))
    before = {file.name: file.read_bytes() for file in (tmp_path / "checkpoints").iterdir()}
    for number in itertools.count(1):
        undo, error = on_call(number, fails), None
        try:
            write(tmp_path, (2, 3))
        except OSError as caught:
            error = caught
        struck = undo()
        if not struck:
            break
        assert error is None or "checkpoints" in error.filename
        files = {file.name: file.read_bytes() for file in (tmp_path / "checkpoints").iterdir()}
        if read(tmp_path) == (2, 0):
            assert files == before
        else:  # the folder could not be synced, or an old one not be removed, or it did not matter
            assert read(tmp_path) == (2, 3)
            shutil.rmtree(tmp_path / "checkpoints")
            write(tmp_path, (1, 0), (1, 5), (2, 0))
    assert read(tmp_path) == (2, 3)
    assert number > 12


def test_a_search_survives_every_call_that_fails(tmp_path):
    """A full disk at any of the calls of a whole search: one sentence, and the run goes on or begins anew."""
    options = {**TINY, "epochs": 1, "images": 16, "batch_size": 8}
    live("search", options, tmp_path / "whole")
    for number in itertools.count(1):
        out, error = tmp_path / "full", None
        undo = on_call(number, fails)
        try:
            fastnas.search(**options, out=out)
        except (FastnasError, OSError) as caught:
            error = caught
        if not undo():
            break
        if error is not None:
            assert "No space left on device" in str(error)
            assert "\n" not in str(error)
            assert isinstance(error, FastnasError) == (out / "config.json").exists()
        live("search", options, out)
        assert same(out, tmp_path / "whole")
        shutil.rmtree(out)
    assert number > 30


def test_the_newest_three_are_kept_whatever_the_clock_says(tmp_path):
    write(tmp_path, (0, 3), (1, 0), (1, 10))
    files = sealed_files(tmp_path)
    for i, file in enumerate(files):  # as if the clock had gone backwards
        os.utime(file, (10**9 - i, 10**9 - i))
    write(tmp_path, (1, 9_999_999), (2, 0), (100_000, 0))
    moments = [(100_000, 0), (2, 0), (1, 9_999_999)]
    assert [Path(path).stem for path in checkpoints(tmp_path).paths()] == [
        f"{epoch:05d}-{step:07d}" for epoch, step in moments
    ]
    assert len(list((tmp_path / "checkpoints").iterdir())) == 2 * KEPT


def damaged(content, kind, draw):
    at = draw.randrange(len(content))
    return {
        "empty": b"",
        "cut": content[:at],
        "longer": content + b"x",
        "flipped": content[:at] + bytes([content[at] ^ (1 << draw.randrange(8))]) + content[at + 1 :],
        "text": b"not a checkpoint at all",
    }[kind]


@pytest.mark.parametrize("suffix", [".json", ".safetensors"])
@pytest.mark.parametrize("kind", ["empty", "cut", "longer", "flipped", "text"])
def test_a_damaged_checkpoint_is_said_and_the_one_before_it_taken(tmp_path, suffix, kind):
    write(tmp_path, (1, 0), (1, 5), (2, 0))
    file = newest(tmp_path).with_suffix(suffix)
    content, draw = file.read_bytes(), random.Random(0)
    for _ in range(60 if kind in ("cut", "flipped") else 1):
        damage = damaged(content, kind, draw)
        file.write_bytes(damage)
        said = []
        assert read(tmp_path, said) == (1, 5)
        (sentence,) = said
        assert sentence.startswith(f"checkpoint {file}")
        assert sentence.endswith("taking the one before it, 00001-0000005")
        assert "\n" not in sentence
        assert file.read_bytes() == damage


def test_tensors_that_are_gone_or_swapped_are_damage(tmp_path):
    write(tmp_path, (1, 0), (1, 5), (2, 0))
    second, newest_ = sealed_files(tmp_path)[1:]
    shutil.copy(second.with_suffix(".safetensors"), newest_.with_suffix(".safetensors"))
    assert read(tmp_path) == (1, 5)
    second.with_suffix(".safetensors").unlink()
    assert read(tmp_path) == (1, 0)


def test_where_none_is_whole_that_is_said(tmp_path):
    write(tmp_path, (1, 0), (2, 0))
    for file in sealed_files(tmp_path):
        file.with_suffix(".safetensors").write_bytes(b"")
    with pytest.raises(
        FastnasError, match=r"00001-0000000.safetensors is damaged: 0 bytes where \d+ were .* no older one"
    ):
        read(tmp_path)


def test_a_name_that_tells_of_another_moment_is_damage(tmp_path):
    write(tmp_path, (1, 0), (2, 0))
    for suffix in (".safetensors", ".json"):
        file = (
            newest(tmp_path).with_suffix(suffix) if suffix == ".safetensors" else sealed_files(tmp_path)[-1]
        )
        file.rename(file.with_name(f"00099-0000000{suffix}"))
    said = []
    assert read(tmp_path, said) == (1, 0)
    assert "00099-0000000.json is of another moment, the end of epoch 2, than its name says" in said[0]


def test_lost_checkpoints_are_said(tmp_path, capsys):
    live("search", TINY, out := tmp_path / "run")
    shutil.rmtree(out / "checkpoints")
    before = (out / "metrics.jsonl").read_bytes()
    with pytest.raises(
        FastnasError, match=r"tells of 2 epochs, but .*checkpoints holds no checkpoint: put it back"
    ):
        fastnas.search(resume=out)
    assert (out / "metrics.jsonl").read_bytes() == before
    (out / "metrics.jsonl").write_bytes(
        before.splitlines(keepends=True)[0]
    )  # written before the first checkpoint
    assert len(fastnas.search(resume=out).metrics) == 2
    assert "there is no checkpoint yet: the run begins anew" in capsys.readouterr().err


def test_tensors_that_nothing_seals_are_no_checkpoint(tmp_path):
    write(tmp_path, (1, 0))
    sealed_files(tmp_path)[0].unlink()
    assert read(tmp_path) is None


def test_a_damaged_checkpoint_of_a_run_costs_the_steps_since_the_one_before(tmp_path, capsys):
    options = {**TINY, "checkpoint_seconds": 0.0}
    for run in ("whole", "damaged"):
        live("search", options, tmp_path / run)
    out = tmp_path / "damaged"
    with newest(out).open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"x")
    live("search", options, out)
    assert (
        "is damaged: its checksum is another; taking the one before it, 00001-0000004"
        in capsys.readouterr().err
    )
    assert same(out, tmp_path / "whole")


def rewritten(run, **changes):
    """The newest checkpoint with other content, sealed."""
    file = newest(run).with_suffix(".json")
    content = {**json.loads(file.read_text()), **changes}
    del content["sha256"]
    file.write_text(sealed(content))


def test_another_version_loads_or_says_why_not(tmp_path):
    live("search", TINY, out := tmp_path / "run")
    content = json.loads(newest(out).with_suffix(".json").read_text())
    older = {name: value for name, value in content["config"].items() if name != "checkpoint_seconds"}
    rewritten(out, fastnas="0.0.1", config=older)  # from before that option
    assert len(fastnas.search(resume=out).metrics) == 2
    rewritten(out, config={**content["config"], "invented_later": 1})
    with pytest.raises(FastnasError, match=r"cannot be read by this version of fastnas, .*'invented_later'"):
        fastnas.search(resume=out)
    rewritten(out, format="fastnas-search-3", fastnas="7.0", config=content["config"])
    with pytest.raises(
        FastnasError, match=r"was written by fastnas 7.0, in a format that this one, .* install"
    ):
        fastnas.search(resume=out)
    rewritten(out, format="fastnas-retrain-2")
    with pytest.raises(FastnasError, match="is not a checkpoint of a search"):
        fastnas.search(resume=out)


def as_at_first(run, epoch):
    """The folder as the first version of fastnas left it behind ``epoch``, the checkpoint of which is there."""
    file = next(file for file in sealed_files(run) if file.stem == f"{epoch:05d}-0000000")
    content, tensors = json.loads(file.read_text()), load_file(file.with_suffix(".safetensors"))
    metadata = {
        "format": content["format"][:-1] + "1",
        "epoch": str(epoch),
        "config": json.dumps(content["config"]),
    }
    shutil.rmtree(run / "checkpoints")
    save_file(tensors, run / "checkpoint.safetensors", metadata)
    return run / "checkpoint.safetensors"


@pytest.mark.parametrize("command", ["search", "retrain"])
def test_a_checkpoint_of_the_first_version_is_taken_up(tmp_path, command):
    options = dict(TINY)
    if command == "retrain":
        del options["method"]
        options |= {"genotype": "DARTS_V2", "images": 60, "batch_size": 20}
    live(command, options, tmp_path / "whole")
    live(command, options, out := tmp_path / "run")
    file = as_at_first(out, 1)
    live(command, options, out)  # there is a row too many in metrics.jsonl
    assert same(out, tmp_path / "whole")
    shutil.rmtree(out / "checkpoints")
    (out / "metrics.jsonl").write_text('{"epoch": 1}\n')
    with pytest.raises(FastnasError, match=r"does not hold the 1 epochs .* cut short or edited"):
        live(command, options, out)
    content = file.read_bytes()
    for cut in (0, 7, len(content) // 2):
        file.write_bytes(content[:cut])
        with pytest.raises(FastnasError, match="cannot be read, it may be cut short"):
            live(command, options, out)


def limited(options, out, limit):
    """A search that may not write files of more than ``limit`` bytes; its sentence is left in a file."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        live("search", options, out)
    except FastnasError as error:
        Path(f"{out}.said").write_text(str(error))


def test_a_system_that_takes_no_more_is_one_sentence(tmp_path):
    """For real: the system's own limit on the size of files. config.json is smaller, the checkpoint is not."""
    out = tmp_path / "run"
    process = PROCESSES.Process(target=limited, args=(TINY, out, 20_000))
    process.start()
    process.join()
    said = Path(f"{out}.said").read_text()
    assert said.startswith("File too large: ")
    assert said.endswith(f"; once that is mended, go on by: python -m fastnas.search --resume {out}")
    assert not list(out.rglob(f"*{PART}"))
    live("search", TINY, out)
    live("search", TINY, tmp_path / "whole")
    assert same(out, tmp_path / "whole")


def as_nobody(out):
    """Goes on with a search as a user who may not write in its folder."""
    again = json.loads((out / "config.json").read_text())["config"]
    del again["out"], again["resume"]
    live("search", again, out.with_name("again"))  # which imports everything while it may
    with out.with_name("said").open("w") as said:
        if os.getuid() == 0:
            os.setuid(65534)
        try:
            fastnas.search(resume=out)
        except FastnasError as error:
            said.write(str(error))
    os._exit(0)  # a process clears up behind itself where this one may not any more


def test_a_folder_that_cannot_be_written_is_one_sentence():
    with tempfile.TemporaryDirectory(dir="/tmp") as place:  # which everybody may enter
        os.chmod(place, 0o755)
        out = Path(place) / "run"
        data = Path(place) / "images.npz"
        draw = np.random.default_rng(0)
        np.savez(data, images=draw.integers(0, 256, (16, 8, 8, 1), dtype=np.uint8), labels=np.arange(16) % 2)
        live("search", {**TINY, "epochs": 1, "images": None, "dataset": "npz", "data": data}, out)
        before = {file: file.read_bytes() for file in out.rglob("*") if file.is_file()}
        os.chmod(out, 0o555)
        process = PROCESSES.Process(target=as_nobody, args=(out,))
        process.start()
        process.join()
        os.chmod(out, 0o755)
        assert (Path(place) / "said").read_text() == (
            f"Permission denied: {out / '.lock'}; checkpoint 00001-0000000 is whole; once that is mended, go on by: "
            f"python -m fastnas.search --resume {out}"
        )
        assert before == {file: file.read_bytes() for file in out.rglob("*") if file.is_file()}


def test_a_kind_of_run_has_its_own_checkpoints(tmp_path):
    write(tmp_path, (1, 0))
    other = Checkpoints(tmp_path / "checkpoints", Kind("fastnas-retrain", "retraining", 2))
    with pytest.raises(FastnasError, match="is not a checkpoint of a retraining"):
        other.newest(CONFIG, print)


def resealed(folder, **changes):
    """The newest checkpoint of ``folder`` with ``changes``, its checksum that of what it holds now."""
    path = newest(folder).with_suffix(".json")
    content = json.loads(path.read_text()) | changes
    content.pop("sha256")
    path.write_text(sealed(content))


@pytest.mark.parametrize(
    "changes",
    [
        {"epoch": "1"},
        {"epoch": -1},
        {"step": None},
        {"rows": 3},
        {"rows": []},
        {"rows": [1]},
        {"numbers": {"a": []}},
    ],
    ids=str,
)
def test_a_checkpoint_that_was_edited_is_one_sentence(tmp_path, changes):
    checkpoints = Checkpoints(tmp_path / "checkpoints", SEARCH)
    checkpoints.write(State(Moment(1), {"w": torch.zeros(2)}, [{"epoch": 1}]), CONFIG.to_options())
    resealed(tmp_path, **changes)
    with pytest.raises(FastnasError, match="is damaged: its epoch, rows or numbers are none"):
        checkpoints.newest(CONFIG, print)


def test_a_random_state_that_is_none_is_one_sentence():
    with pytest.raises(FastnasError, match="random state in the checkpoint is none"):
        put_back_random_states({"rng.cpu": torch.zeros_like(torch.get_rng_state())}, torch.device("cpu"))


def test_a_first_checkpoint_of_a_thousand_million_epochs_takes_no_memory(tmp_path):
    metadata = {"format": f"{SEARCH.mark}-1", "epoch": str(10**9), "config": json.dumps(CONFIG.to_options())}
    save_file({"w": torch.zeros(2)}, tmp_path / "checkpoint.safetensors", metadata)
    with pytest.raises(FastnasError, match="does not hold the 1000000000 epochs"):
        read_first_version(tmp_path, SEARCH, CONFIG, frozenset())


@pytest.mark.parametrize(
    ("out", "words"),
    [
        ("file/run", "file is a file; name another folder"),
        ("x" * 300, "cannot be looked at: File name too long"),
    ],
)
def test_an_out_that_cannot_be_made_is_said_before_anything_else(tmp_path, out, words):
    (tmp_path / "file").touch()
    with pytest.raises(FastnasError, match=f"--out .*{words}"):
        fastnas.search(**TINY, dataset="npz", data=tmp_path / "nowhere.npz", out=tmp_path / out)
