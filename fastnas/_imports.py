"""``--import``: a user's own code, run before the other flags are read.

Nothing but that flag runs it, least of all a file: what a run says of its imports is only told.
"""

from __future__ import annotations

import importlib
import importlib.util
import shlex
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fastnas._user_code import located
from fastnas.errors import FastnasError

FLAG = "--import"
IMPORT_HELP = """--import FILE.py|MODULE, as often as needed, runs your own code first, which registers primitives and
spaces (fastnas.register_primitive, fastnas.spaces.register)."""


@dataclass(frozen=True)
class Imported:
    """One import, and what came of it.

    Attributes:
        source: the file, absolute, or the module's name.
        primitives, spaces: the names that it registered.
    """

    source: str
    primitives: tuple[str, ...] = ()
    spaces: tuple[str, ...] = ()


_IMPORTED: dict[str, Imported] = {}


def take_imports(arguments: list[str]) -> list[str]:
    """Runs what ``--import`` names, in order; the arguments without these flags.

    Raises:
        FastnasError: a flag without a value, no such file or module, or one that fails.
    """
    rest, left = [], iter(arguments)
    for argument in left:
        name, equals, value = argument.partition("=")
        if name != FLAG:
            rest.append(argument)
            continue
        if not equals:
            value = next(left, "")
        if not value or value.startswith("--"):
            raise FastnasError(f"{FLAG} needs a Python file or the name of a module")
        import_user_code(value)
    return rest


def import_user_code(source: str) -> None:
    """Runs a Python file, or imports a module by its name; once in this process.

    Raises:
        FastnasError: there is none, or it fails: where, and why.
    """
    path = Path(source).expanduser()
    is_file = path.suffix == ".py" or path.is_file()
    key = str(path.absolute().resolve()) if is_file else source
    if key in _IMPORTED:
        return
    before = _known()
    if is_file:
        _run_file(source, Path(key))
    else:
        _import_module(source)
    after = _known()
    _IMPORTED[key] = Imported(
        key, *(tuple(name for name in new if name not in old) for old, new in zip(before, after, strict=True))
    )


class MissingImport(FastnasError):
    """A run needs code of the user's own that this process does not have."""


def imported() -> list[str]:
    """The files and modules of this process's flags, as another process is to be told them."""
    return list(_IMPORTED)


def import_flags() -> list[str]:
    """The flags that make another process import the same."""
    return [word for source in imported() for word in (FLAG, source)]


def import_text() -> str:
    """These flags for a command line that is shown: empty, or with a blank before them."""
    return "".join(f" {shlex.quote(word)}" for word in import_flags())


def imports_recorded() -> list[dict[str, Any]]:
    """What a run's config.json says of them."""
    return [asdict(imported) for imported in _IMPORTED.values()]


def check_imports(folder: Path, content: Mapping[str, Any]) -> None:
    """Raises FastnasError if the run in ``folder`` was made with code of the user's that this process does not have.

    Args:
        folder: of the run.
        content: of its config.json, which is not believed: nothing is imported for it.
    """
    primitives, spaces = _known()
    recorded = content.get("imports")
    for one in recorded if isinstance(recorded, list) else []:
        source = one.get("source") if isinstance(one, dict) else None
        if not isinstance(source, str):
            continue
        missing = [name for name in _names(one, "primitives") if name not in primitives]
        missing += [name for name in _names(one, "spaces") if name not in spaces]
        if missing:
            raise MissingImport(
                f"the run in {folder} needs {', '.join(missing)}, which the user's own code registered: add "
                f"{FLAG} {shlex.quote(source)} (in Python, import it) if you trust that "
                f"{'file' if source.endswith('.py') else 'module'}"
            )


def names_recorded(content: Mapping[str, Any]) -> list[str]:
    """The primitives of the user's own that a run's config.json names, for what is drawn of it without their code."""
    recorded = content.get("imports")
    return (
        [name for one in recorded for name in _names(one, "primitives")] if isinstance(recorded, list) else []
    )


def _names(recorded: Any, kind: str) -> list[str]:
    found = recorded.get(kind) if isinstance(recorded, dict) else None
    return [name for name in found if isinstance(name, str)] if isinstance(found, list) else []


def _known() -> tuple[list[str], list[str]]:
    """The primitives of the user's own and all spaces."""
    from fastnas.spaces import SPACES  # here: a command line's first lines import no torch
    from fastnas.spaces.genotype import OWN_PRIMITIVES

    return list(OWN_PRIMITIVES), list(SPACES)


def _run_file(given: str, path: Path) -> None:
    if not path.is_file():
        raise FastnasError(f"{FLAG} {given}: there is no such file")
    if path.suffix != ".py":
        raise FastnasError(f"{FLAG} {given} is no Python file (.py); name one, or a module")
    # Under a name of its own: a file called torch.py hides nothing.
    name = f"fastnas_import_{len(_IMPORTED)}_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    if str(path.parent) not in sys.path:  # it may import what lies beside it, as a script may
        sys.path.append(str(path.parent))
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise _failed(given, error) from error


def _import_module(name: str) -> None:
    try:
        importlib.import_module(name)
    except (Exception, SystemExit) as error:
        if isinstance(error, ModuleNotFoundError) and error.name in _prefixes(name):
            raise FastnasError(
                f"{FLAG} {name}: there is no such module, and no such file; a file's name ends with .py"
            ) from None
        raise _failed(name, error) from error


def _prefixes(name: str) -> set[str]:
    """``a.b.c``: a, a.b and a.b.c, any of which may be what is missing."""
    parts = name.split(".")
    return {".".join(parts[: i + 1]) for i in range(len(parts))} | {name}


def _failed(given: str, error: BaseException) -> FastnasError:
    why = ", which would end the process" if isinstance(error, SystemExit) else ""
    return FastnasError(f"{FLAG} {given} fails: {located(error)}{why}")
