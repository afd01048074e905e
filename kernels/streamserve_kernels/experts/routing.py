"""Chooses the experts of each token, and lists the tokens of each expert.

For up to `FUSED_ROWS` rows norm, router and choice are one launch: programs multiply some experts each, and the last one to
finish chooses. Above, the norm and the product are launches of their own, and the choice is a third.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from triton.language.extra import cuda

from streamserve_kernels.launch import arrivals, compute_dtype, dependent_launch, kernel, power_of_two
from streamserve_kernels.norms import rms_norm
from streamserve_kernels.reference.experts import Routes, RoutingRule

ROWS = 16
"""Rows that a program chooses for."""

FUSED_ROWS = 64
"""Rows up to which norm, router and choice are one launch."""

FUSED_WIDTH = 4096
"""Widest rows for which they are: a program holds as much of the router's weights as that in registers."""

_LOWEST = tl.constexpr(-0x8000000000000000)


class ExpertIndex(NamedTuple):
    """The tokens of each expert.

    counts  [experts]          int32, how many it has
    places  [experts, tokens]  int32, the first `counts` of each: the token times top_k, plus which of its choices this is
    """

    counts: torch.Tensor
    places: torch.Tensor


@triton.jit
def _flip_order(bits):
    """Maps the bits of fp32 numbers to integers of the same order, and back."""
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def _choose(
    logits, rows, num_rows, num_experts, scale, choice_ptr, ids_ptr, weights_ptr, counts_ptr, places_ptr,
    TOP_K: tl.constexpr, LANES: tl.constexpr, SIGMOID: tl.constexpr, RENORMALIZE: tl.constexpr, INDEX: tl.constexpr,
):  # fmt: skip
    """Choose for rows of logits [ROWS, LANES] fp32, and store; with INDEX the tokens are listed by expert as well."""
    lanes = tl.arange(0, LANES)
    inside = (lanes < num_experts)[None, :]
    logits = tl.where(inside & (logits == logits), logits, float("-inf"))
    scores = logits
    choice = logits
    if SIGMOID:
        scores = tl.sigmoid(logits)
        choice = scores
        if choice_ptr is not None:
            choice += tl.load(choice_ptr + lanes, mask=lanes < num_experts, other=0.0)[None, :]
        choice = tl.where(inside, choice, float("-inf"))
    keys = (_flip_order(choice.to(tl.int32, bitcast=True)).to(tl.int64) << 32) | (LANES - 1 - lanes)[None, :].to(tl.int64)
    ids = ()
    chosen = ()
    for _ in tl.static_range(TOP_K):
        best = tl.max(keys, axis=1)
        here = keys == best[:, None]
        ids = ids + (LANES - 1 - (best & (LANES - 1)).to(tl.int32),)  # type: ignore[assignment]
        if SIGMOID:
            score = tl.sum(tl.where(here, scores, 0.0), axis=1)
        else:
            score = _flip_order((best >> 32).to(tl.int32)).to(tl.float32, bitcast=True)
        chosen = chosen + (score,)  # type: ignore[assignment]
        keys = tl.where(here, _LOWEST, keys)
    # Of a row that is all NaN nothing is left: it goes to some experts all the same, and what they make of it is NaN.
    first = chosen[0]  # type: ignore[misc]
    highest = tl.where(first == float("-inf"), 0.0, first)
    total = tl.zeros_like(highest)
    if RENORMALIZE:
        for index in tl.static_range(TOP_K):
            total += chosen[index] if SIGMOID else tl.exp(chosen[index] - highest)
        total += 1e-20 if SIGMOID else 0.0
    elif SIGMOID:
        total += 1.0
    else:
        total = tl.sum(tl.exp(logits - highest[:, None]), axis=1)
    total = tl.where(total == 0.0, 1.0, total)
    present = rows < num_rows
    for index in tl.static_range(TOP_K):
        weight = chosen[index] if SIGMOID else tl.exp(chosen[index] - highest)
        place = rows * TOP_K + index
        tl.store(ids_ptr + place, ids[index], mask=present)
        tl.store(weights_ptr + place, weight / total * scale, mask=present)
    if INDEX:
        # All are under way before the first result is needed: each takes the better part of a microsecond.
        ranks = ()
        for index in tl.static_range(TOP_K):
            rank = tl.atomic_add(counts_ptr + ids[index], 1, mask=present, sem="relaxed")
            ranks = ranks + (rank,)  # type: ignore[assignment]
        for index in tl.static_range(TOP_K):
            place_ptrs = places_ptr + ids[index].to(tl.int64) * num_rows + ranks[index]
            tl.store(place_ptrs, rows * TOP_K + index, mask=present)


@kernel(do_not_specialize=["num_rows"])
def _choose_kernel(
    logits_ptr, bias_ptr, choice_ptr, ids_ptr, weights_ptr, counts_ptr, places_ptr, num_rows, num_experts, scale,
    ROWS: tl.constexpr, TOP_K: tl.constexpr, LANES: tl.constexpr, SIGMOID: tl.constexpr, RENORMALIZE: tl.constexpr,
    INDEX: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Choose for ROWS rows of logits [num_rows, num_experts]."""
    if PDL:
        cuda.gdc_launch_dependents()
        cuda.gdc_wait()
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    lanes = tl.arange(0, LANES)
    mask = (rows < num_rows)[:, None] & (lanes < num_experts)[None, :]
    logits = tl.load(logits_ptr + rows.to(tl.int64)[:, None] * num_experts + lanes[None, :], mask=mask, other=0.0)
    logits = logits.to(tl.float32)
    if bias_ptr is not None:
        logits += tl.load(bias_ptr + lanes, mask=lanes < num_experts, other=0.0).to(tl.float32)[None, :]
    _choose(
        logits, rows, num_rows, num_experts, scale, choice_ptr, ids_ptr, weights_ptr, counts_ptr, places_ptr,
        TOP_K, LANES, SIGMOID, RENORMALIZE, INDEX,
    )  # fmt: skip


@triton.jit
def _norm_row(x_ptr, norm_ptr, out_ptr, row, eps, K: tl.constexpr, K_LANES: tl.constexpr):
    """RMS norm of one row."""
    lanes = tl.arange(0, K_LANES)
    offsets = tl.cast(row, tl.int64) * K + lanes
    x = tl.load(x_ptr + offsets, mask=lanes < K, other=0.0).to(tl.float32)
    weight = tl.load(norm_ptr + lanes, mask=lanes < K, other=0.0).to(tl.float32)
    y = x * tl.rsqrt(tl.sum(x * x, axis=0) / K + eps) * weight
    tl.store(out_ptr + offsets, y.to(out_ptr.dtype.element_ty), mask=lanes < K)


@kernel(do_not_specialize=["num_rows"])
def _norm_route_kernel(
    x_ptr, norm_ptr, router_ptr, bias_ptr, choice_ptr, normed_ptr, logits_ptr, ids_ptr, weights_ptr, counts_ptr, places_ptr,
    arrivals_ptr, num_rows, num_experts, scale, eps,
    K: tl.constexpr, K_LANES: tl.constexpr, ROWS: tl.constexpr, BLOCK_E: tl.constexpr, SLICES: tl.constexpr,
    SLICE_K: tl.constexpr, TOP_K: tl.constexpr, LANES: tl.constexpr, SIGMOID: tl.constexpr, RENORMALIZE: tl.constexpr,
    INDEX: tl.constexpr, COMPUTE: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """BLOCK_E experts' logits of ROWS rows; the first programs of the grid norm a row each instead.

    The router's weights are in registers before the predecessor is done. The last program of ROWS rows to finish chooses.

    logits_ptr    fp32 [num_rows, num_experts]
    arrivals_ptr  int32 [row tiles], zero before and after
    """
    if PDL:
        cuda.gdc_launch_dependents()
    tile = tl.program_id(0) - ROWS
    row_tile = tl.program_id(1)
    if tile < 0:
        if PDL:
            cuda.gdc_wait()
        row = row_tile * ROWS + tile + ROWS
        if row < num_rows:
            _norm_row(x_ptr, norm_ptr, normed_ptr, row, eps, K, K_LANES)
        return
    experts = tile * BLOCK_E + tl.arange(0, BLOCK_E)
    known = experts < num_experts
    rows = row_tile * ROWS + tl.arange(0, ROWS)
    if ROWS == 1:
        lanes = tl.arange(0, K_LANES)
        mask = known[:, None] & (lanes < K)[None, :]
        weights = tl.load(router_ptr + experts[:, None] * K + lanes[None, :], mask=mask, other=0.0).to(tl.float32)
        norm = tl.load(norm_ptr + lanes, mask=lanes < K, other=0.0).to(tl.float32)
        if PDL:
            cuda.gdc_wait()
        x = tl.load(x_ptr + lanes, mask=lanes < K, other=0.0).to(tl.float32)
        scaled = (x * tl.rsqrt(tl.sum(x * x, axis=0) / K + eps) * norm).to(x_ptr.dtype.element_ty).to(tl.float32)
        logits = tl.sum(weights * scaled[None, :], axis=1)[None, :]
    else:
        BLOCK_K: tl.constexpr = SLICES * SLICE_K
        lanes = tl.arange(0, SLICES)[:, None] * SLICE_K + tl.arange(0, SLICE_K)[None, :]
        tiles = ()
        for k in tl.static_range(0, K, BLOCK_K):
            mask = known[None, :, None] & (lanes + k < K)[:, None, :]
            ptrs = router_ptr + experts[None, :, None] * K + lanes[:, None, :] + k
            tiles = tiles + (tl.load(ptrs, mask=mask, other=0.0),)  # type: ignore[assignment]
        sums = tl.zeros([SLICES, BLOCK_E, ROWS], tl.float32)
        squares = tl.zeros([SLICES, ROWS], tl.float32)
        x_ptrs = x_ptr + rows.to(tl.int64)[None, :, None] * K + lanes[:, None, :]
        if PDL:
            cuda.gdc_wait()
        for k in tl.static_range(0, K, BLOCK_K):
            mask = (rows < num_rows)[None, :, None] & (lanes + k < K)[:, None, :]
            wide = tl.load(x_ptrs + k, mask=mask, other=0.0).to(tl.float32)
            squares += tl.sum(wide * wide, axis=2)
            norm = tl.load(norm_ptr + k + lanes, mask=lanes + k < K, other=0.0).to(tl.float32)
            x = tl.permute((wide * norm[:, None, :]).to(x_ptr.dtype.element_ty).to(COMPUTE), (0, 2, 1))
            sums = tl.dot(tiles[k // BLOCK_K].to(COMPUTE), x, sums, input_precision="ieee")
        logits = tl.trans(tl.sum(sums, axis=0) * tl.rsqrt(tl.sum(squares, axis=0) / K + eps)[None, :])
    if bias_ptr is not None:
        logits += tl.load(bias_ptr + experts, mask=known, other=0.0).to(tl.float32)[None, :]
    places = rows[:, None] * num_experts + experts[None, :]
    tl.store(logits_ptr + places, logits, mask=(rows < num_rows)[:, None] & known[None, :])
    # Every thread's stores must be out before the one thread that announces these experts.
    tl.debug_barrier()
    others = tl.num_programs(0) - ROWS - 1
    if tl.atomic_add(arrivals_ptr + row_tile, 1, sem="acq_rel", scope="gpu") != others:
        return
    tl.store(arrivals_ptr + row_tile, 0)
    every = tl.arange(0, LANES)
    if INDEX and tl.num_programs(1) == 1:
        tl.store(counts_ptr + every, 0, mask=every < num_experts)
        tl.debug_barrier()
    mask = (rows < num_rows)[:, None] & (every < num_experts)[None, :]
    logits = tl.load(logits_ptr + rows[:, None] * num_experts + every[None, :], mask=mask, other=0.0, cache_modifier=".cg")
    _choose(
        logits, rows, num_rows, num_experts, scale, choice_ptr, ids_ptr, weights_ptr, counts_ptr, places_ptr,
        TOP_K, LANES, SIGMOID, RENORMALIZE, INDEX,
    )  # fmt: skip


def norm_route(
    x: torch.Tensor,
    norm_weight: torch.Tensor,
    eps: float,
    router_weight: torch.Tensor,
    rule: RoutingRule,
    *,
    bias: torch.Tensor | None = None,
    choice_bias: torch.Tensor | None = None,
) -> Routes:
    """`reference.experts.norm_route`; one row gets no index, since its experts are its own."""
    x = x.contiguous()
    num_rows, inner = x.shape
    num_experts = router_weight.shape[0]
    is_fused = num_rows <= FUSED_ROWS and inner <= FUSED_WIDTH
    ids = torch.empty(num_rows, rule.top_k, dtype=torch.int32, device=x.device)
    weights = torch.empty(num_rows, rule.top_k, dtype=torch.float32, device=x.device)
    index = _empty_index(ids, num_experts, is_zero=not is_fused or num_rows > ROWS) if num_rows > 1 else None
    counts, places = index or (None, None)
    chosen = {
        "TOP_K": rule.top_k, "LANES": power_of_two(num_experts, least=16), "SIGMOID": rule.scoring == "sigmoid",
        "RENORMALIZE": rule.renormalizes, "INDEX": index is not None,
    }  # fmt: skip
    if is_fused:
        normed = torch.empty_like(x)
        logits = torch.empty(num_rows, num_experts, dtype=torch.float32, device=x.device)
        rows, block_e, slices, slice_k, warps = route_shape(num_rows, inner)
        _norm_route_kernel[(rows + -(-num_experts // block_e), -(-num_rows // rows))](
            x, norm_weight, router_weight, bias, choice_bias, normed, logits, ids, weights, counts, places, arrivals(x.device),
            num_rows, num_experts, rule.scale, eps,
            K=inner, K_LANES=power_of_two(inner), ROWS=rows, BLOCK_E=block_e, SLICES=slices, SLICE_K=slice_k, **chosen,
            COMPUTE=compute_dtype(x.dtype), num_warps=warps, **dependent_launch(x.device),
        )  # fmt: skip
        return Routes(normed, ids, weights, index)
    normed = rms_norm(x, norm_weight, eps)
    if x.is_cpu or x.dtype == torch.float32:
        logits = F.linear(normed, router_weight)
    else:
        logits = torch.mm(normed, router_weight.t(), out_dtype=torch.float32)
    _choose_kernel[(-(-num_rows // ROWS),)](
        logits, bias, choice_bias, ids, weights, counts, places, num_rows, num_experts, rule.scale,
        ROWS=ROWS, **chosen, num_warps=4, **dependent_launch(x.device),
    )  # fmt: skip
    return Routes(normed, ids, weights, index)


def _empty_index(ids: torch.Tensor, num_experts: int, *, is_zero: bool) -> ExpertIndex:
    """An index to be filled; where one program chooses for all rows, it zeroes the counts itself."""
    make = torch.zeros if is_zero else torch.empty
    counts = make(num_experts, dtype=torch.int32, device=ids.device)
    return ExpertIndex(counts, ids.new_empty(num_experts, ids.shape[0]))


def route_shape(num_rows: int, inner: int) -> tuple[int, int, int, int, int]:
    """ROWS, BLOCK_E, slices (one per warp), lanes of a slice, warps."""
    if num_rows == 1:
        return 1, 4, 1, 1, 4 if inner <= 2048 else 8
    return power_of_two(min(num_rows, ROWS), least=8), 16, 8, max(16, min(128, power_of_two(inner) // 8)), 8
