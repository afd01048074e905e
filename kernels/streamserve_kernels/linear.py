"""Linear layers for one to 64 rows, which stream the weights at the speed of memory, with their neighbours fused in.

One row: each program multiplies a few weight rows with the whole input on plain lanes. More rows: a program's warps share out the
inner dimension, each multiplies its slice on tensor cores, and the slices are added at the end (split-K within the program, so that
a narrow layer still fills the device without a second launch). A norm before needs no pass of its own: the row's scale factors out of
the product, so it is gathered along the way and applied last. Weights are fetched before the predecessor has finished (launch.py).
Above `SKINNY_ROWS` rows, and in fp32 beyond one row, cuBLAS.

Tensors of one call live on one device and share one dtype (bf16, fp16 or fp32); products accumulate in fp32.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from triton.language.extra import cuda

from .launch import dependent_launch, power_of_two
from .norm_rope import activate, gelu_tanh_mul, rms_norm, silu_mul

SKINNY_ROWS = 64
"""Rows up to which the tensor-core kernel is used instead of cuBLAS."""


@triton.jit
def _one_row_kernel(
    x_ptr, weight_ptr, norm_ptr, bias_ptr, residual_ptr, out_ptr,
    N, eps,
    K: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    NORM: tl.constexpr, BIAS: tl.constexpr, RESIDUAL: tl.constexpr, ACTIVATION: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """out[n] = act(Σ_k weight[n, k] · x'[k]) with x' = x or rms_norm(x); two tiles of weights are in registers ahead of their use."""
    if PDL:
        cuda.gdc_launch_dependents()
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    lanes = tl.arange(0, BLOCK_K)
    inside = rows < N
    tile_ptrs = weight_ptr + rows.to(tl.int64)[:, None] * K + lanes[None, :]
    mask = inside[:, None] & (lanes < K)[None, :]
    next_mask = inside[:, None] & (lanes + BLOCK_K < K)[None, :]
    tile = tl.load(tile_ptrs, mask=mask, other=0.0, eviction_policy="evict_first")
    tile_next = tl.load(tile_ptrs + BLOCK_K, mask=next_mask, other=0.0, eviction_policy="evict_first")
    if ACTIVATION != "none":
        up_ptrs = tile_ptrs + N.to(tl.int64) * K
        up = tl.load(up_ptrs, mask=mask, other=0.0, eviction_policy="evict_first")
        up_next = tl.load(up_ptrs + BLOCK_K, mask=next_mask, other=0.0, eviction_policy="evict_first")
        up_sum = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
    sums = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
    squares = tl.zeros([BLOCK_K], tl.float32)
    if PDL:
        cuda.gdc_wait()
    for k in range(0, K, BLOCK_K):
        x = tl.load(x_ptr + k + lanes, mask=lanes + k < K, other=0.0).to(tl.float32)
        if NORM:
            squares += x * x
            x = x * tl.load(norm_ptr + k + lanes, mask=lanes + k < K, other=0.0).to(tl.float32)
        sums += tile.to(tl.float32) * x[None, :]
        tile = tile_next
        ahead = inside[:, None] & (lanes + k + 2 * BLOCK_K < K)[None, :]
        tile_next = tl.load(tile_ptrs + k + 2 * BLOCK_K, mask=ahead, other=0.0, eviction_policy="evict_first")
        if ACTIVATION != "none":
            up_sum += up.to(tl.float32) * x[None, :]
            up = up_next
            up_next = tl.load(up_ptrs + k + 2 * BLOCK_K, mask=ahead, other=0.0, eviction_policy="evict_first")
    result = tl.sum(sums, axis=1)
    scale = 1.0
    if NORM:
        scale = tl.rsqrt(tl.sum(squares, axis=0) / K + eps)
    result = result * scale
    if BIAS:
        result += tl.load(bias_ptr + rows, mask=inside, other=0.0).to(tl.float32)
    if ACTIVATION != "none":
        up_result = tl.sum(up_sum, axis=1) * scale
        if BIAS:
            up_result += tl.load(bias_ptr + N + rows, mask=inside, other=0.0).to(tl.float32)
        result = activate(result, up_result, ACTIVATION)
    if RESIDUAL:
        result += tl.load(residual_ptr + rows, mask=inside, other=0.0).to(tl.float32)
    tl.store(out_ptr + rows, result.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _few_rows_kernel(
    x_ptr, weight_ptr, norm_ptr, bias_ptr, residual_ptr, out_ptr,
    M, N, x_stride, eps,
    K: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, SLICES: tl.constexpr, SLICE_K: tl.constexpr,
    NORM: tl.constexpr, BIAS: tl.constexpr, RESIDUAL: tl.constexpr, ACTIVATION: tl.constexpr, COMPUTE: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """As `_one_row_kernel` for M <= BLOCK_M rows: every warp multiplies its slice [BLOCK_M, SLICE_K] x [SLICE_K, BLOCK_N] of a tile."""
    if PDL:
        cuda.gdc_launch_dependents()
    BLOCK_K: tl.constexpr = SLICES * SLICE_K
    columns = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    rows = tl.arange(0, BLOCK_M)
    lanes = tl.arange(0, SLICES)[:, None] * SLICE_K + tl.arange(0, SLICE_K)[None, :]
    inside = (columns < N)[None, :, None]
    tile_ptrs = weight_ptr + columns.to(tl.int64)[None, :, None] * K + lanes[:, None, :]
    tile = tl.load(tile_ptrs, mask=inside & (lanes < K)[:, None, :], other=0.0, eviction_policy="evict_first")
    if ACTIVATION != "none":
        up_ptrs = tile_ptrs + N.to(tl.int64) * K
        up = tl.load(up_ptrs, mask=inside & (lanes < K)[:, None, :], other=0.0, eviction_policy="evict_first")
        up_sum = tl.zeros([SLICES, BLOCK_M, BLOCK_N], tl.float32)
    sums = tl.zeros([SLICES, BLOCK_M, BLOCK_N], tl.float32)
    squares = tl.zeros([SLICES, BLOCK_M], tl.float32)
    x_ptrs = x_ptr + rows[None, :, None] * x_stride + lanes[:, None, :]
    present = (rows < M)[None, :, None]
    if PDL:
        cuda.gdc_wait()
    for k in range(0, K, BLOCK_K):
        x = tl.load(x_ptrs + k, mask=present & (lanes + k < K)[:, None, :], other=0.0)
        ahead = inside & (lanes + k + BLOCK_K < K)[:, None, :]
        tile_next = tl.load(tile_ptrs + k + BLOCK_K, mask=ahead, other=0.0, eviction_policy="evict_first")
        if ACTIVATION != "none":
            up_next = tl.load(up_ptrs + k + BLOCK_K, mask=ahead, other=0.0, eviction_policy="evict_first")
        if NORM:
            wide = x.to(tl.float32)
            squares += tl.sum(wide * wide, axis=2)
            norm = tl.load(norm_ptr + k + lanes, mask=lanes + k < K, other=0.0).to(tl.float32)
            x = (wide * norm[:, None, :]).to(x_ptr.dtype.element_ty)
        x = x.to(COMPUTE)
        sums = tl.dot(x, tl.permute(tile, (0, 2, 1)).to(COMPUTE), sums, input_precision="ieee")
        tile = tile_next
        if ACTIVATION != "none":
            up_sum = tl.dot(x, tl.permute(up, (0, 2, 1)).to(COMPUTE), up_sum, input_precision="ieee")
            up = up_next
    result = tl.sum(sums, axis=0)
    if NORM:
        scale = tl.rsqrt(tl.sum(squares, axis=0) / K + eps)[:, None]
        result = result * scale
    if BIAS:
        result += tl.load(bias_ptr + columns, mask=columns < N, other=0.0).to(tl.float32)[None, :]
    if ACTIVATION != "none":
        up_result = tl.sum(up_sum, axis=0)
        if NORM:
            up_result = up_result * scale
        if BIAS:
            up_result += tl.load(bias_ptr + N + columns, mask=columns < N, other=0.0).to(tl.float32)[None, :]
        result = activate(result, up_result, ACTIVATION)
    mask = (rows < M)[:, None] & (columns < N)[None, :]
    offsets = rows.to(tl.int64)[:, None] * N + columns[None, :]
    if RESIDUAL:
        result += tl.load(residual_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
    tl.store(out_ptr + offsets, result.to(out_ptr.dtype.element_ty), mask=mask)


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """See the reference."""
    if not _is_skinny(x, weight):
        return F.linear(x, weight, bias)
    return _skinny(x, weight, bias=bias)


def linear_residual(
    x: torch.Tensor, weight: torch.Tensor, residual: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """See the reference."""
    if _is_skinny(x, weight):
        return _skinny(x, weight, bias=bias, residual=residual)
    out = torch.addmm(residual, x, weight.t())
    return out if bias is None else out.add_(bias)


def norm_linear(
    x: torch.Tensor, norm_weight: torch.Tensor, eps: float, weight: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """See the reference. The skinny kernels keep the normed row in fp32, or round it before it is scaled."""
    if not _is_skinny(x, weight):
        return F.linear(rms_norm(x, norm_weight, eps), weight, bias)
    return _skinny(x, weight, bias=bias, norm_weight=norm_weight, eps=eps)


def norm_gated_linear(
    x: torch.Tensor, norm_weight: torch.Tensor, eps: float, gate_up_weight: torch.Tensor, activation: str
) -> torch.Tensor:
    """See the reference."""
    if not _is_skinny(x, gate_up_weight):
        gate_up = F.linear(rms_norm(x, norm_weight, eps), gate_up_weight)
        return silu_mul(gate_up) if activation == "silu" else gelu_tanh_mul(gate_up)
    return _skinny(x, gate_up_weight, norm_weight=norm_weight, eps=eps, activation=activation)


def _is_skinny(x: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether the kernels here beat cuBLAS; they need rows that start on 16 bytes."""
    aligned = weight.is_contiguous() and weight.shape[1] % 16 == 0
    rows = x.shape[0]
    return aligned and (rows == 1 or (rows <= SKINNY_ROWS and x.element_size() == 2))


def _skinny(
    x: torch.Tensor,
    weight: torch.Tensor,
    *,
    bias: torch.Tensor | None = None,
    norm_weight: torch.Tensor | None = None,
    eps: float = 0.0,
    residual: torch.Tensor | None = None,
    activation: str = "none",
) -> torch.Tensor:
    x = x.contiguous()
    rows, inner = x.shape
    gated = activation != "none"
    outer = weight.shape[0] // 2 if gated else weight.shape[0]
    out = x.new_empty(rows, outer)
    fused = {
        "NORM": norm_weight is not None, "BIAS": bias is not None, "RESIDUAL": residual is not None, "ACTIVATION": activation,
    }  # fmt: skip
    residual = None if residual is None else residual.contiguous()
    if rows == 1:
        block_n, block_k, warps = one_row_shape(outer, inner, gated)
        _one_row_kernel[(-(-outer // block_n),)](
            x, weight, norm_weight, bias, residual, out, outer, eps,
            K=inner, BLOCK_N=block_n, BLOCK_K=block_k, **fused, num_warps=warps, **dependent_launch(x.device),
        )  # fmt: skip
        return out
    block_m, block_n, slices, slice_k, stages = few_rows_shape(rows, outer, inner, gated)
    _few_rows_kernel[(-(-outer // block_n),)](
        x, weight, norm_weight, bias, residual, out, rows, outer, inner, eps,
        K=inner, BLOCK_M=block_m, BLOCK_N=block_n, SLICES=slices, SLICE_K=slice_k, **fused,
        COMPUTE=tl.bfloat16 if x.dtype == torch.bfloat16 else tl.float16,
        num_warps=slices, num_stages=stages, **dependent_launch(x.device),
    )  # fmt: skip
    return out


def one_row_shape(outer: int, inner: int, gated: bool) -> tuple[int, int, int]:
    """BLOCK_N, BLOCK_K and warps: enough programs to fill the device, few enough registers that all are resident."""
    block_k = min(power_of_two(inner), 1024)
    block_n = 4 if outer <= 2048 or (gated and inner > block_k) else 8
    return block_n, block_k, 4


def few_rows_shape(rows: int, outer: int, inner: int, gated: bool) -> tuple[int, int, int, int, int]:
    """BLOCK_M, BLOCK_N, slices (one per warp), lanes of a slice, pipeline stages."""
    block_m = power_of_two(rows, least=16)
    block_n = 16 if outer <= 2048 or gated else 32
    slice_k = max(16, min(128, power_of_two(inner) // 8))
    return block_m, block_n, 8, slice_k, 2
