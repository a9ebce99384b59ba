"""The package as a whole: its examples run, it exports what it says, and it imports nothing above itself."""

import ast
import doctest
import importlib
import pathlib

import pytest

import fastnas.bilevel

FOLDER = pathlib.Path(fastnas.bilevel.__file__).parent
MODULES = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem != "__init__")


@pytest.mark.parametrize("name", [name for name in MODULES if not name.startswith("_")])
def test_examples_run(name):
    result = doctest.testmod(importlib.import_module(f"fastnas.bilevel.{name}"))
    assert result.attempted > 0
    assert result.failed == 0


def test_exports_exist():
    assert all(hasattr(fastnas.bilevel, name) for name in fastnas.bilevel.__all__)


@pytest.mark.parametrize("name", [*MODULES, "__init__"])
def test_imports_nothing_of_fastnas_but_ops_and_errors(name):
    """The estimators know no module, no kernel and no supernet; they and the differences take ops on flat vectors."""
    takes_ops = ("difference", "estimators", "implicit", "unrolled", "release")
    allowed = {"fastnas.errors", *(["fastnas.ops"] if name in takes_ops else [])}
    for node in ast.walk(ast.parse((FOLDER / f"{name}.py").read_text())):
        imported = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0
            imported = [node.module]
        for module in imported:
            if module.split(".")[0] == "fastnas":
                assert module.startswith("fastnas.bilevel") or module in allowed
