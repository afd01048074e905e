"""Products of up to some hundred rows with weights of 4-bit integers, which are unpacked in registers.

Tiles are unpacked by `four_bit_tiles`; sums of a group are multiplied by its scale in fp32.

* Up to `FEW_ROWS`: a program has 16 weight rows and its warps share out the columns.
* More: a program has 64 weight rows, a warp 16 of them, and inputs come through shared memory; programs may share out columns.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from triton.language.extra import cuda

from streamserve_kernels.activations import activate
from streamserve_kernels.launch import arrivals, dependent_launch, kernel, power_of_two
from streamserve_kernels.projections.epilogue import Epilogue, finish_products
from streamserve_kernels.projections.four_bit_tiles import IN_FOURS, lane_columns, operand, quarters, unpack_integers
from streamserve_kernels.reference.projections.grouped import COLUMNS, ROWS, GroupedWeight

FEW_ROWS = 8

_COLUMNS, _ROWS = tl.constexpr(COLUMNS), tl.constexpr(ROWS)


@triton.jit
def _zeros(zero_ptr, rows, chunk, total, known, GROUP: tl.constexpr, ZERO: tl.constexpr):
    """Zero points of rows [tiles, 8] and of those 8 further in chunks [tiles] of 64 columns, as they broadcast to words."""
    if ZERO:
        if GROUP == 32:
            group = (chunk * 2)[:, None, None, None] + (tl.arange(0, 4) // 2)[None, None, None, :]
        else:
            group = (chunk * _COLUMNS // GROUP)[:, None, None, None]
        zero_ptrs = zero_ptr + group * total + rows[:, :, None, None]
        mask = known[:, None, None, None]
        zero = tl.load(zero_ptrs, mask=mask, other=0)
        below = tl.load(zero_ptrs + 8, mask=mask, other=0)
    else:
        zero = tl.full([1, 1, 1, 1], 8, tl.uint8)
        below = zero
    return zero, below


@triton.jit
def _scales(scale_ptr, rows, chunk, total, known, GROUP: tl.constexpr):
    """Scales of weight rows [tiles, 16] in chunks [tiles] of 64 columns: of their first half, and of their second."""
    if GROUP == 32:
        scale_ptrs = scale_ptr + (chunk * 2)[:, None] * total + rows
        scale = tl.load(scale_ptrs, mask=known, other=0.0)
        late_scale = tl.load(scale_ptrs + total, mask=known, other=0.0)
    else:
        scale = tl.load(scale_ptr + (chunk * _COLUMNS // GROUP)[:, None] * total + rows, mask=known, other=0.0)
        late_scale = scale
    return scale, late_scale


@triton.jit
def _scaled(weights, x, scale, next_scale, GROUP: tl.constexpr):
    """The product of chunks [tiles, 16, 64] and [tiles, 64, rows of x], times the scales of weight rows [tiles, 16]."""
    if GROUP == 32:
        left, right = tl.split(tl.permute(tl.reshape(weights, [weights.shape[0], 16, 2, 32]), (0, 1, 3, 2)))
        above, below = tl.split(tl.permute(tl.reshape(x, [x.shape[0], 2, 32, x.shape[2]]), (0, 2, 3, 1)))
        product = tl.dot(left, above, input_precision="ieee") * scale.to(tl.float32)[:, :, None]
        product += tl.dot(right, below, input_precision="ieee") * next_scale.to(tl.float32)[:, :, None]
    else:
        product = tl.dot(weights, x, input_precision="ieee") * scale.to(tl.float32)[:, :, None]
    return product


@triton.jit
def _fetch(
    word_ptrs, scale_ptr, zero_ptr, first, tile, lane, total, step: tl.constexpr, CHUNKS: tl.constexpr, SLICES: tl.constexpr,
    GROUP: tl.constexpr, ZERO: tl.constexpr,
):  # fmt: skip
    """A step's words [SLICES * 32, 4] of a tile of 16 rows, the tiles' scales and their zero points.

    first  row of the first tile
    """
    chunk = tl.arange(0, SLICES) + step * SLICES
    known = chunk < CHUNKS
    inside = (lane // 32 + step * SLICES < CHUNKS)[:, None]
    words = tl.load(word_ptrs + step * SLICES * 128, mask=inside, other=0, eviction_policy="evict_first")
    rows = (first + tile * _ROWS + tl.arange(0, _ROWS))[None, :]
    scale, next_scale = _scales(scale_ptr, rows, chunk, total, known[:, None], GROUP)
    above = (first + tile * _ROWS + tl.arange(0, 8))[None, :]
    zero, zero_below = _zeros(zero_ptr, above, chunk, total, known, GROUP, ZERO)
    return words, scale, next_scale, zero, zero_below


@triton.jit
def _multiplied(
    fetched, x, SLICES: tl.constexpr, GROUP: tl.constexpr, PACKED: tl.constexpr, IN_FOURS: tl.constexpr, COMPUTE: tl.constexpr
):  # fmt: skip
    """The product of what `_fetch` returned with an operand."""
    words, scale, next_scale, zero, below = fetched
    words = tl.reshape(words, [SLICES, 8, 4, 4])
    weights = unpack_integers(words, zero.to(tl.int32), below.to(tl.int32), PACKED, IN_FOURS, COMPUTE)
    return _scaled(weights, x, scale, next_scale, GROUP)


@kernel(do_not_specialize=["M"])
def _grouped_few_rows_kernel(
    x_ptr, words_ptr, scale_ptr, zero_ptr, bias_ptr, residual_ptr, out_ptr, M, N,
    K: tl.constexpr, GROUP: tl.constexpr, SLICES: tl.constexpr, AHEAD: tl.constexpr,
    ZERO: tl.constexpr, PACKED: tl.constexpr, IN_FOURS: tl.constexpr, COMPUTE: tl.constexpr,
    BIAS: tl.constexpr, RESIDUAL: tl.constexpr, ACTIVATION: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """16 weight rows, or as many of a gate and of what it lets through, times all rows of x.

    Each of SLICES warps multiplies every SLICES-th tile of 64 columns. What a step needs is asked for AHEAD steps before: loads
    that are waited for one after another take longer than all else.
    """
    if PDL:
        cuda.gdc_launch_dependents()
    gated: tl.constexpr = ACTIVATION != "none"
    chunks: tl.constexpr = K // _COLUMNS
    steps: tl.constexpr = (chunks + SLICES - 1) // SLICES
    tile = tl.program_id(0)
    # All lanes of all warps in one dimension: the compiler then gives each its own 16 bytes.
    lane = tl.arange(0, SLICES * 32)
    word_ptrs = words_ptr + tile.to(tl.int64) * (chunks * 128) + (lane * 4)[:, None] + tl.arange(0, 4)[None, :]
    up_ptrs = word_ptrs + (N // _ROWS).to(tl.int64) * (chunks * 128)
    weight_rows = tile * _ROWS + tl.arange(0, _ROWS)
    columns = lane_columns(lane)
    x_ptrs = x_ptr + (lane % 32 // 4 * K)[:, None] + columns
    is_row = (lane % 32 // 4 < M)[:, None]
    total = N
    if gated:
        total = 2 * N
    tiles = ()
    up_tiles = ()
    inputs = ()
    for step in tl.static_range(0, min(steps, AHEAD)):
        fetched = _fetch(word_ptrs, scale_ptr, zero_ptr, 0, tile, lane, total, step, chunks, SLICES, GROUP, ZERO)
        tiles = tiles + (fetched,)  # type: ignore[assignment]
        if gated:
            fetched = _fetch(up_ptrs, scale_ptr, zero_ptr, N, tile, lane, total, step, chunks, SLICES, GROUP, ZERO)
            up_tiles = up_tiles + (fetched,)  # type: ignore[assignment]
    if PDL:
        cuda.gdc_wait()
    for step in tl.static_range(0, min(steps, AHEAD)):
        inputs = inputs + (quarters(x_ptrs, is_row, columns, step * SLICES * _COLUMNS, K),)  # type: ignore[assignment]
    sums = tl.zeros([SLICES, _ROWS, 8], tl.float32)
    up_sums = tl.zeros([SLICES, _ROWS, 8], tl.float32)
    for step in tl.static_range(0, steps):
        if step + AHEAD < steps:
            fetched = _fetch(word_ptrs, scale_ptr, zero_ptr, 0, tile, lane, total, step + AHEAD, chunks, SLICES, GROUP, ZERO)
            tiles = tiles + (fetched,)  # type: ignore[assignment]
            if gated:
                fetched = _fetch(up_ptrs, scale_ptr, zero_ptr, N, tile, lane, total, step + AHEAD, chunks, SLICES, GROUP, ZERO)
                up_tiles = up_tiles + (fetched,)  # type: ignore[assignment]
            inputs = inputs + (quarters(x_ptrs, is_row, columns, (step + AHEAD) * SLICES * _COLUMNS, K),)  # type: ignore[assignment]
        x = operand(inputs[step], SLICES, IN_FOURS, COMPUTE)
        sums += _multiplied(tiles[step], x, SLICES, GROUP, PACKED, IN_FOURS, COMPUTE)
        if gated:
            up_sums += _multiplied(up_tiles[step], x, SLICES, GROUP, PACKED, IN_FOURS, COMPUTE)
    result = tl.sum(sums, axis=0)
    if BIAS:
        result += tl.load(bias_ptr + weight_rows).to(tl.float32)[:, None]
    if gated:
        up = tl.sum(up_sums, axis=0)
        if BIAS:
            up += tl.load(bias_ptr + N + weight_rows).to(tl.float32)[:, None]
        result = activate(result, up, ACTIVATION)
    rows = tl.arange(0, 8)
    offsets = rows.to(tl.int64)[None, :] * N + weight_rows[:, None]
    mask = (rows < M)[None, :] & (weight_rows < N)[:, None]
    if RESIDUAL:
        result += tl.load(residual_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
    tl.store(out_ptr + offsets, result.to(out_ptr.dtype.element_ty), mask=mask)


@kernel(do_not_specialize=["M"])
def _grouped_some_rows_kernel(
    x_ptr, words_ptr, scale_ptr, zero_ptr, bias_ptr, residual_ptr, out_ptr, partial_ptr, arrivals_ptr, M, N,
    K: tl.constexpr, GROUP: tl.constexpr, BLOCK_M: tl.constexpr, SPLITS: tl.constexpr,
    ZERO: tl.constexpr, PACKED: tl.constexpr, COMPUTE: tl.constexpr,
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
    x_ptrs = x_ptr + rows[:, None] * K + lanes[None, :]
    sums = tl.zeros([64, BLOCK_M], tl.float32)
    end = tl.minimum(begin + per_split, chunks)
    # Scales and zero points are read a step ahead: products would wait for them.
    same = tl.zeros([4], tl.int32)
    one = tl.zeros([1], tl.int32)
    is_row = inside[None, :]
    first = tl.minimum(begin, chunks - 1)
    zero, below = _zeros(zero_ptr, above, same + first, total, is_block, GROUP, ZERO)
    scale, late_scale = _scales(scale_ptr, weight_rows[None, :], one + first, total, is_row, GROUP)
    if PDL:
        cuda.gdc_wait()
    for chunk in range(begin, end):
        words = tl.load(word_ptrs + chunk * 128, mask=held[:, None], other=0)
        x = tl.load(x_ptrs + chunk * _COLUMNS, mask=(rows < M)[:, None], other=0.0)
        after = tl.minimum(chunk + 1, end - 1)
        next_zero, next_below = _zeros(zero_ptr, above, same + after, total, is_block, GROUP, ZERO)
        next_scale, next_late_scale = _scales(scale_ptr, weight_rows[None, :], one + after, total, is_row, GROUP)
        words = tl.reshape(words, [4, 8, 4, 4])
        weights = unpack_integers(words, zero.to(tl.int32), below.to(tl.int32), PACKED, False, COMPUTE)
        weights = tl.reshape(weights, [64, 64])
        x = tl.trans(x.to(COMPUTE))
        wide = tl.reshape(scale.to(tl.float32), [64])
        if GROUP == 32:
            late = tl.reshape(late_scale.to(tl.float32), [64])
            weights = weights * tl.where((lanes < 32)[None, :], wide[:, None], late[:, None]).to(COMPUTE)
            sums = tl.dot(weights, x, sums, input_precision="ieee")
        else:
            sums += tl.dot(weights, x, input_precision="ieee") * wide[:, None]
        zero, below, scale, late_scale = next_zero, next_below, next_scale, next_late_scale
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
    zero, below = _zeros(zero_ptr, above, chunk, N, known, GROUP, ZERO)
    words = tl.reshape(words, [TILES, 8, 4, 4])
    numbers = unpack_integers(words, zero.to(tl.int32), below.to(tl.int32), PACKED, False, COMPUTE)
    rows = (tile * _ROWS + tl.arange(0, _ROWS))[None, :, None]
    columns = chunk[:, None, None] * _COLUMNS + tl.arange(0, _COLUMNS)[None, None, :]
    mask = known[:, None, None] & (rows < N)
    scale = tl.load(scale_ptr + columns // GROUP * N + rows, mask=mask, other=0.0).to(tl.float32)
    tl.store(out_ptr + rows.to(tl.int64) * K + columns, (numbers.to(tl.float32) * scale).to(COMPUTE), mask=mask)


def few_rows(x: torch.Tensor, weight: GroupedWeight, after: Epilogue, *, shape: tuple[int, int] | None = None) -> torch.Tensor:
    """x @ weight.T and what follows, up to `FEW_ROWS` rows; columns of x in the weight's order.

    x      [rows, in]  bf16|fp16
    shape  in place of `few_rows_shape`'s
    """
    rows, inner = x.shape
    outer = weight.shape[0] // (2 if after.gated else 1)
    out, (slices, ahead) = x.new_empty(rows, outer), shape or few_rows_shape(weight)
    _grouped_few_rows_kernel[(outer // ROWS,)](
        x, weight.words, weight.scale, weight.zero, after.bias, after.residual, out, rows, outer,
        K=inner, GROUP=weight.group, SLICES=slices, AHEAD=ahead,
        ZERO=weight.zero is not None, PACKED=x.device.type != "cpu", IN_FOURS=IN_FOURS, COMPUTE=_COMPUTE[x.dtype],
        **after.constants(), num_warps=slices, num_stages=1, **dependent_launch(x.device),
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
        ZERO=weight.zero is not None, PACKED=x.device.type != "cpu", COMPUTE=_COMPUTE[x.dtype],
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


def few_rows_shape(weight: GroupedWeight) -> tuple[int, int]:
    """Warps of a program, and steps that loads are ahead: measured on an H200 for the linears of an 8B model."""
    if weight.zero is not None:
        # Each step has more loads: with more steps, compiling them takes longer than all else at a start.
        return 8, 4
    return (4, 8) if weight.shape[1] <= 64 * COLUMNS else (8, 8)


def some_rows_shape(rows: int, tiles: int, inner: int) -> tuple[int, int, int]:
    """BLOCK_M, SPLITS, stages; alike for all that have several tiles of rows, so that a start compiles what they need."""
    block_m = min(power_of_two(rows, least=16), 128)
    splits = 1
    # A program waits for each product before its scale is applied: many of them hide that, where adding up costs little.
    while tiles * splits < (1024 if block_m <= 64 else 96) and inner // (splits * 2) >= 1024:
        splits *= 2
    return block_m, splits, 4
