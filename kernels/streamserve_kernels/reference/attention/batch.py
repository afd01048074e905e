"""Causal attention over the paged cache, in torch.

On a CPU the cost is torch's call overhead for a few short sequences, and reading keys for many long ones. Decoding therefore
gathers whole blocks of all sequences of similar length in one call and attends once; prefills run sequence by sequence, in
chunks of queries that skip the keys none of them sees.
"""

from __future__ import annotations

from collections.abc import Hashable
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from streamserve_kernels.reference.attention.arguments import Heads, Scoring, StepSequences, StepTokens
from streamserve_kernels.reference.attention.kv_format import KvScales, bytes_of, is_eight_bit, widened
from streamserve_kernels.reference.attention.kv_write import rotary_write
from streamserve_kernels.reference.attention.shared import Shared

QUERY_CHUNK = 128
MANY_SEQUENCES = 4
"""From this many decoding sequences on, two batched products beat torch's fused attention (measured on Zen 4)."""

MANY_QUERIES = 128
"""From this many queries of a sequence on, batched products of bf16 take half to two thirds of the fused attention's time."""

PADDING_FLOOR = 256
"""Decoding sequences up to this length share one group, however short some are."""


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
    """`rotary_write`, then `paged_attention` on its queries: everything between the two projections of attention.

    One operation, because a GPU does both for a decode row in one launch. Arguments and result are those of the two.
    """
    shared = shared or Shared()
    q = rotary_write(qkv, tokens, kv_cache, heads, kv_scales=kv_scales, shared=shared)
    return paged_attention(q, kv_cache, sequences, scoring, kv_scales=kv_scales, shared=shared)


def paged_attention(
    q: Tensor,
    kv_cache: Tensor,
    sequences: StepSequences,
    scoring: Scoring,
    *,
    kv_scales: KvScales | None = None,
    shared: Shared | None = None,
) -> Tensor:
    """Causal attention of a mixed batch over a paged KV cache (Kwon et al., 2023).

    q          [tokens, q_heads, head_dim]  bf16|fp16|fp32, rows of all sequences one after another
    kv_cache   [blocks, 2, kv_heads, block_size, head_dim]  same dtype or 8-bit floats; q_heads is a multiple of kv_heads
               slots that a sequence does not see may hold NaN, as one that failed leaves them
    kv_scales  what the keys and values of an 8-bit cache are multiplied by; None for 1
    shared     the step's; its layers then compute their common indices and masks once
    returns    [tokens, q_heads, head_dim]  dtype of q; accumulation in fp32, scores not coarser than the dtype of q
    """
    shared = shared or Shared()
    if not is_eight_bit(kv_cache.dtype) or kv_scales is None:
        return _attend_paged(q, kv_cache, sequences, scoring, shared)
    scaled = scoring._replace(scale=scoring.scale * kv_scales.key)
    attended = _attend_paged(q, kv_cache, sequences, scaled, shared)
    return attended if kv_scales.value == 1.0 else attended.mul_(kv_scales.value)


def _attend_paged(q: Tensor, kv_cache: Tensor, sequences: StepSequences, scoring: Scoring, shared: Shared) -> Tensor:
    """`paged_attention` over the cache's numbers as they are."""
    block_tables, seq_lens, query_start, num_decodes, _ = sequences
    lengths = shared.get("lengths", seq_lens.tolist)
    groups = shared.get(("groups", id(block_tables)), lambda: _group(lengths[:num_decodes], block_tables, seq_lens))
    if len(groups) == 1 and num_decodes == len(lengths):
        return _decode(q, kv_cache, groups[0], scoring, shared)
    out = torch.empty_like(q)
    for group in groups:
        rows = list(group.sequences)
        out[rows] = _decode(q[rows], kv_cache, group, scoring, shared)
    starts = shared.get("starts", query_start.tolist)
    for sequence in range(num_decodes, len(lengths)):
        length, span = lengths[sequence], slice(starts[sequence], starts[sequence + 1])
        key, table = ("head blocks", id(block_tables), sequence), block_tables[sequence : sequence + 1]
        keys, values = _gather(kv_cache, q.dtype, table, length, key, shared)
        out[span] = _prefill(q[span], keys[..., :length, :], values[..., :length, :], scoring, shared)
    return out


class _Group(NamedTuple):
    """Decoding sequences that attend in one call, padded to the longest."""

    sequences: tuple[int, ...]
    longest: int
    block_tables: Tensor
    seq_lens: Tensor


def _group(lengths: list[int], block_tables: Tensor, seq_lens: Tensor) -> list[_Group]:
    groups = similar_lengths(lengths)
    if len(groups) == 1:
        return [_Group(tuple(groups[0]), max(lengths), block_tables[: len(lengths)], seq_lens[: len(lengths)])]
    return [_Group(tuple(rows), max(lengths[row] for row in rows), block_tables[rows], seq_lens[rows]) for rows in groups]


def similar_lengths(lengths: list[int]) -> list[list[int]]:
    """Indices of sequences, grouped so that padding to the longest of a group at most doubles its work."""
    groups: dict[int, list[int]] = {}
    for index, length in enumerate(lengths):
        groups.setdefault((length - 1 + PADDING_FLOOR).bit_length(), []).append(index)
    return list(groups.values())


def _decode(q: Tensor, kv_cache: Tensor, group: _Group, scoring: Scoring, shared: Shared) -> Tensor:
    """One query per sequence, [sequences, q_heads, head_dim]; heads that share keys are a head's queries."""
    scale, window, softcap, sinks = scoring
    num_sequences, _, head_dim = q.shape
    longest = group.longest
    key = ("head blocks", id(group.block_tables))
    keys, values = _gather(kv_cache, q.dtype, group.block_tables, longest, key, shared)
    grouped = q.view(num_sequences, kv_cache.shape[2], -1, head_dim)
    by_query = None if sinks is None else sinks.view(kv_cache.shape[2], -1)
    if num_sequences == 1:
        first = 0 if window is None else max(0, longest - window)
        keys, values = keys[..., first:longest, :], values[..., first:longest, :]
        return _attend(grouped, keys, values, None, scale, softcap, by_query).reshape(q.shape)
    scoring = scoring._replace(sinks=by_query)
    attended = _decode_together(grouped, keys, values, group, scoring, shared)
    if not attended.sum().isfinite():
        # A NaN is one in every sum that it has a part in, be it multiplied by 0: nothing unseen may be left.
        unseen = ~_seen_by_decodes(keys.shape[2], group, window)[:, None, :, None]
        keys, values = keys.masked_fill(unseen, 0), values.masked_fill(unseen, 0)
        attended = _decode_together(grouped, keys, values, group, scoring, shared)
    return attended.reshape(q.shape)


def _decode_together(q: Tensor, keys: Tensor, values: Tensor, group: _Group, scoring: Scoring, shared: Shared) -> Tensor:
    """`_decode` of several sequences: q [sequences, kv_heads, q_heads / kv_heads, head_dim]; returns the same shape."""
    scale, window, softcap, sinks = scoring
    of_bias, num_keys = ("bias", group.sequences, window), keys.shape[2]
    # Unscaled scores may overflow fp16, and an infinite one is NaN under the mask.
    if softcap is None and sinks is None and len(q) >= MANY_SEQUENCES and q.dtype is not torch.float16:
        bias = shared.get(of_bias, lambda: _for_every_head(_decode_bias(num_keys, group, window, q.dtype), q))
        return _multiply(q, keys, values, bias, scale).view(q.shape)
    bias = shared.get(of_bias, lambda: _decode_bias(num_keys, group, window, q.dtype))
    return _attend(q, keys, values, bias, scale, softcap, sinks)


def _decode_bias(num_keys: int, group: _Group, window: int | None, dtype: torch.dtype) -> Tensor:
    """Attention bias [sequences, 1, 1, num_keys] of one query per sequence."""
    return _bias(_seen_by_decodes(num_keys, group, window), dtype)[:, None, None]


def _seen_by_decodes(num_keys: int, group: _Group, window: int | None) -> Tensor:
    """Which keys the one query of each sequence sees, [sequences, num_keys]."""
    position, ends = torch.arange(num_keys, device=group.seq_lens.device), group.seq_lens.unsqueeze(1)
    seen = position < ends
    if window is not None and window < group.longest:
        seen &= position >= ends - window
    return seen


def _for_every_head(bias: Tensor, q: Tensor) -> Tensor:
    """Expand a bias [sequences, 1, 1, keys] to [sequences * heads, queries, keys], as `_multiply` takes it."""
    return bias.expand(*q.shape[:3], -1).flatten(0, 1)


def _multiply(q: Tensor, keys: Tensor, values: Tensor, bias: Tensor, scale: float) -> Tensor:
    """`_attend` without softcap as two batched products, for contiguous keys and values; scores are rounded to their dtype.

    For a few queries over many keys torch's fused attention takes twice the time.
    """
    batch, heads, queries, head_dim = q.shape
    keys, values = keys.view(batch * heads, -1, head_dim), values.view(batch * heads, -1, head_dim)
    scores = torch.baddbmm(bias, q.reshape(batch * heads, queries, head_dim), keys.transpose(1, 2), alpha=scale)
    return torch.bmm(torch.softmax(scores, dim=-1), values)


def _prefill(q: Tensor, keys: Tensor, values: Tensor, scoring: Scoring, shared: Shared) -> Tensor:
    """The last tokens of one sequence, [queries, q_heads, head_dim]; a chunk of queries reads only the keys that it sees."""
    scale, window, softcap, sinks = scoring
    seq_len, num_queries = keys.shape[2], q.shape[0]
    is_plain = softcap is None and sinks is None
    by_query = None if sinks is None else sinks.unsqueeze(1)
    multiplies = is_plain and q.dtype is torch.bfloat16 and num_queries >= MANY_QUERIES
    if not multiplies and num_queries == seq_len and is_plain and (window is None or window >= seq_len):
        # Torch's own causal mask leaves out whole blocks of keys, and needs no tensor.
        every = q.transpose(0, 1).unsqueeze(0)
        attended = F.scaled_dot_product_attention(every, keys, values, is_causal=True, scale=scale, enable_gqa=True)
        return attended[0].transpose(0, 1)
    out = torch.empty_like(q)
    for start in range(0, num_queries, QUERY_CHUNK):
        stop = min(start + QUERY_CHUNK, num_queries)
        first_position, end = seq_len - num_queries + start, seq_len - num_queries + stop
        begin = 0 if window is None else max(0, first_position - window + 1)
        repeats = q.shape[1] // keys.shape[1] if multiplies else 1
        key = ("prefill bias", stop - start, end, begin, window, repeats)
        bias = shared.get(key, partial(_prefill_bias, stop - start, end, begin, window, q, repeats))
        chunk, seen_keys, seen_values = q[start:stop], keys[..., begin:end, :], values[..., begin:end, :]
        if multiplies:
            out[start:stop] = _multiply_chunk(chunk, seen_keys[0], seen_values[0], bias, scale)
        else:
            attended = _attend(chunk.transpose(0, 1).unsqueeze(0), seen_keys, seen_values, bias, scale, softcap, by_query)
            out[start:stop] = attended[0].transpose(0, 1)
    return out


def _multiply_chunk(q: Tensor, keys: Tensor, values: Tensor, bias: Tensor, scale: float) -> Tensor:
    """`_multiply` for some queries of one sequence, [queries, q_heads, head_dim].

    keys, values  [kv_heads, keys, head_dim]
    bias          [q_heads / kv_heads * queries, keys], the same for each of the heads that share keys
    """
    queries, q_heads, head_dim = q.shape
    kv_heads = keys.shape[0]
    groups = q_heads // kv_heads
    grouped = q.view(queries, kv_heads, groups, head_dim).permute(1, 2, 0, 3).reshape(kv_heads, groups * queries, head_dim)
    scores = torch.baddbmm(bias, grouped, keys.transpose(1, 2), alpha=scale)
    attended = torch.bmm(torch.softmax(scores, dim=-1), values)
    return attended.view(kv_heads, groups, queries, head_dim).permute(2, 0, 1, 3).reshape(queries, q_heads, head_dim)


def _prefill_bias(num_queries: int, end: int, begin: int, window: int | None, q: Tensor, repeats: int) -> Tensor:
    """Attention bias [repeats * num_queries, end - begin] of the queries before position `end`, for keys from `begin` on."""
    return _bias(visible(num_queries, end, window, q.device)[:, begin:], q.dtype).repeat(repeats, 1)


def _gather(
    kv_cache: Tensor, dtype: torch.dtype, block_tables: Tensor, longest: int, key: Hashable, shared: Shared
) -> tuple[Tensor, Tensor]:
    """Keys and values of some sequences, each [sequences, kv_heads, keys, head_dim] of this dtype, padded to whole blocks.

    Entries past a sequence's end belong to other sequences or to none: the caller masks them.
    """
    _, _, kv_heads, block_size, head_dim = kv_cache.shape
    indices = shared.get(key, lambda: _head_block_indices(kv_cache, block_tables[:, : -(-longest // block_size)]))
    gathered = bytes_of(kv_cache).view(-1, block_size * head_dim).index_select(0, indices)
    gathered = widened(gathered, kv_cache.dtype, dtype)
    keys, values = gathered.view(2, block_tables.shape[0], kv_heads, -1, head_dim).unbind(0)
    return keys, values


def _head_block_indices(kv_cache: Tensor, tables: Tensor) -> Tensor:
    """Indices of some sequences' rows, in the order of `_gather`, in a cache viewed as rows of one block of one head."""
    blocks, _, kv_heads, _, _ = kv_cache.shape
    tables = tables.clamp(0, blocks - 1)
    by_head = torch.arange(2 * kv_heads, dtype=tables.dtype, device=tables.device).view(2, 1, kv_heads, 1)
    return ((tables * (2 * kv_heads)).unsqueeze(1) + by_head).flatten()


def _attend(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    bias: Tensor | None,
    scale: float,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """softmax(q k * scale + bias) v: q [..., q_heads, queries, head_dim], keys and values [..., kv_heads, keys, head_dim].

    sinks  [q_heads, queries], or [q_heads, 1]
    """
    if softcap is None and sinks is None:
        shares_keys = q.shape[-3] != keys.shape[-3]
        return F.scaled_dot_product_attention(q, keys, values, attn_mask=bias, scale=scale, enable_gqa=shares_keys)
    groups = q.shape[-3] // keys.shape[-3]
    keys, values = keys.repeat_interleave(groups, dim=-3), values.repeat_interleave(groups, dim=-3)
    scores = q.float() @ keys.float().transpose(-1, -2) * scale
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if bias is not None:
        scores = scores + bias
    if sinks is not None:
        beside = sinks.unsqueeze(-1).expand(*scores.shape[:-1], 1)
        return (F.softmax(torch.cat([scores, beside], dim=-1), dim=-1)[..., :-1] @ values.float()).to(q.dtype)
    return (F.softmax(scores, dim=-1) @ values.float()).to(q.dtype)


def _bias(seen: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where a key is seen and -inf where it is not."""
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, float("-inf"))


def visible(num_queries: int, seq_len: int, window: int | None, device: torch.device) -> Tensor:
    """Mask of the keys that each query sees, [num_queries, seq_len] bool; the queries are the last tokens of the sequence."""
    query = torch.arange(seq_len - num_queries, seq_len, device=device).unsqueeze(1)
    key = torch.arange(seq_len, device=device)
    mask = key <= query
    return mask if window is None else mask & (key > query - window)
