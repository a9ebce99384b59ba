"""Builds the extension module ``fastnas_C``; everything else about the package is in pyproject.toml.

The environment decides: FASTNAS_CUDA=auto|0|1 (auto: where there is a CUDA toolkit and torch is a CUDA build;
1: also for a torch without CUDA, which cannot run it), CUDA_HOME, TORCH_CUDA_ARCH_LIST, MAX_JOBS and
FASTNAS_SANITIZE=0|1 (1: watched by sanitizers, as `make sanitize` needs it).
"""

import glob
import os
import runpy
import sys
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "csrc"))

import build_options  # noqa: E402

VERSION = runpy.run_path(str(ROOT / "fastnas" / "_version.py"))["__version__"]
GENERATED = ROOT / "build" / "generated"


class NeedsTorch(build_ext):
    """Stands in for the build where there is no usable torch: sdists and metadata do without one."""

    def run(self):
        raise SystemExit(build_options.torch_problem())


def write_build_info(info):
    """The header that module.cpp includes, rewritten only when it changes, so that builds stay incremental."""
    lines = [f'#define FASTNAS_{name.upper()} "{value}"' for name, value in info.items()]
    text = "\n".join(["// Written by setup.py.", "#pragma once", *lines, ""])
    header = GENERATED / "build_info.h"
    GENERATED.mkdir(parents=True, exist_ok=True)
    if not header.exists() or header.read_text() != text:
        header.write_text(text)


def extension():
    """The arguments of ``setup`` that build the extension against the installed torch."""
    import pybind11
    import torch
    from torch.utils import cpp_extension

    cuda_home = build_options.find_cuda_home()
    cuda = build_options.want_cuda(os.environ.get("FASTNAS_CUDA"), cuda_home, torch.version.cuda)
    sources = glob.glob("csrc/**/*.cpp", recursive=True)
    include_dirs = [str(ROOT / "csrc"), str(GENERATED), pybind11.get_include()]
    optimize, link, sanitizers = build_options.compile_flags(os.environ.get("FASTNAS_SANITIZE"))
    flags = {"cxx": [*optimize, "-fvisibility=hidden", "-Wno-psabi", "-fno-predictive-commoning"]}
    gencodes, described = [], ""
    if cuda:
        # With a CPU-only torch cpp_extension leaves this None, whatever the environment says.
        cpp_extension.CUDA_HOME = cuda_home
        sources += glob.glob("csrc/**/*.cu", recursive=True)
        include_dirs.append(os.path.join(cuda_home, "include"))
        gencodes, described = build_options.architectures(cuda_home)
        flags["cxx"].append("-DFASTNAS_WITH_CUDA")
        flags["nvcc"] = ["-O3", "-lineinfo", "--threads=2", *gencodes]
        # cudart is linked statically: the binary does not ask for the toolkit's shared library at run time.
        link += [f"-L{os.path.join(cuda_home, 'lib64')}", "-lcudart_static", "-ldl", "-lrt", "-lpthread"]
    info = {
        "version": VERSION,
        "commit": build_options.git_commit(str(ROOT)),
        "torch": torch.__version__,
        "cuda": build_options.nvcc_version(cuda_home) if cuda else "",
        "cuda_architectures": described,
        "compiler": build_options.compiler_version(cpp_extension.get_cxx_compiler()),
        "sanitizers": sanitizers,
    }

    class BuildAndReport(cpp_extension.BuildExtension):
        def run(self):
            write_build_info(info)
            super().run()
            print("fastnas: built", *(f"\n  {name:<19} {value or 'none'}" for name, value in info.items()))

    module = cpp_extension.CppExtension(
        "fastnas_C",
        sorted(sources),
        include_dirs=include_dirs,
        extra_compile_args=flags,
        extra_link_args=link,
    )
    return {"ext_modules": [module], "cmdclass": {"build_ext": BuildAndReport}}


# fastnas/kernels is a link to kernels/ in the source tree and a folder of its own where installed.
packages = find_packages(include=["fastnas", "fastnas.*"])
usable = build_options.torch_problem() is None
setup(packages=packages, **(extension() if usable else {"cmdclass": {"build_ext": NeedsTorch}}))
