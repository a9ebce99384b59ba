import os
import subprocess
import sys

import pytest
import torch

import fastnas
from fastnas.build_info import build_info


def run(code, folder=None, **environment):
    """The output of ``code`` in a fresh interpreter, with ``folder`` first on its path."""
    if folder is not None:
        code = f"import sys; sys.path.insert(0, {str(folder)!r})\n{code}"
    environment = {**os.environ, **environment}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)


def test_fields():
    info = build_info()
    assert info.version == fastnas.__version__
    assert info.torch.startswith("2.") or int(info.torch.split(".")[0]) > 2
    assert info.commit
    assert info.compiler
    assert info.sanitizers in ("", "address,undefined")
    assert bool(info.cuda) == bool(info.cuda_architectures)
    assert info.cpu_capabilities[0] == "baseline"
    assert info.cpu_capability in info.cpu_capabilities
    for line in ("version", "commit", "cuda_architectures", "cpu_capability"):
        assert line in str(info)


def test_importing_does_not_touch_cuda():
    code = "import torch, fastnas.ops, fastnas.build_info as b; b.build_info(); print(torch.cuda.is_initialized())"
    done = run(code)
    assert done.stdout.strip() == "False", done.stderr


@pytest.mark.parametrize("level", build_info().cpu_capabilities)
def test_capability_can_be_capped(level):
    code = "import fastnas.build_info as b; print(b.build_info().cpu_capability)"
    assert run(code, FASTNAS_CPU_CAPABILITY=level).stdout.strip() == level


SENTENCE = """
try:
    import fastnas._extension
except Exception as error:
    print(f"{type(error).__name__}: {error}")
"""


def test_unknown_capability():
    done = run(SENTENCE, FASTNAS_CPU_CAPABILITY="sse9")
    expected = "FastnasError: FASTNAS_CPU_CAPABILITY must be baseline, avx2 or avx512, got 'sse9'"
    assert done.stdout.strip() == expected


def test_freed_memory_is_kept_unless_told_otherwise():
    """A steady step takes no new pages from the system."""
    code = """
import resource, torch
from fastnas.ops import mixed_sum
weights = torch.ones(8, requires_grad=True)
branches = [torch.ones(1 << 20, requires_grad=True) for _ in range(8)]
faults = []
for step in range(20):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.autograd.grad(mixed_sum(weights, branches), [weights, *branches], torch.ones(1 << 20))
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(sum(faults[10:]))
"""
    assert int(run(code).stdout) < 2000  # 9,000 and more where the allocator is left alone
    wrong = run(SENTENCE, FASTNAS_KEEP_MEMORY="yes").stdout.strip()
    assert wrong == "FastnasError: FASTNAS_KEEP_MEMORY must be 0 or 1, got 'yes'"


def test_a_command_line_says_it_without_a_traceback():
    command = [sys.executable, "-m", "fastnas.search"]
    environment = {**os.environ, "FASTNAS_CPU_CAPABILITY": "sse9"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    expected = "error: FASTNAS_CPU_CAPABILITY must be baseline, avx2 or avx512, got 'sse9'\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", expected)


def test_build_of_another_version(tmp_path):
    (tmp_path / "fastnas_C.py").write_text("__version__ = '0.0.1'")
    done = run(SENTENCE, tmp_path)
    expected = (
        f"fastnas_C was built from fastnas 0.0.1, but fastnas is {fastnas.__version__}; run `pip install .`"
    )
    assert expected in done.stdout


def test_missing_build():
    done = run("import sys; sys.modules['fastnas_C'] = None" + SENTENCE)
    expected = "FastnasError: fastnas_C, the native extension, is not built; run `pip install .` in the source folder"
    assert done.stdout.strip() == expected


def test_build_that_does_not_load(tmp_path):
    (tmp_path / "fastnas_C.py").write_text("raise ImportError('undefined symbol: x')")
    done = run(SENTENCE, tmp_path)
    assert f"does not load with torch {torch.__version__} (undefined symbol: x)" in done.stdout


def test_works_inside_the_source_folder():
    """The extension is a module of its own: a fastnas folder that shadows the installed one still finds it."""
    import fastnas_C

    assert "." not in fastnas_C.__name__
