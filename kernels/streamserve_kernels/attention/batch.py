"""Chooses the launches of attention for a batch.

The leading decode rows of a batch take one launch (decode.py), longer queries another (prefill.py). The first is bound by
memory and divides the cached tokens among programs; the second is bound by arithmetic and divides the queries. Neither's tiles
suit the other.
"""

from __future__ import annotations

import torch

from streamserve_kernels.attention.decode import AttentionLayer, DecodeShape, decode, decode_shape
from streamserve_kernels.attention.decode_schedule import DecodeSchedule, make_schedule
from streamserve_kernels.attention.kv_write import rotary_write, write_kv
from streamserve_kernels.attention.prefill import prefill
from streamserve_kernels.reference.attention.arguments import Heads, Scoring, StepSequences, StepTokens
from streamserve_kernels.reference.attention.kv_format import KvScales
from streamserve_kernels.reference.attention.shared import Shared


def rotary_attention(
    qkv: torch.Tensor,
    tokens: StepTokens,
    kv_cache: torch.Tensor,
    sequences: StepSequences,
    heads: Heads,
    scoring: Scoring,
    *,
    kv_scales: KvScales | None = None,
    shared: Shared | None = None,
) -> torch.Tensor:
    """`reference.attention.rotary_attention`; decode rows rotate, write and attend in one launch."""
    cos_sin, num_decodes = tokens.cos_sin, sequences.num_decodes
    rotates_in_part = cos_sin is not None and cos_sin.shape[-1] != heads.head_dim
    if rotates_in_part or heads.head_dim % 2 != 0:
        q = rotary_write(qkv, tokens, kv_cache, heads, kv_scales=kv_scales)
        return paged_attention(q, kv_cache, sequences, scoring, kv_scales=kv_scales, shared=shared)
    layer, shared = AttentionLayer(heads, scoring, kv_scales), shared or Shared()
    out = qkv.new_empty(qkv.shape[0], heads.q_heads, heads.head_dim)
    _attend_from_decodes(layer, qkv, tokens, kv_cache, sequences, out, shared)
    if num_decodes < sequences.seq_lens.shape[0]:
        write_kv(qkv[num_decodes:], tokens.after(num_decodes), kv_cache, heads, kv_scales)
        prefill(layer, qkv, tokens, kv_cache, sequences, out, shared)
    return out


def paged_attention(
    q: torch.Tensor,
    kv_cache: torch.Tensor,
    sequences: StepSequences,
    scoring: Scoring,
    *,
    kv_scales: KvScales | None = None,
    shared: Shared | None = None,
) -> torch.Tensor:
    """`reference.attention.paged_attention`; a sequence of length 0 (padding among the decode rows) gives zeros."""
    shared = shared or Shared()
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    layer = AttentionLayer(Heads(q.shape[1], kv_cache.shape[2], q.shape[2]), scoring, kv_scales)
    flat = q.contiguous().flatten(1)
    _attend_from_decodes(layer, flat, None, kv_cache, sequences, out, shared)
    if sequences.num_decodes < sequences.seq_lens.shape[0]:
        prefill(layer, flat, None, kv_cache, sequences, out, shared)
    return out


def _attend_from_decodes(
    layer: AttentionLayer,
    q: torch.Tensor,
    tokens: StepTokens | None,
    kv_cache: torch.Tensor,
    sequences: StepSequences,
    out: torch.Tensor,
    shared: Shared,
) -> None:
    """Attend from the decode rows, which come first. With `tokens`, `q` is the fused projection, and each row's is written."""
    if sequences.num_decodes:
        shape = decode_shape(layer, q.dtype, kv_cache, sequences.num_decodes, sequences.max_seq_len)
        schedule = _decode_schedule(sequences, shape, layer.scoring.window, shared, excludes_last=tokens is not None)
        decode(layer, q, tokens, kv_cache, sequences.block_tables, shape, schedule, out)


def _decode_schedule(
    sequences: StepSequences, shape: DecodeShape, window: int | None, shared: Shared, *, excludes_last: bool
) -> DecodeSchedule:
    """The splits of the decode rows, computed once for all layers of the step with this shape and window."""

    def make() -> DecodeSchedule:
        return make_schedule(
            sequences.seq_lens, num_rows=sequences.num_decodes, spare=shape.spare, min_tokens=shape.min_tokens,
            tile=shape.tile, excludes_last=excludes_last, window=window,
        )  # fmt: skip

    return shared.get(("decode schedule", shape, excludes_last, window), make)
