"""Linear weights kept as integers of 4 bits in groups of 32, on a CPU.

Torch's int4 kernel multiplies bf16 activations with weights that stay packed: fastest for a few rows, where a step is bound by
reading weights. For more rows the arithmetic dominates and expanded bf16 weights win, so those are kept beside the packed ones.
"""

from __future__ import annotations

import torch
from torch import Tensor

from streamserve_kernels.reference.blocked import BlockedWeight, multiply, multiply_add, prepare_weight

GROUP = 32
"""Input features that share a scale and a zero point."""

ROW_MULTIPLE = 16
"""Torch's kernel takes output features in multiples of this."""

PACKED_ROWS = 2048
"""Rows packed at a time; a multiple of every blocking that the kernel uses."""

FEW_ROWS = 4
"""Up to this many rows the packed weights are faster than the expanded ones (measured on Zen 4)."""


class Int4Weight:
    """A weight [out, in] whose numbers are sums of 4-bit digits, scale * (digit - 8) + zero with both per group of inputs.

    One digit is what 4-bit formats store; two make an 8-bit one. Scale and zero are bf16, as the kernel takes them. A weight
    costs 0.6 bytes a digit beside the 2 of its expanded form.
    """

    __slots__ = ("expanded", "num_digits", "packed", "scale_zero", "shape")

    def __init__(self, digits: list[Tensor], scales: list[Tensor], zeros: list[Tensor], expanded: Tensor) -> None:
        """digits    each [out, in] uint8 with values 0..15; out a multiple of 16
        scales, zeros  for each digit [out, in / 32], of any float dtype
        expanded       [out, in] bf16, the same weight
        """
        self.shape = expanded.shape
        self.num_digits = len(digits)
        self.scale_zero = _interleave(torch.cat(scales, dim=1), torch.cat(zeros, dim=1))
        self.packed = _pack(digits)
        self.expanded: Tensor | BlockedWeight = prepare_weight(expanded)

    def matmul(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """x [rows, in] bf16 -> x @ weight.T (+ bias) [rows, out] bf16."""
        if x.shape[0] > FEW_ROWS:
            return multiply(x, self.expanded, bias)
        # The digits of a weight lie side by side in one longer row, so that their products are summed in fp32.
        repeated = x.contiguous() if self.num_digits == 1 else x.repeat(1, self.num_digits)
        y: Tensor = torch._weight_int4pack_mm_for_cpu(repeated, self.packed, GROUP, self.scale_zero)
        return y if bias is None else y.add_(bias)

    def matmul_add(self, x: Tensor, residual: Tensor, bias: Tensor | None = None) -> Tensor:
        """residual [rows, out] + matmul(x, bias)."""
        if x.shape[0] > FEW_ROWS:
            return multiply_add(x, self.expanded, residual, bias)
        return self.matmul(x, bias).add_(residual)


def pack_four_bits(quants: Tensor, scale: Tensor, zero: Tensor, expanded: Tensor) -> Int4Weight:
    """The weight scale * (q - 8) + zero.

    quants       [out, in] uint8 with values 0..15
    scale, zero  [out, in / 32] of any float dtype, rounded to bf16
    expanded     [out, in] bf16, overwritten with the weight; it may be kept
    """
    scale, zero = scale.bfloat16(), zero.bfloat16()
    groups = quants.float().sub_(8).view(quants.shape[0], -1, GROUP)
    groups.mul_(scale.unsqueeze(2)).add_(zero.unsqueeze(2))
    expanded.copy_(groups.flatten(1))
    return Int4Weight([quants], [scale], [zero], expanded)


def pack_eight_bits(quants: Tensor, scale: Tensor, expanded: Tensor) -> Int4Weight:
    """The weight scale * q, as two digits: q = 16 * high + low.

    quants    [out, in] int8
    scale     [out, in / 32] of any float dtype, rounded to bf16
    expanded  [out, in] bf16, overwritten with the weight; it may be kept
    """
    scale = scale.bfloat16()
    for rows, numbers, factors in zip(*(torch.split(each, PACKED_ROWS) for each in (expanded, quants, scale)), strict=True):
        groups = numbers.float().view(numbers.shape[0], -1, GROUP)
        rows.copy_(groups.mul_(factors.unsqueeze(2)).flatten(1))
    low = (quants & 15).view(torch.uint8)
    high = ((quants >> 4) + 8).view(torch.uint8)
    return Int4Weight([high, low], [16 * scale, scale], [torch.zeros_like(scale), 8 * scale], expanded)


def _pack(digits: list[Tensor]) -> Tensor:
    """Torch's packed form of the digits side by side, made some rows at a time: it starts from int32."""
    chunks = zip(*(torch.split(digit, PACKED_ROWS) for digit in digits), strict=True)
    wide = (torch.cat(parts, dim=1).to(torch.int32) for parts in chunks)
    return torch.cat([torch._convert_weight_to_int4pack_for_cpu(rows, 1) for rows in wide])


def _interleave(scale: Tensor, zero: Tensor) -> Tensor:
    """[out, groups] twice -> [groups, out, 2] bf16."""
    return torch.stack([scale.t(), zero.t()], dim=-1).bfloat16().contiguous()
