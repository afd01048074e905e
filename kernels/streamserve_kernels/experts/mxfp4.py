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

from streamserve_kernels.activations import activate
from streamserve_kernels.experts.tiles import HeldTokens, ProductShape, find_tile
from streamserve_kernels.experts.weighted_sum import weighted_sum
from streamserve_kernels.launch import compute_dtype, dependent_launch, kernel, power_of_two
from streamserve_kernels.projections.four_bit_tiles import IN_FOURS, operand, quarters, unpack_e2m1
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


@triton.jit
def _store(
    sums, bias_ptr, out_ptr, expert, tile, place, present, N: tl.constexpr, BLOCK_N: tl.constexpr, ACTIVATION: tl.constexpr
):  # fmt: skip
    """Bias and activation of sums [BLOCK_N, tokens] of a tile, stored at the places of the tokens."""
    rows = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    if bias_ptr is not None:
        sums += tl.load(bias_ptr + expert.to(tl.int64) * N + rows, mask=rows < N, other=0.0).to(tl.float32)[:, None]
    if ACTIVATION == "none":
        mask = (rows < N)[:, None] & present[None, :]
        tl.store(out_ptr + place[None, :] * N + rows[:, None], sums.to(out_ptr.dtype.element_ty), mask=mask)
    else:
        half: tl.constexpr = BLOCK_N // 2
        gate, up = tl.split(tl.permute(tl.reshape(sums, [half, 2, sums.shape[1]]), (0, 2, 1)))
        columns = tile * half + tl.arange(0, half)
        y = activate(gate, up, ACTIVATION).to(out_ptr.dtype.element_ty)
        mask = (columns < N // 2)[:, None] & present[None, :]
        tl.store(out_ptr + place[None, :] * (N // 2) + columns[:, None], y, mask=mask)


@kernel(do_not_specialize=["num_tokens"])
def _mxfp4_few_kernel(
    x_ptr, words_ptr, exponents_ptr, bias_ptr, out_ptr, counts_ptr, places_ptr, ids_ptr, num_tokens, num_experts, first_expert,
    N: tl.constexpr, K: tl.constexpr, TOP_K: tl.constexpr, LANES: tl.constexpr, SLICES: tl.constexpr, AHEAD: tl.constexpr,
    ONE_ROW: tl.constexpr, BY_TOKEN: tl.constexpr, ACTIVATION: tl.constexpr, PACKED: tl.constexpr, IN_FOURS: tl.constexpr,
    COMPUTE: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """16 weight rows of an expert times up to 8 of its tokens.

    Each of SLICES warps multiplies every SLICES-th tile of 64 columns; AHEAD of its tiles are in registers before use.

    x_ptr    [tokens, K] with BY_TOKEN, else [tokens * TOP_K, K]
    out_ptr  [tokens * TOP_K, N], or N / 2 columns with an activation, for which rows of gate and up alternate
    ids_ptr  with ONE_ROW, the experts of the only token; counts and places are those of more
    """
    if PDL:
        if BY_TOKEN:
            cuda.gdc_wait()
        cuda.gdc_launch_dependents()
    num_tiles: tl.constexpr = N // _ROWS
    lane = tl.arange(0, SLICES * 32)
    tokens = tl.arange(0, 8)
    if ONE_ROW:
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
        expert, tile, first, count, _ = find_tile(counts_ptr, num_experts, num_tiles, LANES, 8)
        if expert >= num_experts:
            return
        place_ptrs = places_ptr + expert.to(tl.int64) * num_tokens + first
        present = first + tokens < count
        place = tl.load(place_ptrs + tokens, mask=present, other=0).to(tl.int64)
        lane_present = first + lane % 32 // 4 < count
        lane_place = tl.load(place_ptrs + lane % 32 // 4, mask=lane_present, other=0).to(tl.int64)
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
    columns = (lane // 32 * _COLUMNS + lane % 4 * 4)[:, None] + tl.arange(0, 4)[None, :]
    x_ptrs = x_ptr + x_rows[:, None] * K + columns
    sums = tl.zeros([SLICES, _ROWS, 8], tl.float32)
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
    _store(tl.sum(sums, axis=0), bias_ptr, out_ptr, expert, tile, place, present, N, _ROWS, ACTIVATION)


@kernel(do_not_specialize=["num_tokens"])
def _mxfp4_product_kernel(
    x_ptr, words_ptr, exponents_ptr, bias_ptr, out_ptr, counts_ptr, places_ptr, num_tokens, num_experts,
    N: tl.constexpr, K: tl.constexpr, TOP_K: tl.constexpr, LANES: tl.constexpr, BLOCK_M: tl.constexpr, BY_TOKEN: tl.constexpr,
    ACTIVATION: tl.constexpr, PACKED: tl.constexpr, IN_FOURS: tl.constexpr, COMPUTE: tl.constexpr, PDL: tl.constexpr,
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
    place = tl.load(places_ptr + expert.to(tl.int64) * num_tokens + lines, mask=present, other=0).to(tl.int64)
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
    if not IN_FOURS:
        lanes = lanes // 16 * 16 + lanes % 8 // 2 * 4 + lanes % 16 // 8 * 2 + lanes % 2
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
        weights = unpack_e2m1(tl.reshape(words, [4, 8, 4, 4]), above, below, PACKED, IN_FOURS, COMPUTE)
        sums = tl.dot(tl.reshape(weights, [64, 64]), tl.trans(x.to(COMPUTE)), sums, input_precision="ieee")
    _store(sums, bias_ptr, out_ptr, expert, tile, place, present, N, 64, ACTIVATION)


def experts_residual(
    residual: torch.Tensor,
    routes: Routes,
    gate_up: Mxfp4ExpertsWeight,
    down: Mxfp4ExpertsWeight,
    gate_up_bias: torch.Tensor | None,
    down_bias: torch.Tensor | None,
    activation: str,
    first_expert: int,
) -> torch.Tensor:
    """As `products.experts_residual`, for one row."""
    x, top_k = routes.normed, routes.expert_ids.shape[1]
    gated, made = x.new_empty(top_k, gate_up.shape[1] // 2), x.new_empty(top_k, down.shape[1])
    _few(x, gate_up, gate_up_bias, gated, routes, None, first_expert, by_token=True, activation=activation)
    _few(gated, down, down_bias, made, routes, None, first_expert, by_token=False, activation="none")
    return weighted_sum(residual, made, routes, gate_up.shape[0], first_expert, is_partial=True)


def multiply(
    routes: Routes,
    held: HeldTokens,
    gate_up: Mxfp4ExpertsWeight,
    down: Mxfp4ExpertsWeight,
    gate_up_bias: torch.Tensor | None,
    down_bias: torch.Tensor | None,
    activation: str,
) -> tuple[torch.Tensor, None]:
    """What each held expert makes of its tokens: [places, hidden], in order."""
    x, num_experts = routes.normed, gate_up.shape[0]
    gated, made = x.new_empty(held.num_places, gate_up.shape[1] // 2), x.new_empty(held.num_places, down.shape[1])
    shape = product_shape(held.num_places, num_experts)
    if shape is None:
        _few(x, gate_up, gate_up_bias, gated, routes, held, 0, by_token=True, activation=activation)
        _few(gated, down, down_bias, made, routes, held, 0, by_token=False, activation="none")
    else:
        _product(x, gate_up, gate_up_bias, gated, held, shape, by_token=True, activation=activation)
        _product(gated, down, down_bias, made, held, shape, by_token=False, activation="none")
    return made, None


def _few(
    x: torch.Tensor,
    weight: Mxfp4ExpertsWeight,
    bias: torch.Tensor | None,
    out: torch.Tensor,
    routes: Routes,
    held: HeldTokens | None,
    first_expert: int,
    *,
    by_token: bool,
    activation: str,
) -> None:
    """held  None for a lone token, which has no index"""
    num_experts, outer, inner = weight.shape
    top_k, (slices, ahead) = routes.expert_ids.shape[1], few_shape()
    counts, places, num_tokens, programs = None, None, 1, outer // ROWS * top_k
    if held is not None:
        counts, places, num_tokens = held.counts, held.places, held.num_tokens
        programs = held.num_programs(outer, _FEW)
    _mxfp4_few_kernel[(programs,)](
        x, weight.words, weight.exponents, bias, out, counts, places, routes.expert_ids, num_tokens, num_experts, first_expert,
        N=outer, K=inner, TOP_K=top_k, LANES=power_of_two(num_experts), SLICES=slices, AHEAD=ahead, ONE_ROW=held is None,
        BY_TOKEN=by_token, ACTIVATION=activation, PACKED=x.device.type != "cpu", IN_FOURS=IN_FOURS,
        COMPUTE=compute_dtype(x.dtype), num_warps=slices, num_stages=1, **dependent_launch(x.device),
    )  # fmt: skip


def _product(
    x: torch.Tensor,
    weight: Mxfp4ExpertsWeight,
    bias: torch.Tensor | None,
    out: torch.Tensor,
    held: HeldTokens,
    shape: ProductShape,
    *,
    by_token: bool,
    activation: str,
) -> None:
    num_experts, outer, inner = weight.shape
    _mxfp4_product_kernel[(held.num_programs(outer, shape),)](
        x, weight.words, weight.exponents, bias, out, held.counts, held.places, held.num_tokens, num_experts,
        N=outer, K=inner, TOP_K=held.top_k, LANES=power_of_two(num_experts), BLOCK_M=shape.block_m, BY_TOKEN=by_token,
        ACTIVATION=activation, PACKED=x.device.type != "cpu", IN_FOURS=IN_FOURS, COMPUTE=compute_dtype(x.dtype),
        num_warps=shape.warps, num_stages=shape.stages, **dependent_launch(x.device),
    )  # fmt: skip


_FEW = ProductShape(block_m=8, block_n=ROWS, block_k=COLUMNS, warps=8, stages=1, x_first=False)


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
