"""What a network has beside its cells: auxiliary head, drop-path, ImageNet's stem, in both kinds of network."""

import pytest
import torch
import torch.nn.functional as F

from fastnas import FastnasError
from fastnas.describe import describe
from fastnas.spaces import (
    CellString,
    find_genotype,
    make_network,
    make_space,
    with_auxiliary,
    with_imagenet_stem,
)
from fastnas.supernet import build_supernet, gradients
from fastnas.supernet.reference import dropped

SKIPS = "Genotype(normal=[('skip_connect', 0), ('skip_connect', 1)], normal_concat=[2], "
SKIPS += "reduce=[('skip_connect', 0), ('sep_conv_3x3', 1)], reduce_concat=[2])"


def discrete(genotype="DARTS_V2", **sizes):
    found = find_genotype(genotype)
    return make_network(found.space, found.genotype, **{"channels": 4, "layers": 3, **sizes})


def images(count=2, side=32):
    return torch.rand(count, 3, side, side, dtype=torch.float64)


@pytest.mark.parametrize(("imagenet", "side"), [(False, 8), (True, 7)])
def test_the_auxiliary_head_is_darts_head(imagenet, side):
    """Stated once more on the weights themselves; side: where DARTS has it, of 32 or 224 pixels."""
    space = discrete()
    space = with_auxiliary(
        with_imagenet_stem(space) if imagenet else space, 2 if imagenet else 3, normalise_last=not imagenet
    )
    net = build_supernet(space, backend="reference", dtype=torch.float64)
    head = {
        name.removeprefix("auxiliary."): w for name, w in net.weights.tensors.items() if "auxiliary" in name
    }
    x = torch.randn(3, 64, side, side, dtype=torch.float64)

    def norm(x, at):
        if f"features.{at}.weight" not in head:
            return x
        centred = x - x.mean((0, 2, 3), keepdim=True)
        scaled = centred / (centred.square().mean((0, 2, 3), keepdim=True) + 1e-5).sqrt()
        return scaled * head[f"features.{at}.weight"].view(1, -1, 1, 1) + head[f"features.{at}.bias"].view(
            1, -1, 1, 1
        )

    pooled = F.avg_pool2d(x.relu(), 5, 2 if imagenet else 3)
    assert pooled.shape[2:] == (2, 2)
    first = norm(F.conv2d(pooled, head["features.2.weight"]), 3).relu()
    second = norm(F.conv2d(first, head["features.5.weight"]), 6).relu()
    expected = F.linear(second.flatten(1), head["classifier.2.weight"], head["classifier.2.bias"])
    torch.testing.assert_close(net.auxiliary(x), expected)
    assert len(head) == (6 if imagenet else 8)


def test_the_auxiliary_head_is_counted_by_itself_and_works_in_training_alone():
    plain = discrete(channels=6, layers=3)
    space = with_auxiliary(plain)
    counted = describe(space).parameters
    assert counted == describe(plain).parameters
    with torch.device("meta"):
        net = build_supernet(space, backend="reference")
        width = 6 * 4 * 4
        head = width * 128 + 2 * 128 + 128 * 768 * 4 + 2 * 768 + 768 * 10 + 10
        assert len(net.weights) == counted + head
        logits, auxiliary = net.heads(torch.empty(2, 3, 32, 32))
        assert logits.shape == auxiliary.shape == (2, 10)
        assert net.eval().heads(torch.empty(2, 3, 32, 32))[1] is None


def test_the_auxiliary_head_reads_the_cell_at_two_thirds():
    """Where a second forward pass by hand leaves off."""
    torch.manual_seed(0)
    net = build_supernet(with_auxiliary(discrete(layers=6)), backend="reference", dtype=torch.float64)
    x, outputs = images(), []
    for stage in net.stages:
        stage.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    _, auxiliary = net.heads(x)
    torch.testing.assert_close(auxiliary, net.auxiliary(outputs[5]))  # the stem, then cells 0 to 4


def test_images_too_small_for_the_auxiliary_head_are_one_sentence():
    net = build_supernet(with_auxiliary(discrete()), backend="reference", dtype=torch.float64)
    with pytest.raises(FastnasError, match="the auxiliary head needs images of 8x8 behind its cell, got 4x4"):
        net.heads(images(side=16))


def test_imagenet_networks_have_the_papers_weights_and_shapes():
    """DARTS (Liu et al. 2019, table 3): 4.7 million weights."""
    found = describe(with_imagenet_stem(discrete(channels=48, layers=14, classes=1000)), 224)
    assert round(found.parameters / 1e6, 1) == 4.7
    assert [row.output[1:] for row in found.stages[:3]] == [(56, 56), (28, 28), (28, 28)]
    assert found.stages[-2].output == (48 * 16, 7, 7)


def test_imagenet_is_for_cells_that_read_two_states():
    cell = CellString(("skip_connect",) * 6)
    with pytest.raises(FastnasError, match="the space nasbench201 has no network for ImageNet"):
        with_imagenet_stem(make_network("nasbench201", cell))


def test_drop_path_drops_images_whole_and_keeps_the_mean():
    torch.manual_seed(0)
    x = torch.rand(4000, 2, 2, 2, dtype=torch.float64) + 1
    out = dropped(x, torch.tensor(0.3))
    kept = out[:, 0, 0, 0] != 0
    torch.testing.assert_close(out, torch.where(kept.view(-1, 1, 1, 1), x / 0.7, 0.0), rtol=1e-6, atol=0.0)
    assert abs(kept.double().mean().item() - 0.7) < 4 * (0.21 / 4000) ** 0.5


def test_drop_path_drops_everything_but_identities():
    """With everything dropped a reduction's edges are zero, and cells of identities add up their inputs."""
    net = build_supernet(discrete(SKIPS, layers=4), backend="reference", dtype=torch.float64)
    seen = []
    for stage in net.stages:
        stage.register_forward_hook(lambda module, inputs, output: seen.append(output))
    net.drop_path = torch.tensor(1.0 - 1e-12, dtype=torch.float64)
    net(images())
    normal, reduction = seen[1], seen[2]
    assert normal.abs().max() > 0
    assert reduction.abs().max() == 0


@pytest.mark.parametrize("space", ["darts", "nasbench201"])
def test_drop_path_in_a_fused_supernet_is_the_references(space):
    space = make_space(space, channels=4, layers=1)
    torch.manual_seed(0)
    nets = [build_supernet(space, backend=backend, dtype=torch.float64) for backend in ("reference", "fused")]
    nets[1].weights.flat.copy_(nets[0].weights.flat)
    nets[1].alphas.flat.copy_(nets[0].alphas.flat)
    x, found = images(side=8), []
    for net in nets:
        net.drop_path = torch.tensor(0.4)
        torch.manual_seed(1)
        out = net(x)
        found.append((out, *gradients(out.square().sum(), net.weights, net.alphas), net.running.flat.clone()))
    for reference, fused in zip(*found, strict=True):
        torch.testing.assert_close(fused, reference)
    assert found[0][1].norm() > 0
    nets[1].drop_path = None
    assert not torch.allclose(nets[1](x), found[1][0])


def test_evaluation_drops_nothing():
    net = build_supernet(discrete(), backend="reference", dtype=torch.float64).eval()
    x = images()
    expected = net(x)
    net.drop_path = torch.tensor(0.9)
    assert torch.equal(net(x), expected)
