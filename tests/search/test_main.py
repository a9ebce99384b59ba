"""The command line as a user meets it: real processes, exit statuses, one sentence for a mistake."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from fastnas import describe
from fastnas.search.__main__ import main
from fastnas.spaces import SPACES
from fastnas.spaces.genotype import HOW_OWN
from tests.checkpoints import sealed

TINY = [
    "--channels=2",
    "--layers=1",
    "--images=64",
    "--batch-size=8",
    "--inner-steps=2",
    "--threads=1",
    "--device=cpu",
]


def command(*arguments, **options):
    """A process of its own, as a user starts it."""
    return subprocess.run(
        [sys.executable, "-m", "fastnas.search", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        **options,
    )


def started(*arguments, **options):
    """A process of its own that Ctrl-C reaches, also where the tests run in the background and ignore it."""
    return subprocess.Popen(
        [sys.executable, "-m", "fastnas.search", *TINY, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        **options,
    )


def test_a_search_prints_the_genotype_and_where_the_run_is(tmp_path, capsys):
    out = tmp_path / "run"
    done = command(*TINY, "--epochs", 1, "--out", out)
    assert done.returncode == 0, done.stderr
    assert "genotype: Genotype(normal=[" in done.stdout
    assert f"run:      {out}" in done.stdout
    # A bare --resume takes --out's folder, and the same flags are no contradiction.
    main([*TINY, "--epochs=1", f"--out={out}", "--resume"])
    shown = capsys.readouterr().out
    assert "the run is finished: its one epoch is done" in shown.splitlines()
    assert shown[shown.index("genotype:") :] == done.stdout[done.stdout.index("genotype:") :]


@pytest.mark.parametrize("number", [1, 2, 3])
def test_nasbench1shot1_is_searched_and_its_cell_described(number, tmp_path, capsys):
    out, space = tmp_path / "run", f"--space=nasbench1shot1-{number}"
    main([*TINY, space, "--epochs=1", f"--out={out}"])
    assert 'genotype: {"matrix": [[0, 1' in capsys.readouterr().out
    describe.main([space, f"--genotype={out / 'genotype.json'}", "--dot"])
    assert 'cell_0 [label="input"]' in capsys.readouterr().out


def test_help_groups_the_flags_and_gives_defaults(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    for text in (
        "network options",
        "hypergradient options",
        "--difference-radius",
        "(default: 0.01)",
        "--resume",
    ):
        assert text in shown


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--space", "dart"], "unknown space 'dart'"),
        (["--method", "x"], "unknown hypergradient method 'x'"),
        (["--dataset", "cifar10", "--data", "/nowhere"], "/nowhere"),
        (["--batch-size", "5000"], "batch size 5000 is larger"),
        (["--resume"], "--resume needs the folder"),
        (["--resume", "/nowhere"], "no run to resume in /nowhere"),
    ],
)
def test_a_mistake_is_one_sentence_and_status_2(arguments, sentence, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    shown = capsys.readouterr()
    assert stop.value.code == 2
    assert shown.err.startswith("error: ")
    assert sentence in shown.err
    assert shown.err.count("\n") == 1
    assert shown.out == ""
    assert not any(tmp_path.iterdir())


def test_a_mistake_in_a_process_of_its_own(tmp_path):
    done = command("--space", "dart", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"error: unknown space 'dart'; known are {', '.join(SPACES)}; {HOW_OWN}\n"


def test_an_unknown_flag_is_status_2(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--chanels", "4"])
    assert stop.value.code == 2
    assert "--chanels" in capsys.readouterr().err


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit) as stop:
        main([*TINY, f"--out={tmp_path}/file/run"])
    shown = capsys.readouterr().err
    assert stop.value.code == 2
    assert shown.startswith(
        f"error: --out {tmp_path}/file/run cannot be made, since {tmp_path}/file is a file"
    )
    assert shown.count("\n") == 1


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_says_how_to_go_on(tmp_path, number, status):
    out = tmp_path / "run"
    with started("--epochs", 1000, "--out", out) as process:
        deadline = time.monotonic() + 60
        while not sealed(out) and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == status
    assert f"to go on: python -m fastnas.search --resume {out}" in errors
    assert "Traceback" not in errors


def test_a_bare_resume_begins_or_goes_on(tmp_path, capsys):
    out = tmp_path / "run"
    for lines in (2, 0):
        main([*TINY, "--epochs=2", f"--out={out}", "--resume"])
        assert capsys.readouterr().out.count("train loss") == lines
    with pytest.raises(SystemExit):  # a folder that is named to be resumed must be there
        main([f"--resume={tmp_path / 'absent'}"])


def test_ctrl_c_while_it_starts_leaves_no_traceback(tmp_path):
    with started(cwd=tmp_path, env={**os.environ, "PYTHONPROFILEIMPORTTIME": "1"}) as process:
        assert any(" torch." in line for line in process.stderr)  # the first module of torch is imported
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert "interrupted" in errors
    assert "Traceback" not in errors
    assert process.returncode == 130


def test_describe_prints_json_and_a_table(capsys):
    describe.main(["--space=nasbench201", "--channels=16", "--layers=5", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["parameters"] == 1_692_826
    assert found["alpha"] == {"cell": [6, 5]}
    assert found["macs"] == sum(stage["macs"] for stage in found["stages"])
    describe.main(["--genotype=DARTS_V2"])
    assert "3,349,342" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        describe.main(["--genotype=DARTS_V2", "--space=nasbench201"])
    assert stop.value.code == 2
    assert "does not fit nasbench201" in capsys.readouterr().err
