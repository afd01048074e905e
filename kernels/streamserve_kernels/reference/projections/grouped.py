"""Weights of 4-bit integers with a scale for each group of inputs, what they stand for, and their products in torch."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

GROUPS = (32, 64, 128)
"""How many inputs may share a scale."""

ROWS, COLUMNS = 16, 64
"""Weights are kept in tiles of so many rows and columns."""

_WORDS = 4


class GroupedWeight(NamedTuple):
    """A weight [out, in] of numbers scale * (q - zero), q and zero of 4 bits.

    words   [out / 16, in / 64, 32, 4]  int32; lane and word of a tile, in which matrix units take it (`pack`)
    scale   [in / group, out]  of any float dtype
    zero    [in / group, out]  uint8; None where all are 8
    order   [in]  int64: which input each column multiplies; None where that is its own (GPTQ with act-order: columns of a group
            lie side by side here, and are scattered in the model)
    """

    words: Tensor
    scale: Tensor
    zero: Tensor | None = None
    order: Tensor | None = None

    @property
    def shape(self) -> tuple[int, int]:
        return self.words.shape[0] * ROWS, self.words.shape[1] * COLUMNS

    @property
    def group(self) -> int:
        return self.shape[1] // self.scale.shape[0]


def can_keep_grouped(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether activations of this type, on this device, are multiplied with 4-bit weights; if not, expand them."""
    return device.type != "cpu" and dtype in (torch.bfloat16, torch.float16)


def pack(quants: Tensor) -> Tensor:
    """Words of integers [out, in], 0..15; out a multiple of 16 and in one of 64.

    Of each 16 columns a lane holds rows g and g + 8 and columns 2t, 2t + 1, 2t + 8 and 2t + 9, with g = lane / 4 and
    t = lane % 4, as the first operand of `mma.m16n8k16` and `wgmma.mma_async` (PTX ISA). The eight are a word, those of even
    columns in its lower half.
    """
    out, columns = quants.shape
    # [tile, half of rows, g, tile, word, half of columns, t, even or odd]
    parts = quants.view(out // ROWS, 2, 8, columns // COLUMNS, _WORDS, 2, 4, 2)
    # -> [tile, tile, g, t, word, even or odd, half of columns, half of rows]; as bytes: int32 would take four times more
    digits = parts.permute(0, 3, 2, 6, 4, 7, 5, 1)
    pairs = (digits[..., 0] | (digits[..., 1] << 4)).contiguous()
    return pairs.flatten(5).view(torch.int32).squeeze(-1).flatten(2, 3)


def unpack(words: Tensor) -> Tensor:
    """The integers that `pack` has packed, uint8."""
    tiles, chunks = words.shape[:2]
    pairs = words.contiguous().unsqueeze(-1).view(torch.uint8)
    digits = torch.stack([pairs & 15, pairs >> 4], dim=-1)
    parts = digits.view(tiles, chunks, 8, 4, _WORDS, 2, 2, 2).permute(0, 7, 2, 1, 4, 6, 3, 5)
    return parts.reshape(tiles * ROWS, chunks * COLUMNS)


def dequantize(weight: GroupedWeight) -> Tensor:
    """What a weight stands for, [out, in] fp32, with inputs in the model's order."""
    group = weight.group
    zero = 8.0 if weight.zero is None else weight.zero.t().float().repeat_interleave(group, 1)
    numbers = (unpack(weight.words).float() - zero) * weight.scale.t().float().repeat_interleave(group, 1)
    if weight.order is None:
        return numbers
    return torch.empty_like(numbers).index_copy_(1, weight.order, numbers)
