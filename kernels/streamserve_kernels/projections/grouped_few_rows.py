"""Products of up to `FEW_ROWS` rows with weights of 4-bit integers, which are unpacked in registers.

Tiles are unpacked by `four_bit_unpacking`; sums of a group are multiplied by its scale in fp32. A program has 16 weight rows,
and its warps share out the columns.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from triton.language.extra import cuda

from streamserve_kernels.activations import activate
from streamserve_kernels.launch import compute_dtype, dependent_launch, kernel
from streamserve_kernels.projections.epilogue import Epilogue
from streamserve_kernels.projections.four_bit_unpacking import IN_FOURS, lane_columns, operand, quarters, unpack_integers
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
        ZERO=weight.zero is not None, PACKED=x.device.type != "cpu", IN_FOURS=IN_FOURS, COMPUTE=compute_dtype(x.dtype),
        **after.constants(), num_warps=slices, num_stages=1, **dependent_launch(x.device),
    )  # fmt: skip
    return out


def few_rows_shape(weight: GroupedWeight) -> tuple[int, int]:
    """Warps of a program, and steps that loads are ahead: measured on an H200 for the linears of an 8B model."""
    if weight.zero is not None:
        # Each step has more loads: with more steps, compiling them takes longer than all else at a start.
        return 8, 4
    return (4, 8) if weight.shape[1] <= 64 * COLUMNS else (8, 8)
