"""Weights of 8-bit floats, what they stand for, and their products in torch.

A product may round activations to 8 bits as well (`Fp8Weight` says by which scales); the reference does not.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

BLOCK = 128
"""Rows and columns that share a scale in a weight of blocks; columns of activations that do."""

DTYPE = torch.float8_e4m3fn
LARGEST = torch.finfo(DTYPE).max


class Fp8Weight(NamedTuple):
    """A weight [out, in] of e4m3 numbers (Micikevicius et al., 2022) and the factors that they are multiplied by.

    values       [out, in]  float8_e4m3fn
    scale        fp32: [out, 1], or [out / 128, columns] with a factor for each block of 128 × 128, the last ones being smaller;
                 columns is in / 128, rounded up to a multiple of 4, as cuBLAS wants them, what is beyond being unused
    input_scale  [1] fp32: what activations are divided by when they are rounded to 8 bits; None where each token, or with
                 blocks each 128 columns of a token, has a scale of its own
    """

    values: Tensor
    scale: Tensor
    input_scale: Tensor | None = None

    @property
    def has_blocks(self) -> bool:
        return self.scale.shape[1] > 1


def can_keep_fp8(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether activations of this type, on this device, are multiplied with 8-bit weights; if not, expand them."""
    return device.type != "cpu" and dtype in (torch.bfloat16, torch.float16)


def scale_columns(in_features: int) -> int:
    """The columns of the scale of a weight with blocks."""
    return max(4, -(-in_features // (4 * BLOCK)) * 4)


def quantize_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest 8-bit numbers, with the largest of each row at the end of their range.

    weight   [out, in] of any float dtype
    returns  [out, in] float8_e4m3fn, and their factors [out, 1] fp32
    """
    # A row of zeros has any scale but zero.
    scale = weight.abs().amax(1, keepdim=True).float().div_(LARGEST).clamp_(min=1e-12)
    return (weight.float() / scale).clamp_(-LARGEST, LARGEST).to(DTYPE), scale


def dequantize(weight: Fp8Weight) -> Tensor:
    """What a weight stands for, [out, in] fp32."""
    values = weight.values.float()
    if not weight.has_blocks:
        return values * weight.scale
    rows, columns = values.shape
    return values * weight.scale.repeat_interleave(BLOCK, 0)[:rows].repeat_interleave(BLOCK, 1)[:, :columns]
