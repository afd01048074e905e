"""Attention over a paged KV cache, on the device of its input."""

from __future__ import annotations

from torch import Tensor

from streamserve_kernels.dispatch.areas import triton_area
from streamserve_kernels.reference import attention as reference
from streamserve_kernels.reference.attention.arguments import Heads, Scoring, StepSequences, StepTokens
from streamserve_kernels.reference.attention.kv_format import KvScales
from streamserve_kernels.reference.attention.shared import Shared


def rotary_write(
    qkv: Tensor, tokens: StepTokens, kv_cache: Tensor, heads: Heads, *, kv_scales: KvScales | None = None
) -> Tensor:
    """Norm and rotate queries and keys, write keys and values, return queries; see `reference.attention.kv_write`."""
    area = reference if qkv.is_cpu else triton_area("attention")
    q: Tensor = area.rotary_write(qkv, tokens, kv_cache, heads, kv_scales=kv_scales)
    return q


def paged_attention(
    q: Tensor,
    kv_cache: Tensor,
    sequences: StepSequences,
    scoring: Scoring,
    *,
    kv_scales: KvScales | None = None,
    shared: Shared | None = None,
) -> Tensor:
    """Causal attention of a mixed batch over a paged KV cache; see `reference.attention.batch`."""
    area = reference if q.is_cpu else triton_area("attention")
    out: Tensor = area.paged_attention(q, kv_cache, sequences, scoring, kv_scales=kv_scales, shared=shared)
    return out


def rotary_attention(
    qkv: Tensor,
    tokens: StepTokens,
    kv_cache: Tensor,
    sequences: StepSequences,
    heads: Heads,
    scoring: Scoring,
    *,
    kv_scales: KvScales | None = None,
    shared: Shared | None = None,
) -> Tensor:
    """`rotary_write`, then `paged_attention` on its queries; see `reference.attention.batch`."""
    area = reference if qkv.is_cpu else triton_area("attention")
    out: Tensor = area.rotary_attention(qkv, tokens, kv_cache, sequences, heads, scoring, kv_scales=kv_scales, shared=shared)
    return out
