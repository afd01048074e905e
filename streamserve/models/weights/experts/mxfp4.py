"""Experts stored in blocks of MXFP4, expanded while they are loaded (OCP Microscaling Formats 1.0, 2023).

A block is 32 numbers of four bits, two in a byte, the first in its lower half; its scale is a power of two.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from streamserve.models.weights.destination import Destination, Region, gathered
from streamserve.models.weights.experts.spec import ExpertPart

BLOCK = 32
EXPONENT_BIAS = 127

_VALUES = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0])


def expand(blocks: Tensor, scales: Tensor) -> Tensor:
    """The numbers of some blocks, in fp32.

    blocks   [..., groups, 16]  uint8
    scales   [..., groups]      uint8, exponents plus 127
    returns  [..., groups * 32]
    """
    digits = torch.stack([blocks & 15, blocks >> 4], dim=-1).flatten(-2)
    return torch.ldexp(_VALUES[digits.int()], (scales.int() - EXPONENT_BIAS).unsqueeze(-1)).flatten(-2)


def dequantized(part: ExpertPart) -> Iterator[Destination]:
    """The destinations of blocks and of their scales, which fill the part's target once both have come."""
    blocks, scales = stored_regions(part.region)
    names, target = (part.name, part.name.removesuffix("_blocks") + "_scales"), part.target
    # Stacked tensors hold something for every rank.
    assert target is not None

    def fill(stored: Mapping[str, Tensor]) -> None:
        # One expert at a time: all of a layer's take gigabytes in fp32.
        for number, of_expert in enumerate(target):
            of_expert.copy_(expand(*(stored[name][number] for name in names)))

    return gathered(dict(zip(names, (blocks, scales), strict=True)), fill)


def stored_regions(region: Region) -> tuple[Region, Region]:
    """Where the blocks and the scales of a region of numbers are; its columns begin and end between blocks."""
    *whole, columns = region.whole
    *ranges, taken = region.ranges
    groups = range(taken.start // BLOCK, taken.stop // BLOCK)
    scales = Region((*whole, columns // BLOCK), (*ranges, groups))
    return Region((*scales.whole, BLOCK // 2), (*scales.ranges, range(BLOCK // 2))), scales
