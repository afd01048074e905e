"""Products of one row on plain lanes, at the speed of memory, with their neighbours fused in.

Weights are dense, or 8-bit floats of which each row has a scale. Each program multiplies a few weight rows with the whole
input, in fp32. A norm needs no pass of its own: the row's scale factors out of the product, so it is gathered along the way and
applied last, and weights are in registers before the predecessor has finished (launch.py).
"""

from __future__ import annotations

import torch
import triton.language as tl
from triton.language.extra import cuda

from streamserve_kernels.activations import activate
from streamserve_kernels.launch import dependent_launch, kernel
from streamserve_kernels.projections.epilogue import Epilogue


@kernel()
def _one_row_kernel(
    x_ptr, weight_ptr, scale_ptr, norm_ptr, bias_ptr, residual_ptr, out_ptr, N, eps,
    K: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, AHEAD: tl.constexpr,
    SCALED: tl.constexpr, NORM: tl.constexpr,
    BIAS: tl.constexpr, RESIDUAL: tl.constexpr, ACTIVATION: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """out[n] = act(Σ weight[n, k] x'[k]) with x' = x or rms_norm(x); AHEAD tiles of weights are in registers before use."""
    if PDL:
        cuda.gdc_launch_dependents()
    gated: tl.constexpr = ACTIVATION != "none"
    first = tl.program_id(0) * BLOCK_N
    rows = first + tl.arange(0, BLOCK_N)
    lanes = tl.arange(0, BLOCK_K)
    inside = (rows < N)[:, None]
    ptrs = weight_ptr + rows.to(tl.int64)[:, None] * K + lanes[None, :]
    if gated:
        # Only here: the only row of a weight that has one makes N a constant, which has no `to`.
        up_ptrs = ptrs + N.to(tl.int64) * K
    tiles = ()
    up_tiles = ()
    for k in tl.static_range(0, min(K, AHEAD * BLOCK_K), BLOCK_K):
        mask = inside & (lanes + k < K)[None, :]
        tiles = tiles + (tl.load(ptrs + k, mask=mask, other=0.0, eviction_policy="evict_first"),)  # type: ignore[assignment]
        if gated:
            tile = tl.load(up_ptrs + k, mask=mask, other=0.0, eviction_policy="evict_first")
            up_tiles = up_tiles + (tile,)  # type: ignore[assignment]
    # Every warp loads the inputs of its own lanes: a row that all share would pass through shared memory, with barriers.
    alike = tl.zeros([BLOCK_N, 1], tl.int32)
    norms = ()
    if NORM:
        for k in tl.static_range(0, min(K, AHEAD * BLOCK_K), BLOCK_K):
            offsets = alike + (lanes + k)[None, :]
            norms = norms + (tl.load(norm_ptr + offsets, mask=offsets < K, other=0.0),)  # type: ignore[assignment]
    sums = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
    up_sums = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
    squares = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
    if PDL:
        cuda.gdc_wait()
    for k in tl.static_range(0, K, BLOCK_K):
        offsets = alike + (lanes + k)[None, :]
        known = offsets < K
        x = tl.load(x_ptr + offsets, mask=known, other=0.0).to(tl.float32)
        if NORM:
            squares += x * x
            x = x * norms[k // BLOCK_K].to(tl.float32)
        sums += tiles[k // BLOCK_K].to(tl.float32) * x
        if gated:
            up_sums += up_tiles[k // BLOCK_K].to(tl.float32) * x
        if k + AHEAD * BLOCK_K < K:
            ahead = k + AHEAD * BLOCK_K
            if NORM:
                offsets = alike + (lanes + ahead)[None, :]
                norms = norms + (tl.load(norm_ptr + offsets, mask=offsets < K, other=0.0),)
            mask = inside & (lanes + ahead < K)[None, :]
            tile = tl.load(ptrs + ahead, mask=mask, other=0.0, eviction_policy="evict_first")
            tiles = tiles + (tile,)
            if gated:
                tile = tl.load(up_ptrs + ahead, mask=mask, other=0.0, eviction_policy="evict_first")
                up_tiles = up_tiles + (tile,)
    factor = 1.0
    if NORM:
        factor = tl.rsqrt(tl.sum(squares, axis=1) / K + eps)
    result = tl.sum(sums, axis=1) * factor
    if SCALED:
        result *= tl.load(scale_ptr + rows, mask=rows < N, other=0.0)
    if BIAS:
        result += tl.load(bias_ptr + rows, mask=rows < N, other=0.0).to(tl.float32)
    if gated:
        up = tl.sum(up_sums, axis=1) * factor
        if SCALED:
            up *= tl.load(scale_ptr + N + rows, mask=rows < N, other=0.0)
        if BIAS:
            up += tl.load(bias_ptr + N + rows, mask=rows < N, other=0.0).to(tl.float32)
        result = activate(result, up, ACTIVATION)
    if RESIDUAL:
        result += tl.load(residual_ptr + rows, mask=rows < N, other=0.0).to(tl.float32)
    tl.store(out_ptr + rows, result.to(out_ptr.dtype.element_ty), mask=rows < N)


def one_row(
    x: torch.Tensor,
    weight: torch.Tensor,
    after: Epilogue,
    *,
    scale: torch.Tensor | None = None,
    norm_weight: torch.Tensor | None = None,
    eps: float = 0.0,
) -> torch.Tensor:
    """x' @ weight.T and what follows, with x' = x or rms_norm(x).

    x       [1, in]  bf16|fp16|fp32
    weight  [out, in] of the same type, or 8-bit floats
    scale   [out, 1] fp32: what a row's sum is multiplied by
    """
    inner = x.shape[1]
    outer = weight.shape[0] // (2 if after.gated else 1)
    out = x.new_empty(1, outer)
    block_n, block_k, ahead, warps = one_row_shape(outer, inner, after.gated, narrow=weight.element_size() == 1)
    _one_row_kernel[(-(-outer // block_n),)](
        x, weight, scale, norm_weight, after.bias, after.residual, out, outer, eps,
        K=inner, BLOCK_N=block_n, BLOCK_K=block_k, AHEAD=ahead, SCALED=scale is not None,
        NORM=norm_weight is not None, **after.constants(), num_warps=warps, **dependent_launch(x.device),
    )  # fmt: skip
    return out


def one_row_shape(outer: int, inner: int, gated: bool, *, narrow: bool) -> tuple[int, int, int, int]:
    """BLOCK_N, BLOCK_K, AHEAD, warps: measured on an H200 for the linears of models of 0.6 and 8B parameters."""
    if narrow:
        return 2, 512, 8, 1
    if inner <= 1024:
        return (8, 256, 4, 4) if gated or outer > 16384 else (4, 1024, 1, 4)
    if inner <= 2048:
        return 2, 512, 4, 4
    if inner <= 3072:
        return 2, 1024, 2, 4
    return 2 if gated or inner > 4096 else 4, 1024, 4, 4
