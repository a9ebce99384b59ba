"""A search in every space of DARTS' kind from the command line, and its folder handed on."""

import json

import pytest
import torch

import fastnas
from fastnas import FastnasError, describe
from fastnas.search import SearchConfig
from fastnas.search.__main__ import main
from fastnas.search.engine import Search
from fastnas.spaces import CellSequence, Genotype, find_genotype, make_space
from tests.interrupted import interrupted_in
from tests.search.conftest import TINY

FLAGS = [f"--{name.replace('_', '-')}={value}" for name, value in {**TINY, "epochs": 1}.items()]


@pytest.mark.parametrize("space", ["s1", "s2", *(f"robustdarts-s{i}" for i in (1, 2, 3, 4))])
def test_a_search_and_its_folder_described(space, tmp_path, capsys):
    run = tmp_path / "run"
    main([*FLAGS, "--method=first-order", f"--space={space}", f"--out={run}"])
    shown = capsys.readouterr().out
    found = find_genotype(run)
    assert f"genotype: {found.genotype}" in shown
    assert found.space == space
    assert isinstance(found.genotype, CellSequence if space == "s2" else Genotype)
    describe.main([f"--genotype={run}", "--channels=4", "--json"])
    assert json.loads(capsys.readouterr().out)["space"] == ("s2" if space == "s2" else "darts")
    with pytest.raises(SystemExit):
        describe.main([f"--genotype={run}", "--space=nasbench201"])
    assert f"it is one of {space}; say --space {space}" in capsys.readouterr().err


def test_primitives_are_kept_by_the_run(tiny, tmp_path):
    """In config.json and in the genotype, and a run that goes on draws the noise that it would have drawn."""
    primitives = ["skip_connect", "noise", "max_pool_3x3"]
    options = {"space": "s2", "primitives": primitives, "method": "darts", "layers": 3}
    whole = tiny(**options, out=tmp_path / "whole")

    with interrupted_in(Search, 2):
        tiny(**options, out=tmp_path / "part")
    torch.manual_seed(123)
    part = fastnas.search(resume=tmp_path / "part")
    assert part.config.network.primitives == tuple(primitives)
    assert part.metrics[1]["val_loss"] == whole.metrics[1]["val_loss"]
    assert all(torch.equal(part.alphas[name], alpha) for name, alpha in whole.alphas.items())
    ops = {op for cell in find_genotype(part.out).genotype.cells for op, _ in cell}
    assert ops <= set(primitives)
    with pytest.raises(FastnasError, match="it differs in primitives"):
        fastnas.search(resume=part.out, primitives=primitives[:2])
    with pytest.raises(FastnasError, match="option primitives must be a list of strings or None, got 3"):
        tiny(space="s2", primitives=3)


@pytest.mark.parametrize("space", ["darts", "nasbench201"])
def test_a_configuration_from_before_primitives_could_be_chosen_is_the_same(space):
    """A run of then, in its config.json and in its checkpoints, names none."""
    now = SearchConfig.from_options({"space": space}).resolved()
    own = now.network.primitives
    assert own == make_space(space).alphas[0].primitives
    then = SearchConfig.from_options({**now.to_options(), "primitives": None})
    assert then.differences(now) == []
    other = SearchConfig.from_options({**now.to_options(), "primitives": own[1:]})
    assert then.differences(other) == now.differences(other) == ["primitives"]
    assert then.differences(SearchConfig.from_options({**now.to_options(), "seed": 1})) == ["seed"]
