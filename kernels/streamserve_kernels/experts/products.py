"""Products of experts' weights with the tokens that go to each: gate and up with the activation, then down with the sum.

* One row: its experts are multiplied on plain lanes, and the down product adds them up, with the residual.
* More: a program takes a tile of one expert's weight rows and up to BLOCK_M of its tokens (`ExpertIndex`). Experts without
  tokens are not read, the others once for every BLOCK_M tokens. What they make of a token is weighed and added up in a third
  launch.
* So many that arithmetic counts: tokens are sorted by expert on the way, and down is torch's grouped product (CUTLASS).

Tensors of one call live on one device and share one dtype (bf16, fp16 or fp32); products and sums are fp32.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
import triton.language as tl
from triton.language.extra import cuda

from streamserve_kernels.attention_tiles import compute_dtype
from streamserve_kernels.experts.routing import ExpertIndex
from streamserve_kernels.launch import capability, dependent_launch, kernel, power_of_two
from streamserve_kernels.norm_rope import activate
from streamserve_kernels.reference.experts import Routes

GROUPED_MEAN = 384
"""Tokens of an expert on average from which torch's grouped product is faster."""


class ProductShape(NamedTuple):
    """How a grouped product is launched.

    block_m  tokens of a tile
    block_n  weight rows of a tile
    x_first  the matrix units take the tokens as their first operand, of which they take 64 rows at a time
    """

    block_m: int
    block_n: int
    block_k: int
    warps: int
    stages: int
    x_first: bool


@kernel()
def _one_row_gate_up_kernel(
    x_ptr, weight_ptr, bias_ptr, ids_ptr, out_ptr, N, first_expert, num_experts,
    K: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, ACTIVATION: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """BLOCK_N / 2 gated values of one of the row's experts; N weight rows of an expert, of which gate and up alternate."""
    if PDL:
        cuda.gdc_launch_dependents()
        cuda.gdc_wait()
    expert = tl.load(ids_ptr + tl.program_id(1)) - first_expert
    if (expert < 0) | (expert >= num_experts):
        return
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = rows < N
    lanes = tl.arange(0, BLOCK_K)
    tile_ptrs = weight_ptr + (expert.to(tl.int64) * N + rows)[:, None] * K + lanes[None, :]
    sums = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
    for k in tl.static_range(0, K, BLOCK_K):
        mask = inside[:, None] & (lanes + k < K)[None, :]
        tile = tl.load(tile_ptrs + k, mask=mask, other=0.0, eviction_policy="evict_first")
        x = tl.load(x_ptr + k + lanes, mask=lanes + k < K, other=0.0).to(tl.float32)
        sums += tile.to(tl.float32) * x[None, :]
    result = tl.sum(sums, axis=1)
    if bias_ptr is not None:
        result += tl.load(bias_ptr + expert.to(tl.int64) * N + rows, mask=inside, other=0.0).to(tl.float32)
    gate, up = tl.split(tl.reshape(result, [BLOCK_N // 2, 2]))
    columns = tl.program_id(0) * (BLOCK_N // 2) + tl.arange(0, BLOCK_N // 2)
    y = activate(gate, up, ACTIVATION).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + tl.program_id(1) * (N // 2) + columns, y, mask=columns < N // 2)


@kernel()
def _one_row_down_kernel(
    x_ptr, weight_ptr, bias_ptr, ids_ptr, weights_ptr, residual_ptr, out_ptr, N, first_expert, num_experts,
    K: tl.constexpr, TOP_K: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """BLOCK_N columns of the row: the residual, and the weighted sum over its experts."""
    if PDL:
        cuda.gdc_launch_dependents()
        cuda.gdc_wait()
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = rows < N
    lanes = tl.arange(0, BLOCK_K)
    sums = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
    result = tl.load(residual_ptr + rows, mask=inside, other=0.0).to(tl.float32)
    for index in tl.static_range(TOP_K):
        expert = tl.load(ids_ptr + index) - first_expert
        weight = tl.load(weights_ptr + index)
        first = expert.to(tl.int64) * N + rows
        # A scalar condition is no mask to Triton's interpreter.
        here = inside & (expert + rows * 0 >= 0) & (expert + rows * 0 < num_experts)
        for k in tl.static_range(0, K, BLOCK_K):
            held = (lanes + k < K) & (expert + lanes * 0 >= 0) & (expert + lanes * 0 < num_experts)
            mask = here[:, None] & held[None, :]
            tile = tl.load(weight_ptr + first[:, None] * K + (k + lanes)[None, :], mask=mask, other=0.0)
            x = tl.load(x_ptr + index * K + k + lanes, mask=held, other=0.0).to(tl.float32)
            sums += tile.to(tl.float32) * (x * weight)[None, :]
        if bias_ptr is not None:
            result += tl.load(bias_ptr + first, mask=here, other=0.0).to(tl.float32) * weight
    result += tl.sum(sums, axis=1)
    tl.store(out_ptr + rows, result.to(out_ptr.dtype.element_ty), mask=inside)


@kernel(do_not_specialize=["num_tokens"])
def _product_kernel(
    x_ptr, weight_ptr, bias_ptr, out_ptr, counts_ptr, places_ptr, sorted_ptr, num_tokens, num_experts,
    N: tl.constexpr, K: tl.constexpr, TOP_K: tl.constexpr, LANES: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr, BY_TOKEN: tl.constexpr, ACTIVATION: tl.constexpr, X_FIRST: tl.constexpr, COMPUTE: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """One expert's tile: BLOCK_N weight rows times BLOCK_M of the expert's tokens.

    With BY_TOKEN this is the first product after routing. Its successor may start once all of its programs have seen the
    routes, and finds its own expert while the first still runs.

    x_ptr       [tokens, K] with BY_TOKEN, else [tokens * TOP_K, K]
    out_ptr     [tokens * TOP_K, N], or N / 2 columns with an activation, for which rows of gate and up alternate
    sorted_ptr  int32 [tokens * TOP_K], receives the row of each place; rows are then ordered by expert. Without it, by place
    """
    if PDL:
        if BY_TOKEN:
            cuda.gdc_wait()
        cuda.gdc_launch_dependents()
    num_tiles = tl.cdiv(N, BLOCK_N)
    tile = tl.program_id(0) % num_tiles
    block = tl.program_id(0) // num_tiles
    experts = tl.arange(0, LANES)
    counts = tl.load(counts_ptr + experts, mask=experts < num_experts, other=0)
    blocks = (counts + BLOCK_M - 1) // BLOCK_M
    before = tl.cumsum(blocks, axis=0) <= block
    expert = tl.sum(before.to(tl.int32), axis=0)
    if expert >= num_experts:
        return
    lines = (block - tl.sum(tl.where(before, blocks, 0), axis=0)) * BLOCK_M + tl.arange(0, BLOCK_M)
    present = lines < tl.sum(tl.where(experts == expert, counts, 0), axis=0)
    place = tl.load(places_ptr + expert.to(tl.int64) * num_tokens + lines, mask=present, other=0).to(tl.int64)
    x_rows = place // TOP_K if BY_TOKEN else place
    out_rows = place
    if sorted_ptr is not None:
        out_rows = (tl.sum(tl.where(experts < expert, counts, 0), axis=0) + lines).to(tl.int64)
        tl.store(sorted_ptr + place, out_rows.to(tl.int32), mask=present & (lines * 0 + tile == 0))
    if PDL and not BY_TOKEN:
        cuda.gdc_wait()
    columns = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = columns < N
    lanes = tl.arange(0, BLOCK_K)
    weight_ptrs = weight_ptr + (expert.to(tl.int64) * N + columns)[:, None] * K + lanes[None, :]
    x_ptrs = x_ptr + x_rows[:, None] * K + lanes[None, :]
    sums = tl.zeros([BLOCK_M, BLOCK_N] if X_FIRST else [BLOCK_N, BLOCK_M], tl.float32)
    for k in range(0, K, BLOCK_K):
        if X_FIRST and K % BLOCK_K == 0 and N % BLOCK_N == 0:
            # Where arithmetic counts, masks cost more than reading a row in vain.
            weights = tl.load(weight_ptrs + k)
            x = tl.load(x_ptrs + k)
        elif K % BLOCK_K == 0:
            weights = tl.load(weight_ptrs + k, mask=inside[:, None], other=0.0)
            x = tl.load(x_ptrs + k, mask=present[:, None], other=0.0)
        else:
            weights = tl.load(weight_ptrs + k, mask=inside[:, None] & (lanes + k < K)[None, :], other=0.0)
            x = tl.load(x_ptrs + k, mask=present[:, None] & (lanes + k < K)[None, :], other=0.0)
        if X_FIRST:
            sums = tl.dot(x.to(COMPUTE), tl.trans(weights.to(COMPUTE)), sums, input_precision="ieee")
        else:
            sums = tl.dot(weights.to(COMPUTE), tl.trans(x.to(COMPUTE)), sums, input_precision="ieee")
    if not X_FIRST:
        sums = tl.trans(sums)
    if bias_ptr is not None:
        sums += tl.load(bias_ptr + expert.to(tl.int64) * N + columns, mask=inside, other=0.0).to(tl.float32)[None, :]
    if ACTIVATION == "none":
        mask = present[:, None] & inside[None, :]
        tl.store(out_ptr + out_rows[:, None] * N + columns[None, :], sums.to(out_ptr.dtype.element_ty), mask=mask)
    else:
        half: tl.constexpr = BLOCK_N // 2
        gate, up = tl.split(tl.reshape(sums, [BLOCK_M, half, 2]))
        columns = tile * half + tl.arange(0, half)
        mask = present[:, None] & (columns < N // 2)[None, :]
        y = activate(gate, up, ACTIVATION).to(out_ptr.dtype.element_ty)
        tl.store(out_ptr + out_rows[:, None] * (N // 2) + columns[None, :], y, mask=mask)


@kernel()
def _sum_kernel(
    made_ptr, ids_ptr, weights_ptr, sorted_ptr, residual_ptr, out_ptr, N, first_expert, num_experts,
    TOP_K: tl.constexpr, PARTIAL: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """BLOCK columns of one row: the residual, and the weighted sum of what its experts made of it.

    made_ptr  [rows * TOP_K, N], in the order of `sorted_ptr`, as `_product_kernel` writes it, or of places
    With PARTIAL some experts are elsewhere, and their rows were not written.
    """
    if PDL:
        cuda.gdc_launch_dependents()
        cuda.gdc_wait()
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < N
    total = tl.load(residual_ptr + row * N + columns, mask=inside, other=0.0).to(tl.float32)
    for index in tl.static_range(TOP_K):
        place = row * TOP_K + index
        weight = tl.load(weights_ptr + place)
        here = inside
        if PARTIAL:
            expert = tl.load(ids_ptr + place) - first_expert
            here = inside & (expert + columns * 0 >= 0) & (expert + columns * 0 < num_experts)
        if sorted_ptr is not None:
            place = tl.load(sorted_ptr + place).to(tl.int64)
        total += tl.load(made_ptr + place * N + columns, mask=here, other=0.0).to(tl.float32) * weight
    tl.store(out_ptr + row * N + columns, total.to(out_ptr.dtype.element_ty), mask=inside)


def experts_residual(
    residual: torch.Tensor,
    routes: Routes,
    gate_up: torch.Tensor,
    down: torch.Tensor,
    activation: str,
    *,
    gate_up_bias: torch.Tensor | None = None,
    down_bias: torch.Tensor | None = None,
    first_expert: int = 0,
) -> torch.Tensor:
    """`reference.experts.experts_residual`, for routes that `norm_route` made."""
    arguments = residual, routes, gate_up, down, activation, gate_up_bias, down_bias, first_expert
    return _one_row(*arguments) if len(routes.normed) == 1 else _many_rows(*arguments)


def _one_row(
    residual: torch.Tensor,
    routes: Routes,
    gate_up: torch.Tensor,
    down: torch.Tensor,
    activation: str,
    gate_up_bias: torch.Tensor | None,
    down_bias: torch.Tensor | None,
    first_expert: int,
) -> torch.Tensor:
    x, (num_experts, outer, hidden) = routes.normed, gate_up.shape
    inner, top_k = outer // 2, routes.expert_ids.shape[1]
    gated, out = x.new_empty(top_k, inner), torch.empty_like(residual, memory_format=torch.contiguous_format)
    block_n, block_k, warps = one_row_gate_up_shape(hidden)
    _one_row_gate_up_kernel[(-(-outer // block_n), top_k)](
        x, gate_up, gate_up_bias, routes.expert_ids, gated, outer, first_expert, num_experts,
        K=hidden, BLOCK_N=block_n, BLOCK_K=block_k, ACTIVATION=activation, num_warps=warps, **dependent_launch(x.device),
    )  # fmt: skip
    block_n, block_k, warps = 2, 512, 2
    _one_row_down_kernel[(-(-hidden // block_n),)](
        gated, down, down_bias, routes.expert_ids, routes.weights, residual, out, hidden, first_expert, num_experts,
        K=inner, TOP_K=top_k, BLOCK_N=block_n, BLOCK_K=block_k, num_warps=warps, **dependent_launch(x.device),
    )  # fmt: skip
    return out


def _many_rows(
    residual: torch.Tensor,
    routes: Routes,
    gate_up: torch.Tensor,
    down: torch.Tensor,
    activation: str,
    gate_up_bias: torch.Tensor | None,
    down_bias: torch.Tensor | None,
    first_expert: int,
) -> torch.Tensor:
    x, (num_experts, outer, hidden) = routes.normed, gate_up.shape
    num_rows, top_k = routes.expert_ids.shape
    num_places, index = num_rows * top_k, routes.by_expert
    assert isinstance(index, ExpertIndex)
    local = slice(first_expert, first_expert + num_experts)
    held = _Held(index.counts[local], index.places[local], top_k)
    first, second = product_shapes(num_places, num_experts, x.dtype)
    gated = x.new_empty(num_places, outer // 2)
    is_sorted = down_bias is None and is_grouped(num_places, down)
    order = torch.empty_like(routes.expert_ids) if is_sorted else None
    _product(x, gate_up, gate_up_bias, gated, held, first, by_token=True, activation=activation, order=order)
    if is_sorted:
        made = grouped_product(gated, down, held.counts.cumsum(0, dtype=torch.int32))
    else:
        made = x.new_empty(num_places, hidden)
        _product(gated, down, down_bias, made, held, second, by_token=False, activation="none")
    out, block = torch.empty_like(residual, memory_format=torch.contiguous_format), min(power_of_two(hidden), 1024)
    _sum_kernel[(num_rows, -(-hidden // block))](
        made, routes.expert_ids, routes.weights, order, residual, out, hidden, first_expert, num_experts,
        TOP_K=top_k, PARTIAL=num_experts < index.counts.shape[0], BLOCK=block, num_warps=max(1, block // 256),
        **dependent_launch(x.device),
    )  # fmt: skip
    return out


class _Held(NamedTuple):
    """An `ExpertIndex` as far as the experts of a call go."""

    counts: torch.Tensor
    places: torch.Tensor
    top_k: int


def grouped_product(x: torch.Tensor, weight: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    """x's rows times their experts' weights; x [rows, inner] is ordered by expert, and those of expert e end before ends[e].

    weight   [experts, outer, inner]
    returns  [rows, outer]
    """
    return F.grouped_mm(x, weight.mT, offs=ends)


def _product(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    out: torch.Tensor,
    held: _Held,
    shape: ProductShape,
    *,
    by_token: bool,
    activation: str,
    order: torch.Tensor | None = None,
) -> None:
    num_experts, outer, inner = weight.shape
    num_tokens, num_places = held.places.shape[1], held.places.shape[1] * held.top_k
    tiles = -(-outer // shape.block_n)
    # No more blocks than this hold the places, however they fall on the experts.
    hit = min(num_experts, num_places)
    blocks = (num_places + hit * (shape.block_m - 1)) // shape.block_m
    _product_kernel[(tiles * blocks,)](
        x, weight, bias, out, held.counts, held.places, order, num_tokens, num_experts,
        N=outer, K=inner, TOP_K=held.top_k, LANES=power_of_two(num_experts), BLOCK_M=shape.block_m, BLOCK_N=shape.block_n,
        BLOCK_K=shape.block_k, BY_TOKEN=by_token, ACTIVATION=activation, X_FIRST=shape.x_first, COMPUTE=compute_dtype(x.dtype),
        num_warps=shape.warps, num_stages=shape.stages, **dependent_launch(x.device),
    )  # fmt: skip


def is_grouped(num_places: int, weight: torch.Tensor) -> bool:
    """Whether down is torch's grouped product: for many tokens, where that needs no number from the device."""
    num_experts, outer, inner = weight.shape
    if weight.dtype != torch.bfloat16 or outer % 8 or inner % 8:
        return False
    return num_places >= GROUPED_MEAN * num_experts and capability(weight.device) >= (9, 0)


def one_row_gate_up_shape(hidden: int) -> tuple[int, int, int]:
    """BLOCK_N, BLOCK_K and warps."""
    return 8, min(power_of_two(hidden), 2048), 4


def product_shapes(num_places: int, num_experts: int, dtype: torch.dtype) -> tuple[ProductShape, ProductShape]:
    """The launches of gate·up and of down, by how many tokens an expert has on average."""
    mean = num_places / num_experts
    if dtype == torch.float32:
        shape = ProductShape(16, 64, 32, 4, 2, False) if mean <= 16 else ProductShape(64, 64, 32, 4, 2, True)
        return shape, shape
    if mean <= 6:
        return ProductShape(16, 64, 128, 4, 3, False), ProductShape(16, 128, 128, 8, 3, False)
    if mean <= 24:
        return ProductShape(32, 64, 128, 4, 3, False), ProductShape(32, 64, 128, 4, 3, False)
    if mean <= 96:
        return ProductShape(64, 128, 64, 4, 3, True), ProductShape(64, 128, 64, 4, 3, True)
    stages = 3 if mean >= GROUPED_MEAN else 4
    return ProductShape(128, 256, 64, 8, stages, True), ProductShape(128, 256, 64, 8, stages, True)
