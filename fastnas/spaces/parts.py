"""What a whole network gets beside its cells: an auxiliary head, and the stem for ImageNet's large images."""

from __future__ import annotations

from dataclasses import replace

from fastnas.errors import FastnasError
from fastnas.spaces.description import Auxiliary, Cell, Input, MatrixCell, Space, Stem


def with_auxiliary(space: Space, pool_stride: int = 3, *, normalise_last: bool = True) -> Space:
    """``space``, supernet or discrete network, with DARTS' auxiliary head behind the cell at two thirds of its cells.

    Args:
        space: any with cells.
        pool_stride: of the head's average pooling, 5 x 5: 3 on images of 8 x 8 there (CIFAR), 2 on 7 x 7 (ImageNet).
        normalise_last: BatchNorm behind the head's second convolution: DARTS has one for CIFAR and none for ImageNet.

    >>> from fastnas.spaces import make_space
    >>> with_auxiliary(make_space("darts", layers=8)).auxiliary.stage  # the stem is stage 0
    6
    """
    cells = [i for i, stage in enumerate(space.stages) if isinstance(stage, Cell | MatrixCell)]
    stage = cells[2 * len(cells) // 3]
    return replace(space, auxiliary=Auxiliary(stage, space.classes, pool_stride, normalise_last))


def with_imagenet_stem(space: Space) -> Space:
    """``space``, one in DARTS' skeleton, with DARTS' stem for ImageNet: three convolutions of stride 2 to C channels.

    The first cell reads the second convolution's output, halved once more, and the third's. 224 x 224 pixels become
    28 x 28 before the first cell.

    Raises:
        FastnasError: its cells do not read the two states before them.
    """
    stem, first, *rest = space.stages
    if not (isinstance(stem, Stem) and isinstance(first, Cell) and len(first.inputs) == 2):
        raise FastnasError(
            f"the space {space.name} has no network for ImageNet: that stem is for cells that read two states"
        )
    channels = first.channels
    shifted = [
        replace(cell, inputs=tuple(replace(source, stage=source.stage + 1) for source in cell.inputs))
        if isinstance(cell, Cell)
        else cell
        for cell in (first, *rest)
    ]
    assert isinstance(shifted[0], Cell)
    inputs = (Input(0, "factorized_reduce"), shifted[0].inputs[1])
    stems = (Stem(channels, strides=(2, 2), rectified=True), Stem(channels, strides=(2,)))
    return replace(space, stages=(*stems, replace(shifted[0], inputs=inputs), *shifted[1:]))
