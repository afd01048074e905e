"""Keys and values into the paged cache, in torch.

The cache of one layer is [blocks, 2, kv_heads, block_size, head_dim]: keys at index 0 of the second dimension, values at 1.
A slot is one token's place: block * block_size + offset.
"""

from __future__ import annotations

import torch
from torch import Tensor

from streamserve_kernels.reference.norm_rope import rms_norm, rotate_
from streamserve_kernels.reference.shared import Shared

FEW_TOKENS = 2
"""Up to this many tokens are stored one by one, which is quicker than computing indices."""


def write_kv(key_value: Tensor, kv_cache: Tensor, slot_mapping: Tensor, shared: Shared | None = None) -> None:
    """Store the keys and values of a step's tokens, in place.

    key_value     [tokens, 2, kv_heads, head_dim]              dtype of the cache
    kv_cache      [blocks, 2, kv_heads, block_size, head_dim]
    slot_mapping  [tokens]  int64; a negative slot is padding and written nowhere
    shared        the step's
    """
    shared, block_size = shared or Shared(), kv_cache.shape[3]
    if slot_mapping.shape[0] <= FEW_TOKENS:
        for slot, token in zip(shared.get("slots", slot_mapping.tolist), key_value, strict=True):
            if slot >= 0:
                kv_cache[slot // block_size, :, :, slot % block_size] = token
        return
    kept, block, offset = shared.get("places", lambda: _places(slot_mapping, block_size))
    kv_cache.permute(0, 3, 1, 2, 4)[block, offset] = key_value if kept is None else key_value[kept]


def _places(slots: Tensor, block_size: int) -> tuple[Tensor | None, Tensor, Tensor]:
    """Which tokens are stored, None for all, and the block and offset of each of those."""
    kept = None
    # index_put_ would take -1 for the last block: padding must be dropped, and a step on a CPU hardly ever has any.
    if int(slots.min()) < 0:
        kept = slots >= 0
        slots = slots[kept]
    return kept, slots // block_size, slots % block_size


def rotary_write(
    qkv: Tensor,
    positions: Tensor,
    cos_sin: Tensor | None,
    kv_cache: Tensor,
    slot_mapping: Tensor,
    *,
    q_heads: int,
    kv_heads: int,
    head_dim: int,
    q_norm: Tensor | None = None,
    k_norm: Tensor | None = None,
    eps: float = 1e-6,
    shared: Shared | None = None,
) -> Tensor:
    """Split the fused projection, norm and rotate queries and keys, write keys and values to their slots; returns the queries.

    qkv             [tokens, (q_heads + 2 * kv_heads) * head_dim]  bf16|fp16|fp32, contiguous; scratch afterwards
    positions       [tokens]              int64
    cos_sin         [positions, rot_dim]  fp32, cosines then sines; None for models without rotary embeddings
    kv_cache        [blocks, 2, kv_heads, block_size, head_dim]  dtype of qkv, changed in place
    slot_mapping    [tokens]              int64; a negative slot is padding and written nowhere
    q_norm, k_norm  [head_dim]            RMS norm of every query and key head before the rotation, with `eps` (Qwen3, Gemma 3)
    shared          the step's
    returns         [tokens, q_heads, head_dim]  dtype of qkv; may be a view of qkv

    The normed heads are rounded to the dtype of qkv before they are rotated.
    """
    heads = qkv.view(-1, q_heads + 2 * kv_heads, head_dim)
    queries, keys = heads[:, :q_heads], heads[:, q_heads : q_heads + kv_heads]
    if q_norm is not None and k_norm is not None:
        queries.copy_(rms_norm(queries, q_norm, eps))
        keys.copy_(rms_norm(keys, k_norm, eps))
    shared = shared or Shared()
    if cos_sin is not None:
        _rotate(heads[:, : q_heads + kv_heads], positions, cos_sin, shared)
    write_kv(heads[:, q_heads:].view(-1, 2, kv_heads, head_dim), kv_cache, slot_mapping, shared)
    return queries


def _rotate(heads: Tensor, positions: Tensor, cos_sin: Tensor, shared: Shared) -> None:
    """`rotate_` for a step's positions; for a few tokens with whole heads, which takes half as many calls."""
    turns = shared.get(("turns", id(cos_sin)), lambda: cos_sin.index_select(0, positions))
    if heads.shape[0] > FEW_TOKENS:
        rotate_(heads, turns)
        return
    cos, sin = shared.get(("wide turns", id(cos_sin)), lambda: _wide(turns))
    turned = heads[..., : turns.shape[1]]
    wide = turned.float()
    turned.copy_(torch.addcmul(wide * cos, wide.roll(turns.shape[1] // 2, -1), sin))


def _wide(turns: Tensor) -> tuple[Tensor, Tensor]:
    """The factors of a head, and of the head with its halves exchanged: each [tokens, 1, rot_dim] fp32."""
    cos, sin = turns.unsqueeze(1).chunk(2, dim=-1)
    return torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)
