"""Exact second-order products of a supernet by differentiating its reference executor twice."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fastnas.supernet.arena import Arena
from fastnas.supernet.graphs import Batch
from fastnas.supernet.reference import Supernet


def product(net: Supernet, batch: Batch, first: str, second: str, direction: Tensor) -> Tensor:
    """d/d ``second`` of <d loss / d ``first``, direction>, for the arenas "weights" and "alphas" of ``net``."""
    net = _reference(net)
    arenas: dict[str, Arena] = {"weights": net.weights, "alphas": net.alphas}
    mode = net.training
    net.train()
    try:
        with net.frozen_statistics(), torch.enable_grad(), torch.random.fork_rng(devices=[]):
            loss = F.cross_entropy(net(batch[0]), batch[1])
            grads = torch.autograd.grad(loss, arenas[first].leaves, create_graph=True, materialize_grads=True)
            slope = torch.cat([grad.reshape(-1) for grad in grads]) @ direction
            parts = torch.autograd.grad(slope, arenas[second].leaves, materialize_grads=True)
    finally:
        net.train(mode)
    return torch.cat([part.reshape(-1) for part in parts])


def _reference(net: Supernet) -> Supernet:
    """``net`` itself where it is the reference executor, else one with its weights."""
    if type(net) is Supernet:
        return net
    flat = net.weights.flat
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        other = Supernet(net.space, dtype=flat.dtype, device=flat.device)
        other.weights.flat.copy_(flat)
        other.alphas.flat.copy_(net.alphas.flat)
    return other
