"""The PEP 517 build backend: setuptools, with the torch that is already installed in reach.

An extension must be compiled against the torch that will load it. Under build isolation pip hides the
interpreter's own packages, and a torch named as a build requirement would be a fresh download, perhaps
of another version. So this backend appends the search path of the plain interpreter to ``sys.path``:
whatever the isolated environment provides still comes first, and torch is found behind it.
"""

import functools
import json
import os
import subprocess
import sys

from setuptools import build_meta as _setuptools

_HERE = os.path.dirname(os.path.abspath(__file__))


def _interpreter_path():
    """``sys.path`` of this interpreter without the variables by which pip isolates a build."""
    isolating = ("PYTHONPATH", "PYTHONNOUSERSITE")
    environment = {name: value for name, value in os.environ.items() if name not in isolating}
    code = "import json, sys; print(json.dumps(sys.path))"
    # From this folder, so that the script's own first entry is one that is known and left out.
    answer = subprocess.run([sys.executable, "-c", code], env=environment, cwd=_HERE, stdout=subprocess.PIPE)
    return json.loads(answer.stdout or "[]")


def _reach_torch():
    sys.path.extend(path for path in _interpreter_path() if path and path not in sys.path)


def _with_torch(hook):
    """``hook``, which first stops with one sentence where there is no torch to build against."""

    @functools.wraps(hook)
    def checked(*arguments, **keywords):
        from build_options import torch_problem

        problem = torch_problem()
        if problem:
            raise SystemExit(problem)
        return hook(*arguments, **keywords)

    return checked


_reach_torch()

# An sdist needs no torch.
get_requires_for_build_sdist = _setuptools.get_requires_for_build_sdist
build_sdist = _setuptools.build_sdist

get_requires_for_build_wheel = _with_torch(_setuptools.get_requires_for_build_wheel)
prepare_metadata_for_build_wheel = _with_torch(_setuptools.prepare_metadata_for_build_wheel)
build_wheel = _with_torch(_setuptools.build_wheel)

get_requires_for_build_editable = _with_torch(_setuptools.get_requires_for_build_editable)
prepare_metadata_for_build_editable = _with_torch(_setuptools.prepare_metadata_for_build_editable)
build_editable = _with_torch(_setuptools.build_editable)
