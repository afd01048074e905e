"""Linear weights kept as integers of 4 bits in groups of 32, on a CPU.

Torch's int4 kernel multiplies bf16 activations with weights that stay packed: fastest for a few rows, where a step is bound by
reading weights. For more rows the arithmetic dominates and expanded bf16 weights win, so those are kept beside the packed ones.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

GROUP = 32
"""Input features that share a scale and a zero point."""

ROW_MULTIPLE = 16
"""Torch's kernel takes output features in multiples of this."""

PACKED_ROWS = 2048
"""Rows packed at a time; a multiple of every blocking that the kernel uses."""

FEW_ROWS = 4
"""Up to this many rows the packed weights are faster than the expanded ones (measured on Zen 4)."""


class Int4Weight(NamedTuple):
    """A weight [out, in] whose numbers are sums of 4-bit digits, scale * (digit - 8) + zero with both per group of inputs.

    One digit is what 4-bit formats store; two make an 8-bit one. They lie side by side in one longer row, so that their
    products are summed in fp32. A digit costs 0.6 bytes.

    packed      [out, digits * in / 2]        uint8, in the order that torch's kernel reads
    scale_zero  [digits * in / 32, out, 2]    bf16, as the kernel takes them
    """

    packed: Tensor
    scale_zero: Tensor


def can_pack(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether activations of this type, on this device, can be multiplied with packed weights."""
    return device.type == "cpu" and dtype is torch.bfloat16


def int4_linear(x: Tensor, weight: Int4Weight, bias: Tensor | None = None) -> Tensor:
    """x @ weight.T + bias; fastest for up to `FEW_ROWS` rows.

    x        [rows, in]   bf16
    bias     [out]        bf16
    returns  [rows, out]  bf16
    """
    packed, scale_zero = weight
    digits = 2 * packed.shape[1] // x.shape[1]
    repeated = x.contiguous() if digits == 1 else x.repeat(1, digits)
    y: Tensor = torch._weight_int4pack_mm_for_cpu(repeated, packed, GROUP, scale_zero)
    return y if bias is None else y.add_(bias)


def pack_four_bits(quants: Tensor, scale: Tensor, zero: Tensor, expanded: Tensor) -> Int4Weight:
    """The weight scale * (q - 8) + zero.

    quants       [out, in] uint8 with values 0..15
    scale, zero  [out, in / 32] of any float dtype, rounded to bf16
    expanded     [out, in] bf16, overwritten with the weight
    """
    scale, zero = scale.bfloat16(), zero.bfloat16()
    groups = quants.float().sub_(8).view(quants.shape[0], -1, GROUP)
    groups.mul_(scale.unsqueeze(2)).add_(zero.unsqueeze(2))
    expanded.copy_(groups.flatten(1))
    return _pack([quants], [scale], [zero])


def pack_eight_bits(quants: Tensor, scale: Tensor, expanded: Tensor) -> Int4Weight:
    """The weight scale * q, as two digits: q = 16 * high + low.

    quants    [out, in] int8
    scale     [out, in / 32] of any float dtype, rounded to bf16
    expanded  [out, in] bf16, overwritten with the weight
    """
    scale = scale.bfloat16()
    for rows, numbers, factors in zip(*(torch.split(each, PACKED_ROWS) for each in (expanded, quants, scale)), strict=True):
        groups = numbers.float().view(numbers.shape[0], -1, GROUP)
        rows.copy_(groups.mul_(factors.unsqueeze(2)).flatten(1))
    low = (quants & 15).view(torch.uint8)
    high = ((quants >> 4) + 8).view(torch.uint8)
    return _pack([high, low], [16 * scale, scale], [torch.zeros_like(scale), 8 * scale])


def _pack(digits: list[Tensor], scales: list[Tensor], zeros: list[Tensor]) -> Int4Weight:
    """digits      each [out, in] uint8 with values 0..15; out a multiple of 16
    scales, zeros  for each digit [out, in / 32], of any float dtype
    """
    return Int4Weight(_pack_digits(digits), _interleave(torch.cat(scales, dim=1), torch.cat(zeros, dim=1)))


def _pack_digits(digits: list[Tensor]) -> Tensor:
    """Torch's packed form of the digits side by side, made some rows at a time: it starts from int32."""
    chunks = zip(*(torch.split(digit, PACKED_ROWS) for digit in digits), strict=True)
    wide = (torch.cat(parts, dim=1).to(torch.int32) for parts in chunks)
    return torch.cat([torch._convert_weight_to_int4pack_for_cpu(rows, 1) for rows in wide])


def _interleave(scale: Tensor, zero: Tensor) -> Tensor:
    """[out, groups] twice -> [groups, out, 2] bf16."""
    return torch.stack([scale.t(), zero.t()], dim=-1).bfloat16().contiguous()
