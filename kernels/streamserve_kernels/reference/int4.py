"""Linear weights kept as 4-bit integers in groups of 32, on a CPU.

Torch's int4 kernel multiplies bf16 activations with weights that stay packed: fastest for a few rows, where a step is bound by
reading weights. For many rows the arithmetic dominates and expanded bf16 weights win, so those are kept beside the packed ones.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

GROUP = 32
"""Input features that share a scale and a zero point."""

FEW_ROWS = 6
"""Up to this many rows the packed weights are faster than the expanded ones (measured on Zen 4, two threads)."""


class Int4Weight:
    """A weight [out_features, in_features] as scale * (q - 8) + zero, q in 0..15, with a scale and zero per group of inputs.

    Scale and zero are bf16, which is what torch's kernel takes. Costs 2.6 bytes a weight: 0.6 packed, 2 expanded.
    """

    __slots__ = ("expanded", "packed", "scale_zero")

    def __init__(self, quants: Tensor, scale: Tensor, zero: Tensor) -> None:
        """quants [out, in] uint8 with values 0..15; scale, zero [out, in / 32] of any float dtype; out a multiple of 16."""
        self.scale_zero = torch.stack([scale.t(), zero.t()], dim=-1).to(torch.bfloat16).contiguous()
        self.packed: Tensor = torch.ops.aten._convert_weight_to_int4pack_for_cpu(quants.to(torch.int32), 1)
        self.expanded = expand(quants, self.scale_zero)

    @property
    def shape(self) -> torch.Size:
        return self.expanded.shape

    def matmul(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """x [rows, in] bf16 -> x @ weight.T (+ bias) [rows, out] bf16."""
        if x.shape[0] > FEW_ROWS:
            return F.linear(x, self.expanded, bias)
        y: Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(x.contiguous(), self.packed, GROUP, self.scale_zero)
        return y if bias is None else y.add_(bias)


def expand(quants: Tensor, scale_zero: Tensor) -> Tensor:
    """The bf16 weight [out, in] that quants [out, in] and scale_zero [in / 32, out, 2] stand for."""
    scale, zero = scale_zero.float().transpose(0, 1).unsqueeze(2).unbind(-1)
    groups = quants.float().sub_(8).unflatten(1, (-1, GROUP))
    return groups.mul_(scale).add_(zero).flatten(1).to(torch.bfloat16)
