"""Checked arrays out of a table's .npz file, and such a file written."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import numpy as np

from fastnas.data.npz import read_array, texts
from fastnas.errors import FastnasError

# kinds of NumPy types, and what a sentence calls them
_KINDS = {"iu": "integers", "f": "floating-point numbers", "US": "text"}


class Archive:
    """The arrays of one .npz file; nothing in it is unpickled.

    Raises:
        FastnasError: the file is missing or no such archive.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._archive = zipfile.ZipFile(path)
        except FileNotFoundError:
            raise FastnasError(f"table {path}: no such file") from None
        except Exception as error:
            raise FastnasError(
                f"table {path}: not a readable .npz file, it may be cut short ({type(error).__name__}: {error}); an "
                "official benchmark file becomes one by python -m fastnas.tables convert"
            ) from None

    def __enter__(self) -> Archive:
        return self

    def __exit__(self, *_: object) -> None:
        self._archive.close()

    def __contains__(self, name: str) -> bool:
        return f"{name}.npy" in self._archive.namelist()

    def array(self, name: str, kinds: str, shape: tuple[int | None, ...]) -> np.ndarray:
        """The array ``name``.

        Args:
            name: of the array.
            kinds: of its type: "iu", "f" or "US".
            shape: its axes; None: any length.

        Raises:
            FastnasError: it is missing, damaged, of another type or shape.
        """
        if name not in self:
            raise FastnasError(
                f"table {self.path}: the array {name!r} is missing; is it a table of this space?"
            )
        found = read_array(self.path, self._archive, name, kinds, _KINDS[kinds])
        if len(found.shape) != len(shape) or any(
            n not in (None, m) for n, m in zip(shape, found.shape, strict=True)
        ):
            wanted = ", ".join("any" if n is None else str(n) for n in shape)
            raise FastnasError(f"table {self.path}: {name} must have shape ({wanted}), got {found.shape}")
        return found

    def texts(self, name: str, count: int) -> list[str]:
        """``count`` texts."""
        return texts(self.path, name, self.array(name, "US", (count,)))

    def numbers(
        self, name: str, shape: tuple[int | None, ...], low: float, high: float, missing: bool = False
    ) -> np.ndarray:
        """Floats from ``low`` to ``high``; NaN, which says "not measured", only where it may be ``missing``."""
        found = self.array(name, "f", shape)
        good = (found >= low) & (found <= high)
        if missing:
            good |= np.isnan(found)
        if not good.all():
            value = found[~good].flat[0]
            raise FastnasError(
                f"table {self.path}: {name} must lie between {low:g} and {high:g}, got {value}"
            )
        return found

    def integers(self, name: str, shape: tuple[int | None, ...], low: int, high: int) -> np.ndarray:
        """Integers from ``low`` to ``high``."""
        found = self.array(name, "iu", shape)
        if found.size and not (found.min() >= low and found.max() <= high):
            raise FastnasError(
                f"table {self.path}: {name} must lie between {low} and {high}, "
                f"got {found.min()} to {found.max()}"
            )
        return found


def check_new(path: Path) -> None:
    """Raises FastnasError if there is something at ``path``, or no folder for it."""
    if path.exists():
        raise FastnasError(f"--out {path} exists already; choose another name")
    if path.suffix != ".npz":
        raise FastnasError(f"--out {path} must end in .npz")
    if not path.parent.is_dir():
        raise FastnasError(f"--out {path}: there is no folder {path.parent}")


def write_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Writes a compressed .npz file, whole or not at all."""
    unfinished = path.with_name(f".{path.name}.unfinished")
    try:
        with unfinished.open("wb") as file:
            np.savez_compressed(file, allow_pickle=False, **arrays)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
