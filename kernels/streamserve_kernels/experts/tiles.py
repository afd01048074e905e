"""Tiles of a product of tokens with their experts: a program has some weight rows of one expert and some of its tokens.

Experts without tokens get no tile. How many tokens each has is known to the device alone: as many programs are launched as the
worst case needs, and those too many end at once. What kernels of every kind of weight have in common is here: how they find
their tile, and how they store what it makes.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from streamserve_kernels.activations import activate
from streamserve_kernels.experts.routing import ExpertIndex
from streamserve_kernels.reference.experts import Routes


class ProductShape(NamedTuple):
    """How a product is launched.

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


class HeldTokens(NamedTuple):
    """The tokens of the experts that are held, of an `ExpertIndex`.

    is_partial  some tokens have experts elsewhere
    """

    counts: torch.Tensor
    places: torch.Tensor
    top_k: int
    is_partial: bool

    @classmethod
    def of(cls, routes: Routes, num_experts: int, first_expert: int) -> HeldTokens:
        """The tokens of experts from `first_expert` on."""
        index = routes.by_expert
        assert isinstance(index, ExpertIndex)
        held = slice(first_expert, first_expert + num_experts)
        is_partial = num_experts < index.counts.shape[0]
        return cls(index.counts[held], index.places[held], routes.expert_ids.shape[1], is_partial)

    @property
    def num_tokens(self) -> int:
        return self.places.shape[1]

    @property
    def num_places(self) -> int:
        return self.num_tokens * self.top_k

    def num_programs(self, outer: int, shape: ProductShape) -> int:
        """Programs of a product with weights of so many rows: no more blocks hold the places, however they fall on experts."""
        hit = min(self.counts.shape[0], self.num_places)
        blocks = (self.num_places + hit * (shape.block_m - 1)) // shape.block_m
        return -(-outer // shape.block_n) * blocks


class LoneToken(NamedTuple):
    """The only token of a step, which has no index: a program has a tile of one of its experts, if that is held.

    expert_ids    int32 [1, top_k]
    first_expert  that is held
    """

    expert_ids: torch.Tensor
    first_expert: int
    counts: None = None
    places: None = None
    num_tokens: int = 1

    @property
    def top_k(self) -> int:
        return self.expert_ids.shape[1]

    @property
    def num_places(self) -> int:
        return self.top_k

    def num_programs(self, outer: int, shape: ProductShape) -> int:
        return -(-outer // shape.block_n) * self.top_k


@triton.jit
def find_tile(counts_ptr, num_experts, num_tiles, LANES: tl.constexpr, BLOCK_M: tl.constexpr):
    """The expert of a program, which of its tiles of weight rows, and the first of its tokens.

    num_tiles  tiles of weight rows of an expert
    returns    after those, how many tokens the expert has, and how many those before it; for a program too many an expert that
               does not exist
    """
    tile = tl.program_id(0) % num_tiles
    block = tl.program_id(0) // num_tiles
    experts = tl.arange(0, LANES)
    counts = tl.load(counts_ptr + experts, mask=experts < num_experts, other=0)
    blocks = (counts + BLOCK_M - 1) // BLOCK_M
    before = tl.cumsum(blocks, axis=0) <= block
    expert = tl.sum(before.to(tl.int32), axis=0)
    first = (block - tl.sum(tl.where(before, blocks, 0), axis=0)) * BLOCK_M
    count = tl.sum(tl.where(experts == expert, counts, 0), axis=0)
    return expert, tile, first, count, tl.sum(tl.where(experts < expert, counts, 0), axis=0)


@triton.jit
def place_of(places_ptr, expert, lines, present, num_tokens):
    """The places of an expert's tokens of these lines, int64."""
    return tl.load(places_ptr + expert.to(tl.int64) * num_tokens + lines, mask=present, other=0).to(tl.int64)


@triton.jit
def store_tile(sums, bias_ptr, out_ptr, expert, tile, out_rows, present, N: tl.constexpr, ACTIVATION: tl.constexpr):
    """Bias and activation of a tile's sums [tokens, weight rows], stored in these rows of out."""
    block_n: tl.constexpr = sums.shape[1]
    columns = tile * block_n + tl.arange(0, block_n)
    inside = columns < N
    if bias_ptr is not None:
        sums += tl.load(bias_ptr + expert.to(tl.int64) * N + columns, mask=inside, other=0.0).to(tl.float32)[None, :]
    if ACTIVATION == "none":
        mask = present[:, None] & inside[None, :]
        tl.store(out_ptr + out_rows[:, None] * N + columns[None, :], sums.to(out_ptr.dtype.element_ty), mask=mask)
    else:
        half: tl.constexpr = block_n // 2
        gate, up = tl.split(tl.reshape(sums, [sums.shape[0], half, 2]))
        columns = tile * half + tl.arange(0, half)
        mask = present[:, None] & (columns < N // 2)[None, :]
        y = activate(gate, up, ACTIVATION).to(out_ptr.dtype.element_ty)
        tl.store(out_ptr + out_rows[:, None] * (N // 2) + columns[None, :], y, mask=mask)
