"""The check before a search: cached, robust, and a wrong operator does not reach the search's result."""

import json
import subprocess
import sys

import pytest
import torch

import fastnas
from fastnas import FastnasError, ops
from fastnas.doctor import first_use
from fastnas.doctor.checks import DeviceLostError, Finding, Measured
from fastnas.doctor.first_use import check_first_use
from fastnas.doctor.operators import OPERATORS
from fastnas.spaces import make_space
from fastnas.supernet import build_supernet

CPU = torch.device("cpu")
RIGHT = [Finding(one.name, "float32", "ok", Measured("out", 1e-8, 1e-7)) for one in OPERATORS]
TINY = {
    "channels": 2,
    "layers": 1,
    "images": 64,
    "batch_size": 8,
    "epochs": 1,
    "inner_steps": 2,
    "threads": 1,
    "device": "cpu",
    "dtype": "float64",
}


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The user's cache folder; the check is on."""
    monkeypatch.setenv("FASTNAS_FIRST_USE_CHECK", "1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "fastnas"


@pytest.fixture
def checks(monkeypatch):
    """Counts the checks, which find what ``checks.found`` holds."""

    class Checks:
        count, found = 0, RIGHT

        def __call__(self, operators, device, **options):
            self.count += 1
            assert options["small"]
            yield from self.found

    counted = Checks()
    monkeypatch.setattr(first_use, "check", counted)
    return counted


OFF = Measured("d weights", 1.5e-3, 1e-6)


def wrong(name, worst=OFF, **changes):
    bad = Finding(name, "float32", **({"status": "wrong", "worst": worst} | changes))
    return [bad if one.operator == name else one for one in RIGHT]


def test_it_runs_once(cache, checks, capsys):
    for _ in range(3):
        check_first_use(CPU)
    assert checks.count == 1
    (file,) = cache.iterdir()
    kept = json.loads(file.read_text())
    assert kept["key"]["torch"] == torch.__version__
    assert kept["key"]["type"] == "cpu"
    assert capsys.readouterr() == ("", "")


def test_a_wrong_operator_is_named_each_time(cache, checks, capsys, trusting):
    checks.found = wrong("mixed_sum")
    for _ in range(2):
        check_first_use(CPU)
        assert trusting.distrusted == {"mixed_sum"}
        assert capsys.readouterr().err == (
            "warning: mixed_sum in float32 computes wrong numbers (d weights is off by 1.5e-03, 1.0e-06 is allowed) on "
            "this cpu: plain PyTorch takes its place, and is slower; `python -m fastnas.doctor` shows more\n"
        )
    assert checks.count == 1


def test_what_raised_is_named(cache, checks, capsys, trusting):
    checks.found = wrong("sgd_step_", None, status="failed", reason="illegal instruction")
    check_first_use(CPU)
    assert "warning: sgd_step_ in float32 fails (illegal instruction) on this cpu" in capsys.readouterr().err
    assert trusting.distrusted == {"sgd_step_"}


def test_what_has_no_kernel_is_no_fault(cache, checks, capsys, trusting):
    checks.found = wrong("cell", None, status="missing", reason="no kernel")
    check_first_use(CPU)
    assert not trusting.distrusted
    assert not capsys.readouterr().err


def test_another_device_is_checked_anew(cache, checks, monkeypatch, trusting):
    checks.found = wrong("mixed_sum")
    check_first_use(CPU)
    key = first_use._key(CPU)
    for name in key:
        monkeypatch.setattr(first_use, "_key", lambda device, name=name: key | {name: "another"})
        checks.found = RIGHT
        check_first_use(CPU)
        assert not trusting.distrusted
    assert checks.count == 1 + len(key)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"key": 1}', None, "no findings", "other fields"]
)
def test_a_file_that_cannot_be_read_is_rewritten(cache, checks, content):
    check_first_use(CPU)
    (file,) = cache.iterdir()
    good = file.read_bytes()
    kept = json.loads(good)
    if content == "no findings":
        content = json.dumps(kept | {"findings": []}).encode()
    elif content == "other fields":
        content = json.dumps(kept | {"findings": [{"worst": {"x": 1}}]}).encode()
    if content is None:
        file.unlink()
        file.mkdir()  # not even a file: it stays, and the check runs each time
    else:
        file.write_bytes(content)
    check_first_use(CPU)
    assert checks.count == 2
    assert file.is_dir() if content is None else file.read_bytes() == good
    assert [path.name for path in cache.iterdir()] == [file.name]


def test_without_a_place_to_write_it_runs_each_time(tmp_path, cache, checks, monkeypatch):
    (tmp_path / "a file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "a file"))
    for _ in range(2):
        check_first_use(CPU)
    assert checks.count == 2


def test_the_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    for relative in ("", "relative/path"):
        monkeypatch.setenv("XDG_CACHE_HOME", relative)
        assert first_use._cache_folder() == tmp_path / ".cache" / "fastnas"


def test_the_switch(cache, checks, monkeypatch, trusting):
    trusting.distrusted.add("mixed_sum")
    monkeypatch.setenv("FASTNAS_FIRST_USE_CHECK", "0")
    check_first_use(CPU)
    assert checks.count == 0
    assert not cache.exists()
    assert not trusting.distrusted
    monkeypatch.setenv("FASTNAS_FIRST_USE_CHECK", "no")
    with pytest.raises(FastnasError, match="FASTNAS_FIRST_USE_CHECK must be 0 or 1, got 'no'"):
        check_first_use(CPU)


def test_a_lost_device_is_told_in_one_sentence(cache, monkeypatch):
    def lost(*arguments, **options):
        raise DeviceLostError("cell (float32) left cuda unusable")
        yield

    monkeypatch.setattr(first_use, "check", lost)
    with pytest.raises(FastnasError, match=r"cell .* left cuda unusable; .* --device cpu does without it"):
        check_first_use(CPU)
    assert not cache.exists()


# ---------------------------------------------------------------------------- the real checks, and what they change


def test_a_fused_cell_needs_all_of_its_operators(trusting):
    space = make_space("darts", channels=4, layers=1, classes=10, image_channels=1)
    assert build_supernet(space)._fused
    for name in ("cell", "separable_stage", "normalised_mixed_sum", "shared_pooling"):
        trusting.distrusted.clear()
        trusting.distrusted.add(name)
        assert not build_supernet(space)._fused
    trusting.distrusted.clear()
    trusting.distrusted.add("mixed_sum")
    assert build_supernet(space)._fused


@pytest.mark.parametrize("name", ["cell", "sgd_step_", "mixed_sum"])
def test_a_search_does_without_a_wrong_operator(
    name, cache, sabotage, tmp_path, monkeypatch, capsys, trusting
):
    """It is named, and the search ends where that of the reference does."""

    def result(**options):
        found = fastnas.search(**{**TINY, "out": tmp_path / f"run{len(runs)}", **options})
        runs.append(torch.cat([alpha.flatten() for alpha in found.alphas.values()]))
        return runs[-1]

    runs = []
    monkeypatch.setenv("FASTNAS_FIRST_USE_CHECK", "0")
    expected = result(backend="reference")
    torch.testing.assert_close(result(), expected, rtol=1e-9, atol=1e-12)
    if name == "cell":
        sabotage("cell")
    else:  # below the public function, where the search calls it
        scaled = {"sgd_step_": lambda real, w, *rest: (real(w, *rest), w.mul_(1.001))[0]}
        sabotage.replace(torch.ops.fastnas, name, scaled.get(name, lambda real, *a: real(*a) * 1.001))
    if name != "mixed_sum":  # which the fused cells do not call
        assert (result() - expected).abs().max() > 1e-7
    monkeypatch.setenv("FASTNAS_FIRST_USE_CHECK", "1")
    capsys.readouterr()
    torch.testing.assert_close(result(), expected, rtol=1e-9, atol=1e-12)
    warning = capsys.readouterr().err
    assert warning.startswith(f"warning: {name} in float32 computes wrong numbers")
    assert trusting.distrusted == {name}
    torch.testing.assert_close(result(), expected, rtol=1e-9, atol=1e-12)  # by what is cached


@pytest.mark.parametrize("name", sorted(set(ops.__all__)))
def test_a_distrusted_operator_is_its_reference(name, trusting, sabotage):
    def must_not_run(real, *arguments, **options):
        pytest.fail(f"{name} ran")

    sabotage.replace(torch.ops.fastnas, name, must_not_run)
    trusting.distrusted.add(name)
    (entry,) = (one for one in OPERATORS if one.name == name)
    for one in entry.measure(CPU, torch.float32, True):
        assert one.error <= one.tolerance


def test_a_command_line_checks_and_says_nothing(cache, tmp_path):
    flags = [f"--{key.replace('_', '-')}={value}" for key, value in TINY.items()]
    command = [sys.executable, "-m", "fastnas.search", *flags, f"--out={tmp_path / 'run'}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr
    assert len([*cache.iterdir()]) == 1
