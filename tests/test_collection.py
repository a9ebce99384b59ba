"""pytest finds all the tests."""

from fnmatch import fnmatch
from pathlib import Path


def test_no_folder_of_tests_is_passed_over(pytestconfig):
    """pytest does not look into folders called build, dist, venv, ..."""
    passed_over = pytestconfig.getini("norecursedirs")
    for path in pytestconfig.getini("testpaths"):
        for file in (Path(pytestconfig.rootpath) / path).rglob("test_*.py"):
            folders = file.relative_to(pytestconfig.rootpath).parts[:-1]
            found = [name for name in folders for pattern in passed_over if fnmatch(name, pattern)]
            assert not found, f"{file} is never run: pytest's norecursedirs holds {found}; rename the folder"
