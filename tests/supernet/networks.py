"""Supernets with random weights, alphas and running statistics, and batches for them, over both spaces."""

import torch

from fastnas.spaces import Cell, make_space
from fastnas.supernet import build_supernet

SPACES = ["darts", "nasbench201"]
# space, C, layers, images, their sides
SHAPES = [
    ("darts", 4, 3, 1, (8, 8)),
    ("darts", 4, 3, 3, (9, 11)),
    ("darts", 6, 3, 2, (32, 32)),
    ("darts", 16, 3, 2, (9, 11)),
    ("darts", 4, 8, 2, (8, 8)),
    ("nasbench201", 4, 1, 1, (8, 8)),
    ("nasbench201", 6, 2, 3, (9, 11)),
    ("nasbench201", 16, 1, 2, (32, 32)),
]
# The spaces in DARTS' skeleton: fixed edges, an alpha a cell, primitives that differ from edge to edge, noise.
SKELETON_SHAPES = [
    ("s1", 4, 3, 2, (9, 11)),
    ("s2", 4, 4, 2, (9, 11)),
    ("robustdarts-s1", 4, 3, 2, (9, 11)),
    ("robustdarts-s3", 4, 3, 2, (9, 11)),
    ("robustdarts-s4", 4, 3, 2, (9, 11)),
]


def named(shape):
    space, channels, layers, images, (height, width) = shape
    return f"{space}-C{channels}-L{layers}-{images}x{height}x{width}"


def supernet(shape, backend, dtype=torch.float64, seed=0, image_channels=3):
    """Random weights, alphas and running statistics, the same numbers for both backends and dtypes."""
    space, channels, layers, *_ = shape
    torch.manual_seed(seed)
    description = make_space(
        space, channels=channels, layers=layers, image_channels=image_channels, classes=10
    )
    net = build_supernet(description, backend=backend, dtype=dtype)
    generator = torch.Generator().manual_seed(seed + 1)
    net.alphas.flat.copy_(torch.randn(len(net.alphas), generator=generator))
    for name, tensor in net.running.tensors.items():
        value = torch.rand(tensor.shape, generator=generator)
        tensor.copy_(0.5 + value if name.endswith("var") else value - 0.5)
    return net


def batch(shape, dtype=torch.float64, seed=2):
    *_, images, sides = shape
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(
        images, 3, *sides, generator=generator
    )  # float32: both precisions see the same images
    return noise.to(dtype), torch.randint(10, (images,), generator=generator)


def is_fused(net):
    """Whether all of its cells are single autograd functions."""
    return {i for i, spec in enumerate(net.space.stages) if isinstance(spec, Cell)} <= set(net._fused)
