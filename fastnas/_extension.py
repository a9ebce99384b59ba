"""Loads ``fastnas_C``, the native extension, which registers the ops under ``torch.ops.fastnas``.

Import it before using ``torch.ops.fastnas``. It never touches CUDA.
"""

import sys
from typing import NoReturn

import torch  # first: the extension finds torch's libraries already loaded

from fastnas import _lazy_views
from fastnas._version import __version__
from fastnas.errors import FastnasError

_BUILD = "run `pip install .` in the source folder"


def _refuse(sentence: str, cause: Exception | None = None) -> NoReturn:
    # While `python -m fastnas.search` is still importing its package, argv[0] is "-m" and no command line of ours
    # can catch an error yet: say the sentence without a traceback.
    if sys.argv[:1] == ["-m"]:
        print(f"error: {sentence}", file=sys.stderr)
        sys.exit(2)
    raise FastnasError(sentence) from cause


try:
    import fastnas_C
except ModuleNotFoundError as error:
    if error.name != "fastnas_C":
        raise
    _refuse(f"fastnas_C, the native extension, is not built; {_BUILD}")
except ImportError as error:
    _refuse(
        f"fastnas_C, the native extension, does not load with torch {torch.__version__} ({error}); {_BUILD}",
        error,
    )

if fastnas_C.__version__ != __version__:
    _refuse(
        f"fastnas_C was built from fastnas {fastnas_C.__version__}, but fastnas is {__version__}; {_BUILD}"
    )

try:  # environment variables: better refused here than inside the first op
    fastnas_C.cpu_capability()
    fastnas_C.keep_freed_memory()
except ValueError as error:
    _refuse(str(error))

_lazy_views.register()

__all__ = ["fastnas_C"]
