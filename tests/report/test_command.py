"""``python -m fastnas.report``: where the report goes, and what it does not touch."""

import pytest

import fastnas
from fastnas.report import main, write_report
from tests.report.runs import write_search


@pytest.fixture
def run(tmp_path):
    write_search(tmp_path / "run", epochs=1)
    return tmp_path / "run"


def said(capsys, *arguments):
    """The sentence of a mistake, which ends with status 2 and no traceback."""
    with pytest.raises(SystemExit) as end:
        main(list(map(str, arguments)))
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    return error


def test_it_goes_into_the_run(run, capsys):
    main([str(run)])
    assert capsys.readouterr().out == f"report:   {run / 'report.html'}\n"
    assert (run / "report.html").read_text().startswith("<!DOCTYPE html>")
    assert not list(run.glob(".*.part"))


def test_of_several_runs_it_goes_here(run, tmp_path, monkeypatch):
    write_search(tmp_path / "other", epochs=1, seed=1)
    monkeypatch.chdir(tmp_path)
    assert str(write_report([run, tmp_path / "other"])) == "report.html"
    assert "2 runs" in (tmp_path / "report.html").read_text()


def test_a_report_is_written_anew(run):
    file = write_report([run])
    before = file.read_text()
    write_search(run, epochs=2)
    assert write_report([run]).read_text() != before


def test_another_file_is_left_as_it_is(run, tmp_path, capsys):
    (tmp_path / "notes.html").write_text("<html>mine</html>")
    assert "is no report of fastnas" in said(capsys, run, "--out", tmp_path / "notes.html")
    assert (tmp_path / "notes.html").read_text() == "<html>mine</html>"


def test_mistakes_are_one_sentence(run, tmp_path, capsys):
    assert "is no folder" in said(capsys, tmp_path / "nothing")
    assert "has no config.json" in said(capsys, tmp_path)
    assert "is a folder; name a file" in said(capsys, run, "--out", tmp_path)
    assert "there is no folder" in said(capsys, run, "--out", tmp_path / "no/x.html")
    assert "named twice" in said(capsys, run, run, "--out", tmp_path / "x.html")
    assert not list(tmp_path.glob("*.html"))


def test_no_run_is_a_mistake():
    with pytest.raises(fastnas.FastnasError, match="needs a run"):
        write_report([])
