"""Products of 2 to `MOST_ROWS` rows with weights of 8-bit floats, which are streamed at the speed of memory.

* Of 8-bit floats: tiles of the weight go through shared memory to the matrix units as they are; the programs of a tile share
  out the inner dimension, and the last to finish adds up. Up to `PRECISE_ROWS` a number is the sum of two (fp8_activations.py):
  the second ones are rows that matrix units would multiply anyway.
* Of bf16 or fp16, where there are no products of 8-bit floats: the same, with weights widened in registers.

Scales of rows are applied to sums, at the end; those of blocks to each 128 columns' part of them.
"""

from __future__ import annotations

import torch
import triton.language as tl
from triton.language.extra import cuda

from streamserve_kernels.launch import arrivals, capability, compute_dtype, dependent_launch, kernel, power_of_two, prefetch
from streamserve_kernels.projections.epilogue import Epilogue, finish_products
from streamserve_kernels.projections.fp8_activations import REMAINDER
from streamserve_kernels.projections.fp8_widen import bytes_of, widen
from streamserve_kernels.reference.projections.fp8 import BLOCK, Fp8Weight

MOST_ROWS = 64
PRECISE_ROWS = 16

_REMAINDER = tl.constexpr(REMAINDER)
_BLOCK = tl.constexpr(BLOCK)


@kernel(do_not_specialize=["M", "room"])
def _fp8_some_rows_kernel(
    x_ptr, x_scale_ptr, values_ptr, scale_ptr, bias_ptr, residual_ptr, out_ptr, partial_ptr, arrivals_ptr, M, N, room,
    K: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, SPLITS: tl.constexpr,
    PREFETCH: tl.constexpr, SCALES: tl.constexpr, BITS: tl.constexpr, COMPUTE: tl.constexpr, PARTS: tl.constexpr,
    BIAS: tl.constexpr, RESIDUAL: tl.constexpr, ACTIVATION: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """A tile of BLOCK_N weight rows against BLOCK_M rows of x, or a part of the inner dimension, as in dense.py.

    PARTS    numbers of 8 bits that one of x's is the sum of: x is [PARTS * room, K]
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
    # A tile's rows of the first part, then those of the second.
    places = tl.arange(0, PARTS * BLOCK_M)
    x_rows = tl.program_id(2) * BLOCK_M + places % BLOCK_M
    x_ptrs = x_ptr + (places // BLOCK_M * room + x_rows)[:, None] * K + lanes[None, :]
    sums = tl.zeros([BLOCK_N, PARTS * BLOCK_M], tl.float32)
    scale_ptrs = scale_ptr + weight_rows // _BLOCK * SCALES
    if SCALES > 1:
        first = tl.minimum(begin, K - 1) // _BLOCK
        scale = tl.load(scale_ptrs + first, mask=inside, other=0.0)
    if PDL:
        cuda.gdc_wait()
    if SCALES > 1 and COMPUTE is None:
        x_scale = tl.load(x_scale_ptr + first * room + x_rows, mask=x_rows < M, other=0.0)
    for k in range(begin, end, BLOCK_K):
        weights = tl.load(weight_ptrs + k, mask=inside[:, None] & (lanes + k < K)[None, :], other=0.0)
        x = tl.load(x_ptrs + k, mask=(x_rows < M)[:, None] & (lanes + k < K)[None, :], other=0.0)
        if COMPUTE is not None:
            weights = widen(weights, BITS, COMPUTE)
            x = x.to(COMPUTE)
        if SCALES > 1:
            # Scales are read a step ahead: products would wait for them.
            after = tl.minimum(k + BLOCK_K, end - 1) // _BLOCK
            next_scale = tl.load(scale_ptrs + after, mask=inside, other=0.0)
            product = tl.dot(weights, tl.trans(x)) * scale[:, None]
            if COMPUTE is None:
                next_x_scale = tl.load(x_scale_ptr + after * room + x_rows, mask=x_rows < M, other=0.0)
                product *= x_scale[None, :]
                x_scale = next_x_scale
            sums += product
            scale = next_scale
        else:
            sums = tl.dot(weights, tl.trans(x), sums)
    if PARTS == 2:
        sums, remainder = tl.split(tl.permute(tl.reshape(sums, [BLOCK_N, 2, BLOCK_M]), (0, 2, 1)))
        sums += remainder * (1.0 / _REMAINDER)
    if SPLITS > 1:
        place = tile * tl.num_programs(2) + tl.program_id(2)
        part_ptr = partial_ptr + (place * SPLITS + split).to(tl.int64) * (BLOCK_N * BLOCK_M)
        part = lines[:, None] * BLOCK_M + tl.arange(0, BLOCK_M)[None, :]
        tl.store(part_ptr + part, sums)
        # Every thread's stores must be out before the one thread that announces this part.
        tl.debug_barrier()
        if tl.atomic_add(arrivals_ptr + place, 1, sem="acq_rel", scope="gpu") != SPLITS - 1:
            return
        tl.store(arrivals_ptr + place, 0)
        sums = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
        for other in tl.static_range(SPLITS):
            part_ptr = partial_ptr + (place * SPLITS + other).to(tl.int64) * (BLOCK_N * BLOCK_M)
            sums += tl.load(part_ptr + part, cache_modifier=".cg")
    if SCALES == 1:
        sums *= tl.load(scale_ptr + weight_rows, mask=inside, other=0.0)[:, None]
        if COMPUTE is None:
            sums *= tl.load(x_scale_ptr + rows, mask=rows < M, other=0.0)[None, :]
    finish_products(
        sums, sums, columns, rows, bias_ptr, residual_ptr, out_ptr, M, N, 0.0,
        K, BLOCK_M, False, BIAS, RESIDUAL, ACTIVATION,
    )  # fmt: skip


def some_rows(
    x: torch.Tensor,
    x_scale: torch.Tensor | None,
    weight: Fp8Weight,
    dtype: torch.dtype,
    after: Epilogue,
    *,
    bits: bool,
    rows: int,
    shape: tuple[int, int, int, int, int] | None = None,
) -> torch.Tensor:
    """x @ weight.T and what follows.

    x      float8_e4m3fn with its scales, as `quantize` makes them; [rows, in] bf16|fp16 without
    dtype  of the result
    bits   widen numbers bit by bit: the device has no conversion
    rows   how many there are, without those to which `quantize` rounds them up
    shape  in place of `some_rows_shape`'s
    """
    inner = x.shape[1]
    room = rows if x_scale is None else x_scale.shape[-1]
    parts = x.shape[0] // room
    outer = weight.values.shape[0] // (2 if after.gated else 1)
    out = x.new_empty(rows, outer, dtype=dtype)
    is_wide = x_scale is None
    block_m, block_n, block_k, splits, stages = shape or some_rows_shape(
        rows, outer, inner, after.gated, parts=parts, narrow=weight.has_blocks or is_wide, deep=has_much_shared_memory(x.device)
    )
    tiles, row_tiles = -(-outer // (block_n // 2 if after.gated else block_n)), -(-rows // block_m)
    partial = None
    if splits > 1:
        partial = x.new_empty(tiles * row_tiles * splits * block_n * block_m, dtype=torch.float32)
    compute = compute_dtype(dtype) if is_wide else None
    _fp8_some_rows_kernel[(tiles, splits, row_tiles)](
        x, x_scale, bytes_of(weight.values, bits), weight.scale, after.bias, after.residual, out, partial, arrivals(x.device),
        rows, outer, room,
        K=inner, BLOCK_M=block_m, BLOCK_N=block_n, BLOCK_K=block_k, SPLITS=splits,
        PREFETCH=min(inner // splits // 16 * 16, 256), SCALES=weight.scale.shape[1], BITS=bits, COMPUTE=compute, PARTS=parts,
        **after.constants(), num_warps=4, num_stages=stages, **dependent_launch(x.device),
    )  # fmt: skip
    return out


def has_much_shared_memory(device: torch.device) -> bool:
    """Whether a program may have 200 KB of it: data-center GPUs of compute capability 9.0 and 10.0 do, others have 99 KB."""
    return capability(device)[0] in (9, 10)


def some_rows_shape(
    rows: int, outer: int, inner: int, gated: bool, *, parts: int, narrow: bool, deep: bool
) -> tuple[int, int, int, int, int]:
    """BLOCK_M, BLOCK_N, BLOCK_K, SPLITS, stages. narrow: BLOCK_K is 128; deep: see `has_much_shared_memory`."""
    block_m, block_n = power_of_two(rows, least=16 // parts), 64
    tiles = -(-outer // (block_n // 2 if gated else block_n))
    splits = 1
    # A product of 128 columns is waited for before its scale is applied: more programs hide that.
    while tiles * splits < (192 if narrow else 96) and inner // (splits * 2) >= 1024:
        splits *= 2
    if narrow or not deep:
        return block_m, block_n, BLOCK, splits, 5 if deep and tiles * splits <= 300 else 3
    if parts * block_m == 16 and tiles * splits <= 132:
        return block_m, block_n, 4 * BLOCK, splits, 4
    return block_m, block_n, 2 * BLOCK, splits, 3 if tiles * splits > 300 else 5
