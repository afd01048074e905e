"""Norms in Triton, each one pass over memory. The specification is `reference/norms.py`."""

from __future__ import annotations

import torch
import triton.language as tl
from triton.language.extra import cuda

from streamserve_kernels.launch import dependent_launch, kernel, power_of_two
from streamserve_kernels.reference import norms as reference

_TILE = 4096


@kernel(do_not_specialize=["num_rows"])
def _norm_kernel(
    x_ptr, weight_ptr, bias_ptr, residual_ptr, out_ptr, num_rows, width, eps,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, CENTER: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Normalize ROWS rows per program: rms_norm, or layer_norm with CENTER; onto a residual where there is one."""
    if PDL:
        cuda.gdc_launch_dependents()
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    lanes = tl.arange(0, BLOCK)
    inside = lanes < width
    weight = tl.load(weight_ptr + lanes, mask=inside, other=0.0).to(tl.float32)
    offsets = rows.to(tl.int64)[:, None] * width + lanes[None, :]
    mask = (rows < num_rows)[:, None] & inside[None, :]
    if PDL:
        cuda.gdc_wait()
    x = tl.load(x_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
    if CENTER:
        x = tl.where(mask, x - (tl.sum(x, axis=1) / width)[:, None], 0.0)
    y = x * tl.rsqrt(tl.sum(x * x, axis=1) / width + eps)[:, None] * weight[None, :]
    if CENTER:
        y += tl.load(bias_ptr + lanes, mask=inside, other=0.0).to(tl.float32)[None, :]
    if residual_ptr is not None:
        y += tl.load(residual_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
    tl.store(out_ptr + offsets, y.to(out_ptr.dtype.element_ty), mask=mask)


@kernel()
def _all_heads_kernel(
    qkv_ptr, q_norm_ptr, k_norm_ptr, squares_ptr, stride, q_width, k_width, shares, eps, BLOCK: tl.constexpr, PDL: tl.constexpr
):  # fmt: skip
    """Norm the queries of a token, or its keys."""
    if PDL:
        cuda.gdc_launch_dependents()
    token = tl.program_id(0).to(tl.int64)
    is_keys = tl.program_id(1) == 1
    width = tl.where(is_keys, k_width, q_width)
    lanes = tl.arange(0, BLOCK)
    inside = lanes < width
    weight = tl.load(tl.where(is_keys, k_norm_ptr, q_norm_ptr) + lanes, mask=inside, other=0.0).to(tl.float32)
    ptrs = qkv_ptr + token * stride + tl.where(is_keys, q_width, 0) + lanes
    if PDL:
        cuda.gdc_wait()
    x = tl.load(ptrs, mask=inside, other=0.0).to(tl.float32)
    if squares_ptr is None:
        squares = tl.sum(x * x, axis=0)
    else:
        squares = tl.load(squares_ptr + token * 2 + tl.program_id(1))
    y = x * tl.rsqrt(squares / (width * shares) + eps) * weight
    tl.store(ptrs, y.to(qkv_ptr.dtype.element_ty), mask=inside)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """`reference.norms.rms_norm` in one launch."""
    return _norm(x, weight, eps)


def rms_norm_residual(x: torch.Tensor, weight: torch.Tensor, eps: float, residual: torch.Tensor) -> torch.Tensor:
    """`reference.norms.rms_norm_residual` in one launch."""
    return _norm(x, weight, eps, residual=residual)


def head_squares(qkv: torch.Tensor, q_width: int, k_width: int) -> torch.Tensor:
    """`reference.norms.head_squares`; only what is divided among ranks calls it."""
    return reference.head_squares(qkv, q_width, k_width)


def norm_all_heads_(
    qkv: torch.Tensor,
    q_norm: torch.Tensor,
    k_norm: torch.Tensor,
    eps: float,
    *,
    squares: torch.Tensor | None = None,
    shares: int = 1,
) -> None:
    """`reference.norms.norm_all_heads_` in one launch."""
    q_width, k_width = q_norm.shape[0], k_norm.shape[0]
    block = power_of_two(max(q_width, k_width))
    _all_heads_kernel[(qkv.shape[0], 2)](
        qkv, q_norm, k_norm, squares, qkv.stride(0), q_width, k_width, shares, eps,
        BLOCK=block, num_warps=max(1, min(16, block // 512)), **dependent_launch(qkv.device),
    )  # fmt: skip


def layer_norm(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float) -> torch.Tensor:
    """`reference.norms.layer_norm` in one launch."""
    return _norm(x, weight, eps, bias=bias)


def _norm(
    x: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    *,
    bias: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
) -> torch.Tensor:
    x = x.contiguous()
    residual = None if residual is None else residual.contiguous()
    width = x.shape[-1]
    num_rows = x.numel() // width
    out = torch.empty_like(x)
    block = power_of_two(width)
    rows = min(max(1, _TILE // block), power_of_two(-(-num_rows // 512)))
    _norm_kernel[(-(-num_rows // rows),)](
        x, weight, bias, residual, out, num_rows, width, eps,
        ROWS=rows, BLOCK=block, CENTER=bias is not None,
        num_warps=max(1, min(16, rows * block // 512)), **dependent_launch(x.device),
    )  # fmt: skip
    return out
