"""Keys and values into the paged cache, in torch.

The cache of one layer is [blocks, 2, kv_heads, block_size, head_dim]: keys at index 0 of the second dimension, values at 1.
A slot is one token's place: block * block_size + offset.
"""

from __future__ import annotations

import torch
from torch import Tensor

from streamserve_kernels.reference.norm_rope import rms_norm, rotate_
from streamserve_kernels.reference.shared import Shared

WHOLE_TURNS = 32
"""Up to this many tokens have their heads turned as a whole: half the calls of turning halves, but more memory."""


def write_kv(key_value: Tensor, kv_cache: Tensor, slot_mapping: Tensor, shared: Shared | None = None) -> None:
    """Store the keys and values of a step's tokens, in place.

    key_value     [tokens, 2, kv_heads, head_dim]              dtype of the cache
    kv_cache      [blocks, 2, kv_heads, block_size, head_dim]
    slot_mapping  [tokens]  int64; a negative slot is padding and written nowhere
    shared        the step's
    """
    shared = shared or Shared()
    kept, places = shared.get("places", lambda: _places(slot_mapping, 2 * kv_cache.shape[2], kv_cache.shape[3]))
    stored = key_value if kept is None else key_value[kept]
    heads = kv_cache.view(-1, kv_cache.shape[4])
    heads.index_copy_(0, places, stored.reshape(-1, heads.shape[1]))


def _places(slots: Tensor, heads: int, block_size: int) -> tuple[Tensor | None, Tensor]:
    """Which tokens are stored, None for all, and where their keys' and values' heads lie in the cache as [places, head_dim]."""
    kept = None
    # index_copy_ refuses -1: padding must be dropped, and a step on a CPU hardly ever has any.
    if bool((slots < 0).any()):
        kept = slots >= 0
        slots = slots[kept]
    firsts = slots // block_size * (heads * block_size) + slots % block_size
    return kept, (firsts.unsqueeze(1) + torch.arange(heads, device=slots.device) * block_size).flatten()


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
    if heads.shape[0] > WHOLE_TURNS:
        rotate_(heads, turns)
        return
    cos, sin = shared.get(("wide turns", id(cos_sin)), lambda: _wide(turns))
    turned = heads[..., : turns.shape[1]]
    wide = turned.float()
    exchanged = wide.roll(turns.shape[1] // 2, -1)
    turned.copy_(torch.addcmul(wide * cos, exchanged, sin))


def _wide(turns: Tensor) -> tuple[Tensor, Tensor]:
    """The factors of a head, and of the head with its halves exchanged: each [tokens, 1, rot_dim] fp32."""
    cos, sin = turns.unsqueeze(1).chunk(2, dim=-1)
    return torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)
