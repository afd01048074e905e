"""Products of 8-bit floats with the tokens of each expert, by tiles (tiles.py).

Tokens are rounded to 8 bits in a pass before each of the two products, by scales of their own, or of each 128 of their columns
where weights have blocks. Scales of rows are applied to sums, at the end; those of blocks to each 128 columns' part of them.
Devices without products of 8-bit floats widen weights in registers, and leave tokens as they are.
"""

from __future__ import annotations

import torch
import triton.language as tl
from triton.language.extra import cuda

from streamserve_kernels.experts.launches import Layer, Product
from streamserve_kernels.experts.tiles import HeldTokens, ProductShape, find_tile, place_of, store_tile
from streamserve_kernels.launch import compute_dtype, kernel
from streamserve_kernels.projections.fp8_activations import quantize
from streamserve_kernels.projections.fp8_widen import bytes_of, has_conversion, has_products, widen
from streamserve_kernels.reference.experts import Routes
from streamserve_kernels.reference.projections.fp8 import BLOCK
from streamserve_kernels.reference.quantized_experts import Fp8ExpertsWeight

_BLOCK = tl.constexpr(BLOCK)


@kernel(do_not_specialize=["num_tokens", "room"])
def _fp8_product_kernel(
    x_ptr, x_scale_ptr, room, values_ptr, scale_ptr, bias_ptr, out_ptr, counts_ptr, places_ptr, num_tokens, num_experts,
    N: tl.constexpr, K: tl.constexpr, TOP_K: tl.constexpr, LANES: tl.constexpr, BLOCK_M: tl.constexpr, BY_TOKEN: tl.constexpr,
    ACTIVATION: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, X_FIRST: tl.constexpr, SCALES: tl.constexpr,
    BITS: tl.constexpr, COMPUTE: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One expert's tile: BLOCK_N weight rows times BLOCK_M of the expert's tokens.

    x_ptr    [tokens, K] with BY_TOKEN, else [tokens * TOP_K, K]
    out_ptr  [tokens * TOP_K, N], or N / 2 columns with an activation, for which rows of gate and up alternate
    SCALES   columns of the weight's scale; with more than one, x's is [ceil(K / 128), room], else a number for each row
    COMPUTE  the type that weights are widened to, which is x's; None for an x of 8-bit floats
    """
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
    if PDL and not BY_TOKEN:
        cuda.gdc_wait()
    columns = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = columns < N
    lanes = tl.arange(0, BLOCK_K)
    weight_ptrs = values_ptr + (expert.to(tl.int64) * N + columns)[:, None] * K + lanes[None, :]
    x_ptrs = x_ptr + x_rows[:, None] * K + lanes[None, :]
    if SCALES > 1:
        if ACTIVATION == "none":
            blocks = expert * ((N + _BLOCK - 1) // _BLOCK) + columns // _BLOCK
        else:
            blocks = expert * ((N // 2 + _BLOCK - 1) // _BLOCK * 2) + columns // (2 * _BLOCK) * 2 + columns % 2
        scale_ptrs = scale_ptr + blocks * SCALES
    sums = tl.zeros([BLOCK_M, BLOCK_N] if X_FIRST else [BLOCK_N, BLOCK_M], tl.float32)
    for k in range(0, K, BLOCK_K):
        if K % BLOCK_K == 0:
            weights = tl.load(weight_ptrs + k, mask=inside[:, None], other=0.0)
            x = tl.load(x_ptrs + k, mask=present[:, None], other=0.0)
        else:
            weights = tl.load(weight_ptrs + k, mask=inside[:, None] & (lanes + k < K)[None, :], other=0.0)
            x = tl.load(x_ptrs + k, mask=present[:, None] & (lanes + k < K)[None, :], other=0.0)
        if COMPUTE is not None:
            weights = widen(weights, BITS, COMPUTE)
            x = x.to(COMPUTE)
        if SCALES > 1:
            scale = tl.load(scale_ptrs + k // _BLOCK, mask=inside, other=0.0)
            if COMPUTE is None:
                x_scale = tl.load(x_scale_ptr + k // _BLOCK * room + x_rows, mask=present, other=0.0)
            else:
                x_scale = tl.full([BLOCK_M], 1.0, tl.float32)
            if X_FIRST:
                sums += tl.dot(x, tl.trans(weights)) * x_scale[:, None] * scale[None, :]
            else:
                sums += tl.dot(weights, tl.trans(x)) * scale[:, None] * x_scale[None, :]
        elif X_FIRST:
            sums = tl.dot(x, tl.trans(weights), sums)
        else:
            sums = tl.dot(weights, tl.trans(x), sums)
    if not X_FIRST:
        sums = tl.trans(sums)
    if SCALES == 1:
        sums *= tl.load(scale_ptr + expert.to(tl.int64) * N + columns, mask=inside, other=0.0)[None, :]
        if COMPUTE is None:
            sums *= tl.load(x_scale_ptr + x_rows, mask=present, other=0.0)[:, None]
    store_tile(sums, bias_ptr, out_ptr, expert, tile, place, present, N, ACTIVATION)


def multiply(routes: Routes, held: HeldTokens, layer: Layer[Fp8ExpertsWeight]) -> tuple[torch.Tensor, None]:
    """What each held expert makes of its tokens: [places, hidden], in order."""
    first, second = product_shapes(held.num_places, layer.num_experts, has_blocks=layer.gate_up.has_blocks)
    # Rows of experts that are elsewhere are not written, and rounded all the same.
    gate_up = Product.of_gate_up(routes, layer, held, is_zeroed=held.is_partial)
    _multiply(gate_up, first)
    down = Product.of_down(gate_up.out, layer, held)
    _multiply(down, second)
    return down.out, None


def _multiply(product: Product[Fp8ExpertsWeight], shape: ProductShape) -> None:
    x, weight, device = product.x, product.weight, product.x.device
    is_narrow, bits = has_products(device), not has_conversion(device)
    x_scale, room = None, 0
    if is_narrow:
        narrow, x_scale = quantize(x, in_groups=weight.has_blocks)
        product, room = product._replace(x=narrow), x_scale.shape[-1]
    product.launch(
        _fp8_product_kernel, shape, x_scale, room, bytes_of(weight.values, bits), weight.scale,
        BLOCK_N=shape.block_n, BLOCK_K=shape.block_k, X_FIRST=shape.x_first, SCALES=weight.scale.shape[2], BITS=bits,
        COMPUTE=None if is_narrow else compute_dtype(x.dtype),
    )  # fmt: skip


def product_shapes(num_places: int, num_experts: int, *, has_blocks: bool) -> tuple[ProductShape, ProductShape]:
    """The launches of gate·up and of down, by how many tokens an expert has on average; blocks are 128 columns of a step."""
    mean, block_k = num_places / num_experts, BLOCK if has_blocks else 2 * BLOCK
    if mean <= 6:
        return ProductShape(16, 64, block_k, 4, 3, False), ProductShape(16, 64, block_k, 4, 3, False)
    if mean <= 24:
        return ProductShape(32, 64, block_k, 4, 3, False), ProductShape(32, 64, block_k, 4, 3, False)
    # Wider parts of sums, with scales of their own, don't fit into registers.
    if mean <= 96 or has_blocks:
        return ProductShape(64, 128, BLOCK, 4, 3, True), ProductShape(64, 128, BLOCK, 4, 3, True)
    return ProductShape(128, 256, BLOCK, 8, 3, True), ProductShape(128, 256, BLOCK, 8, 3, True)
