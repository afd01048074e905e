"""Keys and values into the paged cache, in torch.

The cache of one layer is [blocks, 2, kv_heads, block_size, head_dim]: keys at index 0 of the second dimension, values at 1.
A slot is one token's place: block * block_size + offset.
"""

from __future__ import annotations

from torch import Tensor

from streamserve_kernels.reference.norm_rope import rms_norm, rotate_

FEW_TOKENS = 2
"""Up to this many tokens are stored one by one, which is quicker than computing indices."""


def write_kv(key_value: Tensor, kv_cache: Tensor, slot_mapping: Tensor) -> None:
    """Store the keys and values of a step's tokens, in place.

    key_value     [tokens, 2, kv_heads, head_dim]              dtype of the cache
    kv_cache      [blocks, 2, kv_heads, block_size, head_dim]
    slot_mapping  [tokens]  int64; a negative slot is padding and written nowhere
    """
    block_size = kv_cache.shape[3]
    if slot_mapping.shape[0] <= FEW_TOKENS:
        for slot, token in zip(slot_mapping.tolist(), key_value, strict=True):
            if slot >= 0:
                kv_cache[slot // block_size, :, :, slot % block_size] = token
        return
    by_token = kv_cache.permute(0, 3, 1, 2, 4)
    # index_put_ would take -1 for the last block: padding must be dropped, and a step on a CPU hardly ever has any.
    if int(slot_mapping.min()) < 0:
        kept = slot_mapping >= 0
        key_value, slot_mapping = key_value[kept], slot_mapping[kept]
    by_token[slot_mapping // block_size, slot_mapping % block_size] = key_value


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
) -> Tensor:
    """Split the fused projection, norm and rotate queries and keys, write keys and values to their slots; returns the queries.

    qkv             [tokens, (q_heads + 2 * kv_heads) * head_dim]  bf16|fp16|fp32, contiguous; scratch afterwards
    positions       [tokens]              int64
    cos_sin         [positions, rot_dim]  fp32, cosines then sines; None for models without rotary embeddings
    kv_cache        [blocks, 2, kv_heads, block_size, head_dim]  dtype of qkv, changed in place
    slot_mapping    [tokens]              int64; a negative slot is padding and written nowhere
    q_norm, k_norm  [head_dim]            RMS norm of every query and key head before the rotation, with `eps` (Qwen3, Gemma 3)
    returns         [tokens, q_heads, head_dim]  dtype of qkv; may be a view of qkv

    The normed heads are rounded to the dtype of qkv before they are rotated.
    """
    heads = qkv.view(-1, q_heads + 2 * kv_heads, head_dim)
    queries, keys = heads[:, :q_heads], heads[:, q_heads : q_heads + kv_heads]
    if q_norm is not None and k_norm is not None:
        queries.copy_(rms_norm(queries, q_norm, eps))
        keys.copy_(rms_norm(keys, k_norm, eps))
    if cos_sin is not None:
        rotate_(heads[:, : q_heads + kv_heads], cos_sin.index_select(0, positions))
    write_kv(heads[:, q_heads:].view(-1, 2, kv_heads, head_dim), kv_cache, slot_mapping)
    return queries
