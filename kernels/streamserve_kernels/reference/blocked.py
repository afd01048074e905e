"""Linear weights in oneDNN's blocked layout, on a CPU.

Torch keeps a weight row by row, and oneDNN reorders it on every call; for a few rows of input that costs as much as the
product. Here it is reordered once. bf16 only, which is where the cost is.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


class BlockedWeight:
    """A bf16 weight [out, in] that only oneDNN can read."""

    __slots__ = ("blocked", "shape")

    def __init__(self, weight: Tensor) -> None:
        """weight [out, in] bf16 on a CPU for which `can_block` is true; it is copied and may be freed"""
        self.shape = weight.shape
        self.blocked: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.detach())

    def matmul(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """x [rows, in] bf16 -> x @ weight.T (+ bias) [rows, out] bf16."""
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.blocked, bias, "none", [], "")
        return y

    def matmul_add(self, x: Tensor, residual: Tensor, bias: Tensor | None = None) -> Tensor:
        """residual [rows, out] + matmul(x, bias), rounded once."""
        y: Tensor = torch.ops.mkldnn._linear_pointwise.binary(x, residual, self.blocked, bias, "add")
        return y


def can_block(weight: Tensor) -> bool:
    """Whether this machine multiplies this weight by oneDNN."""
    if weight.device.type != "cpu" or weight.dtype is not torch.bfloat16:
        return False
    has_onednn: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return has_onednn and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def prepare_weight(weight: Tensor) -> Tensor | BlockedWeight:
    """The form in which its device multiplies a weight [out, in] fastest: itself, or a reordered copy."""
    return BlockedWeight(weight) if can_block(weight) else weight


def multiply(x: Tensor, weight: Tensor | BlockedWeight, bias: Tensor | None) -> Tensor:
    """x @ weight.T (+ bias) for either form."""
    return F.linear(x, weight, bias) if isinstance(weight, Tensor) else weight.matmul(x, bias)


def multiply_add(x: Tensor, weight: Tensor | BlockedWeight, residual: Tensor, bias: Tensor | None) -> Tensor:
    """residual + x @ weight.T (+ bias) for either form."""
    if isinstance(weight, Tensor):
        return F.linear(x, weight, bias).add_(residual)
    return weight.matmul_add(x, residual, bias)
