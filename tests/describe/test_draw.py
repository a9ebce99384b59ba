"""``python -m fastnas.describe --draw`` and what excludes it."""

import pytest

from fastnas.describe import main


def test_a_genotype_is_drawn(tmp_path, capsys):
    path = tmp_path / "cells.svg"
    main(["--genotype", "ENAS", "--draw", str(path)])
    assert capsys.readouterr().out.split() == [str(path)]
    assert "x(t), h(t-1)" in path.read_text()


def test_the_space_says_which_of_two_of_one_name(tmp_path):
    main(["--genotype", "DARTS_V1", "--space", "recurrent", "--draw", str(tmp_path / "cells.svg")])
    assert "identity" in (tmp_path / "cells.svg").read_text()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--genotype", "ENAS", "--draw", "cells.gif"], "'cells.gif' must end in .svg, .png or .pdf"),
        (["--genotype", "ENAS", "--draw", "none/cells.png"], "there is no folder none"),
        (["--draw", "cells.png"], "--draw draws a genotype: name one with --genotype"),
        (["--dot"], "--dot draws a genotype: name one with --genotype"),
        (
            ["--genotype", "ENAS", "--draw", "a.png", "--dot"],
            "--dot and --draw exclude each other: choose one",
        ),
        (
            ["--genotype", "ENAS", "--draw", "a.png", "--json"],
            "--draw and --json exclude each other: choose one",
        ),
        (["--genotype", "ENAS", "--dot", "--json"], "--dot and --json exclude each other: choose one"),
    ],
)
def test_mistakes_are_one_sentence(tmp_path, monkeypatch, capsys, arguments, sentence):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert said.rstrip().endswith(sentence)
    assert not list(tmp_path.iterdir())
