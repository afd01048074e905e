"""Products of up to some hundred rows with weights of 4-bit integers, which are unpacked in registers.

Tiles are unpacked by `four_bit_tiles`; sums of a group are multiplied by its scale in fp32.

* Up to `FEW_ROWS`: a program has 16 weight rows and its warps share out the columns; a norm is gathered along the way.
* More: a program has 64 weight rows, a warp 16 of them, and inputs come through shared memory; programs may share out columns.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from triton.language.extra import cuda

from streamserve_kernels.launch import arrivals, dependent_launch, kernel, power_of_two
from streamserve_kernels.norm_rope import activate
from streamserve_kernels.projections.epilogue import Epilogue, finish_products
from streamserve_kernels.projections.four_bit_tiles import IN_FOURS, operand, unpack_integers
from streamserve_kernels.reference.grouped import COLUMNS, ROWS, GroupedWeight

FEW_ROWS = 8

_COLUMNS, _ROWS = tl.constexpr(COLUMNS), tl.constexpr(ROWS)


@triton.jit
def _zeros(zero_ptr, rows, chunk, total, known, GROUP: tl.constexpr, ZERO: tl.constexpr):
    """Zero points of rows [tiles, 8] in chunks [tiles] of 64 columns, as they broadcast to words."""
    if ZERO:
        if GROUP == 32:
            group = (chunk * 2)[:, None, None, None] + (tl.arange(0, 4) // 2)[None, None, None, :]
        else:
            group = (chunk * _COLUMNS // GROUP)[:, None, None, None]
        zero_ptrs = zero_ptr + group * total + rows[:, :, None, None]
        zero = tl.load(zero_ptrs, mask=known[:, None, None, None], other=0).to(tl.int32)
    else:
        zero = tl.full([1, 1, 1, 1], 8, tl.int32)
    return zero


@triton.jit
def _scaled(weights, x, scale_ptr, rows, chunk, total, known, GROUP: tl.constexpr):
    """The product of chunks [tiles, 16, 64] and [tiles, 64, rows of x], times the scales of weight rows [tiles, 16]."""
    if GROUP == 32:
        left, right = tl.split(tl.permute(tl.reshape(weights, [weights.shape[0], 16, 2, 32]), (0, 1, 3, 2)))
        above, below = tl.split(tl.permute(tl.reshape(x, [x.shape[0], 2, 32, x.shape[2]]), (0, 2, 3, 1)))
        scale_ptrs = scale_ptr + (chunk * 2)[:, None] * total + rows
        scale = tl.load(scale_ptrs, mask=known[:, None], other=0.0).to(tl.float32)
        next_scale = tl.load(scale_ptrs + total, mask=known[:, None], other=0.0).to(tl.float32)
        product = tl.dot(left, above, input_precision="ieee") * scale[:, :, None]
        product += tl.dot(right, below, input_precision="ieee") * next_scale[:, :, None]
    else:
        scale_ptrs = scale_ptr + (chunk * _COLUMNS // GROUP)[:, None] * total + rows
        scale = tl.load(scale_ptrs, mask=known[:, None], other=0.0).to(tl.float32)
        product = tl.dot(weights, x, input_precision="ieee") * scale[:, :, None]
    return product


@kernel(do_not_specialize=["M"])
def _grouped_few_rows_kernel(
    x_ptr, words_ptr, scale_ptr, zero_ptr, norm_ptr, bias_ptr, residual_ptr, out_ptr, M, N, eps,
    K: tl.constexpr, GROUP: tl.constexpr, SLICES: tl.constexpr, AHEAD: tl.constexpr,
    ZERO: tl.constexpr, PACKED: tl.constexpr, IN_FOURS: tl.constexpr, COMPUTE: tl.constexpr, NORM: tl.constexpr,
    BIAS: tl.constexpr, RESIDUAL: tl.constexpr, ACTIVATION: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """16 weight rows, or as many of a gate and of what it lets through, times all rows of x.

    Each of SLICES warps multiplies every SLICES-th tile of 64 columns; AHEAD of its tiles are in registers before use.
    """
    if PDL:
        cuda.gdc_launch_dependents()
    gated: tl.constexpr = ACTIVATION != "none"
    chunks: tl.constexpr = K // _COLUMNS
    steps: tl.constexpr = (chunks + SLICES - 1) // SLICES
    tile = tl.program_id(0)
    slices = tl.arange(0, SLICES)
    lines = tl.arange(0, 8)
    # All lanes of all warps in one dimension: the compiler then gives each its own 16 bytes.
    lane = tl.arange(0, SLICES * 32)
    word_ptrs = words_ptr + tile.to(tl.int64) * (chunks * 128) + (lane * 4)[:, None] + tl.arange(0, 4)[None, :]
    up_ptrs = word_ptrs + (N // _ROWS).to(tl.int64) * (chunks * 128)
    tiles = ()
    up_tiles = ()
    for step in tl.static_range(0, min(steps, AHEAD)):
        inside = (lane // 32 + step * SLICES < chunks)[:, None]
        tiles = tiles + (tl.load(word_ptrs + step * SLICES * 128, mask=inside, other=0, eviction_policy="evict_first"),)  # type: ignore[assignment]
        if gated:
            up_tiles = up_tiles + (tl.load(up_ptrs + step * SLICES * 128, mask=inside, other=0, eviction_policy="evict_first"),)  # type: ignore[assignment]
    rows = tl.arange(0, 8)
    columns = (lane // 32 * _COLUMNS + lane % 4 * 4)[:, None] + tl.arange(0, 4)[None, :]
    x_ptrs = x_ptr + (lane % 32 // 4 * K)[:, None] + columns
    is_row = (lane % 32 // 4 < M)[:, None]
    weight_rows = tile * _ROWS + tl.arange(0, _ROWS)
    total = N
    if gated:
        total = 2 * N
    sums = tl.zeros([SLICES, _ROWS, 8], tl.float32)
    up_sums = tl.zeros([SLICES, _ROWS, 8], tl.float32)
    squares = tl.zeros([SLICES * 32, 4], tl.float32)
    if PDL:
        cuda.gdc_wait()
    for step in tl.static_range(0, steps):
        chunk = slices + step * SLICES
        known = chunk < chunks
        parts = ()
        for part in tl.static_range(4):
            at = step * SLICES * _COLUMNS + part * 16
            is_column = columns + at < K
            x = tl.load(x_ptrs + at, mask=is_row & is_column, other=0.0)
            if NORM:
                wide = x.to(tl.float32)
                squares += wide * wide
                norm = tl.load(norm_ptr + columns + at, mask=is_column, other=0.0).to(tl.float32)
                x = (wide * norm).to(x_ptr.dtype.element_ty)
            parts = parts + (x.to(COMPUTE),)  # type: ignore[assignment]
        x = operand(parts[0], parts[1], parts[2], parts[3], SLICES, IN_FOURS)  # type: ignore[misc]
        above = (tile * _ROWS + lines)[None, :]
        zero = _zeros(zero_ptr, above, chunk, total, known, GROUP, ZERO)
        below = _zeros(zero_ptr, above + 8, chunk, total, known, GROUP, ZERO)
        weights = unpack_integers(tl.reshape(tiles[step], [SLICES, 8, 4, 4]), zero, below, PACKED, IN_FOURS, COMPUTE)
        sums += _scaled(weights, x, scale_ptr, weight_rows[None, :], chunk, total, known, GROUP)
        if gated:
            zero = _zeros(zero_ptr, N + above, chunk, total, known, GROUP, ZERO)
            below = _zeros(zero_ptr, N + above + 8, chunk, total, known, GROUP, ZERO)
            weights = unpack_integers(tl.reshape(up_tiles[step], [SLICES, 8, 4, 4]), zero, below, PACKED, IN_FOURS, COMPUTE)
            up_sums += _scaled(weights, x, scale_ptr, N + weight_rows[None, :], chunk, total, known, GROUP)
        if step + AHEAD < steps:
            inside = (lane // 32 + (step + AHEAD) * SLICES < chunks)[:, None]
            at = (step + AHEAD) * SLICES * 128
            tiles = tiles + (tl.load(word_ptrs + at, mask=inside, other=0, eviction_policy="evict_first"),)  # type: ignore[assignment]
            if gated:
                up_tiles = up_tiles + (tl.load(up_ptrs + at, mask=inside, other=0, eviction_policy="evict_first"),)  # type: ignore[assignment]
    result = tl.sum(sums, axis=0)
    factor = tl.full([8], 1.0, tl.float32)
    if NORM:
        of_rows = tl.sum(tl.reshape(squares, [SLICES, 8, 16]), axis=2)
        factor = tl.rsqrt(tl.sum(of_rows, axis=0) / K + eps)
    result *= factor[None, :]
    if BIAS:
        result += tl.load(bias_ptr + weight_rows).to(tl.float32)[:, None]
    if gated:
        up = tl.sum(up_sums, axis=0) * factor[None, :]
        if BIAS:
            up += tl.load(bias_ptr + N + weight_rows).to(tl.float32)[:, None]
        result = activate(result, up, ACTIVATION)
    offsets = rows.to(tl.int64)[None, :] * N + weight_rows[:, None]
    mask = (rows < M)[None, :] & (weight_rows < N)[:, None]
    if RESIDUAL:
        result += tl.load(residual_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
    tl.store(out_ptr + offsets, result.to(out_ptr.dtype.element_ty), mask=mask)


@kernel(do_not_specialize=["M"])
def _grouped_some_rows_kernel(
    x_ptr, words_ptr, scale_ptr, zero_ptr, bias_ptr, residual_ptr, out_ptr, partial_ptr, arrivals_ptr, M, N,
    K: tl.constexpr, GROUP: tl.constexpr, BLOCK_M: tl.constexpr, SPLITS: tl.constexpr,
    ZERO: tl.constexpr, PACKED: tl.constexpr, IN_FOURS: tl.constexpr, COMPUTE: tl.constexpr,
    BIAS: tl.constexpr, RESIDUAL: tl.constexpr, ACTIVATION: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """64 weight rows, or 32 of a gate and of what it lets through, against BLOCK_M rows of x; 64 columns at a time.

    partial_ptr, arrivals_ptr  as in dense.py
    """
    if PDL:
        cuda.gdc_launch_dependents()
    chunks: tl.constexpr = K // _COLUMNS
    tile = tl.program_id(0)
    split = tl.program_id(1)
    lines = tl.arange(0, 64)
    lane = tl.arange(0, 128)
    if ACTIVATION == "none":
        columns = tile * 64 + lines
        weight_rows = columns
        block = tile * 4 + lane // 32
        blocks = tile * 4 + tl.arange(0, 4)
        total = N
    else:
        columns = tile * 32 + tl.arange(0, 32)
        weight_rows = tile * 32 + lines % 32 + lines // 32 * N
        block = tile * 2 + lane // 32 % 2 + lane // 64 * (N // _ROWS)
        blocks = tile * 2 + tl.arange(0, 4) % 2 + tl.arange(0, 4) // 2 * (N // _ROWS)
        total = 2 * N
    held = block < total // _ROWS
    inside = weight_rows < total
    word_ptrs = words_ptr + (block.to(tl.int64) * (chunks * 128) + lane % 32 * 4)[:, None] + tl.arange(0, 4)[None, :]
    above = (blocks * _ROWS)[:, None] + tl.arange(0, 8)[None, :]
    is_block = blocks < total // _ROWS
    per_split: tl.constexpr = (chunks + SPLITS - 1) // SPLITS
    begin = split * per_split
    rows = tl.program_id(2) * BLOCK_M + tl.arange(0, BLOCK_M)
    lanes = tl.arange(0, _COLUMNS)
    if not IN_FOURS:
        lanes = lanes // 16 * 16 + lanes % 8 // 2 * 4 + lanes % 16 // 8 * 2 + lanes % 2
    x_ptrs = x_ptr + rows[:, None] * K + lanes[None, :]
    sums = tl.zeros([64, BLOCK_M], tl.float32)
    if PDL:
        cuda.gdc_wait()
    for chunk in range(begin, tl.minimum(begin + per_split, chunks)):
        words = tl.load(word_ptrs + chunk * 128, mask=held[:, None], other=0)
        x = tl.load(x_ptrs + chunk * _COLUMNS, mask=(rows < M)[:, None], other=0.0)
        same = tl.zeros([4], tl.int32) + chunk
        zero = _zeros(zero_ptr, above, same, total, is_block, GROUP, ZERO)
        below = _zeros(zero_ptr, above + 8, same, total, is_block, GROUP, ZERO)
        weights = tl.reshape(unpack_integers(tl.reshape(words, [4, 8, 4, 4]), zero, below, PACKED, IN_FOURS, COMPUTE), [64, 64])
        x = tl.trans(x.to(COMPUTE))
        scale_ptrs = scale_ptr + chunk * _COLUMNS // GROUP * total + weight_rows
        scale = tl.load(scale_ptrs, mask=inside, other=0.0).to(tl.float32)
        if GROUP == 32:
            next_scale = tl.load(scale_ptrs + total, mask=inside, other=0.0).to(tl.float32)
            weights = weights * tl.where((lanes < 32)[None, :], scale[:, None], next_scale[:, None]).to(COMPUTE)
            sums = tl.dot(weights, x, sums, input_precision="ieee")
        else:
            sums += tl.dot(weights, x, input_precision="ieee") * scale[:, None]
    if SPLITS > 1:
        place = tile * tl.num_programs(2) + tl.program_id(2)
        part_ptr = partial_ptr + (place * SPLITS + split).to(tl.int64) * (64 * BLOCK_M)
        places = lines[:, None] * BLOCK_M + tl.arange(0, BLOCK_M)[None, :]
        tl.store(part_ptr + places, sums)
        # Every thread's stores must be out before the one thread that announces this part.
        tl.debug_barrier()
        if tl.atomic_add(arrivals_ptr + place, 1, sem="acq_rel", scope="gpu") != SPLITS - 1:
            return
        tl.store(arrivals_ptr + place, 0)
        sums = tl.zeros([64, BLOCK_M], tl.float32)
        for part in tl.static_range(SPLITS):
            part_ptr = partial_ptr + (place * SPLITS + part).to(tl.int64) * (64 * BLOCK_M)
            sums += tl.load(part_ptr + places, cache_modifier=".cg")
    finish_products(
        sums, sums, columns, rows, bias_ptr, residual_ptr, out_ptr, M, N, 0.0,
        K, BLOCK_M, False, BIAS, RESIDUAL, ACTIVATION,
    )  # fmt: skip


@kernel()
def _grouped_expand_kernel(
    words_ptr, scale_ptr, zero_ptr, out_ptr, N,
    K: tl.constexpr, GROUP: tl.constexpr, TILES: tl.constexpr, ZERO: tl.constexpr, PACKED: tl.constexpr, COMPUTE: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """TILES tiles side by side, in columns' own order, times their scales."""
    if PDL:
        cuda.gdc_launch_dependents()
        cuda.gdc_wait()
    tile = tl.program_id(0)
    chunk = tl.program_id(1) * TILES + tl.arange(0, TILES)
    lane = tl.arange(0, TILES * 32)
    word_ptrs = words_ptr + tile.to(tl.int64) * (K // _COLUMNS * 128) + (tl.program_id(1) * TILES * 128 + lane * 4)[:, None]
    known = chunk < K // _COLUMNS
    held = (tl.program_id(1) * TILES + lane // 32 < K // _COLUMNS)[:, None]
    words = tl.load(word_ptrs + tl.arange(0, 4)[None, :], mask=held, other=0)
    above = (tile * _ROWS + tl.arange(0, 8))[None, :]
    zero = _zeros(zero_ptr, above, chunk, N, known, GROUP, ZERO)
    below = _zeros(zero_ptr, above + 8, chunk, N, known, GROUP, ZERO)
    numbers = unpack_integers(tl.reshape(words, [TILES, 8, 4, 4]), zero, below, PACKED, True, COMPUTE)
    rows = (tile * _ROWS + tl.arange(0, _ROWS))[None, :, None]
    columns = chunk[:, None, None] * _COLUMNS + tl.arange(0, _COLUMNS)[None, None, :]
    mask = known[:, None, None] & (rows < N)
    scale = tl.load(scale_ptr + columns // GROUP * N + rows, mask=mask, other=0.0).to(tl.float32)
    tl.store(out_ptr + rows.to(tl.int64) * K + columns, (numbers.to(tl.float32) * scale).to(COMPUTE), mask=mask)


def few_rows(
    x: torch.Tensor,
    weight: GroupedWeight,
    after: Epilogue,
    *,
    norm_weight: torch.Tensor | None = None,
    eps: float = 0.0,
) -> torch.Tensor:
    """x' @ weight.T and what follows, with x' = x or rms_norm(x), up to `FEW_ROWS` rows; columns in the weight's order.

    x  [rows, in]  bf16|fp16
    """
    rows, inner = x.shape
    outer = weight.shape[0] // (2 if after.gated else 1)
    out, slices = x.new_empty(rows, outer), 8
    _grouped_few_rows_kernel[(outer // ROWS,)](
        x, weight.words, weight.scale, weight.zero, norm_weight, after.bias, after.residual, out, rows, outer, eps,
        K=inner, GROUP=weight.group, SLICES=slices, AHEAD=4,
        ZERO=weight.zero is not None, PACKED=x.device.type != "cpu", IN_FOURS=IN_FOURS, COMPUTE=_COMPUTE[x.dtype],
        NORM=norm_weight is not None, **after.constants(), num_warps=slices, num_stages=1, **dependent_launch(x.device),
    )  # fmt: skip
    return out


def some_rows(
    x: torch.Tensor, weight: GroupedWeight, after: Epilogue, *, shape: tuple[int, int, int] | None = None
) -> torch.Tensor:
    """x @ weight.T and what follows; columns of x in the weight's order.

    x      [rows, in]  bf16|fp16
    shape  in place of `some_rows_shape`'s
    """
    rows, inner = x.shape
    outer = weight.shape[0] // (2 if after.gated else 1)
    out = x.new_empty(rows, outer)
    tiles = -(-outer // (32 if after.gated else 64))
    block_m, splits, stages = shape or some_rows_shape(rows, tiles, inner)
    row_tiles = -(-rows // block_m)
    partial = x.new_empty(tiles * row_tiles * splits * 64 * block_m, dtype=torch.float32) if splits > 1 else None
    _grouped_some_rows_kernel[(tiles, splits, row_tiles)](
        x, weight.words, weight.scale, weight.zero, after.bias, after.residual, out, partial, arrivals(x.device), rows, outer,
        K=inner, GROUP=weight.group, BLOCK_M=block_m, SPLITS=splits,
        ZERO=weight.zero is not None, PACKED=x.device.type != "cpu", IN_FOURS=IN_FOURS, COMPUTE=_COMPUTE[x.dtype],
        **after.constants(), num_warps=4, num_stages=stages, **dependent_launch(x.device),
    )  # fmt: skip
    return out


def expand(weight: GroupedWeight, dtype: torch.dtype) -> torch.Tensor:
    """What a weight stands for, [out, in] bf16 or fp16, with columns in its order."""
    outer, inner = weight.shape
    out = weight.words.new_empty(outer, inner, dtype=dtype)
    _grouped_expand_kernel[(outer // ROWS, -(-inner // (4 * COLUMNS)))](
        weight.words, weight.scale, weight.zero, out, outer,
        K=inner, GROUP=weight.group, TILES=4, ZERO=weight.zero is not None, PACKED=out.device.type != "cpu",
        COMPUTE=_COMPUTE[dtype], num_warps=4, **dependent_launch(out.device),
    )  # fmt: skip
    return out


_COMPUTE = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


def some_rows_shape(rows: int, tiles: int, inner: int) -> tuple[int, int, int]:
    """BLOCK_M, SPLITS, stages; alike for all that have several tiles of rows, so that a start compiles what they need."""
    block_m = min(power_of_two(rows, least=16), 128)
    splits = 1
    while tiles * splits < 12288 // block_m and tiles * splits < 192 and inner // (splits * 2) >= 1024:
        splits *= 2
    return block_m, splits, 4
