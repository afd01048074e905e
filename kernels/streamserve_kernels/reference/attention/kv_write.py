"""Rotary embedding and the write of keys and values into the paged cache, in torch.

The cache of one layer is [blocks, 2, kv_heads, block_size, head_dim]: keys at index 0 of the second dimension, values at 1.
The slot of a token is block * block_size + offset.
"""

from __future__ import annotations

import torch
from torch import Tensor

from streamserve_kernels.reference.attention.arguments import Heads, StepTokens
from streamserve_kernels.reference.attention.kv_format import UNSCALED, KvScales, bytes_of, is_eight_bit, quantize
from streamserve_kernels.reference.attention.rotation import exchanged, rotate_, whole_head_angles
from streamserve_kernels.reference.attention.shared import Shared
from streamserve_kernels.reference.norms import rms_norm

WHOLE_HEAD_TOKENS = 32
"""Up to this many tokens whole heads are rotated at once: half the calls of rotating by halves, but more memory."""


def write_kv(
    key_value: Tensor,
    kv_cache: Tensor,
    slot_mapping: Tensor,
    shared: Shared | None = None,
    *,
    scales: KvScales | None = None,
) -> None:
    """Store the keys and values of a step's tokens, in place.

    key_value     [tokens, 2, kv_heads, head_dim]              dtype of the cache, or any for an 8-bit one
    kv_cache      [blocks, 2, kv_heads, block_size, head_dim]
    slot_mapping  [tokens]  int64; a negative slot is padding and written nowhere
    shared        the step's
    scales        of an 8-bit cache; None for 1
    """
    shared = shared or Shared()
    if is_eight_bit(kv_cache.dtype):
        pairs = zip(key_value.unbind(1), scales or UNSCALED, strict=True)
        key_value = bytes_of(torch.stack([quantize(part, scale, kv_cache.dtype) for part, scale in pairs], dim=1))
        kv_cache = bytes_of(kv_cache)
    kept, rows = shared.get(
        ("cache rows", id(slot_mapping)), lambda: _cache_rows(slot_mapping, 2 * kv_cache.shape[2], kv_cache.shape[3])
    )
    stored = key_value if kept is None else key_value[kept]
    heads = kv_cache.view(-1, kv_cache.shape[4])
    heads.index_copy_(0, rows, stored.reshape(-1, heads.shape[1]))


def _cache_rows(slots: Tensor, heads: int, block_size: int) -> tuple[Tensor | None, Tensor]:
    """Which tokens are stored (None for all), and the rows of their heads in the cache viewed as [.., head_dim]."""
    kept = None
    # index_copy_ refuses -1: padding must be dropped, and a step on a CPU hardly ever has any.
    if bool((slots < 0).any()):
        kept = slots >= 0
        slots = slots[kept]
    firsts = slots // block_size * (heads * block_size) + slots % block_size
    return kept, (firsts.unsqueeze(1) + torch.arange(heads, device=slots.device) * block_size).flatten()


def rotary_write(
    qkv: Tensor,
    tokens: StepTokens,
    kv_cache: Tensor,
    heads: Heads,
    *,
    kv_scales: KvScales | None = None,
    shared: Shared | None = None,
) -> Tensor:
    """Split the fused projection, norm and rotate queries and keys, write keys and values to their slots; return the queries.

    qkv        [tokens, (q_heads + 2 * kv_heads) * head_dim]  bf16|fp16|fp32, contiguous; overwritten
    kv_cache   [blocks, 2, kv_heads, block_size, head_dim]  dtype of qkv or 8-bit floats, changed in place
    kv_scales  of an 8-bit cache; None for 1
    shared     the step's
    returns    [tokens, q_heads, head_dim]  dtype of qkv; may be a view of qkv

    What norm and rotation give is rounded to the dtype of qkv each time; an 8-bit cache rounds it once more.
    """
    q_heads, kv_heads, head_dim, q_norm, k_norm, eps, norm_rotated, interleaved, query_scaling = heads
    positions, cos_sin, slots = tokens
    split = qkv.view(-1, q_heads + 2 * kv_heads, head_dim)
    queries, keys = split[:, :q_heads], split[:, q_heads : q_heads + kv_heads]
    shared = shared or Shared()
    if norm_rotated and cos_sin is not None:
        _rotate(split[:, : q_heads + kv_heads], positions, cos_sin, interleaved, shared)
    if q_norm is not None and k_norm is not None:
        queries.copy_(rms_norm(queries, q_norm, eps))
        keys.copy_(rms_norm(keys, k_norm, eps))
    if not norm_rotated and cos_sin is not None:
        _rotate(split[:, : q_heads + kv_heads], positions, cos_sin, interleaved, shared)
    if query_scaling is not None:
        queries.mul_(shared.get(query_scaling, lambda: query_scaling.factors(positions)).view(-1, 1, 1))
    write_kv(split[:, q_heads:].view(-1, 2, kv_heads, head_dim), kv_cache, slots, shared, scales=kv_scales)
    return queries


def _rotate(heads: Tensor, positions: Tensor, cos_sin: Tensor, interleaved: bool, shared: Shared) -> None:
    """`rotate_` by a step's positions; few tokens take whole heads at once, in half as many calls."""
    angles = shared.get(("angles", id(cos_sin)), lambda: cos_sin.index_select(0, positions))
    if heads.shape[0] > WHOLE_HEAD_TOKENS:
        rotate_(heads, angles, interleaved=interleaved)
        return
    cos, sin = shared.get(("whole-head angles", id(cos_sin)), lambda: whole_head_angles(angles.unsqueeze(1), interleaved))
    rotated = heads[..., : angles.shape[1]]
    wide = rotated.float()
    rotated.copy_(torch.addcmul(wide * cos, exchanged(wide, interleaved), sin))
