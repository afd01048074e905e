"""The indices of a step's attention: what every layer with the same rotation and window takes, made once a step."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from streamserve_kernels.inductor.pieces import LayerShape
from streamserve_kernels.reference.attention import similar_lengths


class TokenIndices(NamedTuple):
    """The arguments of `RotaryWrite` that do not belong to a layer, as its `forward` names them, in its order."""

    cos: Tensor
    sin: Tensor
    places: Tensor


class DecodeIndices(NamedTuple):
    """The arguments of `DecodeAttention` that do not belong to a layer, as its `forward` names them, in its order."""

    cos: Tensor
    sin: Tensor
    places: Tensor
    cells: Tensor
    first: Tensor
    end: Tensor


class DecodeGroup(NamedTuple):
    """Sequences of similar length, which attend in one call. rows [group] int64, or None where it is all of them."""

    rows: Tensor | None
    indices: DecodeIndices


def token_indices(shape: LayerShape, positions: Tensor, slot_mapping: Tensor, cos_sin: Tensor) -> TokenIndices:
    """Of any tokens: positions and slot_mapping [tokens] int64, no slot negative, and cos_sin [positions, rot_dim] fp32."""
    cos, sin = cos_sin.index_select(0, positions).unsqueeze(1).chunk(2, dim=-1)
    heads = torch.arange(2 * shape.kv_heads)
    block, offset = slot_mapping // shape.block_size, slot_mapping % shape.block_size
    places = (block * (len(heads) * shape.block_size) + offset).unsqueeze(1) + heads * shape.block_size
    return TokenIndices(torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1), places)


def decode_groups(
    shape: LayerShape,
    positions: Tensor,
    slot_mapping: Tensor,
    block_tables: Tensor,
    cos_sin: Tensor,
    window: int | None,
    num_blocks: int,
) -> list[DecodeGroup]:
    """How the sequences of a step with one token each attend together.

    positions     [rows]  int64, of each sequence's new token, which is its last
    slot_mapping  [rows]  int64, none negative
    block_tables  [rows, max_blocks]  int32, unused entries may hold anything
    cos_sin       [positions, rot_dim]  fp32
    window        a token sees itself and the window - 1 tokens before it; None sees all
    num_blocks    of the cache
    """
    lengths = [position + 1 for position in positions.tolist()]
    groups = similar_lengths(lengths)
    if len(groups) == 1:
        indices = _indices(shape, max(lengths), positions, slot_mapping, block_tables, cos_sin, window, num_blocks)
        return [DecodeGroup(None, indices)]
    made = []
    for group in groups:
        rows = torch.tensor(group)
        longest = max(lengths[row] for row in group)
        of_group = (positions[rows], slot_mapping[rows], block_tables[rows])
        made.append(DecodeGroup(rows, _indices(shape, longest, *of_group, cos_sin, window, num_blocks)))
    return made


def _indices(
    shape: LayerShape,
    longest: int,
    positions: Tensor,
    slot_mapping: Tensor,
    block_tables: Tensor,
    cos_sin: Tensor,
    window: int | None,
    num_blocks: int,
) -> DecodeIndices:
    every = torch.arange(2 * shape.kv_heads)
    tables = block_tables[:, : -(-longest // shape.block_size)].long().clamp_(0, num_blocks - 1) * len(every)
    cells = tables.unsqueeze(1) + every.view(2, 1, -1, 1)
    group = shape.q_heads // shape.kv_heads
    end = (positions + 1).repeat_interleave(shape.q_heads)
    return DecodeIndices(
        *token_indices(shape, positions, slot_mapping, cos_sin),
        cells=cells.repeat_interleave(group, dim=2).view(2, -1, tables.shape[1]),
        first=torch.zeros_like(end) if window is None else end - window,
        end=end,
    )
