"""Products of MXFP4 numbers with the tokens of each expert, by tiles (tiles.py); numbers are unpacked in registers.

Tokens keep their precision.

* Up to `FEW_MEAN` tokens of an expert: a program has 16 weight rows, and its warps share out the columns, for up to 8 tokens.
* More: a program has 64 weight rows, a warp 16 of them, and tokens come through shared memory.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from triton.language.extra import cuda

from streamserve_kernels.experts.launches import Layer, Product
from streamserve_kernels.experts.tiles import HeldTokens, LoneToken, ProductShape, find_tile, place_of, store_tile
from streamserve_kernels.experts.weighted_sum import weighted_sum
from streamserve_kernels.launch import compute_dtype, kernel
from streamserve_kernels.projections.four_bit_tiles import IN_FOURS, lane_columns, operand, quarters, unpack_e2m1
from streamserve_kernels.reference.experts import Routes
from streamserve_kernels.reference.projections.grouped import COLUMNS, ROWS
from streamserve_kernels.reference.quantized_experts import Mxfp4ExpertsWeight

FEW_MEAN = 6

_COLUMNS, _ROWS = tl.constexpr(COLUMNS), tl.constexpr(ROWS)


@triton.jit
def _exponents(words):
    """Of rows 0 to 7 and of rows 8 to 15 of tiles, as they broadcast to words [tiles, 8, 4, 4]; words [tiles, 8] hold both."""
    shifts = (tl.arange(0, 4) // 2 * 8)[None, None, None, :]
    words = words[:, :, None, None]
    return (words >> shifts) & 255, (words >> (shifts + 16)) & 255


@kernel(do_not_specialize=["num_tokens"])
def _mxfp4_few_kernel(
    x_ptr, words_ptr, exponents_ptr, ids_ptr, first_expert, bias_ptr, out_ptr, counts_ptr, places_ptr, num_tokens, num_experts,
    N: tl.constexpr, K: tl.constexpr, TOP_K: tl.constexpr, LANES: tl.constexpr, BLOCK_M: tl.constexpr, BY_TOKEN: tl.constexpr,
    ACTIVATION: tl.constexpr, SLICES: tl.constexpr, AHEAD: tl.constexpr, PACKED: tl.constexpr, IN_FOURS: tl.constexpr,
    COMPUTE: tl.constexpr, PDL: tl.constexpr,
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
    block = (expert * num_tiles + tile).to(tl.int64)
    # All lanes of all warps in one dimension: the compiler then gives each its own 16 bytes.
    word_ptrs = words_ptr + block * (chunks * 128) + (lane * 4)[:, None] + tl.arange(0, 4)[None, :]
    exponent_ptrs = exponents_ptr + block * (chunks * 8) + (slices * 8)[:, None] + tl.arange(0, 8)[None, :]
    tiles = ()
    exponents = ()
    for step in tl.static_range(0, min(steps, AHEAD)):
        inside = (lane // 32 + step * SLICES < chunks)[:, None]
        known = (slices + step * SLICES < chunks)[:, None]
        tiles = tiles + (tl.load(word_ptrs + step * SLICES * 128, mask=inside, other=0, eviction_policy="evict_first"),)  # type: ignore[assignment]
        exponents = exponents + (tl.load(exponent_ptrs + step * SLICES * 8, mask=known, other=0),)  # type: ignore[assignment]
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
        above, below = _exponents(exponents[step])
        weights = unpack_e2m1(tl.reshape(tiles[step], [SLICES, 8, 4, 4]), above, below, PACKED, IN_FOURS, COMPUTE)
        sums = tl.dot(weights, x, sums, input_precision="ieee")
        if step + AHEAD < steps:
            inside = (lane // 32 + (step + AHEAD) * SLICES < chunks)[:, None]
            known = (slices + (step + AHEAD) * SLICES < chunks)[:, None]
            at = (step + AHEAD) * SLICES
            tiles = tiles + (tl.load(word_ptrs + at * 128, mask=inside, other=0, eviction_policy="evict_first"),)  # type: ignore[assignment]
            exponents = exponents + (tl.load(exponent_ptrs + at * 8, mask=known, other=0),)  # type: ignore[assignment]
            inputs = inputs + (quarters(x_ptrs, lane_present[:, None], columns, at * _COLUMNS, K),)  # type: ignore[assignment]
    store_tile(tl.trans(tl.sum(sums, axis=0)), bias_ptr, out_ptr, expert, tile, place, present, N, ACTIVATION)


@kernel(do_not_specialize=["num_tokens"])
def _mxfp4_product_kernel(
    x_ptr, words_ptr, exponents_ptr, bias_ptr, out_ptr, counts_ptr, places_ptr, num_tokens, num_experts,
    N: tl.constexpr, K: tl.constexpr, TOP_K: tl.constexpr, LANES: tl.constexpr, BLOCK_M: tl.constexpr, BY_TOKEN: tl.constexpr,
    ACTIVATION: tl.constexpr, PACKED: tl.constexpr, COMPUTE: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """64 weight rows of an expert times BLOCK_M of its tokens, 64 columns at a time; pointers as before."""
    if PDL:
        if BY_TOKEN:
            cuda.gdc_wait()
        cuda.gdc_launch_dependents()
    expert, tile, first, count, _ = find_tile(counts_ptr, num_experts, (N + 63) // 64, LANES, BLOCK_M)
    if expert >= num_experts:
        return
    lines = first + tl.arange(0, BLOCK_M)
    present = lines < count
    place = place_of(places_ptr, expert, lines, present, num_tokens)
    x_rows = place // TOP_K if BY_TOKEN else place
    chunks: tl.constexpr = K // _COLUMNS
    lane = tl.arange(0, 128)
    fours = tl.arange(0, 4)
    blocks = (expert * (N // _ROWS)).to(tl.int64)
    held = tile * 4 + lane // 32 < N // _ROWS
    known = tile * 4 + fours < N // _ROWS
    word_ptrs = words_ptr + ((blocks + tile * 4 + lane // 32) * (chunks * 128) + lane % 32 * 4)[:, None] + fours[None, :]
    exponent_ptrs = exponents_ptr + ((blocks + tile * 4 + fours) * (chunks * 8))[:, None] + tl.arange(0, 8)[None, :]
    lanes = tl.arange(0, _COLUMNS)
    x_ptrs = x_ptr + x_rows[:, None] * K + lanes[None, :]
    sums = tl.zeros([64, BLOCK_M], tl.float32)
    # Exponents are read a step ahead: products would wait for them.
    exponents = tl.load(exponent_ptrs, mask=known[:, None], other=0)
    if PDL and not BY_TOKEN:
        cuda.gdc_wait()
    for chunk in range(chunks):
        words = tl.load(word_ptrs + chunk * 128, mask=held[:, None], other=0)
        x = tl.load(x_ptrs + chunk * _COLUMNS, mask=present[:, None], other=0.0)
        above, below = _exponents(exponents)
        exponents = tl.load(exponent_ptrs + tl.minimum(chunk + 1, chunks - 1) * 8, mask=known[:, None], other=0)
        weights = unpack_e2m1(tl.reshape(words, [4, 8, 4, 4]), above, below, PACKED, False, COMPUTE)
        sums = tl.dot(tl.reshape(weights, [64, 64]), tl.trans(x.to(COMPUTE)), sums, input_precision="ieee")
    store_tile(tl.trans(sums), bias_ptr, out_ptr, expert, tile, place, present, N, ACTIVATION)


def experts_residual(residual: torch.Tensor, routes: Routes, layer: Layer[Mxfp4ExpertsWeight]) -> torch.Tensor:
    """As `products.experts_residual`, for one row."""
    made = _both(routes, LoneToken(routes.expert_ids, layer.first_expert), layer, None)
    return weighted_sum(residual, made, routes, layer.num_experts, layer.first_expert, is_partial=True)


def multiply(routes: Routes, held: HeldTokens, layer: Layer[Mxfp4ExpertsWeight]) -> tuple[torch.Tensor, None]:
    """What each held expert makes of its tokens: [places, hidden], in order."""
    return _both(routes, held, layer, product_shape(held.num_places, layer.num_experts)), None


def _both(
    routes: Routes, tokens: HeldTokens | LoneToken, layer: Layer[Mxfp4ExpertsWeight], shape: ProductShape | None
) -> torch.Tensor:
    """shape  None for few tokens"""
    gate_up = Product.of_gate_up(routes, layer, tokens)
    _multiply(gate_up, shape)
    down = Product.of_down(gate_up.out, layer, tokens)
    _multiply(down, shape)
    return down.out


def _multiply(product: Product[Mxfp4ExpertsWeight], shape: ProductShape | None) -> None:
    weight, tokens = product.weight, product.tokens
    constants = {"PACKED": product.x.device.type != "cpu", "COMPUTE": compute_dtype(product.x.dtype)}
    if shape is not None:
        product.launch(_mxfp4_product_kernel, shape, weight.words, weight.exponents, **constants)
        return
    ids, first_expert = (tokens.expert_ids, tokens.first_expert) if isinstance(tokens, LoneToken) else (None, 0)
    slices, ahead = few_shape()
    few = ProductShape(block_m=8, block_n=ROWS, block_k=COLUMNS, warps=slices, stages=1, x_first=False)
    operands = weight.words, weight.exponents, ids, first_expert
    product.launch(_mxfp4_few_kernel, few, *operands, SLICES=slices, AHEAD=ahead, IN_FOURS=IN_FOURS, **constants)


def few_shape() -> tuple[int, int]:
    """Warps of a program for few tokens, and steps that loads are ahead."""
    return 8, 4


def product_shape(num_places: int, num_experts: int) -> ProductShape | None:
    """The launches of both products, by how many tokens an expert has on average; None for few."""
    mean = num_places / num_experts
    if mean <= FEW_MEAN:
        return None
    block_m = next((size for size in (16, 32, 64) if mean <= 1.5 * size), 128)
    return ProductShape(block_m, 64, COLUMNS, 4, 4, False)
