"""Chooses the launches of attention for a batch.

The leading decode rows of a batch take one launch (decode.py), longer queries another (prefill.py). The first is bound by
memory and divides the cached tokens among programs; the second is bound by arithmetic and divides the queries. Neither's tiles
suit the other.
"""

from __future__ import annotations

import torch

from streamserve_kernels.attention.decode import AttentionConfig, DecodeShape, decode, decode_shape
from streamserve_kernels.attention.decode_schedule import DecodeSchedule, make_schedule
from streamserve_kernels.attention.kv_write import Rotation, rotary_write, write_kv
from streamserve_kernels.attention.prefill import prefill
from streamserve_kernels.reference.attention.kv_format import KvScales
from streamserve_kernels.reference.attention.kv_write import QueryScaling
from streamserve_kernels.reference.attention.shared import Shared


def rotary_attention(
    qkv: torch.Tensor,
    positions: torch.Tensor,
    cos_sin: torch.Tensor | None,
    kv_cache: torch.Tensor,
    slot_mapping: torch.Tensor,
    block_tables: torch.Tensor,
    seq_lens: torch.Tensor,
    query_start: torch.Tensor,
    *,
    q_heads: int,
    kv_heads: int,
    head_dim: int,
    q_norm: torch.Tensor | None = None,
    k_norm: torch.Tensor | None = None,
    eps: float = 1e-6,
    norm_rotated: bool = False,
    interleaved: bool = False,
    query_scaling: QueryScaling | None = None,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    sinks: torch.Tensor | None = None,
    kv_scales: KvScales | None = None,
    num_decodes: int,
    max_seq_len: int,
    shared: Shared | None = None,
) -> torch.Tensor:
    """`reference.attention.rotary_attention`; decode rows rotate, write and attend in one launch."""
    layer = AttentionConfig(q_heads, kv_heads, head_dim, scale, window, softcap, sinks, kv_scales)
    out = qkv.new_empty(qkv.shape[0], q_heads, head_dim)
    rotation = Rotation(positions, cos_sin, slot_mapping, q_norm, k_norm, eps, norm_rotated, interleaved, query_scaling)
    can_fuse = head_dim % 2 == 0 and (cos_sin is None or cos_sin.shape[-1] == head_dim)
    shared = shared or Shared()
    decode_rows = _DecodeRows(num_decodes, max_seq_len, block_tables, seq_lens, shared)
    if can_fuse:
        decode_rows.attend(layer, qkv, rotation, kv_cache, out)
        if num_decodes < seq_lens.shape[0]:
            write_kv(
                qkv[num_decodes:], rotation.after(num_decodes), kv_cache, kv_scales,
                q_heads=q_heads, kv_heads=kv_heads, head_dim=head_dim,
            )  # fmt: skip
            prefill(layer, qkv, rotation, kv_cache, block_tables, seq_lens, query_start, out, num_decodes, shared)
        return out
    q = rotary_write(
        qkv, positions, cos_sin, kv_cache, slot_mapping,
        q_heads=q_heads, kv_heads=kv_heads, head_dim=head_dim, q_norm=q_norm, k_norm=k_norm, eps=eps,
        norm_rotated=norm_rotated, interleaved=interleaved, query_scaling=query_scaling, kv_scales=kv_scales,
    )  # fmt: skip
    decode_rows.attend(layer, q.flatten(1), None, kv_cache, out)
    if num_decodes < seq_lens.shape[0]:
        prefill(layer, q.flatten(1), None, kv_cache, block_tables, seq_lens, query_start, out, num_decodes, shared)
    return out


def paged_attention(
    q: torch.Tensor,
    kv_cache: torch.Tensor,
    block_tables: torch.Tensor,
    seq_lens: torch.Tensor,
    query_start: torch.Tensor,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    sinks: torch.Tensor | None = None,
    kv_scales: KvScales | None = None,
    num_decodes: int,
    max_seq_len: int,
    shared: Shared | None = None,
) -> torch.Tensor:
    """`reference.attention.paged_attention`; a sequence of length 0 (padding among the decode rows) gives zeros."""
    shared = shared or Shared()
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    layer = AttentionConfig(q.shape[1], kv_cache.shape[2], q.shape[2], scale, window, softcap, sinks, kv_scales)
    decode_rows = _DecodeRows(num_decodes, max_seq_len, block_tables, seq_lens, shared)
    flat = q.contiguous().flatten(1)
    decode_rows.attend(layer, flat, None, kv_cache, out)
    if num_decodes < seq_lens.shape[0]:
        prefill(layer, flat, None, kv_cache, block_tables, seq_lens, query_start, out, num_decodes, shared)
    return out


class _DecodeRows:
    """The decode rows of a batch, which come first."""

    def __init__(
        self, num_rows: int, max_seq_len: int, block_tables: torch.Tensor, seq_lens: torch.Tensor, shared: Shared
    ) -> None:
        self.num_rows = num_rows
        self._block_tables, self._seq_lens = block_tables, seq_lens
        self._max_seq_len = max_seq_len
        self._shared = shared

    def attend(
        self, layer: AttentionConfig, q: torch.Tensor, rotation: Rotation | None, kv_cache: torch.Tensor, out: torch.Tensor
    ) -> None:
        """With `rotation`, `q` is the fused projection; otherwise all keys and values are in the cache."""
        if self.num_rows:
            shape = decode_shape(layer, q.dtype, kv_cache, self.num_rows, self._max_seq_len)
            schedule = self._schedule(layer, shape, excludes_last=rotation is not None)
            decode(layer, q, rotation, kv_cache, self._block_tables, shape, schedule, out)

    def _schedule(self, layer: AttentionConfig, shape: DecodeShape, *, excludes_last: bool) -> DecodeSchedule:
        """The splits of the rows, computed once for all layers of the step with this shape and window."""

        def make() -> DecodeSchedule:
            return make_schedule(
                self._seq_lens, num_rows=self.num_rows, spare=shape.spare, min_tokens=shape.min_tokens, tile=shape.tile,
                excludes_last=excludes_last, window=layer.window,
            )  # fmt: skip

        return self._shared.get(("decode schedule", shape, excludes_last, layer.window), make)
