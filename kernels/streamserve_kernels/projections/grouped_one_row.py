"""Products of one row with weights of 4-bit integers.

Unpacking to floats takes the integer units nearly as long as reading takes memory. Here three instructions make eight integers
of a word, and the matrix units multiply those with the row in fixed point (fixed_point.py), exactly; sums of a group are
multiplied by its scales in fp32. The norm is gathered along the way, as in fp8_rows.py.

A program has two tiles of 16 weight rows, or one of a gate and one of what it lets through; its warps share out the columns.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from triton.language.extra import cuda

from streamserve_kernels.activations import activate
from streamserve_kernels.launch import dependent_launch, kernel
from streamserve_kernels.projections.epilogue import Epilogue
from streamserve_kernels.projections.fixed_point import UNIT, columns_of, round_columns, split_bytes, spread_operand
from streamserve_kernels.projections.four_bit_unpacking import IN_FOURS
from streamserve_kernels.reference.projections.grouped import COLUMNS, ROWS, GroupedWeight

_COLUMNS, _ROWS, _UNIT = tl.constexpr(COLUMNS), tl.constexpr(ROWS), tl.constexpr(UNIT)

# In each of four bytes.
_EIGHTS = tl.constexpr(0x88888888 - (1 << 32))
_UPPER = tl.constexpr(0xF0F0F0F0 - (1 << 32))


@triton.jit
def _integers(words, SLICES: tl.constexpr, IN_FOURS: tl.constexpr):
    """16 * (q - 8) of words [lanes, 4] of a tile for each warp, as int8 [slices, 16, 64]."""
    # Numbers of rows g, and of rows g + 8: as signed bytes, with 8 subtracted by turning the highest bit over.
    words = tl.join(((words << 4) ^ _EIGHTS) & _UPPER, (words ^ _EIGHTS) & _UPPER)
    # [slices, g, t, word // 2, word % 2, half of rows, byte // 2, byte % 2]
    numbers = tl.reshape(split_bytes(words), [SLICES, 8, 4, 2, 2, 2, 2, 2])
    if IN_FOURS:
        numbers = tl.permute(numbers, (0, 5, 1, 3, 2, 4, 6, 7))
    else:
        numbers = tl.permute(numbers, (0, 5, 1, 3, 4, 2, 6, 7))
    return tl.reshape(numbers, [SLICES, 16, 64])


@triton.jit
def _halves(left, right):
    """Of operands [slices, 16, 64] and [slices, 64, 8] those of the first 32 columns, and of the last."""
    left = tl.permute(tl.reshape(left, [left.shape[0], 16, 2, 32]), (0, 1, 3, 2))
    right = tl.permute(tl.reshape(right, [right.shape[0], 2, 32, 8]), (0, 2, 3, 1))
    first, last = tl.split(left)
    first_right, last_right = tl.split(right)
    return first, last, first_right, last_right


@triton.jit
def _fetch(
    words_ptr, scale_ptr, zero_ptr, tile, step, total, K: tl.constexpr, GROUP: tl.constexpr, SLICES: tl.constexpr,
    ZERO: tl.constexpr,
):  # fmt: skip
    """Words of a tile in 128 columns for each warp, the scales of their groups, and their zero points.

    total  rows of the weight
    """
    lane = tl.arange(0, SLICES * 32)
    chunk = (lane // 32 + step * SLICES) * 2
    ptrs = words_ptr + tile.to(tl.int64) * (K * 2) + (chunk * 128 + lane % 32 * 4)[:, None] + tl.arange(0, 4)[None, :]
    # What is not read may be anything: its inputs are zero.
    end = tl.where(tile < total // _ROWS, K // _COLUMNS, 0)
    early = tl.load(ptrs, mask=(chunk < end)[:, None], eviction_policy="evict_first")
    late = tl.load(ptrs + 128, mask=(chunk + 1 < end)[:, None], eviction_policy="evict_first")
    rows = (tile * _ROWS + tl.arange(0, _ROWS))[None, :]
    scales = ()
    zeros = ()
    for part in tl.static_range(0, _UNIT // GROUP):
        group = ((tl.arange(0, SLICES) + step * SLICES) * (_UNIT // GROUP) + part)[:, None]
        known = (group < K // GROUP) & (rows < total)
        scales = scales + (tl.load(scale_ptr + group * total + rows, mask=known, other=0.0),)  # type: ignore[assignment]
        if ZERO:
            zeros = zeros + (tl.load(zero_ptr + group * total + rows, mask=known, other=8),)  # type: ignore[assignment]
    return early, late, scales, zeros


@triton.jit
def _scaled(product, part: tl.constexpr, scales, zeros, column_sums, x_scale, ZERO: tl.constexpr):
    """Products [slices, 16, 4] in fp32, of sums of a group [slices, 16, 8]; column_sums  16 times those of its inputs."""
    if ZERO:
        product -= column_sums * (zeros[part].to(tl.int32)[:, :, None] - 8)
    high, low = tl.split(tl.reshape(product, [product.shape[0], 16, 4, 2]))
    return (high * 256 + low).to(tl.float32) * (scales[part].to(tl.float32) * x_scale[:, None])[:, :, None]


@triton.jit
def _dot(left, right, sums):
    return tl.dot(left, right, sums, out_dtype=tl.int32)


@triton.jit
def _multiplied(
    fetched, early_x, late_x, x_scale, SLICES: tl.constexpr, GROUP: tl.constexpr, ZERO: tl.constexpr, IN_FOURS: tl.constexpr
):  # fmt: skip
    """16 times the product of what `_fetch` returned with operands and their scale [slices]."""
    early, late, scales, zeros = fetched
    early = _integers(early, SLICES, IN_FOURS)
    late = _integers(late, SLICES, IN_FOURS)
    none = tl.zeros([SLICES, 16, 8], tl.int32)
    sums = none
    ones = tl.full([SLICES, 16, 64 if GROUP > 32 else 32], 16, tl.int8)
    if GROUP == 128:
        if ZERO:
            sums = _dot(ones, late_x, _dot(ones, early_x, none))
        total = _scaled(_dot(late, late_x, _dot(early, early_x, none)), 0, scales, zeros, sums, x_scale, ZERO)
    elif GROUP == 64:
        if ZERO:
            sums = _dot(ones, early_x, none)
        total = _scaled(_dot(early, early_x, none), 0, scales, zeros, sums, x_scale, ZERO)
        if ZERO:
            sums = _dot(ones, late_x, none)
        total += _scaled(_dot(late, late_x, none), 1, scales, zeros, sums, x_scale, ZERO)
    else:
        first, second, first_x, second_x = _halves(early, early_x)
        third, fourth, third_x, fourth_x = _halves(late, late_x)
        if ZERO:
            sums = _dot(ones, first_x, none)
        total = _scaled(_dot(first, first_x, none), 0, scales, zeros, sums, x_scale, ZERO)
        if ZERO:
            sums = _dot(ones, second_x, none)
        total += _scaled(_dot(second, second_x, none), 1, scales, zeros, sums, x_scale, ZERO)
        if ZERO:
            sums = _dot(ones, third_x, none)
        total += _scaled(_dot(third, third_x, none), 2, scales, zeros, sums, x_scale, ZERO)
        if ZERO:
            sums = _dot(ones, fourth_x, none)
        total += _scaled(_dot(fourth, fourth_x, none), 3, scales, zeros, sums, x_scale, ZERO)
    return total


@triton.jit
def _fetch_pair(
    words_ptr, scale_ptr, zero_ptr, tile, distance, total, step,
    K: tl.constexpr, GROUP: tl.constexpr, SLICES: tl.constexpr, ZERO: tl.constexpr,
):  # fmt: skip
    """What `_fetch` returns of a tile and of the one at this distance."""
    return (
        _fetch(words_ptr, scale_ptr, zero_ptr, tile, step, total, K, GROUP, SLICES, ZERO),
        _fetch(words_ptr, scale_ptr, zero_ptr, tile + distance, step, total, K, GROUP, SLICES, ZERO),
    )


@triton.jit
def _read(x_ptr, step, K: tl.constexpr, SLICES: tl.constexpr):
    """What lanes [lanes, 2] round in a step of the row, or its weights in the norm."""
    columns = columns_of(tl.arange(0, SLICES * 32)) + step * (SLICES * _UNIT)
    x_ptrs = x_ptr + columns
    # Apart: of what is not side by side, the compiler would give a lane something else.
    x0 = tl.load(x_ptrs, mask=columns < K, other=0.0)
    x1 = tl.load(x_ptrs + 8, mask=columns < K, other=0.0)
    x2 = tl.load(x_ptrs + 16, mask=columns < K, other=0.0)
    x3 = tl.load(x_ptrs + 24, mask=columns < K, other=0.0)
    return x0, x1, x2, x3


@triton.jit
def _wide(x, SLICES: tl.constexpr):
    return tl.reshape(x.to(tl.float32), [SLICES, 64])


@triton.jit
def _bias_of(bias_ptr, rows, total, BIAS: tl.constexpr):
    bias = 0.0
    if BIAS:
        bias = tl.load(bias_ptr + rows, mask=rows < total, other=0.0).to(tl.float32)
    return bias


@triton.jit
def _residual_of(residual_ptr, rows, N, RESIDUAL: tl.constexpr):
    residual = 0.0
    if RESIDUAL:
        residual = tl.load(residual_ptr + rows, mask=rows < N, other=0.0).to(tl.float32)
    return residual


@kernel()
def _grouped_one_row_kernel(
    x_ptr, norm_ptr, words_ptr, scale_ptr, zero_ptr, bias_ptr, residual_ptr, out_ptr, N, eps,
    K: tl.constexpr, GROUP: tl.constexpr, SLICES: tl.constexpr, AHEAD: tl.constexpr,
    NORM: tl.constexpr, ZERO: tl.constexpr, IN_FOURS: tl.constexpr,
    BIAS: tl.constexpr, RESIDUAL: tl.constexpr, ACTIVATION: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Two tiles of 16 weight rows, or one of a gate and one of what it lets through, times x or rms_norm(x).

    Each of SLICES warps multiplies every SLICES-th unit of 128 columns. What a step needs is asked for AHEAD steps before.
    """
    if PDL:
        cuda.gdc_launch_dependents()
    gated: tl.constexpr = ACTIVATION != "none"
    rounds: tl.constexpr = (K + AHEAD * SLICES * _UNIT - 1) // (AHEAD * SLICES * _UNIT)
    tile = tl.program_id(0)
    if gated:
        distance = N // _ROWS
        total = 2 * N
    else:
        tile *= 2
        distance = 1
        total = N
    tiles = ()
    norms = ()
    inputs = ()
    for step in tl.static_range(0, AHEAD):
        fetched = _fetch_pair(words_ptr, scale_ptr, zero_ptr, tile, distance, total, step, K, GROUP, SLICES, ZERO)
        tiles = tiles + (fetched,)  # type: ignore[assignment]
        if NORM:
            norms = norms + (_read(norm_ptr, step, K, SLICES),)  # type: ignore[assignment]
    rows = tile * _ROWS + tl.arange(0, _ROWS)
    other_rows = rows + distance * _ROWS
    bias = _bias_of(bias_ptr, rows, total, BIAS)
    other_bias = _bias_of(bias_ptr, other_rows, total, BIAS)
    if PDL:
        cuda.gdc_wait()
    for step in tl.static_range(0, AHEAD):
        inputs = inputs + (_read(x_ptr, step, K, SLICES),)  # type: ignore[assignment]
    # Before they are needed, which is after all else.
    residual = _residual_of(residual_ptr, rows, N, RESIDUAL)
    other_residual = _residual_of(residual_ptr, other_rows, N, RESIDUAL and not gated)
    sums = tl.zeros([SLICES, _ROWS, 4], tl.float32)
    other_sums = tl.zeros([SLICES, _ROWS, 4], tl.float32)
    squares = tl.zeros([SLICES, 64], tl.float32)
    # Not unrolled beyond what is ahead: that would compile for long.
    for first in range(0, rounds * AHEAD, AHEAD):
        next_tiles = ()
        next_norms = ()
        next_inputs = ()
        for index in tl.static_range(0, AHEAD):
            x0, x1 = _wide(inputs[index][0], SLICES), _wide(inputs[index][1], SLICES)
            x2, x3 = _wide(inputs[index][2], SLICES), _wide(inputs[index][3], SLICES)
            if NORM:
                squares += x0 * x0 + x1 * x1 + x2 * x2 + x3 * x3
                x0, x1 = x0 * _wide(norms[index][0], SLICES), x1 * _wide(norms[index][1], SLICES)
                x2, x3 = x2 * _wide(norms[index][2], SLICES), x3 * _wide(norms[index][3], SLICES)
            early, late, scale = round_columns(x0, x1, x2, x3, SLICES)
            early_x = spread_operand(early, late, 0, IN_FOURS)
            late_x = spread_operand(early, late, 2, IN_FOURS)
            sums += _multiplied(tiles[index][0], early_x, late_x, scale, SLICES, GROUP, ZERO, IN_FOURS)
            other_sums += _multiplied(tiles[index][1], early_x, late_x, scale, SLICES, GROUP, ZERO, IN_FOURS)
            if rounds > 1:
                then = first + AHEAD + index
                fetched = _fetch_pair(words_ptr, scale_ptr, zero_ptr, tile, distance, total, then, K, GROUP, SLICES, ZERO)
                next_tiles = next_tiles + (fetched,)  # type: ignore[assignment]
                next_inputs = next_inputs + (_read(x_ptr, then, K, SLICES),)  # type: ignore[assignment]
                if NORM:
                    next_norms = next_norms + (_read(norm_ptr, then, K, SLICES),)  # type: ignore[assignment]
        if rounds > 1:
            tiles, norms, inputs = next_tiles, next_norms, next_inputs
    # Integers are 16 times what they stand for.
    factor = 1 / 16
    if NORM:
        # Two lanes have read each column.
        factor *= tl.rsqrt(tl.sum(tl.sum(squares, axis=1), axis=0) / (2 * K) + eps)
    result = tl.sum(tl.sum(sums, axis=2), axis=0) * factor + bias
    other = tl.sum(tl.sum(other_sums, axis=2), axis=0) * factor + other_bias
    if gated:
        result = activate(result, other, ACTIVATION)
    else:
        tl.store(out_ptr + other_rows, (other + other_residual).to(out_ptr.dtype.element_ty), mask=other_rows < N)
    tl.store(out_ptr + rows, (result + residual).to(out_ptr.dtype.element_ty), mask=rows < N)


def one_row(
    x: torch.Tensor,
    weight: GroupedWeight,
    after: Epilogue,
    norm_weight: torch.Tensor | None = None,
    eps: float = 0.0,
    *,
    shape: tuple[int, int] | None = None,
) -> torch.Tensor:
    """x' @ weight.T and what follows, with x' = x or rms_norm(x); columns of x in the weight's order.

    x      [1, in]  bf16|fp16
    shape  in place of `one_row_shape`'s
    """
    inner = x.shape[1]
    outer = weight.shape[0] // (2 if after.gated else 1)
    out, (slices, ahead) = x.new_empty(1, outer), shape or one_row_shape(outer, inner, after.gated)
    _grouped_one_row_kernel[(outer // ROWS if after.gated else -(-outer // (2 * ROWS)),)](
        x, norm_weight, weight.words, weight.scale, weight.zero, after.bias, after.residual, out, outer, eps,
        K=inner, GROUP=weight.group, SLICES=slices, AHEAD=ahead,
        NORM=norm_weight is not None, ZERO=weight.zero is not None, IN_FOURS=IN_FOURS,
        **after.constants(), num_warps=slices, num_stages=1, **dependent_launch(x.device),
    )  # fmt: skip
    return out


def one_row_shape(outer: int, inner: int, gated: bool) -> tuple[int, int]:
    """Warps of a program, and steps that loads are ahead: measured on an H200 for the linears of an 8B model."""
    if gated:
        return 4, 2
    return (8, 4) if outer > inner else (16, 2)
