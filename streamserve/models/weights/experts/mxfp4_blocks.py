"""Experts stored in blocks of MXFP4 (OCP Microscaling Formats 1.0, 2023): where blocks are, and their numbers.

A block is 32 numbers of four bits, two in a byte, the first in its lower half; its scale is a power of two.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from streamserve.models.weights.destination import Destination, Region, gathered
from streamserve.models.weights.experts.spec import ExpertPart
from streamserve_kernels import MXFP4_BLOCK, mxfp4_numbers


def digits_of(blocks: Tensor) -> Tensor:
    """blocks [..., groups, 16] uint8 -> [..., groups * 32], 0 to 15"""
    return torch.stack([blocks & 15, blocks >> 4], dim=-1).flatten(-3)


def in_blocks(part: ExpertPart, use: Callable[[Tensor, Tensor], None]) -> Iterator[Destination]:
    """The destinations of blocks [experts, rows, groups, 16] and scales [experts, rows, groups], with which `use` is called.

    Scales are exponents plus 127, uint8.
    """
    blocks, scales = stored_regions(part.region)
    names = part.name, part.name.removesuffix("_blocks") + "_scales"

    def fill(stored: Mapping[str, Tensor]) -> None:
        use(*(stored[name] for name in names))

    return gathered(dict(zip(names, (blocks, scales), strict=True)), fill)


def dequantized(part: ExpertPart) -> Iterator[Destination]:
    """The destinations of blocks and of their scales, which fill the part's target once both have come."""
    # Stacked tensors hold something for every rank.
    target = part.target
    assert target is not None

    def use(blocks: Tensor, scales: Tensor) -> None:
        # One expert at a time: all of a layer's take gigabytes in fp32.
        for of_expert, *stored in zip(target, blocks, scales, strict=True):
            of_blocks, of_scales = (each.to(target.device) for each in stored)
            of_expert.copy_(mxfp4_numbers(digits_of(of_blocks), of_scales))

    return in_blocks(part, use)


def stored_regions(region: Region) -> tuple[Region, Region]:
    """Where the blocks and the scales of a region of numbers are; its columns begin and end between blocks."""
    *whole, columns = region.whole
    *ranges, taken = region.ranges
    groups = range(taken.start // MXFP4_BLOCK, taken.stop // MXFP4_BLOCK)
    scales = Region((*whole, columns // MXFP4_BLOCK), (*ranges, groups))
    return Region((*scales.whole, MXFP4_BLOCK // 2), (*scales.ranges, range(MXFP4_BLOCK // 2))), scales
