"""Products of up to `MOST_ROWS` rows with weights of 8-bit floats, which are streamed at the speed of memory.

* One row: each program multiplies a few weight rows with the whole input on plain lanes. The input keeps its precision, and its
  norm is gathered along the way, as in dense.py.
* More, as 8-bit floats: tiles of the weight go through shared memory to the matrix units as they are; the programs of a tile
  share out the inner dimension, and the last to finish adds up.
* More, as bf16 or fp16, where there are no products of 8-bit floats: the same, with weights widened in registers.

Scales of rows are applied to sums, at the end; those of blocks to each 128 columns' part of them.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from triton.language.extra import cuda

from streamserve_kernels.activations import activate
from streamserve_kernels.launch import arrivals, capability, dependent_launch, kernel, power_of_two, prefetch
from streamserve_kernels.projections.epilogue import Epilogue, finish_products
from streamserve_kernels.projections.fp8_widen import bytes_of, widen
from streamserve_kernels.reference.projections.fp8 import BLOCK, Fp8Weight

MOST_ROWS = 64

_BLOCK = tl.constexpr(BLOCK)


@triton.jit
def scales_of_columns(scale_ptr, k, K: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr):
    """Scales of BLOCK_K columns from k on, [BLOCK_N, BLOCK_K].

    scale_ptr  of the block of the first column; one for all rows, or [BLOCK_N, 1]
    A thread that has 16 columns of a tile reads one number for them.
    """
    columns = k + tl.arange(0, BLOCK_K // 16) * 16
    alike = tl.zeros([BLOCK_N, 1], tl.int32)
    scales = tl.load(scale_ptr + alike + (columns // _BLOCK)[None, :], mask=alike + columns[None, :] < K, other=0.0)
    return tl.reshape(tl.broadcast_to(scales[:, :, None], [BLOCK_N, BLOCK_K // 16, 16]), [BLOCK_N, BLOCK_K])


@kernel()
def _fp8_one_row_kernel(
    x_ptr, values_ptr, scale_ptr, norm_ptr, bias_ptr, residual_ptr, out_ptr, N, eps,
    K: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, AHEAD: tl.constexpr, SCALES: tl.constexpr,
    BITS: tl.constexpr, NORM: tl.constexpr,
    BIAS: tl.constexpr, RESIDUAL: tl.constexpr, ACTIVATION: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """out[n] = act(Σ weight[n, k] x'[k]) with x' = x or rms_norm(x); AHEAD tiles of weights are in registers before use.

    SCALES  columns of the scale
    """
    if PDL:
        cuda.gdc_launch_dependents()
    gated: tl.constexpr = ACTIVATION != "none"
    first = tl.program_id(0) * BLOCK_N
    rows = first + tl.arange(0, BLOCK_N)
    lanes = tl.arange(0, BLOCK_K)
    inside = (rows < N)[:, None]
    ptrs = values_ptr + rows.to(tl.int64)[:, None] * K + lanes[None, :]
    up_ptrs = ptrs + N.to(tl.int64) * K
    tiles = ()
    up_tiles = ()
    for k in tl.static_range(0, min(K, AHEAD * BLOCK_K), BLOCK_K):
        mask = inside & (lanes + k < K)[None, :]
        tiles = tiles + (tl.load(ptrs + k, mask=mask, other=0.0, eviction_policy="evict_first"),)  # type: ignore[assignment]
        if gated:
            tile = tl.load(up_ptrs + k, mask=mask, other=0.0, eviction_policy="evict_first")
            up_tiles = up_tiles + (tile,)  # type: ignore[assignment]
    sums = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
    up_sums = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
    squares = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
    if PDL:
        cuda.gdc_wait()
    # Every warp loads the inputs of its own lanes: a row that all share would pass through shared memory, with barriers.
    alike = tl.zeros([BLOCK_N, 1], tl.int32)
    for k in tl.static_range(0, K, BLOCK_K):
        offsets = alike + (lanes + k)[None, :]
        known = offsets < K
        x = tl.load(x_ptr + offsets, mask=known, other=0.0).to(tl.float32)
        if NORM:
            squares += x * x
            x = x * tl.load(norm_ptr + offsets, mask=known, other=0.0).to(tl.float32)
        x_up = x
        if SCALES > 1:
            # The rows of a program are in one block.
            if gated:
                x_up = x * scales_of_columns(scale_ptr + (N + first) // _BLOCK * SCALES, k, K, BLOCK_N, BLOCK_K)
            x = x * scales_of_columns(scale_ptr + first // _BLOCK * SCALES, k, K, BLOCK_N, BLOCK_K)
        sums += widen(tiles[k // BLOCK_K], BITS, tl.float32) * x
        if gated:
            up_sums += widen(up_tiles[k // BLOCK_K], BITS, tl.float32) * x_up
        if k + AHEAD * BLOCK_K < K:
            ahead = k + AHEAD * BLOCK_K
            mask = inside & (lanes + ahead < K)[None, :]
            tile = tl.load(ptrs + ahead, mask=mask, other=0.0, eviction_policy="evict_first")
            tiles = tiles + (tile,)  # type: ignore[assignment]
            if gated:
                tile = tl.load(up_ptrs + ahead, mask=mask, other=0.0, eviction_policy="evict_first")
                up_tiles = up_tiles + (tile,)  # type: ignore[assignment]
    factor = 1.0
    if NORM:
        factor = tl.rsqrt(tl.sum(squares, axis=1) / K + eps)
    result = tl.sum(sums, axis=1) * factor
    if SCALES == 1:
        result *= tl.load(scale_ptr + rows, mask=rows < N, other=0.0)
    if BIAS:
        result += tl.load(bias_ptr + rows, mask=rows < N, other=0.0).to(tl.float32)
    if gated:
        up = tl.sum(up_sums, axis=1) * factor
        if SCALES == 1:
            up *= tl.load(scale_ptr + N + rows, mask=rows < N, other=0.0)
        if BIAS:
            up += tl.load(bias_ptr + N + rows, mask=rows < N, other=0.0).to(tl.float32)
        result = activate(result, up, ACTIVATION)
    if RESIDUAL:
        result += tl.load(residual_ptr + rows, mask=rows < N, other=0.0).to(tl.float32)
    tl.store(out_ptr + rows, result.to(out_ptr.dtype.element_ty), mask=rows < N)


@kernel(do_not_specialize=["M", "room"])
def _fp8_some_rows_kernel(
    x_ptr, x_scale_ptr, values_ptr, scale_ptr, bias_ptr, residual_ptr, out_ptr, partial_ptr, arrivals_ptr, M, N, room,
    K: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, SPLITS: tl.constexpr,
    PREFETCH: tl.constexpr, SCALES: tl.constexpr, BITS: tl.constexpr, COMPUTE: tl.constexpr,
    BIAS: tl.constexpr, RESIDUAL: tl.constexpr, ACTIVATION: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """A tile of BLOCK_N weight rows against BLOCK_M rows of x, or a part of the inner dimension, as in dense.py.

    COMPUTE  the type that weights are widened to, which is x's; None for an x of 8-bit floats
    SCALES   columns of the weight's scale; with more than one, x's is [ceil(K / 128), room], else [M]
    """
    if PDL:
        cuda.gdc_launch_dependents()
    tile = tl.program_id(0)
    split = tl.program_id(1)
    lines = tl.arange(0, BLOCK_N)
    if ACTIVATION == "none":
        columns = tile * BLOCK_N + lines
        inside = columns < N
        weight_rows = columns
    else:
        half: tl.constexpr = BLOCK_N // 2
        columns = tile * half + tl.arange(0, half)
        inside = tile * half + lines % half < N
        weight_rows = tile * half + lines % half + lines // half * N
    per_split: tl.constexpr = (K + SPLITS * BLOCK_K - 1) // (SPLITS * BLOCK_K) * BLOCK_K
    begin = split * per_split
    end = tl.minimum(begin + per_split, K)
    lanes = tl.arange(0, BLOCK_K)
    weight_ptrs = values_ptr + weight_rows.to(tl.int64)[:, None] * K + lanes[None, :]
    if PDL:
        # The first weights are on their way to the L2 cache while the predecessor still computes x.
        line_ptrs = values_ptr + weight_rows.to(tl.int64) * K + tl.minimum(begin, K - PREFETCH)
        prefetch(line_ptrs, tl.where(inside, PREFETCH, 0))
    rows = tl.program_id(2) * BLOCK_M + tl.arange(0, BLOCK_M)
    x_ptrs = x_ptr + rows[:, None] * K + lanes[None, :]
    sums = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    scale_ptrs = scale_ptr + weight_rows // _BLOCK * SCALES
    if SCALES > 1:
        first = tl.minimum(begin, K - 1) // _BLOCK
        scale = tl.load(scale_ptrs + first, mask=inside, other=0.0)
    if PDL:
        cuda.gdc_wait()
    if SCALES > 1 and COMPUTE is None:
        x_scale = tl.load(x_scale_ptr + first * room + rows, mask=rows < M, other=0.0)
    for k in range(begin, end, BLOCK_K):
        weights = tl.load(weight_ptrs + k, mask=inside[:, None] & (lanes + k < K)[None, :], other=0.0)
        x = tl.load(x_ptrs + k, mask=(rows < M)[:, None] & (lanes + k < K)[None, :], other=0.0)
        if COMPUTE is not None:
            weights = widen(weights, BITS, COMPUTE)
            x = x.to(COMPUTE)
        if SCALES > 1:
            # Scales are read a step ahead: products would wait for them.
            after = tl.minimum(k + BLOCK_K, end - 1) // _BLOCK
            next_scale = tl.load(scale_ptrs + after, mask=inside, other=0.0)
            product = tl.dot(weights, tl.trans(x)) * scale[:, None]
            if COMPUTE is None:
                next_x_scale = tl.load(x_scale_ptr + after * room + rows, mask=rows < M, other=0.0)
                product *= x_scale[None, :]
                x_scale = next_x_scale
            sums += product
            scale = next_scale
        else:
            sums = tl.dot(weights, tl.trans(x), sums)
    if SPLITS > 1:
        place = tile * tl.num_programs(2) + tl.program_id(2)
        part_ptr = partial_ptr + (place * SPLITS + split).to(tl.int64) * (BLOCK_N * BLOCK_M)
        places = lines[:, None] * BLOCK_M + tl.arange(0, BLOCK_M)[None, :]
        tl.store(part_ptr + places, sums)
        # Every thread's stores must be out before the one thread that announces this part.
        tl.debug_barrier()
        if tl.atomic_add(arrivals_ptr + place, 1, sem="acq_rel", scope="gpu") != SPLITS - 1:
            return
        tl.store(arrivals_ptr + place, 0)
        sums = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
        for part in tl.static_range(SPLITS):
            part_ptr = partial_ptr + (place * SPLITS + part).to(tl.int64) * (BLOCK_N * BLOCK_M)
            sums += tl.load(part_ptr + places, cache_modifier=".cg")
    if SCALES == 1:
        sums *= tl.load(scale_ptr + weight_rows, mask=inside, other=0.0)[:, None]
        if COMPUTE is None:
            sums *= tl.load(x_scale_ptr + rows, mask=rows < M, other=0.0)[None, :]
    finish_products(
        sums, sums, columns, rows, bias_ptr, residual_ptr, out_ptr, M, N, 0.0,
        K, BLOCK_M, False, BIAS, RESIDUAL, ACTIVATION,
    )  # fmt: skip


def one_row(
    x: torch.Tensor,
    weight: Fp8Weight,
    after: Epilogue,
    *,
    bits: bool,
    norm_weight: torch.Tensor | None = None,
    eps: float = 0.0,
    shape: tuple[int, int, int, int] | None = None,
) -> torch.Tensor:
    """x' @ weight.T and what follows, with x' = x or rms_norm(x).

    x      [1, in]  bf16|fp16|fp32
    bits   widen numbers bit by bit: the device has no conversion
    shape  in place of `one_row_shape`'s
    """
    inner = x.shape[1]
    outer = weight.values.shape[0] // (2 if after.gated else 1)
    out = x.new_empty(1, outer)
    block_n, block_k, ahead, warps = shape or one_row_shape(outer, inner)
    _fp8_one_row_kernel[(-(-outer // block_n),)](
        x, bytes_of(weight.values, bits), weight.scale, norm_weight, after.bias, after.residual, out, outer, eps,
        K=inner, BLOCK_N=block_n, BLOCK_K=block_k, AHEAD=ahead, SCALES=weight.scale.shape[1], BITS=bits,
        NORM=norm_weight is not None, **after.constants(), num_warps=warps, **dependent_launch(x.device),
    )  # fmt: skip
    return out


def some_rows(
    x: torch.Tensor,
    x_scale: torch.Tensor | None,
    weight: Fp8Weight,
    dtype: torch.dtype,
    after: Epilogue,
    *,
    bits: bool,
    shape: tuple[int, int, int, int, int] | None = None,
) -> torch.Tensor:
    """x @ weight.T and what follows.

    x      [rows, in]  float8_e4m3fn with its scales, as `quantize` makes them; bf16|fp16 without
    dtype  of the result
    bits   as for `one_row`
    shape  in place of `some_rows_shape`'s
    """
    rows, inner = x.shape
    outer = weight.values.shape[0] // (2 if after.gated else 1)
    out = x.new_empty(rows, outer, dtype=dtype)
    is_wide = x_scale is None
    block_m, block_n, block_k, splits, stages = shape or some_rows_shape(
        rows, outer, inner, after.gated, narrow=weight.has_blocks or is_wide, deep=has_much_shared_memory(x.device)
    )
    tiles, row_tiles = -(-outer // (block_n // 2 if after.gated else block_n)), -(-rows // block_m)
    partial = None
    if splits > 1:
        partial = x.new_empty(tiles * row_tiles * splits * block_n * block_m, dtype=torch.float32)
    room = rows if x_scale is None else x_scale.shape[-1]
    compute = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}[dtype] if is_wide else None
    _fp8_some_rows_kernel[(tiles, splits, row_tiles)](
        x, x_scale, bytes_of(weight.values, bits), weight.scale, after.bias, after.residual, out, partial, arrivals(x.device),
        rows, outer, room,
        K=inner, BLOCK_M=block_m, BLOCK_N=block_n, BLOCK_K=block_k, SPLITS=splits,
        PREFETCH=min(inner // splits // 16 * 16, 256), SCALES=weight.scale.shape[1], BITS=bits, COMPUTE=compute,
        **after.constants(), num_warps=4, num_stages=stages, **dependent_launch(x.device),
    )  # fmt: skip
    return out


def one_row_shape(outer: int, inner: int) -> tuple[int, int, int, int]:
    """BLOCK_N, BLOCK_K, AHEAD, warps: measured on an H200 for the linears of an 8B model."""
    return 4 if inner <= 4096 < outer <= 8192 else 2, min(power_of_two(inner), 2048), 2, 4


def has_much_shared_memory(device: torch.device) -> bool:
    """Whether a program may have 200 KB of it: data-center GPUs of compute capability 9.0 and 10.0 do, others have 99 KB."""
    return capability(device)[0] in (9, 10)


def some_rows_shape(
    rows: int, outer: int, inner: int, gated: bool, *, narrow: bool, deep: bool
) -> tuple[int, int, int, int, int]:
    """BLOCK_M, BLOCK_N, BLOCK_K, SPLITS, stages. narrow: BLOCK_K is 128; deep: see `has_much_shared_memory`."""
    block_m, block_n = power_of_two(rows, least=16), 64
    block_k = BLOCK if narrow or not deep else 2 * BLOCK
    tiles = -(-outer // (block_n // 2 if gated else block_n))
    splits = 1
    # A product of 128 columns is waited for before its scale is applied: more programs hide that.
    while tiles * splits < (192 if narrow else 96) and inner // (splits * 2) >= 1024:
        splits *= 2
    return block_m, block_n, block_k, splits, 3 if tiles * splits > 300 or not deep else 5
