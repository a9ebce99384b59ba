import importlib.metadata
import importlib.util
import os
import sys
from pathlib import Path

import pytest

CSRC = Path(__file__).parents[2] / "csrc"


def load(name):
    spec = importlib.util.spec_from_file_location(name, CSRC / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


build_options = load("build_options")


@pytest.mark.parametrize(
    ("setting", "cuda_home", "torch_cuda", "expected"),
    [
        (None, "/cuda", "13.0", True),
        (None, "/cuda", None, False),
        (None, None, "13.0", False),
        ("auto", "/cuda", "13.0", True),
        ("", "/cuda", "13.0", True),
        ("0", "/cuda", "13.0", False),
        ("1", "/cuda", "13.0", True),
        ("1", "/cuda", None, True),
        (" 1 ", "/cuda", None, True),
    ],
)
def test_want_cuda(setting, cuda_home, torch_cuda, expected):
    assert build_options.want_cuda(setting, cuda_home, torch_cuda) is expected


def test_want_cuda_refuses():
    with pytest.raises(SystemExit, match="FASTNAS_CUDA must be auto, 0 or 1, got 'yes'"):
        build_options.want_cuda("yes", "/cuda", "13.0")
    with pytest.raises(
        SystemExit, match="FASTNAS_CUDA=1, but no CUDA toolkit was found; put nvcc on the PATH"
    ):
        build_options.want_cuda("1", None, "13.0")


def test_sanitizers_only_where_asked():
    for setting in (None, "", "0", " 0 "):
        assert build_options.compile_flags(setting) == (["-O3", "-g0"], [], "")
    compiler, linker, sanitizers = build_options.compile_flags("1")
    assert sanitizers == "address,undefined"
    assert {"-fsanitize=address,undefined", "-fno-sanitize-recover=all"} == set(linker) < set(compiler)
    with pytest.raises(SystemExit, match="FASTNAS_SANITIZE must be 0 or 1, got 'address'"):
        build_options.compile_flags("address")


@pytest.mark.parametrize(
    ("version", "sentence"),
    [
        ("2.11.0", None),
        ("2.13.0+cu130", None),
        ("2.11.0a0+git123", None),
        ("3.0", None),
        ("2.10.1", "torch 2.10.1 is installed, but torch>=2.11 is needed"),
        (None, "no torch is installed for this Python; install torch>=2.11 first"),
    ],
)
def test_torch_problem(monkeypatch, version, sentence):
    def installed(name):
        if version is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return version

    monkeypatch.setattr(importlib.metadata, "version", installed)
    problem = build_options.torch_problem()
    assert problem is None if sentence is None else sentence in problem


def test_gencode_flags_are_those_that_nvcc_knows():
    flags = build_options.gencode_flags({"75", "80", "90"})
    assert flags == [
        "-gencode=arch=compute_80,code=sm_80",
        "-gencode=arch=compute_90,code=sm_90",
        "-gencode=arch=compute_90,code=compute_90",
    ]
    newest = build_options.gencode_flags(build_options.DEFAULT_ARCHITECTURES)
    assert newest[-1] == "-gencode=arch=compute_120,code=compute_120"


def test_architectures_leaves_the_users_list_to_torch(monkeypatch):
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "9.0+PTX")
    assert build_options.architectures("/nowhere") == ([], "9.0+PTX")


def test_find_cuda_home(monkeypatch, tmp_path):
    for part in ("bin/nvcc", "include/cuda_runtime_api.h"):
        (tmp_path / part).parent.mkdir()
        (tmp_path / part).touch()
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    assert build_options.find_cuda_home() == str(tmp_path)
    (tmp_path / "include/cuda_runtime_api.h").unlink()  # a folder without headers is no toolkit
    assert build_options.find_cuda_home() != str(tmp_path)


def test_git_commit_outside_git(tmp_path):
    assert build_options.git_commit(str(tmp_path)) == "unknown"


def test_backend_reaches_the_interpreters_own_packages(monkeypatch):
    pytest.importorskip("setuptools.build_meta")  # pip would have put it into the isolated environment
    monkeypatch.setenv("PYTHONPATH", os.devnull)
    torch_home = str(Path(importlib.util.find_spec("torch").origin).parents[1])
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path != torch_home])
    load("build_backend")
    assert torch_home in sys.path


def test_backend_refuses_without_torch(monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path, str(CSRC)])
    backend = load("build_backend")
    import build_options as imported

    monkeypatch.setattr(imported, "torch_problem", lambda: "no torch")
    for hook in ("get_requires_for_build_wheel", "prepare_metadata_for_build_editable", "build_wheel"):
        with pytest.raises(SystemExit, match="no torch"):
            getattr(backend, hook)("anywhere")
