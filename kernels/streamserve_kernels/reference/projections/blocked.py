"""Products with weights in oneDNN's blocked layout, on a CPU.

Torch keeps a weight row by row, and oneDNN reorders it on every call; for a few rows of input that costs as much as the
product. Here it is reordered once. bf16 only, which is where the cost is.
"""

from __future__ import annotations

import torch
from torch import Tensor


def can_block(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether this machine multiplies weights of this type, on this device, by oneDNN."""
    if device.type != "cpu" or dtype is not torch.bfloat16:
        return False
    has_onednn: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return has_onednn and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def block_weight(weight: Tensor) -> Tensor:
    """A copy in oneDNN's layout, which only the products below can read.

    weight   [out, in] bf16 on a CPU for which `can_block` is true
    returns  [out, in] bf16, opaque
    """
    blocked: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.detach())
    return blocked


def blocked_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x @ weight.T + bias.

    x        [rows, in]   bf16
    weight   [out, in]    from `block_weight`
    bias     [out]        bf16
    returns  [rows, out]  bf16; accumulation in fp32
    """
    y: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return y


def blocked_linear_residual(x: Tensor, weight: Tensor, residual: Tensor, bias: Tensor | None = None) -> Tensor:
    """residual [rows, out] + blocked_linear(x, weight, bias), rounded once."""
    y: Tensor = torch.ops.mkldnn._linear_pointwise.binary(x, residual, weight, bias, "add")
    return y
