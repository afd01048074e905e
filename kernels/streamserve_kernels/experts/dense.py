"""Products of dense weights with the tokens of each expert, by tiles (tiles.py).

Weights are read once for every BLOCK_M tokens of an expert. For so many tokens that arithmetic counts, they are sorted by
expert on the way, and down is torch's grouped product (CUTLASS).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
import triton.language as tl
from triton.language.extra import cuda

from streamserve_kernels.experts.launches import Layer, Product
from streamserve_kernels.experts.tiles import HeldTokens, ProductShape, find_tile, place_of, store_tile
from streamserve_kernels.launch import capability, compute_dtype, kernel
from streamserve_kernels.reference.experts import Routes

GROUPED_MEAN = 384
"""Tokens of an expert on average from which torch's grouped product is faster."""


@kernel(do_not_specialize=["num_tokens"])
def _product_kernel(
    x_ptr, weight_ptr, sorted_ptr, bias_ptr, out_ptr, counts_ptr, places_ptr, num_tokens, num_experts,
    N: tl.constexpr, K: tl.constexpr, TOP_K: tl.constexpr, LANES: tl.constexpr, BLOCK_M: tl.constexpr, BY_TOKEN: tl.constexpr,
    ACTIVATION: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, X_FIRST: tl.constexpr, COMPUTE: tl.constexpr,
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
    expert, tile, first, count, held_before = find_tile(counts_ptr, num_experts, tl.cdiv(N, BLOCK_N), LANES, BLOCK_M)
    if expert >= num_experts:
        return
    lines = first + tl.arange(0, BLOCK_M)
    present = lines < count
    place = place_of(places_ptr, expert, lines, present, num_tokens)
    x_rows = place // TOP_K if BY_TOKEN else place
    out_rows = place
    if sorted_ptr is not None:
        out_rows = (held_before + lines).to(tl.int64)
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
    store_tile(sums, bias_ptr, out_ptr, expert, tile, out_rows, present, N, ACTIVATION)


def multiply(routes: Routes, held: HeldTokens, layer: Layer[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor | None]:
    """What each held expert makes of its tokens: [places, hidden], and in which row each place is; None for places in order."""
    first, second = product_shapes(held.num_places, layer.num_experts, routes.normed.dtype)
    is_sorted = layer.down_bias is None and is_grouped(held.num_places, layer.down)
    order = torch.empty_like(routes.expert_ids) if is_sorted else None
    gate_up = Product.of_gate_up(routes, layer, held)
    _multiply(gate_up, first, order)
    if is_sorted:
        return grouped_product(gate_up.out, layer.down, held.counts.cumsum(0, dtype=torch.int32)), order
    down = Product.of_down(gate_up.out, layer, held)
    _multiply(down, second)
    return down.out, None


def grouped_product(x: torch.Tensor, weight: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    """x's rows times their experts' weights; x [rows, inner] is ordered by expert, and those of expert e end before ends[e].

    weight   [experts, outer, inner]
    returns  [rows, outer]
    """
    return F.grouped_mm(x, weight.mT, offs=ends)


def _multiply(product: Product[torch.Tensor], shape: ProductShape, order: torch.Tensor | None = None) -> None:
    product.launch(
        _product_kernel, shape, product.weight, order,
        BLOCK_N=shape.block_n, BLOCK_K=shape.block_k, X_FIRST=shape.x_first, COMPUTE=compute_dtype(product.x.dtype),
    )  # fmt: skip


def is_grouped(num_places: int, weight: torch.Tensor) -> bool:
    """Whether down is torch's grouped product: for many tokens, where that needs no number from the device."""
    num_experts, outer, inner = weight.shape
    if weight.dtype != torch.bfloat16 or outer % 8 or inner % 8:
        return False
    return num_places >= GROUPED_MEAN * num_experts and capability(weight.device) >= (9, 0)


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
