"""Norms, on the device of their input."""

from __future__ import annotations

from torch import Tensor

from streamserve_kernels.dispatch.areas import triton_area
from streamserve_kernels.reference import norms as reference


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x²) + eps) * weight over the last dimension; see `reference.norms`."""
    area = reference if x.is_cpu else triton_area("norms")
    y: Tensor = area.rms_norm(x, weight, eps)
    return y


def rms_norm_residual(x: Tensor, weight: Tensor, eps: float, residual: Tensor) -> Tensor:
    """residual + rms_norm(x), possibly in place of residual; see `reference.norms`."""
    area = reference if x.is_cpu else triton_area("norms")
    y: Tensor = area.rms_norm_residual(x, weight, eps, residual)
    return y


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Layer norm over the last dimension; see `reference.norms`."""
    area = reference if x.is_cpu else triton_area("norms")
    y: Tensor = area.layer_norm(x, weight, bias, eps)
    return y


def head_squares(qkv: Tensor, q_width: int, k_width: int) -> Tensor:
    """Sums of squares of all queries and of all keys; see `reference.norms`."""
    area = reference if qkv.is_cpu else triton_area("norms")
    squares: Tensor = area.head_squares(qkv, q_width, k_width)
    return squares


def norm_all_heads_(
    qkv: Tensor, q_norm: Tensor, k_norm: Tensor, eps: float, *, squares: Tensor | None = None, shares: int = 1
) -> None:
    """RMS norm over all query heads, and over all key heads, in place; see `reference.norms`."""
    area = reference if qkv.is_cpu else triton_area("norms")
    area.norm_all_heads_(qkv, q_norm, k_norm, eps, squares=squares, shares=shares)
