"""What the fused executor keeps for backward: raw branch outputs and states, and nothing else of their size."""

from collections import Counter
from math import prod

import pytest
import torch

from bench.vanilla import DartsSupernet
from fastnas.spaces import Cell
from tests.supernet.networks import SPACES, batch, is_fused, supernet


class Kept:
    """Distinct storages that autograd keeps, by owner: "cells", as images or not, and "rest"; weights are not new."""

    def __init__(self, net, images):
        self.net, self.place = net, "rest"
        known = (net.weights.flat, net.running.flat, net.alphas.flat, images)
        self.known = {tensor.untyped_storage().data_ptr() for tensor in known}
        self.bytes = {"images": {}, "small": {}, "rest": {}}

    def pack(self, tensor):
        storage = tensor.untyped_storage()
        kind = self.place
        if kind == "cells":
            kind = "images" if tensor.dim() == 4 else "small"
        if storage.data_ptr() not in self.known:
            self.bytes[kind][storage.data_ptr()] = storage.nbytes()
        return tensor

    def measure(self, images):
        cell = self.net.cell

        def inside(*arguments):
            self.place = "cells"
            try:
                return cell(*arguments)
            finally:
                self.place = "rest"

        self.net.cell = inside
        with torch.autograd.graph.saved_tensors_hooks(self.pack, lambda tensor: tensor):
            logits = self.net(images)
        self.net.cell = cell
        # What the cells keep, too, is counted there.
        for owner in self.bytes["images"].keys() & self.bytes["rest"].keys():
            del self.bytes["rest"][owner]
        return logits


CONVOLUTIONS = {  # raw outputs that are kept of each primitive; a skip-connection has one where it halves
    **dict.fromkeys(["sep_conv_3x3", "sep_conv_5x5"], 1),
    **dict.fromkeys(["dil_conv_3x3", "dil_conv_5x5", "nor_conv_1x1", "nor_conv_3x3"], 1),
}


def pixels_of_stages(space, sides):
    """Height and width of each stage's output."""
    sizes = []
    for spec in space.stages:
        stride = {"residual": 2, "reduce": 2}.get(spec.kind, 1)
        sizes.append(tuple(-(-side // stride) for side in (sizes[-1] if sizes else sides)))
    return sizes


def images_that_cells_need(space, batch_size, sides):
    """Numbers of elements of all image tensors that backward through the cells needs, from the description.

    Every convolution branch's raw outputs, the states, and the cells' inputs, which are earlier stages' outputs.
    """
    sizes = pixels_of_stages(space, sides)
    needed, kept = [], set()
    for i, spec in enumerate(space.stages):
        if not isinstance(spec, Cell):
            continue
        for source in spec.inputs:
            kept.add(source.stage)
            if source.preprocess != "identity":  # its raw output, which gives the state again
                stride = 2 if source.preprocess == "factorized_reduce" else 1
                needed += [spec.channels * prod(-(-side // stride) for side in sizes[source.stage])]
        kept.add(i)  # the output states, side by side
        node = spec.channels * prod(sizes[i])
        needed += (spec.states - len(spec.inputs) - len(spec.output)) * [node]
        for edge in spec.edges:
            halving = edge.stride > 1 and "skip_connect" in edge.primitives
            needed += (sum(CONVOLUTIONS.get(name, 0) for name in edge.primitives) + halving) * [node]
    needed += [space.stages[i].out_channels * prod(sizes[i]) for i in sorted(kept)]
    return [batch_size * elements for elements in needed]


def held_after(function):
    """Bytes that torch's allocator holds more after the call than before, with its result alive, and the result."""
    with torch.autograd.profiler.profile(profile_memory=True, use_kineto=True) as profiler:
        result = function()
    events = profiler.kineto_results.events()
    return sum(event.nbytes() for event in events if event.name() == "[memory]"), result


def vanilla_bytes(images):
    """What plain PyTorch keeps for backward, in bytes."""
    torch.manual_seed(0)
    net, kept = DartsSupernet(16, 8, 10), {}
    known = {tensor.untyped_storage().data_ptr() for tensor in [*net.parameters(), *net.alphas, images]}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        net(images)
    return sum(kept.values())


@pytest.mark.parametrize("space", SPACES)
def test_nothing_but_raw_outputs_and_states_is_kept(space):
    """At C = 16, 8 cells, 32x32: the storages kept are exactly those, and no tensor is held beside them."""
    shape = (space, 16, 8 if space == "darts" else 5, 2, (32, 32))
    net, (images, _) = supernet(shape, "fused", torch.float32), batch(shape, torch.float32)
    if not is_fused(net):
        pytest.skip("its cells run as in the reference")
    kept = Kept(net, images)
    held, logits = held_after(lambda: kept.measure(images))
    needed = [4 * elements for elements in images_that_cells_need(net.space, *shape[3:])]
    extra = Counter(kept.bytes["images"].values()) - Counter(needed)
    assert not extra
    total = sum(sum(part.values()) for part in kept.bytes.values())
    # Beside them: statistics, mixing weights, stem and head, and NAS-Bench-201's residual blocks.
    assert total <= (1.02 if space == "darts" else 1.05) * sum(needed)
    assert held <= 1.002 * total + 4 * logits.numel()
    per_image = [value / len(images) / 1e6 for value in (total, sum(needed))]
    print(f"{space}: {per_image[0]:.1f} MB an image are kept, raw outputs and states are {per_image[1]:.1f}")
    if space == "darts":
        plain = vanilla_bytes(images)
        print(f"plain PyTorch: {plain / len(images) / 1e6:.1f} MB an image")
        assert plain > 6 * total
