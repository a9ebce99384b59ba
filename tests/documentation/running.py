"""A page run as a reader would: its blocks from top to bottom, one namespace, one folder."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fastnas.retrain import RetrainConfig
from fastnas.search import SearchConfig
from tests.corpora import write_corpus
from tests.documentation import commands
from tests.documentation.blocks import Block, blocks
from tests.own_code import as_a_process

OPTIONS = {"fastnas.search": SearchConfig, "fastnas.retrain": RetrainConfig}


def write_data(folder: Path, text: str) -> None:
    """What pages may read, if ``text`` names it: images.npz, photos/ (a folder a class), text/ (train.txt, ...)."""
    draw = np.random.default_rng(0)
    images = draw.integers(0, 256, (600, 8, 8, 3), dtype=np.uint8)
    labels = np.arange(600) % 3
    if "images.npz" in text:
        np.savez(folder / "images.npz", images=images, labels=labels)
    if "photos" in text:
        for number, (image, label) in enumerate(zip(images, labels, strict=True)):
            place = folder / "photos" / ("cat", "dog", "horse")[label]
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(place / f"{number:03}.png")
    if "text/" in text or "--data text" in text:
        write_corpus(folder / "text")


@contextmanager
def page_run(page: str, folder: Path) -> Iterator[dict[str, Any]]:
    """Runs a page in ``folder`` and yields the names that it leaves; what it registered is gone afterwards."""
    found = blocks(page)
    write_data(folder, "".join(block.code for block in found))
    modules, threads = set(sys.modules), torch.get_num_threads()
    names: dict[str, Any] = {"__name__": "__main__"}
    try:
        with pytest.MonkeyPatch.context() as patch, as_a_process():
            patch.chdir(folder)
            patch.syspath_prepend(folder)
            for block in found:
                _run(block, names)
            yield names
    finally:
        torch.set_num_threads(threads)
        for name in set(sys.modules) - modules:
            if str(getattr(sys.modules[name], "__file__", "")).startswith(str(folder)):
                del sys.modules[name]


def _run(block: Block, names: dict[str, Any]) -> None:
    if block.title is not None:
        _write(block)
    elif block.language == "python":
        code = compile(block.code, block.place, "exec")
        if block.marker == "not run":
            _check_options(block)
        else:
            exec(code, names)
    for command in block.commands():
        if block.marker in ("run", "run with"):
            commands.run(command, block.more, block.place)
        else:
            commands.check(command, block.place)


def _write(block: Block) -> None:
    file = Path(str(block.title))
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(block.code)


def _check_options(block: Block) -> None:
    """Of code that is not run: calls of fastnas.search and fastnas.retrain have options that there are."""
    for call in ast.walk(ast.parse(block.code)):
        config = OPTIONS.get(ast.unparse(call.func)) if isinstance(call, ast.Call) else None
        if config is not None:
            given = {
                keyword.arg: keyword.value
                for keyword in call.keywords
                if keyword.arg not in (None, "progress")
            }
            known = config().to_options()
            unknown = sorted(set(given) - set(known))
            assert not unknown, f"{block.place}: {ast.unparse(call.func)} has no {', '.join(unknown)}"
            constants = {
                name: value.value for name, value in given.items() if isinstance(value, ast.Constant)
            }
            commands.check_config(config.from_options({**known, **constants}), block.place)
