"""Products of 9 rows and more with weights of 4-bit integers, which are unpacked in registers, and weights expanded in memory.

A weight is rounded to the dtype of activations, as when it is expanded: so one sum runs through all columns. Programs of one
group of warps share a multiprocessor: while one multiplies, others unpack. Descriptors bring words and inputs to shared memory,
by the copy engine from compute capability 9.0 on. Programs may share out the columns.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from triton.language.extra import cuda
from triton.tools.tensor_descriptor import TensorDescriptor

from streamserve_kernels.launch import (
    arrivals,
    capability,
    compute_dtype,
    dependent_launch,
    kernel,
    multiprocessors,
    power_of_two,
)
from streamserve_kernels.projections.epilogue import Epilogue, finish_products
from streamserve_kernels.projections.four_bit_unpacking import unpack_scaled
from streamserve_kernels.reference.projections.grouped import COLUMNS, ROWS, GroupedWeight

_TILE_WORDS = 128

_COLUMNS, _ROWS = tl.constexpr(COLUMNS), tl.constexpr(ROWS)


class Tiles(NamedTuple):
    """How a product is shared out to programs, each of which has a tile of it, or some of a tile's columns.

    block_n, block_m  weight rows and rows of x of a tile
    chunks            of 64 columns a step
    whole             tiles that one program has; of all others, `splits` programs share out the columns
    """

    block_n: int
    block_m: int
    chunks: int
    warps: int
    stages: int
    whole: int
    splits: int


@triton.jit
def _of_tiles(ptr, rows, known, chunk, total, GROUP: tl.constexpr):
    """Values of rows [tiles, 8], and of those 8 further, in a chunk of 64 columns, as they broadcast to words [tiles, 8, 4, 4].

    chunk  one for all tiles, or [tiles, 1, 1, 1]
    """
    if GROUP == 32:
        group = chunk * 2 + (tl.arange(0, 4) // 2)[None, None, None, :]
    else:
        group = chunk * _COLUMNS // GROUP
    ptrs = ptr + group * total + rows[:, :, None, None]
    mask = known[:, None, None, None]
    return tl.load(ptrs, mask=mask, other=0), tl.load(ptrs + 8, mask=mask, other=0)


@triton.jit
def _scales_and_zeros(scale_ptr, zero_ptr, rows, known, chunk, total, GROUP: tl.constexpr, ZERO: tl.constexpr):
    scale, scale_below = _of_tiles(scale_ptr, rows, known, chunk, total, GROUP)
    if ZERO:
        zero, zero_below = _of_tiles(zero_ptr, rows, known, chunk, total, GROUP)
    else:
        zero = tl.full([1, 1, 1, 1], 8, tl.uint8)
        zero_below = zero
    return scale, scale_below, zero, zero_below


@triton.jit
def _weights(words, groups, BLOCK_N: tl.constexpr, PACKED: tl.constexpr, COMPUTE: tl.constexpr):
    """BLOCK_N rows of a chunk of 64 columns."""
    words = tl.reshape(words, [BLOCK_N // _ROWS, 8, 4, 4])
    scale, scale_below, zero, zero_below = groups
    return tl.reshape(unpack_scaled(words, scale, scale_below, zero, zero_below, PACKED, False, COMPUTE), [BLOCK_N, _COLUMNS])


@triton.jit
def _as_held(sums):
    """Sums [BLOCK_N, BLOCK_M] in one dimension in which what a thread of the matrix units holds lies in fours."""
    parts = tl.reshape(sums, [sums.shape[0] // 16, 2, 8, sums.shape[1] // 8, 4, 2])
    return tl.reshape(tl.permute(parts, (3, 0, 2, 4, 1, 5)), [sums.shape[0] * sums.shape[1]])


@triton.jit
def _from_held(parts, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr):
    """What `_as_held` was given."""
    parts = tl.reshape(parts, [BLOCK_M // 8, BLOCK_N // 16, 8, 4, 2, 2])
    return tl.reshape(tl.permute(parts, (1, 4, 2, 0, 3, 5)), [BLOCK_N, BLOCK_M])


@kernel(do_not_specialize=["M", "whole", "shared", "splits", "per_split"])
def _grouped_some_rows_kernel(
    scale_ptr, zero_ptr, word_tiles, x_tiles, bias_ptr, residual_ptr, out_ptr, partial_ptr, arrivals_ptr, M, N,
    whole, shared, splits, per_split,
    K: tl.constexpr, GROUP: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, CHUNKS: tl.constexpr,
    ZERO: tl.constexpr, PACKED: tl.constexpr, COMPUTE: tl.constexpr,
    BIAS: tl.constexpr, RESIDUAL: tl.constexpr, ACTIVATION: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """BLOCK_N weight rows, or half as many of a gate and of what it lets through, against BLOCK_M rows of x.

    word_tiles, x_tiles        descriptors: words as [1, tiles, words of a tile], or [2, ...] of a gate and what it lets through
    partial_ptr, arrivals_ptr  as in dense.py
    whole, shared, splits      tiles that a program has alone, and others, each of which `splits` programs have together
    per_split                  steps of CHUNKS chunks of 64 columns
    """
    if PDL:
        cuda.gdc_launch_dependents()
    tiles: tl.constexpr = BLOCK_N // _ROWS
    chunks: tl.constexpr = K // _COLUMNS
    # Programs of the same weights lie side by side: all but the first find them in the L2 cache.
    row_tiles = tl.cdiv(M, BLOCK_M)
    place, split = tl.program_id(0), 0
    if place >= whole:
        split = (place - whole) // shared
        place = whole + (place - whole) % shared
    else:
        splits = 1
        per_split = chunks // CHUNKS
    tile = place // row_tiles
    if ACTIVATION == "none":
        columns = tile * BLOCK_N + tl.arange(0, BLOCK_N)
        first_tile = tile * tiles
        each_tile = first_tile + tl.arange(0, tiles)
        total = N
    else:
        half: tl.constexpr = tiles // 2
        columns = tile * (BLOCK_N // 2) + tl.arange(0, BLOCK_N // 2)
        first_tile = tile * half
        each_tile = first_tile + tl.arange(0, tiles) % half + tl.arange(0, tiles) // half * (N // _ROWS)
        total = 2 * N
    known = each_tile < total // _ROWS
    weight_rows = (each_tile * _ROWS)[:, None] + tl.arange(0, 8)[None, :]
    rows = place % row_tiles * BLOCK_M + tl.arange(0, BLOCK_M)
    begin = split * per_split
    end = tl.minimum(begin + per_split, chunks // CHUNKS)
    sums = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    # Scales and zero points are read a step ahead: unpacking would wait for them.
    groups = _scales_and_zeros(scale_ptr, zero_ptr, weight_rows, known, begin * CHUNKS, total, GROUP, ZERO)
    if PDL:
        cuda.gdc_wait()
    for step in range(begin, end):
        after = tl.minimum(step + 1, end - 1) * CHUNKS
        next_groups = _scales_and_zeros(scale_ptr, zero_ptr, weight_rows, known, after, total, GROUP, ZERO)
        x = x_tiles.load([place % row_tiles * BLOCK_M, step * (CHUNKS * _COLUMNS)])
        words = tl.reshape(word_tiles.load([0, first_tile, step * (CHUNKS * 128)]), [tiles, CHUNKS * 128])
        if CHUNKS == 1:
            weights = _weights(words, groups, BLOCK_N, PACKED, COMPUTE)
        else:
            early, late = tl.split(tl.permute(tl.reshape(words, [tiles, 2, 128]), (0, 2, 1)))
            weights = _weights(early, groups, BLOCK_N, PACKED, COMPUTE)
            late = _weights(late, groups, BLOCK_N, PACKED, COMPUTE)
            weights = tl.reshape(tl.permute(tl.join(weights, late), (0, 2, 1)), [BLOCK_N, 2 * _COLUMNS])
        sums = tl.dot(weights, tl.trans(x.to(COMPUTE)), sums, input_precision="ieee")
        if PACKED:
            # Whatever uses sums waits for the product. Without it Triton 3.6 lets all but one of its parts go on while their
            # weights' registers are written again, as in experts/four_bit_kernels.py: sums may be wrong.
            sums = tl.inline_asm_elementwise("mov.b32 $0, $1;", "=r,r", [sums], dtype=tl.float32, is_pure=True, pack=1)
        groups = next_groups
    arrived = 0
    parts = _as_held(sums)
    offsets = tl.arange(0, BLOCK_N * BLOCK_M)
    if splits > 1:
        first_part = partial_ptr + (place - whole).to(tl.int64) * splits * (BLOCK_N * BLOCK_M)
        tl.store(first_part + split * (BLOCK_N * BLOCK_M) + offsets, parts)
        # Every thread's stores must be out before the one thread that announces this part.
        tl.debug_barrier()
        arrived = tl.atomic_add(arrivals_ptr + place, 1, sem="acq_rel", scope="gpu")
    if arrived != splits - 1:
        return
    if splits > 1:
        tl.store(arrivals_ptr + place, 0)
        first_part = partial_ptr + (place - whole).to(tl.int64) * splits * (BLOCK_N * BLOCK_M)
        # In the same order always, whichever program is the last: results must not change from run to run.
        parts = tl.zeros([BLOCK_N * BLOCK_M], tl.float32)
        for part in tl.range(0, splits, num_stages=1):
            parts += tl.load(first_part + part * (BLOCK_N * BLOCK_M) + offsets, cache_modifier=".cg")
    sums = _from_held(parts, BLOCK_N, BLOCK_M)
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
    """TILES tiles side by side."""
    if PDL:
        cuda.gdc_launch_dependents()
        cuda.gdc_wait()
    chunks: tl.constexpr = K // _COLUMNS
    tile = tl.program_id(0)
    first = tl.program_id(1) * TILES
    chunk = first + tl.arange(0, TILES)
    lane = tl.arange(0, TILES * 32)
    word_ptrs = words_ptr + (tile.to(tl.int64) * chunks + first) * 128 + (lane * 4)[:, None] + tl.arange(0, 4)[None, :]
    words = tl.load(word_ptrs, mask=(first + lane // 32 < chunks)[:, None], other=0)
    rows = (chunk * 0 + tile * _ROWS)[:, None] + tl.arange(0, 8)[None, :]
    scale, scale_below, zero, zero_below = _scales_and_zeros(
        scale_ptr, zero_ptr, rows, chunk < chunks, chunk[:, None, None, None], N, GROUP, ZERO
    )
    words = tl.reshape(words, [TILES, 8, 4, 4])
    weights = tl.permute(unpack_scaled(words, scale, scale_below, zero, zero_below, PACKED, False, COMPUTE), (1, 0, 2))
    lines = tile * _ROWS + tl.arange(0, _ROWS)
    columns = first * _COLUMNS + tl.arange(0, TILES * _COLUMNS)
    places = lines.to(tl.int64)[:, None] * K + columns[None, :]
    tl.store(out_ptr + places, tl.reshape(weights, [_ROWS, TILES * _COLUMNS]), mask=(columns < K)[None, :])


def some_rows(x: torch.Tensor, weight: GroupedWeight, after: Epilogue, *, shape: Tiles | None = None) -> torch.Tensor:
    """x @ weight.T and what follows; columns of x in the weight's order.

    x      [rows, in]  bf16|fp16, contiguous
    shape  in place of `some_rows_shape`'s
    """
    rows, inner = x.shape
    halves = 2 if after.gated else 1
    outer = weight.shape[0] // halves
    shape = shape or some_rows_shape(
        rows, *weight.shape, weight.group, multiprocessors(x.device), deep=capability(x.device)[0] in (0, 9, 10)
    )
    out = x.new_empty(rows, outer)
    steps = inner // (shape.chunks * COLUMNS)
    per_split = -(-steps // shape.splits)
    splits = -(-steps // per_split)
    shared = _num_tiles(rows, weight.shape[0], shape.block_n, shape.block_m) - shape.whole
    partial = x.new_empty(shared * splits * shape.block_n * shape.block_m if splits > 1 else 0, dtype=torch.float32)
    word_tiles = TensorDescriptor.from_tensor(
        weight.words.view(halves, -1, inner // COLUMNS * _TILE_WORDS),
        [halves, shape.block_n // ROWS // halves, shape.chunks * _TILE_WORDS],
    )
    x_tiles = TensorDescriptor.from_tensor(_in_whole_tiles(x, shape.block_m), [shape.block_m, shape.chunks * COLUMNS])
    _grouped_some_rows_kernel[(shape.whole + shared * splits,)](
        weight.scale, weight.zero, word_tiles, x_tiles, after.bias, after.residual, out, partial, arrivals(x.device),
        rows, outer, shape.whole, shared, splits, per_split,
        K=inner, GROUP=weight.group, BLOCK_N=shape.block_n, BLOCK_M=shape.block_m, CHUNKS=shape.chunks,
        ZERO=weight.zero is not None, PACKED=x.device.type != "cpu", COMPUTE=compute_dtype(x.dtype),
        **after.constants(), num_warps=shape.warps, num_stages=shape.stages, **dependent_launch(x.device),
    )  # fmt: skip
    return out


def _in_whole_tiles(x: torch.Tensor, block_m: int) -> torch.Tensor:
    """x [rows, in], with zeros up to a tile's last row where tiles have more than 64.

    A descriptor fills them too, but takes longer over them than over rows: on an H200 the same programs take 152 µs for the
    linears of a layer of an 8B model with 96 rows and 115 with 128, 303 with 192 and 184 with 256.
    """
    missing = -x.shape[0] % block_m if block_m > 64 else 0
    return torch.nn.functional.pad(x, (0, 0, 0, missing)) if missing else x


def expand(weight: GroupedWeight, dtype: torch.dtype) -> torch.Tensor:
    """What a weight stands for, [out, in] bf16 or fp16, with columns in its order."""
    outer, inner = weight.shape
    out = weight.words.new_empty(outer, inner, dtype=dtype)
    _grouped_expand_kernel[(outer // ROWS, -(-inner // (8 * COLUMNS)))](
        weight.words, weight.scale, weight.zero, out, outer,
        K=inner, GROUP=weight.group, TILES=8, ZERO=weight.zero is not None, PACKED=out.device.type != "cpu",
        COMPUTE=compute_dtype(dtype), num_warps=8, **dependent_launch(out.device),
    )  # fmt: skip
    return out


def _num_tiles(rows: int, outer: int, block_n: int, block_m: int) -> int:
    return -(-outer // block_n) * -(-rows // block_m)


@functools.cache
def some_rows_shape(rows: int, outer: int, inner: int, group: int, processors: int, *, deep: bool) -> Tiles:
    """The launch for a weight [outer, inner]; deep: programs may have 200 KB of shared memory, as those of data-center GPUs."""
    block_n, block_m = 64, min(power_of_two(rows, least=16), 128)
    chunks, stages = (2, 3) if deep and group == 2 * COLUMNS else (1, 4)
    tiles = _num_tiles(rows, outer, block_n, block_m)
    whole, splits = _shares(tiles, block_n, block_m, inner, chunks * COLUMNS, processors)
    return Tiles(block_n, block_m, chunks, 4, stages, whole, splits)


@functools.cache
def _shares(tiles: int, block_n: int, block_m: int, columns: int, step: int, processors: int) -> tuple[int, int]:
    """Tiles that programs have alone, and the programs that share out each other: what is estimated to take least.

    columns, step  of the weight, and of a step of a program
    """
    at_once = 6 if block_m <= 32 else 3 if block_m == 64 else 2

    def turns(programs: int) -> float:
        """Programs that a multiprocessor runs, and what they wait: one that runs alone, or the first of few rows."""
        most = -(-programs // processors)
        if block_m <= 32:
            return most + 1.2 if most else 0.0
        return most + 0.7 if most % at_once == 1 else most

    def duration(whole: int, splits: int) -> float:
        """Microseconds, as measured on an H200: of unpacking and multiplying, and of storing and adding up parts."""
        parts = turns((tiles - whole) * splits) * -(-columns // (step * splits)) * step
        products = (turns(whole) * columns + parts) * (1.4 + block_m / 67) * block_n / 64_000
        return products + (splits * (0.7 + (tiles - whole) * block_n * block_m / 600_000) if splits > 1 else 0.0)

    wave = processors * at_once
    shares = range(1, min(max(columns // (3 * step), 1), 16) + 1)
    choices = ((whole, splits) for whole in (tiles // wave * wave, 0) for splits in shares)
    whole, splits = min(choices, key=lambda choice: duration(*choice))
    return (tiles, 1) if splits == 1 else (whole, splits)
