"""Attention over a paged KV cache, on the device of its input."""

from __future__ import annotations

from torch import Tensor

from streamserve_kernels.dispatch.areas import triton_area
from streamserve_kernels.reference import attention as reference
from streamserve_kernels.reference.attention.kv_format import KvScales
from streamserve_kernels.reference.attention.kv_write import QueryScaling
from streamserve_kernels.reference.attention.shared import Shared


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
    norm_rotated: bool = False,
    interleaved: bool = False,
    query_scaling: QueryScaling | None = None,
    kv_scales: KvScales | None = None,
) -> Tensor:
    """Norm and rotate queries and keys, write keys and values, return queries; see `reference.attention.kv_write`."""
    area = reference if qkv.is_cpu else triton_area("attention")
    q: Tensor = area.rotary_write(
        qkv,
        positions,
        cos_sin,
        kv_cache,
        slot_mapping,
        q_heads=q_heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        q_norm=q_norm,
        k_norm=k_norm,
        eps=eps,
        norm_rotated=norm_rotated,
        interleaved=interleaved,
        query_scaling=query_scaling,
        kv_scales=kv_scales,
    )
    return q


def paged_attention(
    q: Tensor,
    kv_cache: Tensor,
    block_tables: Tensor,
    seq_lens: Tensor,
    query_start: Tensor,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    kv_scales: KvScales | None = None,
    num_decodes: int,
    max_seq_len: int,
    shared: Shared | None = None,
) -> Tensor:
    """Causal attention of a mixed batch over a paged KV cache; see `reference.attention.batch`."""
    area = reference if q.is_cpu else triton_area("attention")
    out: Tensor = area.paged_attention(
        q,
        kv_cache,
        block_tables,
        seq_lens,
        query_start,
        scale=scale,
        window=window,
        softcap=softcap,
        sinks=sinks,
        kv_scales=kv_scales,
        num_decodes=num_decodes,
        max_seq_len=max_seq_len,
        shared=shared,
    )
    return out


def rotary_attention(
    qkv: Tensor,
    positions: Tensor,
    cos_sin: Tensor | None,
    kv_cache: Tensor,
    slot_mapping: Tensor,
    block_tables: Tensor,
    seq_lens: Tensor,
    query_start: Tensor,
    *,
    q_heads: int,
    kv_heads: int,
    head_dim: int,
    q_norm: Tensor | None = None,
    k_norm: Tensor | None = None,
    eps: float = 1e-6,
    norm_rotated: bool = False,
    interleaved: bool = False,
    query_scaling: QueryScaling | None = None,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    kv_scales: KvScales | None = None,
    num_decodes: int,
    max_seq_len: int,
    shared: Shared | None = None,
) -> Tensor:
    """`rotary_write`, then `paged_attention` on its queries; see `reference.attention.batch`."""
    area = reference if qkv.is_cpu else triton_area("attention")
    out: Tensor = area.rotary_attention(
        qkv,
        positions,
        cos_sin,
        kv_cache,
        slot_mapping,
        block_tables,
        seq_lens,
        query_start,
        q_heads=q_heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        q_norm=q_norm,
        k_norm=k_norm,
        eps=eps,
        norm_rotated=norm_rotated,
        interleaved=interleaved,
        query_scaling=query_scaling,
        scale=scale,
        window=window,
        softcap=softcap,
        sinks=sinks,
        kv_scales=kv_scales,
        num_decodes=num_decodes,
        max_seq_len=max_seq_len,
        shared=shared,
    )
    return out
