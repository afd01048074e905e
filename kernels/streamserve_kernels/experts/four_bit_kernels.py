"""Kernels that multiply four-bit numbers, e2m1 or integers, with the tokens of each expert, and unpack them in registers.

What rows of a tile of 16 × 64 numbers are multiplied by lies beside it, a word for rows g and g + 8 of each group of columns:
exponents of MXFP4 (`reference.quantized_experts.pack_exponents`), or scales and zero points of integers (`pack_groups`).
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra import cuda

from streamserve_kernels.experts.tiles import find_tile, place_of, store_tile
from streamserve_kernels.launch import kernel
from streamserve_kernels.projections.four_bit_unpacking import (
    lane_columns,
    operand,
    quarters,
    unpack_e2m1,
    unpack_integers,
    unpack_scaled,
)
from streamserve_kernels.reference.projections.grouped import COLUMNS, ROWS

_COLUMNS, _ROWS = tl.constexpr(COLUMNS), tl.constexpr(ROWS)


@triton.jit
def _groups(ptr, block, chunk, known, K: tl.constexpr, GROUP: tl.constexpr):
    """The words of rows g and g + 8 of blocks [tiles] of 16 rows, in chunks [tiles] of 64 columns; broadcast to their words."""
    first = (block.to(tl.int64) * (K // GROUP * 8))[:, None, None, None]
    lanes = tl.arange(0, 8)[None, :, None, None]
    if GROUP == 32:
        group = (chunk * 2)[:, None, None, None] + tl.arange(0, 2)[None, None, None, :]
    else:
        group = (chunk * _COLUMNS // GROUP)[:, None, None, None]
    found = tl.load(ptr + first + (group * 8 + lanes), mask=known[:, None, None, None], other=0).to(tl.int32)
    if GROUP == 32:
        # Two of four words each.
        found = tl.reshape(tl.broadcast_to(found[:, :, :, :, None], [block.shape[0], 8, 1, 2, 2]), [block.shape[0], 8, 1, 4])
    return found


@triton.jit
def _fetch_factors(factor_ptr, zero_ptr, block, chunk, known, K: tl.constexpr, GROUP: tl.constexpr):
    """What numbers are multiplied by, and their zero points; 8 in both rows where none are stored."""
    factors = _groups(factor_ptr, block, chunk, known, K, GROUP)
    if zero_ptr is not None:
        zeros = _groups(zero_ptr, block, chunk, known, K, GROUP)
    else:
        zeros = tl.full([1, 1, 1, 1], 0x0808, tl.int32)
    return factors, zeros


@triton.jit
def _row_scales(factors, COMPUTE: tl.constexpr):
    """The scales of rows g, and of rows g + 8, that words hold."""
    return factors.to(tl.int16).to(COMPUTE, bitcast=True), (factors >> 16).to(tl.int16).to(COMPUTE, bitcast=True)


@triton.jit
def _scaled(words, fetched, E2M1: tl.constexpr, PACKED: tl.constexpr, IN_FOURS: tl.constexpr, COMPUTE: tl.constexpr):
    """Numbers times their factors, of words [tiles, 8, 4, 4], as [tiles, 16, 64]."""
    factors, zeros = fetched
    if E2M1:
        shifts = (tl.arange(0, 4) // 2 * 8)[None, None, None, :]
        above, below = (factors >> shifts) & 255, (factors >> (shifts + 16)) & 255
        weights = unpack_e2m1(words, above, below, PACKED, IN_FOURS, COMPUTE)
    else:
        scale, scale_below = _row_scales(factors, COMPUTE)
        weights = unpack_scaled(words, scale, scale_below, zeros & 255, zeros >> 8, PACKED, IN_FOURS, COMPUTE)
    return weights


@kernel(do_not_specialize=["num_tokens"])
def few_tokens_kernel(
    x_ptr, words_ptr, factor_ptr, zero_ptr, ids_ptr, first_expert, bias_ptr, out_ptr, counts_ptr, places_ptr,
    num_tokens, num_experts,
    N: tl.constexpr, K: tl.constexpr, TOP_K: tl.constexpr, LANES: tl.constexpr, BLOCK_M: tl.constexpr, BY_TOKEN: tl.constexpr,
    ACTIVATION: tl.constexpr, SLICES: tl.constexpr, AHEAD: tl.constexpr, E2M1: tl.constexpr, GROUP: tl.constexpr,
    PACKED: tl.constexpr, IN_FOURS: tl.constexpr, COMPUTE: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """16 weight rows of an expert times up to BLOCK_M of its tokens, which is 8.

    Each of SLICES warps multiplies every SLICES-th tile of 64 columns; AHEAD of its tiles are in registers before use.

    x_ptr    [tokens, K] with BY_TOKEN, else [tokens * TOP_K, K]
    out_ptr  [tokens * TOP_K, N], or N / 2 columns with an activation, for which rows of gate and up alternate
    ids_ptr  the experts of the only token; None for more, which have counts and places
    """
    if PDL:
        if BY_TOKEN:
            cuda.gdc_wait()
        cuda.gdc_launch_dependents()
    num_tiles: tl.constexpr = N // _ROWS
    lane = tl.arange(0, SLICES * 32)
    tokens = tl.arange(0, BLOCK_M)
    if ids_ptr is not None:
        tile = tl.program_id(0) % num_tiles
        index = tl.program_id(0) // num_tiles
        expert = tl.load(ids_ptr + index) - first_expert
        if (expert < 0) | (expert >= num_experts):
            return
        present = tokens < 1
        place = tokens.to(tl.int64) * 0 + index
        lane_present = lane % 32 // 4 < 1
        lane_place = lane.to(tl.int64) * 0 + index
    else:
        expert, tile, first, count, _ = find_tile(counts_ptr, num_experts, num_tiles, LANES, BLOCK_M)
        if expert >= num_experts:
            return
        present = first + tokens < count
        place = place_of(places_ptr, expert, first + tokens, present, num_tokens)
        lane_present = first + lane % 32 // 4 < count
        lane_place = place_of(places_ptr, expert, first + lane % 32 // 4, lane_present, num_tokens)
    chunks: tl.constexpr = K // _COLUMNS
    steps: tl.constexpr = (chunks + SLICES - 1) // SLICES
    slices = tl.arange(0, SLICES)
    block = expert * num_tiles + tile
    # All lanes of all warps in one dimension: the compiler then gives each its own 16 bytes.
    word_ptrs = words_ptr + block.to(tl.int64) * (chunks * 128) + (lane * 4)[:, None] + tl.arange(0, 4)[None, :]
    tiles = ()
    factors = ()
    for step in tl.static_range(0, min(steps, AHEAD)):
        inside = (lane // 32 + step * SLICES < chunks)[:, None]
        tiles = tiles + (tl.load(word_ptrs + step * SLICES * 128, mask=inside, other=0, eviction_policy="evict_first"),)  # type: ignore[assignment]
        chunk = slices + step * SLICES
        factors = factors + (_fetch_factors(factor_ptr, zero_ptr, slices * 0 + block, chunk, chunk < chunks, K, GROUP),)  # type: ignore[assignment]
    x_rows = lane_place // TOP_K if BY_TOKEN else lane_place
    columns = lane_columns(lane)
    x_ptrs = x_ptr + x_rows[:, None] * K + columns
    sums = tl.zeros([SLICES, _ROWS, BLOCK_M], tl.float32)
    if PDL and not BY_TOKEN:
        cuda.gdc_wait()
    inputs = ()
    for step in tl.static_range(0, min(steps, AHEAD)):
        inputs = inputs + (quarters(x_ptrs, lane_present[:, None], columns, step * SLICES * _COLUMNS, K),)  # type: ignore[assignment]
    for step in tl.static_range(0, steps):
        x = operand(inputs[step], SLICES, IN_FOURS, COMPUTE)
        words = tl.reshape(tiles[step], [SLICES, 8, 4, 4])
        if E2M1 or GROUP == 32:
            weights = _scaled(words, factors[step], E2M1, PACKED, IN_FOURS, COMPUTE)
            sums = tl.dot(weights, x, sums, input_precision="ieee")
        else:
            # For so few tokens sums are fewer than weights.
            scales, zeros = factors[step]  # type: ignore[var-annotated]
            weights = unpack_integers(words, zeros & 255, zeros >> 8, PACKED, IN_FOURS, COMPUTE)
            scale, scale_below = _row_scales(tl.reshape(scales, [SLICES, 8]), COMPUTE)
            of_rows = tl.reshape(tl.permute(tl.join(scale, scale_below), (0, 2, 1)), [SLICES, _ROWS]).to(tl.float32)
            sums += tl.dot(weights, x, input_precision="ieee") * of_rows[:, :, None]
        if step + AHEAD < steps:
            at = (step + AHEAD) * SLICES
            inside = (lane // 32 + at < chunks)[:, None]
            tiles = tiles + (tl.load(word_ptrs + at * 128, mask=inside, other=0, eviction_policy="evict_first"),)  # type: ignore[assignment]
            chunk = slices + at
            factors = factors + (_fetch_factors(factor_ptr, zero_ptr, slices * 0 + block, chunk, chunk < chunks, K, GROUP),)  # type: ignore[assignment]
            inputs = inputs + (quarters(x_ptrs, lane_present[:, None], columns, at * _COLUMNS, K),)  # type: ignore[assignment]
    store_tile(tl.trans(tl.sum(sums, axis=0)), bias_ptr, out_ptr, expert, tile, place, present, N, ACTIVATION)


@kernel(do_not_specialize=["num_tokens"])
def tile_kernel(
    x_ptr, words_ptr, factor_ptr, zero_ptr, bias_ptr, out_ptr, counts_ptr, places_ptr, num_tokens, num_experts,
    N: tl.constexpr, K: tl.constexpr, TOP_K: tl.constexpr, LANES: tl.constexpr, BLOCK_M: tl.constexpr, BY_TOKEN: tl.constexpr,
    ACTIVATION: tl.constexpr, BLOCK_N: tl.constexpr, UNROLL: tl.constexpr, E2M1: tl.constexpr, GROUP: tl.constexpr,
    PACKED: tl.constexpr, COMPUTE: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """BLOCK_N weight rows of an expert times BLOCK_M of its tokens, UNROLL times 64 columns at a time; pointers as before."""
    if PDL:
        if BY_TOKEN:
            cuda.gdc_wait()
        cuda.gdc_launch_dependents()
    expert, tile, first, count, _ = find_tile(counts_ptr, num_experts, tl.cdiv(N, BLOCK_N), LANES, BLOCK_M)
    if expert >= num_experts:
        return
    lines = first + tl.arange(0, BLOCK_M)
    present = lines < count
    place = place_of(places_ptr, expert, lines, present, num_tokens)
    x_rows = place // TOP_K if BY_TOKEN else place
    chunks: tl.constexpr = K // _COLUMNS
    per_tile: tl.constexpr = BLOCK_N // _ROWS
    lane = tl.arange(0, BLOCK_N * 2)
    first_block = expert * (N // _ROWS)
    word_blocks = tile * per_tile + lane // 32
    held = word_blocks < N // _ROWS
    word_ptrs = words_ptr + (first_block + word_blocks).to(tl.int64)[:, None] * (chunks * 128)
    word_ptrs += (lane % 32 * 4)[:, None] + tl.arange(0, 4)[None, :]
    blocks = tile * per_tile + tl.arange(0, per_tile)
    known = blocks < N // _ROWS
    x_ptrs = x_ptr + x_rows[:, None] * K + tl.arange(0, _COLUMNS)[None, :]
    sums = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    # Factors are read a step ahead: products would wait for them.
    same = tl.zeros([per_tile], tl.int32)
    factors, zeros = _fetch_factors(factor_ptr, zero_ptr, first_block + blocks, same, known, K, GROUP)
    if PDL and not BY_TOKEN:
        cuda.gdc_wait()
    for chunk in tl.range(0, chunks, loop_unroll_factor=UNROLL):
        words = tl.load(word_ptrs + chunk * 128, mask=held[:, None], other=0)
        x = tl.load(x_ptrs + chunk * _COLUMNS, mask=present[:, None], other=0.0)
        after = same + tl.minimum(chunk + 1, chunks - 1)
        next_factors, next_zeros = _fetch_factors(factor_ptr, zero_ptr, first_block + blocks, after, known, K, GROUP)
        words = tl.reshape(words, [per_tile, 8, 4, 4])
        weights = tl.reshape(_scaled(words, (factors, zeros), E2M1, PACKED, False, COMPUTE), [BLOCK_N, _COLUMNS])
        sums = tl.dot(weights, tl.trans(x.to(COMPUTE)), sums, input_precision="ieee")
        if PACKED:
            # Whatever uses sums waits for the product. Without it Triton 3.6 lets three of its four parts go on, whose weights'
            # registers are written meanwhile: with two groups of warps in a program sums were not finite.
            sums = tl.inline_asm_elementwise("mov.b32 $0, $1;", "=r,r", [sums], dtype=tl.float32, is_pure=True, pack=1)
        factors, zeros = next_factors, next_zeros
    store_tile(tl.trans(sums), bias_ptr, out_ptr, expert, tile, place, present, N, ACTIVATION)
