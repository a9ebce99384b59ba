"""The package imports nothing above itself: not the search, no space, no kernel."""

import ast
import pathlib
import sys

import pytest

from fastnas.hypergradient import ModuleProblem

FOLDER = pathlib.Path(sys.modules[ModuleProblem.__module__].__file__).parent
ALLOWED = (
    "fastnas.bilevel",
    "fastnas.hypergradient",
    "fastnas.supernet.arena",
    "fastnas.supernet.problem",
    "fastnas.errors",
)


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.py")), ids=lambda path: path.stem)
def test_imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "fastnas":
            assert node.module.startswith(ALLOWED)
