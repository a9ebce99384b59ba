"""Loads ``fastnas_C``, the native extension, which registers the ops under ``torch.ops.fastnas``.

Import it before using ``torch.ops.fastnas``. It never touches CUDA.
"""

import torch  # first: the extension finds torch's libraries already loaded

from fastnas._version import __version__
from fastnas.errors import FastnasError

_BUILD = "run `pip install .` in the source folder"

try:
    import fastnas_C
except ModuleNotFoundError as error:
    if error.name != "fastnas_C":
        raise
    raise FastnasError(f"fastnas_C, the native extension, is not built; {_BUILD}") from None
except ImportError as error:
    raise FastnasError(
        f"fastnas_C, the native extension, does not load with torch {torch.__version__} ({error}); {_BUILD}"
    ) from error

if fastnas_C.__version__ != __version__:
    raise FastnasError(
        f"fastnas_C was built from fastnas {fastnas_C.__version__}, but fastnas is {__version__}; {_BUILD}"
    )

try:
    fastnas_C.cpu_capability()  # reads FASTNAS_CPU_CAPABILITY: better refused here than inside the first op
except ValueError as error:
    raise FastnasError(str(error)) from None

__all__ = ["fastnas_C"]
