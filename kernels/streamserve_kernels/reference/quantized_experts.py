"""Experts' weights that are stored in fewer bits, and what they stand for.

Rows of a gate and of what it lets through alternate, as in dense weights.
"""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from streamserve_kernels.reference.projections.fp8 import BLOCK as FP8_BLOCK
from streamserve_kernels.reference.projections.grouped import COLUMNS, ROWS, unpack

MXFP4_BLOCK = 32
"""Columns that share a scale in MXFP4."""

MXFP4_LARGEST_EXPONENT = 128

_EXPONENT_BIAS = 127
_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


class Fp8ExpertsWeight(NamedTuple):
    """Weights [experts, out, in] of e4m3 numbers and the factors that they are multiplied by.

    values      [experts, out, in]  float8_e4m3fn
    scale       fp32: [experts, out, 1], or [experts, blocks, columns], a factor for each block of 128 × 128; columns as in
                `Fp8Weight`
    alternates  rows of two matrices take turns, and so do their blocks
    """

    values: Tensor
    scale: Tensor
    alternates: bool = False

    @property
    def shape(self) -> torch.Size:
        return self.values.shape

    @property
    def has_blocks(self) -> bool:
        return self.scale.shape[2] > 1


class Mxfp4ExpertsWeight(NamedTuple):
    """Weights [experts, out, in] of e2m1 numbers, 32 of a row with a power of two (OCP Microscaling Formats 1.0, 2023).

    words      [experts, out / 16, in / 64, 32, 4]  int32, as `grouped.pack` packs digits
    exponents  [experts, out / 16, in / 64, 8]  int32, as `pack_exponents` packs them
    """

    words: Tensor
    exponents: Tensor

    @property
    def shape(self) -> torch.Size:
        experts, tiles, chunks = self.words.shape[:3]
        return torch.Size((experts, tiles * ROWS, chunks * COLUMNS))


class GroupedExpertsWeight(NamedTuple):
    """Weights [experts, out, in] of numbers scale * (q - zero), q and zero of 4 bits.

    words  [experts, out / 16, in / 64, 32, 4]  int32, as `grouped.pack` packs integers
    scale  [experts, out / 16, in / group, 8, 2]  bf16 or fp16, as `pack_groups` orders them
    zero   the same of uint8; None where all are 8
    """

    words: Tensor
    scale: Tensor
    zero: Tensor | None = None

    @property
    def shape(self) -> torch.Size:
        experts, tiles, chunks = self.words.shape[:3]
        return torch.Size((experts, tiles * ROWS, chunks * COLUMNS))

    @property
    def group(self) -> int:
        return self.shape[2] // self.scale.shape[2]


ExpertsWeight: TypeAlias = Tensor | Fp8ExpertsWeight | Mxfp4ExpertsWeight | GroupedExpertsWeight
"""What a layer's experts multiply with, [experts, out, in]."""


def can_keep_mxfp4(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether activations of this type, on this device, are multiplied with MXFP4 numbers; if not, expand those."""
    return device.type != "cpu" and dtype is torch.bfloat16


def numbers_of(weight: ExpertsWeight, expert: int) -> Tensor:
    """What one expert's weight stands for, [out, in]; fp32, or as it is stored."""
    if isinstance(weight, Fp8ExpertsWeight):
        return _fp8_numbers(weight, expert)
    if isinstance(weight, Mxfp4ExpertsWeight):
        return mxfp4_numbers(unpack(weight.words[expert]), unpack_exponents(weight.exponents[expert]))
    if isinstance(weight, GroupedExpertsWeight):
        zero = 8.0 if weight.zero is None else _columns_of(weight.zero[expert], weight.group)
        return (unpack(weight.words[expert]).float() - zero) * _columns_of(weight.scale[expert], weight.group)
    return weight[expert]


def _fp8_numbers(weight: Fp8ExpertsWeight, expert: int) -> Tensor:
    values, scale = weight.values[expert].float(), weight.scale[expert]
    if not weight.has_blocks:
        return values * scale
    rows, columns = values.shape
    if weight.alternates:
        scale = scale.view(-1, 2, scale.shape[1]).repeat_interleave(FP8_BLOCK, 0).flatten(0, 1)
    else:
        scale = scale.repeat_interleave(FP8_BLOCK, 0)
    return values * scale[:rows].repeat_interleave(FP8_BLOCK, 1)[:, :columns]


def pack_groups(values: Tensor) -> Tensor:
    """What groups of each row have [out, in / group], as [out / 16, in / group, 8, 2]: rows g and g + 8 of a tile together."""
    rows, groups = values.shape
    return values.view(rows // ROWS, 2, 8, groups).permute(0, 3, 2, 1).contiguous()


def _columns_of(packed: Tensor, group: int) -> Tensor:
    """What `pack_groups` has packed, for each column: [out, in] fp32."""
    tiles, groups = packed.shape[:2]
    return packed.permute(0, 3, 2, 1).reshape(tiles * ROWS, groups).float().repeat_interleave(group, 1)


def mxfp4_numbers(digits: Tensor, scale: Tensor) -> Tensor:
    """The numbers of digits [..., columns] uint8 and their exponents plus 127 [..., columns / 32], in fp32."""
    table = torch.tensor([*_E2M1, *(-each for each in _E2M1)], device=digits.device)
    blocks = table[digits.int()].view(*scale.shape, MXFP4_BLOCK)
    return torch.ldexp(blocks, (scale.int() - _EXPONENT_BIAS).unsqueeze(-1)).flatten(-2)


def pack_exponents(exponents: Tensor) -> Tensor:
    """Words of exponents plus 127 [out, in / 32], uint8: a tile has 8 words, of rows g and g + 8 with two blocks of 32 each.

    Raises `ValueError` for one above `MXFP4_LARGEST_EXPONENT`, of a factor of 2: the kernels' bf16 numbers have no room for it.
    """
    if exponents.numel() and int(exponents.max()) > MXFP4_LARGEST_EXPONENT:
        raise ValueError(f"a block's scale is 2 ** {int(exponents.max()) - _EXPONENT_BIAS}; the largest that is supported is 2")
    rows, groups = exponents.shape
    parts = exponents.view(rows // ROWS, 2, 8, groups // 2, 2).permute(0, 3, 2, 1, 4)
    return parts.flatten(3).view(torch.int32).squeeze(-1)


def unpack_exponents(words: Tensor) -> Tensor:
    """What `pack_exponents` has packed."""
    tiles, chunks = words.shape[:2]
    parts = words.contiguous().view(torch.uint8).view(tiles, chunks, 8, 2, 2).permute(0, 3, 2, 1, 4)
    return parts.reshape(tiles * ROWS, chunks * 2)
