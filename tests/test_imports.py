"""--import: a search, its resumption, a retraining, a description with a user's own operator, by the command lines."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fastnas import FastnasError
from fastnas._imports import check_imports, import_flags, import_user_code, imports_recorded, take_imports
from fastnas.audit.__main__ import main as audit
from fastnas.describe.__main__ import main as describe
from fastnas.drawing import cell_svg
from fastnas.report import page, read_run
from fastnas.retrain.__main__ import main as retrain
from fastnas.search.__main__ import main as search
from fastnas.search.folder import RunFolder
from fastnas.spaces import SPACES, find_genotype
from fastnas.spaces.genotype import OWN_PRIMITIVES
from fastnas.sweep.folder import SweepFolder
from fastnas.sweep.trial import run_trial
from tests.own_code import OPERATORS, as_a_process

SMALL = ["--channels", "2", "--layers", "3", "--images", "80", "--batch-size", "10", "--threads", "1"]
SEARCH = [*SMALL, *["--space", "darts", "--method", "darts", "--primitives", "none", "skip_connect", "gate"]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """operators.py and a search of two epochs with it, by a process of its own."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "operators.py").write_text(OPERATORS)
    environment = {**os.environ, "PYTHONPATH": os.getcwd(), "FASTNAS_FIRST_USE_CHECK": "0"}
    command = [sys.executable, "-m", "fastnas.search", "--import", "operators.py", *SEARCH]
    done = subprocess.run(
        [*command, "--epochs", "2", "--out", "run"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "genotype: Genotype(normal=[('" in done.stdout
    return folder


@pytest.fixture
def there(folder, monkeypatch):
    monkeypatch.chdir(folder)
    with as_a_process():
        yield folder


def rows(run):
    """What of a run's rows does not depend on the clock."""
    lines = (Path(run) / "metrics.jsonl").read_text().splitlines()
    kept = ("epoch", "train_loss", "val_loss", "genotype")
    return [{name: json.loads(line)[name] for name in kept} for line in lines]


def refused(main, arguments, capsys):
    """The sentence that ends a command line."""
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    (sentence,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    return sentence


def test_a_run_says_what_it_imported(there):
    content = json.loads((there / "run/config.json").read_text())
    file = str(there / "operators.py")
    assert content["imports"] == [{"source": file, "primitives": ["gate"], "spaces": []}]
    assert content["config"]["primitives"] == ["none", "skip_connect", "gate"]


@pytest.mark.parametrize(
    ("main", "flags"),
    [
        (search, ["--resume", "run"]),
        (audit, ["--checkpoint", "run"]),
        (describe, ["--genotype", "run"]),
        (retrain, ["--genotype", "run"]),
    ],
)
def test_without_the_flag_one_sentence_and_nothing_runs(there, main, flags, capsys):
    (there / "operators.py").write_text(OPERATORS + "\nraise SystemExit('it ran')\n")
    try:
        sentence = refused(main, flags, capsys)
    finally:
        (there / "operators.py").write_text(OPERATORS)
    assert sentence.startswith(
        f"error: the run in run needs gate, which the user's own code registered: add --import {there}/operators.py"
    )
    assert not OWN_PRIMITIVES


def test_resumed_retrained_and_described(there, capsys):
    """From the checkpoint of the first epoch to the same end; the network that is trained is the one described."""
    flag = ["--import", "operators.py"]
    ended = rows("run")
    for file in (there / "run/checkpoints").glob("00002-*"):
        file.unlink()
    search([*flag, "--resume", "run"])
    assert rows("run") == ended
    assert str(find_genotype("run").genotype) in capsys.readouterr().out
    more = ["--epochs", "1", "--genotype", "run", "--out", "trained", "--auxiliary", "0"]
    retrain([*SMALL, *more, "--import=operators.py"])
    capsys.readouterr()
    describe([*flag, "--genotype", "trained", "--json"])
    assert json.loads(capsys.readouterr().out)["space"] == "darts"
    describe([*flag, "--primitives", "gate", "--channels", "2", "--layers", "3"])
    assert "14 edges x 1 primitives" in capsys.readouterr().out


def test_the_command_that_goes_on_has_the_flag(there):
    import_user_code("operators.py")
    assert RunFolder(Path("run")).resume_command().endswith(f" --resume run --import {there}/operators.py")
    assert import_flags() == ["--import", f"{there}/operators.py"]


def test_a_sweeps_trial_imports_it(there):
    """As a worker on another machine does."""
    options = dict(space="darts", primitives=["skip_connect", "gate"], channels=2, layers=3, images=80)
    sweep = SweepFolder(there / "sweep")
    for part in ("trials", "outcomes"):
        (sweep.path / part).mkdir(parents=True)
    options |= {"batch_size": 10, "epochs": 1, "method": "first-order", "threads": 1}
    run_trial(sweep.path, "without", options)
    assert "unknown primitive 'gate'" in sweep.outcome("without").sentence
    run_trial(sweep.path, "with", options, [str(there / "operators.py")])
    assert sweep.outcome("with").row["epoch"] == 1


def test_a_module_by_its_name_and_a_file_only_once(there, monkeypatch):
    (there / "lab").mkdir()
    (there / "lab/spaces.py").write_text(
        "from fastnas.spaces import SPACES, Family, register\n"
        "register(Family.of_supernet('mine', SPACES['nasbench201'].supernet, search=(4, 1)))\n"
    )
    monkeypatch.syspath_prepend(there)
    arguments = [
        "--import",
        "lab.spaces",
        "--space",
        "mine",
        "--import=operators.py",
        "--import",
        "./operators.py",
    ]
    assert take_imports(arguments) == ["--space", "mine"]
    assert "mine" in SPACES
    recorded = {one["source"]: (*one["primitives"], *one["spaces"]) for one in imports_recorded()}
    assert recorded == {"lab.spaces": ("mine",), str(there / "operators.py"): ("gate",)}


@pytest.mark.parametrize(
    ("code", "sentence"),
    [
        ("x = (", r"fails: .*wrong.py:1: SyntaxError"),
        (
            "\nimport nothing_of_this_name",
            r"fails: .*wrong.py:2: ModuleNotFoundError: No module named 'nothing_of_",
        ),
        ("import torch\n\ntorch.zeros(2).view(3)", r"fails: .*wrong.py:3: RuntimeError: shape"),
        ("raise SystemExit", r"fails: .*wrong.py:1: SystemExit, which would end the process"),
        (
            "import fastnas\nfastnas.register_primitive('none', 1)",
            r"wrong.py:2: the name 'none' is a primitive of",
        ),
        ("def f():\n    raise ValueError('a\\nb')\nf()", r"wrong.py:2: ValueError: a b$"),
    ],
)
def test_a_mistake_in_the_users_code_is_one_sentence_with_its_place(there, code, sentence):
    (there / "wrong.py").write_text(code)
    with pytest.raises(
        FastnasError, match=f"^--import wrong.py {sentence}" if "fails" in sentence else sentence
    ):
        take_imports(["--import", "wrong.py"])
    assert not import_flags()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--import"], "--import needs a Python file or the name of a module"),
        (["--import", "--space", "darts"], "--import needs a Python file"),
        (["--import=gone.py"], "--import gone.py: there is no such file"),
        (["--import", "gone.module"], "--import gone.module: there is no such module, and no such file"),
        (["--import", "a b"], "--import a b: there is no such module"),
        (["--import", "run/config.json"], "--import run/config.json is no Python file"),
    ],
)
def test_what_cannot_be_imported(there, arguments, sentence):
    with pytest.raises(FastnasError, match=sentence):
        take_imports(arguments)


@pytest.mark.parametrize("imports", [3, "a", [3], [{}], [{"source": 3}], [{"source": "a", "primitives": 3}]])
def test_what_a_run_says_is_only_told(there, imports):
    """Whatever stands there, nothing fails by it and nothing runs."""
    check_imports(there, {"imports": imports})
    wanted = {"source": "./os; rm.py", "primitives": ["gate"], "spaces": ["mine"]}
    with pytest.raises(
        FastnasError, match=r"needs gate, mine, .* add --import './os; rm.py' .* if you trust that file"
    ):
        check_imports(there, {"imports": [wanted]})


def test_a_report_draws_it_without_its_code(there):
    run = read_run(Path("run"))
    assert not run.notes
    assert {alpha.primitives for alpha in run.space.alphas} == {("none", "skip_connect", "gate")}
    cells = [cell_svg(graph, ident="x") for graph in run.genotype.graphs()]
    assert "op-gate" in cells[0] + cells[1]
    assert "gate" in page([run])
    assert not OWN_PRIMITIVES
    with pytest.raises(FastnasError, match="the run in run needs gate, which the user's own code registered"):
        find_genotype("run")  # the name is known while a report is read, and no longer
