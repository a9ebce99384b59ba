"""docs/new-space.md: its code is run as it stands there, and the space it makes is as good as one of the library's."""

import pytest
import torch
import torch.nn.functional as F

from fastnas import FastnasError
from fastnas.spaces import SPACES, Family, find_genotype, make_network, make_space, register
from fastnas.supernet import SupernetProblem, build_supernet, gradients
from tests.documentation.blocks import blocks
from tests.documentation.running import page_run


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The names that the page's code leaves behind; what it registers is gone after the tests."""
    (file,) = [block for block in blocks("docs/new-space.md") if block.title == "gates.py"]
    assert sum(bool(line.strip()) for line in file.code.splitlines()) < 40
    folder = tmp_path_factory.mktemp("page")
    with page_run("docs/new-space.md", folder) as names:
        names["found"] = find_genotype(folder / "runs/gates")
        yield {**vars(names["gates"]), **names}


def test_the_page_searches_and_reads_its_genotype_back(page):
    assert page["found"] == ("gates", page["genotype"])
    assert isinstance(page["result"].genotype, type(page["genotype"]))
    assert {kind: len(edges) for kind, edges in page["genotype"].edges.items()} == {"early": 3, "late": 3}
    assert page["logits"].shape == (2, 10)
    assert torch.isfinite(page["logits"]).all()


def test_its_genotype_is_the_strongest_primitive_of_every_edge(page):
    alphas = {"early": torch.eye(3), "late": torch.eye(3).roll(1, 0)}
    genotype = SPACES["gates"].derive(alphas)
    assert genotype.edges["early"] == ((0, 1, "skip_connect"), (0, 2, "nor_conv_3x3"), (1, 2, "avg_pool_3x3"))
    assert genotype.edges["late"] == ((0, 1, "gate"), (0, 2, "none"), (1, 2, "nor_conv_3x3"))
    assert genotype.skip_share() == 1 / 6
    cells = make_network("gates", genotype, channels=4, layers=2).stages[1:-1]
    assert [edge.primitives for edge in cells[1].edges] == [("gate",), ("none",), ("nor_conv_3x3",)]
    assert all(cell.affine and cell.alpha is None for cell in cells)
    assert SPACES["gates"].networks(make_space("gates")) == 3**6


def test_both_executors_agree_and_the_unknown_primitive_runs_plain(page):
    found = []
    images, labels = torch.randn(3, 1, 7, 8, dtype=torch.float64), torch.tensor([0, 1, 2])
    for backend in ("reference", "fused"):
        torch.manual_seed(0)
        space = make_space("gates", channels=4, layers=2, classes=3, image_channels=1)
        net = build_supernet(space, backend=backend, dtype=torch.float64)
        net.alphas.flat.normal_()
        loss = F.cross_entropy(net(images), labels)
        found.append([loss.detach(), *gradients(loss, net.weights, net.alphas)])
        problem = SupernetProblem(net, (images, labels), (images, labels))
        assert (
            problem.exact_by == "double backward"
        )  # though there is a fused cell: a gate need not have tangents
        found[-1].append(
            problem.train_mixed_product(torch.linspace(-1, 1, len(net.weights), dtype=torch.float64))
        )
    assert [net.space.stages[i].kind for i in net._fused] == ["early"]
    for fused, reference in zip(*found, strict=True):
        torch.testing.assert_close(fused, reference, rtol=1e-10, atol=1e-13)


def test_a_genotype_of_another_space_or_shape_is_refused(page):
    genotype = page["genotype"]
    other = type(genotype)("bars", genotype.edges)
    with pytest.raises(FastnasError, match="does not fit the space gates: it is one of bars"):
        make_network("gates", other)
    fewer = type(genotype)("gates", {"early": genotype.edges["early"]})
    with pytest.raises(FastnasError, match="'late' has others there"):
        make_network("gates", fewer)


def test_a_name_of_the_librarys_is_refused(page):
    with pytest.raises(FastnasError, match="the name 'darts' is a space of this library; choose another"):
        register(Family.of_supernet("darts", page["supernet"], search=(4, 2)))
    again = Family.of_supernet("gates", page["supernet"], search=(4, 3))
    register(again)
    assert SPACES["gates"] is again
