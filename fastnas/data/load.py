"""One entry for every data set that fastnas can read."""

from __future__ import annotations

from pathlib import Path

from fastnas._paths import user_path
from fastnas.data import cifar, digits, folder, npz
from fastnas.data.dataset import Dataset
from fastnas.errors import FastnasError

DATASETS = ("digits", "cifar10", "cifar100", "folder", "npz")
"""Names of the data sets of images."""


def load_dataset(
    name: str, path: str | Path | None = None, *, train: bool = True, image_size: int | None = None
) -> Dataset:
    """Read a data set into memory; nothing is ever downloaded.

    ========  ==================================================================================
    digits    scikit-learn's 1,797 digits of 8 x 8; no path, and no test set of its own
    cifar10   the official binary or python version; the path is the folder that holds
    cifar100  ``cifar-10-batches-bin`` (``cifar-100-python``, ...) or that folder itself
    folder    ``path/<class>/*.png`` and the like, read with Pillow
    npz       a NumPy file with ``images`` (uint8), ``labels`` and perhaps ``classes``
    ========  ==================================================================================

    Args:
        name: one of ``DATASETS``.
        path: where it lies; must be None for digits.
        train: the training set, else the test set. A folder or npz file is one set: give the path
            of the set you want, ``train`` only names it.
        image_size: for ``folder``: resize the shorter side to this many pixels and crop the centre.

    Returns:
        The data set, on the CPU, in its file order.

    Raises:
        FastnasError: an unknown name, a missing or damaged file (named), or labels out of range.

    Example:
        >>> data = load_dataset("digits")
        >>> data.images.shape, data.classes[:3]
        (torch.Size([1797, 1, 8, 8]), ('0', '1', '2'))
    """
    if name not in DATASETS:
        raise FastnasError(f"unknown data set {name!r}: choose one of {', '.join(DATASETS)}")
    if name == "digits" and path is not None:
        raise FastnasError(
            f"digits comes with scikit-learn and takes no --data, got {str(path)!r}: say what that is with --dataset, "
            "as folder for one folder a class"
        )
    if image_size is not None and name != "folder":
        raise FastnasError(f"image_size resizes the images of a folder, not those of {name}: leave it out")
    if name == "digits":
        return digits.read_digits(train)
    if path is None:
        raise FastnasError(f"{name} is read from files: give their place with --data")
    place = user_path("--data", path)
    if not place.exists():
        raise FastnasError(f"{name}: --data {str(path)!r} does not exist")
    if name == "npz":
        return npz.read_npz(place, train)
    if not place.is_dir():
        raise FastnasError(
            f"{name}: --data {str(path)!r} is a file, and a folder is needed (unpack an archive first)"
        )
    if name == "folder":
        return folder.read_folder(place, image_size, train)
    return cifar.read_cifar(cifar.CIFAR10 if name == "cifar10" else cifar.CIFAR100, place, train)
