"""Head norm, rotary embedding and the write into the paged cache: one Triton launch on the fused projection.

The specification is `reference/attention/kv_write.py`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from triton.language.extra import cuda

from streamserve_kernels.attention.kv_format import in_bytes, kv_format, round_to_bytes
from streamserve_kernels.attention.tiles import pair_dims, query_factor
from streamserve_kernels.launch import dependent_launch, kernel, power_of_two
from streamserve_kernels.reference.attention.arguments import Heads, StepTokens
from streamserve_kernels.reference.attention.kv_format import KvScales


@triton.jit
def _rotate(first, second, cos_sin_ptr, position_ptr, lane, is_value, half: tl.constexpr):
    """The members of pairs [HEADS, HALF], rotated where the head is no value; unchanged without a table."""
    if cos_sin_ptr is not None:
        angles = cos_sin_ptr + tl.load(position_ptr) * (2 * half)
        cos = tl.load(angles + lane, mask=lane < half, other=1.0)[None, :]
        sin = tl.load(angles + half + lane, mask=lane < half, other=0.0)[None, :]
        cos = tl.where(is_value[:, None], 1.0, cos)
        sin = tl.where(is_value[:, None], 0.0, sin)
        first, second = first * cos - second * sin, second * cos + first * sin
    return first, second


@triton.jit
def _stored(heads, is_value, key_inverse, value_inverse, FORMAT: tl.constexpr):
    """What a cache of this format keeps of heads [HEADS, ..]."""
    if FORMAT is not None:
        inverse = tl.where(is_value, value_inverse, key_inverse)[:, None]
        heads = round_to_bytes(heads.to(tl.float32) * inverse, FORMAT).to(tl.uint8)
    return heads


@kernel(do_not_specialize_on_alignment=["positions_ptr", "slots_ptr"])
def _rotary_write_kernel(
    qkv_ptr, positions_ptr, cos_sin_ptr, cache_ptr, slots_ptr, q_norm_ptr, k_norm_ptr, q_ptr,
    qkv_stride, block_stride, eps, key_inverse, value_inverse,
    Q_HEADS: tl.constexpr, KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, ROT_DIM: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    FIRST: tl.constexpr, HEADS: tl.constexpr, HALF: tl.constexpr, REST: tl.constexpr, NORM: tl.constexpr,
    NORM_ROTATED: tl.constexpr, INTERLEAVED: tl.constexpr, QUERY_BETA: tl.constexpr, QUERY_LENGTH: tl.constexpr,
    FORMAT: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Process HEADS heads of one token, from head FIRST on.

    A head is held as the first and the second of each pair of its rotated dimensions, [HEADS, HALF] each, and, where
    rot_dim < head_dim, the others, [HEADS, REST].
    """
    if PDL:
        cuda.gdc_launch_dependents()
    token = tl.program_id(0).to(tl.int64)
    head = FIRST + tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    is_query = head < Q_HEADS
    is_value = head >= Q_HEADS + KV_HEADS
    lane = tl.arange(0, HALF)
    half: tl.constexpr = ROT_DIM // 2
    dims, partners = pair_dims(lane, half, INTERLEAVED)
    present = (head < Q_HEADS + 2 * KV_HEADS)[:, None] & (lane < half)[None, :]
    if NORM:
        normed = present & (head < Q_HEADS + KV_HEADS)[:, None]
        weights = tl.where(is_query[:, None], q_norm_ptr, k_norm_ptr)
        weight_first = tl.load(weights + dims[None, :], mask=normed, other=1.0).to(tl.float32)
        weight_second = tl.load(weights + partners[None, :], mask=normed, other=1.0).to(tl.float32)
    if PDL:
        cuda.gdc_wait()
    source = qkv_ptr + token * qkv_stride + head[:, None] * HEAD_DIM
    dtype: tl.constexpr = qkv_ptr.dtype.element_ty
    first = tl.load(source + dims[None, :], mask=present, other=0.0).to(tl.float32)
    second = tl.load(source + partners[None, :], mask=present, other=0.0).to(tl.float32)
    if REST > 0:
        tail = tl.arange(0, REST)
        in_tail = (head < Q_HEADS + 2 * KV_HEADS)[:, None] & (tail < HEAD_DIM - ROT_DIM)[None, :]
        rest = tl.load(source + ROT_DIM + tail[None, :], mask=in_tail, other=0.0).to(tl.float32)
    if NORM_ROTATED:
        first, second = _rotate(first, second, cos_sin_ptr, positions_ptr + token, lane, is_value, half)
        first = first.to(dtype).to(tl.float32)
        second = second.to(dtype).to(tl.float32)
    if NORM:
        squares = tl.sum(first * first, axis=1) + tl.sum(second * second, axis=1)
        if REST > 0:
            squares += tl.sum(rest * rest, axis=1)
        scale = tl.where(is_value, 1.0, tl.rsqrt(squares / HEAD_DIM + eps))[:, None]
        first = (first * scale * weight_first).to(dtype).to(tl.float32)
        second = (second * scale * weight_second).to(dtype).to(tl.float32)
        if REST > 0:
            weight_rest = tl.load(weights + ROT_DIM + tail[None, :], mask=in_tail & (~is_value)[:, None], other=1.0)
            rest = rest * scale * weight_rest.to(tl.float32)
    if not NORM_ROTATED:
        first, second = _rotate(first, second, cos_sin_ptr, positions_ptr + token, lane, is_value, half)
    if QUERY_BETA is not None and FIRST < Q_HEADS:
        factor = query_factor(tl.load(positions_ptr + token), QUERY_BETA, QUERY_LENGTH)
        factor = tl.where(is_query, factor, 1.0)[:, None]
        first *= factor
        second *= factor
        if REST > 0:
            rest *= factor
    slot = tl.load(slots_ptr + token).to(tl.int64)
    kv_head = (head - Q_HEADS) % KV_HEADS
    kv_plane = tl.where(is_value, KV_HEADS, 0) + kv_head
    entry = cache_ptr + (slot // BLOCK_SIZE) * block_stride + (slot % BLOCK_SIZE) * HEAD_DIM
    target = (entry + kv_plane.to(tl.int64) * (BLOCK_SIZE * HEAD_DIM))[:, None]
    written = (slot + head * 0 >= 0)[:, None]
    if FIRST < Q_HEADS:
        query = (q_ptr + (token * Q_HEADS + head) * HEAD_DIM)[:, None]
        kept = is_query[:, None]
        tl.store(query + dims[None, :], first.to(dtype), mask=present & kept)
        tl.store(query + partners[None, :], second.to(dtype), mask=present & kept)
        if REST > 0:
            tl.store(query + ROT_DIM + tail[None, :], rest.to(dtype), mask=in_tail & kept)
        written = written & ~kept
    first = _stored(first.to(dtype), is_value, key_inverse, value_inverse, FORMAT)
    second = _stored(second.to(dtype), is_value, key_inverse, value_inverse, FORMAT)
    tl.store(target + dims[None, :], first, mask=present & written)
    tl.store(target + partners[None, :], second, mask=present & written)
    if REST > 0:
        rest = _stored(rest.to(dtype), is_value, key_inverse, value_inverse, FORMAT)
        tl.store(target + ROT_DIM + tail[None, :], rest, mask=in_tail & written)


def rotary_write(
    qkv: torch.Tensor, tokens: StepTokens, kv_cache: torch.Tensor, heads: Heads, *, kv_scales: KvScales | None = None
) -> torch.Tensor:
    """`reference.attention.kv_write.rotary_write`; each block of `kv_cache` is contiguous, `qkv` may have any row stride."""
    q = qkv.new_empty(qkv.shape[0], heads.q_heads, heads.head_dim)
    _launch(qkv, tokens, kv_cache, heads, kv_scales, q)
    return q


def write_kv(qkv: torch.Tensor, tokens: StepTokens, kv_cache: torch.Tensor, heads: Heads, kv_scales: KvScales | None) -> None:
    """`rotary_write` of keys and values only, without queries."""
    _launch(qkv, tokens, kv_cache, heads, kv_scales, None)


def _launch(
    qkv: torch.Tensor,
    tokens: StepTokens,
    kv_cache: torch.Tensor,
    layer: Heads,
    kv_scales: KvScales | None,
    q: torch.Tensor | None,
) -> None:
    """q  where queries go; without it they are left out"""
    positions, cos_sin, slots = tokens
    q_heads, kv_heads, head_dim, q_norm, k_norm, eps, norm_rotated, interleaved, query_scaling = layer
    rot_dim = head_dim if cos_sin is None else cos_sin.shape[-1]
    beta, length = query_scaling or (None, None)
    first = 0 if q is not None else q_heads
    num_tokens, num_heads = qkv.shape[0], q_heads + 2 * kv_heads - first
    # The heads of few tokens are divided among programs; many tokens take one program each.
    heads = min(4 if num_tokens * num_heads <= 4096 else 32, power_of_two(num_heads))
    cache = kv_format(kv_cache, kv_scales)
    _rotary_write_kernel[(num_tokens, -(-num_heads // heads))](
        qkv, positions, cos_sin, in_bytes(kv_cache), slots, q_norm, k_norm, q,
        qkv.stride(0), kv_cache.stride(0), eps, cache.key_inverse, cache.value_inverse,
        Q_HEADS=q_heads, KV_HEADS=kv_heads, HEAD_DIM=head_dim, ROT_DIM=rot_dim, BLOCK_SIZE=kv_cache.shape[3],
        FIRST=first, HEADS=heads, HALF=power_of_two(rot_dim // 2),
        REST=power_of_two(head_dim - rot_dim) if rot_dim < head_dim else 0,
        NORM=k_norm is not None, NORM_ROTATED=norm_rotated, INTERLEAVED=interleaved, QUERY_BETA=beta, QUERY_LENGTH=length,
        FORMAT=cache.name, num_warps=1 if heads <= 4 else 4, **dependent_launch(qkv.device),
    )  # fmt: skip
