"""Causal attention over the paged cache, in torch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


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
    num_decodes: int,
    max_query_len: int,
    max_seq_len: int,
) -> Tensor:
    """Causal attention of a mixed batch over a paged KV cache (Kwon et al., 2023).

    q              [tokens, q_heads, head_dim]  bf16|fp16|fp32, rows of all sequences one after another
    kv_cache       [blocks, 2, kv_heads, block_size, head_dim]  same dtype; q_heads is a multiple of kv_heads
    block_tables   [sequences, max_blocks]  int32, unused entries never read
    seq_lens       [sequences]      int32, tokens in the cache including this step's
    query_start    [sequences + 1]  int32, prefix sums of query lengths; a sequence's queries are its last tokens
    scale          factor of the scores
    window         a token sees itself and the window - 1 tokens before it (Mistral, Gemma 3); None sees all
    softcap        scores become softcap * tanh(score / softcap) (Gemma 2)
    num_decodes    how many leading sequences have exactly one query
    max_query_len, max_seq_len  the largest query and sequence lengths of this batch
    returns        [tokens, q_heads, head_dim]  dtype of q; accumulation in fp32
    """
    out = torch.empty_like(q)
    starts, lengths = query_start.tolist(), seq_lens.tolist()
    for sequence, seq_len in enumerate(lengths):
        rows = slice(starts[sequence], starts[sequence + 1])
        keys, values = _gather(kv_cache, block_tables[sequence], seq_len)
        out[rows] = _attend(q[rows], keys, values, scale, window, softcap)
    return out


def _gather(kv_cache: Tensor, block_table: Tensor, seq_len: int) -> tuple[Tensor, Tensor]:
    """Keys and values of one sequence, each [kv_heads, seq_len, head_dim]."""
    block_size = kv_cache.shape[3]
    blocks = kv_cache[block_table[: -(-seq_len // block_size)]]
    keys, values = blocks.permute(1, 2, 0, 3, 4).flatten(2, 3)[:, :, :seq_len].unbind(0)
    return keys, values


def _attend(q: Tensor, keys: Tensor, values: Tensor, scale: float, window: int | None, softcap: float | None) -> Tensor:
    """Attention of the last tokens of one sequence: q [queries, q_heads, head_dim] -> the same shape."""
    groups = q.shape[1] // keys.shape[0]
    keys, values = keys.repeat_interleave(groups, dim=0), values.repeat_interleave(groups, dim=0)
    scores = (q.transpose(0, 1).float() @ keys.float().transpose(1, 2)) * scale
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    scores = scores.masked_fill(~visible(q.shape[0], keys.shape[1], window, q.device), float("-inf"))
    return (F.softmax(scores, dim=-1) @ values.float()).to(q.dtype).transpose(0, 1)


def visible(num_queries: int, seq_len: int, window: int | None, device: torch.device) -> Tensor:
    """Which keys each query sees: [num_queries, seq_len] bool; the queries are the last tokens of the sequence."""
    query = torch.arange(seq_len - num_queries, seq_len, device=device).unsqueeze(1)
    key = torch.arange(seq_len, device=device)
    mask = key <= query
    return mask if window is None else mask & (key > query - window)
