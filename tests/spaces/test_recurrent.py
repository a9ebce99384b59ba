import json

import pytest
import torch

from fastnas.describe import describe
from fastnas.errors import FastnasError
from fastnas.spaces import family, find_genotype, make_network, make_space, read_genotype, to_dot
from fastnas.spaces.recurrent import NETWORKS, PRIMITIVES, PUBLISHED, RecurrentGenotype


def test_the_published_sizes():
    """Liu et al. 2019, and what their code prints: 4.81 M weights to search with, 22.96 M to train."""
    searched = describe(make_space("recurrent"))
    assert (searched.parameters, searched.alpha) == (4_810_000, {"cell": (36, 5)})
    trained = make_network("recurrent", PUBLISHED["DARTS_V2"])
    assert describe(trained).parameters == 22_960_000
    # 600 x 600 and 36 edges of 300 x 600, then 300 x 10,000; one edge a node in a discrete network.
    assert searched.macs == 600 * 600 + 36 * 300 * 600 + 300 * 10_000
    assert describe(trained).macs == 1700 * 1700 + 8 * 850 * 1700 + 850 * 10_000
    assert searched.networks == NETWORKS == 4**8 * 40320


def test_genotypes_by_hand():
    """For each node the source whose strongest primitive but none is strongest."""
    alpha = torch.zeros(36, 5)
    alpha[:, 0] = 9  # none, which never counts
    alpha[0, PRIMITIVES.index("sigmoid")] = 1  # node 1 from 0
    alpha[1, PRIMITIVES.index("tanh")], alpha[2, PRIMITIVES.index("identity")] = 1, 2  # node 2 from 1
    alpha[3 + 2, PRIMITIVES.index("relu")] = 3  # node 3 from 2
    genotype = family("recurrent").derive({"cell": alpha})
    assert genotype.recurrent[:4] == (("sigmoid", 0), ("identity", 1), ("relu", 2), ("tanh", 0))
    assert genotype.concat == tuple(range(1, 9))
    assert genotype.skip_share() == 1 / 8


@pytest.mark.parametrize("name", PUBLISHED)
def test_genotypes_are_read_as_they_are_written(name):
    genotype = PUBLISHED[name]
    assert RecurrentGenotype.parse(str(genotype)) == genotype
    assert find_genotype(json.dumps(genotype.to_json())) == ("recurrent", genotype)
    assert f'recurrent_0 -> recurrent_1 [label="{genotype.recurrent[0][0]}"]' in to_dot(genotype)


def test_a_name_that_two_spaces_have():
    assert read_genotype("recurrent", "DARTS_V2") == PUBLISHED["DARTS_V2"]
    assert read_genotype("darts", "DARTS_V2") == find_genotype("DARTS_V2").genotype != PUBLISHED["DARTS_V2"]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("Genotype(recurrent=[('tanh', 1)], concat=[1])", "node 1 of recurrent reads state 1"),
        ("Genotype(recurrent=[('none', 0)], concat=[1])", "unknown primitive 'none' in recurrent"),
        ("Genotype(recurrent=[('tanh', 0)], concat=[2])", "concat must list different states from 0 to 1"),
        ("Genotype(normal=[('tanh', 0)])", "not a recurrent genotype"),
        ("Genotype(recurrent=__import__('os').getcwd(), concat=[1])", "not a recurrent genotype"),
    ],
)
def test_mistakes(text, sentence):
    with pytest.raises(FastnasError, match=sentence):
        RecurrentGenotype.parse(text)
