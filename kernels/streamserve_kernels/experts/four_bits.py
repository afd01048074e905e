"""Products of four-bit numbers, MXFP4's or integers in groups, with the tokens of each expert (four_bit_kernels.py).

Tokens keep their precision.

* Up to `FEW_MEAN` tokens of an expert: a program has 16 weight rows, and its warps share out the columns, for up to 8 tokens.
* More: a program has 64 or 128 weight rows, and words and tokens come through shared memory.
"""

from __future__ import annotations

from typing import TypeAlias

import torch

from streamserve_kernels.experts.four_bit_kernels import few_tokens_kernel, tile_kernel
from streamserve_kernels.experts.launches import Layer, Product
from streamserve_kernels.experts.tiles import HeldTokens, LoneToken, ProductShape
from streamserve_kernels.experts.weighted_sum import weighted_sum
from streamserve_kernels.launch import compute_dtype
from streamserve_kernels.projections.four_bit_unpacking import IN_FOURS
from streamserve_kernels.reference.experts import Routes
from streamserve_kernels.reference.projections.grouped import COLUMNS, ROWS
from streamserve_kernels.reference.quantized_experts import GroupedExpertsWeight, Mxfp4ExpertsWeight

FEW_MEAN = 1

FourBits: TypeAlias = Mxfp4ExpertsWeight | GroupedExpertsWeight


def experts_residual(residual: torch.Tensor, routes: Routes, layer: Layer[FourBits]) -> torch.Tensor:
    """As `products.experts_residual`, for one row."""
    made = _both(routes, LoneToken(routes.expert_ids, layer.first_expert), layer, None)
    return weighted_sum(residual, made, routes, layer.num_experts, layer.first_expert, is_partial=True)


def multiply(routes: Routes, held: HeldTokens, layer: Layer[FourBits]) -> tuple[torch.Tensor, None]:
    """What each held expert makes of its tokens: [places, hidden], in order."""
    return _both(routes, held, layer, product_shape(held.num_places, layer.num_experts)), None


def _both(routes: Routes, tokens: HeldTokens | LoneToken, layer: Layer[FourBits], shape: ProductShape | None) -> torch.Tensor:
    """shape  None for few tokens"""
    gate_up = Product.of_gate_up(routes, layer, tokens)
    _multiply(gate_up, shape)
    down = Product.of_down(gate_up.out, layer, tokens)
    _multiply(down, shape)
    return down.out


def _multiply(product: Product[FourBits], shape: ProductShape | None) -> None:
    tokens, operands, constants = product.tokens, *_operands(product.weight)
    constants |= {"PACKED": product.x.device.type != "cpu", "COMPUTE": compute_dtype(product.x.dtype)}
    if shape is not None:
        unroll = shape.block_k // COLUMNS if product.weight.shape[2] % shape.block_k == 0 else 1
        product.launch(tile_kernel, shape, *operands, BLOCK_N=shape.block_n, UNROLL=unroll, **constants)
        return
    ids, first_expert = (tokens.expert_ids, tokens.first_expert) if isinstance(tokens, LoneToken) else (None, 0)
    slices, ahead = few_shape()
    few = ProductShape(block_m=8, block_n=ROWS, block_k=COLUMNS, warps=slices, stages=1, x_first=False)
    product.launch(
        few_tokens_kernel, few, *operands, ids, first_expert, SLICES=slices, AHEAD=ahead, IN_FOURS=IN_FOURS, **constants
    )


def _operands(weight: FourBits) -> tuple[tuple[torch.Tensor | None, ...], dict[str, object]]:
    """Words, factors and zero points, and constants that say what they are."""
    if isinstance(weight, Mxfp4ExpertsWeight):
        # A word has exponents of two blocks.
        return (weight.words, weight.exponents, None), {"E2M1": True, "GROUP": COLUMNS}
    zero = None if weight.zero is None else weight.zero.view(torch.int16)
    return (weight.words, weight.scale.view(torch.int32), zero), {"E2M1": False, "GROUP": weight.group}


def few_shape() -> tuple[int, int]:
    """Warps of a program for few tokens, and steps that loads are ahead."""
    return 2, 16


def product_shape(num_places: int, num_experts: int) -> ProductShape | None:
    """The launches of both products, by how many tokens an expert has on average; None for few."""
    mean = num_places / num_experts
    if mean <= FEW_MEAN:
        return None
    if mean <= 12:
        return ProductShape(16, 128, 2 * COLUMNS, 4, 4, False)
    if mean <= 24:
        return ProductShape(32, 128, COLUMNS, 4, 4, False)
    if mean <= 96:
        return ProductShape(64, 128, COLUMNS, 4, 3, False)
    return ProductShape(128, 64, COLUMNS, 4, 4, False)
