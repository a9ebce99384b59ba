"""fastnas.draw: from whatever holds a genotype to a file, or one sentence."""

import json
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image

import fastnas
from fastnas.drawing import Drawing
from fastnas.drawing.weights import Weights
from fastnas.errors import FastnasError
from fastnas.retrain import RetrainConfig, RetrainResult
from fastnas.search import SearchConfig, SearchResult
from fastnas.search.folder import RunFolder
from fastnas.spaces import SPACES, CellSequence, CellString, Choice, Genotype, family, make_space, read_genotype
from fastnas.spaces.genotype import Graph
from tests.drawing.geometry import SVG
from tests.drawing.test_weights import random_alphas

V2 = read_genotype("darts", "DARTS_V2")


@pytest.fixture
def found(tmp_path):
    """A search's result as it is in its folder, its genotype that of the first of two epochs."""
    config = SearchConfig.from_options({"space": "s2", "layers": 4, "primitives": ("none", "skip_connect", "noise")})
    space = make_space("s2", layers=4, primitives=("none", "skip_connect", "noise"))
    config = replace(config, run=replace(config.run, out=tmp_path / "run")).resolved()
    folder = RunFolder.for_config(config)
    folder.start(config)
    results = []
    for epoch in (1, 2):
        alphas = random_alphas(space, epoch)
        genotype = family("s2", ("none", "skip_connect", "noise")).derive(alphas)
        row = {"epoch": epoch, "train_loss": 1.0, "val_loss": 1.0, "val_accuracy": 0.5, "genotype": str(genotype)}
        folder.record(config, row, genotype, alphas)
        (folder.path / "alphas").mkdir(exist_ok=True)
        fastnas.runs.files.write_atomically(
            folder.path / "alphas" / f"epoch-{epoch:03d}.safetensors", fastnas.search.folder.save(alphas)
        )
        results.append(SearchResult(genotype, alphas, [row], folder.path, config))
    (folder.path / "genotype.json").write_bytes((folder.path / "genotypes/epoch-001.json").read_bytes())
    return results[0]
