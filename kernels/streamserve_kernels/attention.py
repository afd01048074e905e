"""Paged attention in Triton: split-KV decode and tiled prefill over the same cache.

The specification is `reference/attention.py`. A batch's leading decode rows go to `_decode_kernel`, whose programs share out a
sequence's context (Flash-Decoding, Dao et al., 2023); longer queries go to `_prefill_kernel` (FlashAttention-2, Dao, 2023). In both
the query heads that share a kv head are rows of one tile, so keys and values are read once per kv head. What a launch covers is
decided from host integers alone; lengths are read on the device, so a captured launch serves every context length.
"""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl
from triton.language.extra import cuda

from .launch import dependent_launch, multiprocessors, power_of_two


@triton.jit
def _places(table_ptr, tokens, inside, kv_head, block_stride, BLOCK_SIZE: tl.constexpr, HEAD_DIM: tl.constexpr):
    """Offsets of the keys of `tokens` in the cache; the block table is read only where `inside`."""
    block = tl.load(table_ptr + tokens // BLOCK_SIZE, mask=inside, other=0).to(tl.int64)
    return block * block_stride + (kv_head * BLOCK_SIZE + tokens % BLOCK_SIZE) * HEAD_DIM


@triton.jit
def _scores(q, k, scale, SOFTCAP: tl.constexpr):
    """Scores in units of log2(e), so that exp2 makes them weights."""
    scores = tl.dot(q, tl.trans(k), input_precision="ieee")
    if SOFTCAP is None:
        scores = scores * (scale * 1.4426950408889634)
    else:
        # tanh(z) is 2 sigmoid(2 z) - 1
        scores = (2.0 * tl.sigmoid(scores * (2.0 * scale / SOFTCAP)) - 1.0) * (SOFTCAP * 1.4426950408889634)
    return scores


@triton.jit
def _decode_kernel(
    q_ptr, cache_ptr, tables_ptr, seq_lens_ptr, out_ptr, partial_ptr, arrivals_ptr,
    scale, block_stride, table_stride, min_split,
    Q_HEADS: tl.constexpr, KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    GROUP: tl.constexpr, LANES: tl.constexpr, BLOCK_N: tl.constexpr, SPLITS: tl.constexpr,
    WINDOW: tl.constexpr, SOFTCAP: tl.constexpr, COMPUTE: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One sequence, one kv head, one part of the context; the last part to finish adds the parts up.

    partial_ptr   fp32 [sequences, kv_heads, SPLITS, GROUP, LANES + 2]: unnormalised sums, then maximum and denominator
    arrivals_ptr  int32 [sequences * kv_heads], zero before and after
    """
    if PDL:
        cuda.gdc_launch_dependents()
        cuda.gdc_wait()
    sequence = tl.program_id(0).to(tl.int64)
    kv_head = tl.program_id(1)
    split = tl.program_id(2)
    heads_per_group: tl.constexpr = Q_HEADS // KV_HEADS
    seq_len = tl.load(seq_lens_ptr + sequence)
    first = 0
    if WINDOW is not None:
        first = tl.maximum(seq_len - WINDOW, 0) // BLOCK_N * BLOCK_N
    per_split = tl.cdiv(tl.maximum(tl.cdiv(seq_len - first, SPLITS), min_split), BLOCK_N) * BLOCK_N
    parts = tl.maximum(tl.cdiv(seq_len - first, per_split), 1)
    if split >= parts:
        return
    start = first + split * per_split
    end = tl.minimum(start + per_split, seq_len)

    group = tl.arange(0, GROUP)
    lanes = tl.arange(0, LANES)
    real = (group < heads_per_group)[:, None] & (lanes < HEAD_DIM)[None, :]
    heads = sequence * Q_HEADS + kv_head * heads_per_group + group
    rows = heads[:, None] * HEAD_DIM + lanes[None, :]
    q = tl.load(q_ptr + rows, mask=real, other=0.0).to(COMPUTE)
    table_ptr = tables_ptr + sequence * table_stride
    value_ptr = cache_ptr + KV_HEADS * BLOCK_SIZE * HEAD_DIM
    highest = tl.full([GROUP], float("-inf"), tl.float32)
    total = tl.zeros([GROUP], tl.float32)
    sums = tl.zeros([GROUP, LANES], tl.float32)
    for begin in range(start, end, BLOCK_N):
        tokens = begin + tl.arange(0, BLOCK_N)
        inside = tokens < end
        mask = inside[:, None] & (lanes < HEAD_DIM)[None, :]
        places = _places(table_ptr, tokens, inside, kv_head, block_stride, BLOCK_SIZE, HEAD_DIM)[:, None] + lanes[None, :]
        k = tl.load(cache_ptr + places, mask=mask, other=0.0).to(COMPUTE)
        scores = _scores(q, k, scale, SOFTCAP)
        if WINDOW is not None:
            inside = inside & (tokens >= seq_len - WINDOW)
        scores = tl.where(inside[None, :], scores, float("-inf"))
        higher = tl.maximum(highest, tl.max(scores, axis=1))
        # A tile wholly outside the window keeps the maximum at -inf; exp2(-inf - -inf) would be NaN.
        shift = tl.where(higher == float("-inf"), 0.0, higher)
        weights = tl.exp2(scores - shift[:, None])
        decay = tl.exp2(highest - shift)
        total = total * decay + tl.sum(weights, axis=1)
        v = tl.load(value_ptr + places, mask=mask, other=0.0).to(COMPUTE)
        sums = tl.dot(weights.to(COMPUTE), v, sums * decay[:, None], input_precision="ieee")
        highest = higher
    if parts == 1:
        y = sums / tl.where(total == 0.0, 1.0, total)[:, None]
        tl.store(out_ptr + rows, y.to(out_ptr.dtype.element_ty), mask=real)
        return

    place = sequence * KV_HEADS + kv_head
    width: tl.constexpr = LANES + 2
    part_rows = ((place * SPLITS + split) * GROUP + group) * width
    used = group < heads_per_group
    tl.store(partial_ptr + part_rows[:, None] + lanes[None, :], sums, mask=used[:, None])
    tl.store(partial_ptr + part_rows + LANES, highest, mask=used)
    tl.store(partial_ptr + part_rows + LANES + 1, total, mask=used)
    # Every thread's stores must be out before the one thread that announces this part.
    tl.debug_barrier()
    if tl.atomic_add(arrivals_ptr + place, 1, sem="acq_rel", scope="gpu") != parts - 1:
        return
    tl.store(arrivals_ptr + place, 0)
    highest = tl.full([GROUP], float("-inf"), tl.float32)
    total = tl.zeros([GROUP], tl.float32)
    sums = tl.zeros([GROUP, LANES], tl.float32)
    for part in range(parts):
        part_rows = ((place * SPLITS + part) * GROUP + group) * width
        top = tl.load(partial_ptr + part_rows + LANES, mask=used, other=0.0, cache_modifier=".cg")
        share = tl.load(partial_ptr + part_rows + LANES + 1, mask=used, other=0.0, cache_modifier=".cg")
        partial = tl.load(
            partial_ptr + part_rows[:, None] + lanes[None, :], mask=used[:, None], other=0.0, cache_modifier=".cg"
        )
        higher = tl.maximum(highest, top)
        decay = tl.exp2(highest - higher)
        weight = tl.exp2(top - higher)
        total = total * decay + share * weight
        sums = sums * decay[:, None] + partial * weight[:, None]
        highest = higher
    y = sums / tl.where(total == 0.0, 1.0, total)[:, None]
    tl.store(out_ptr + rows, y.to(out_ptr.dtype.element_ty), mask=real)


@triton.jit
def _prefill_tile(
    q, highest, total, sums, begin, end, positions, seq_len, cache_ptr, table_ptr, value_offset, kv_head, block_stride, scale,
    HEAD_DIM: tl.constexpr, LANES: tl.constexpr, BLOCK_SIZE: tl.constexpr, BLOCK_N: tl.constexpr, MASKED: tl.constexpr,
    WINDOW: tl.constexpr, SOFTCAP: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    """Attend to the keys from `begin` to `end` (multiples of BLOCK_N); without MASKED every query sees all of them."""
    lanes = tl.arange(0, LANES)
    for start in range(begin, end, BLOCK_N):
        tokens = start + tl.arange(0, BLOCK_N)
        # Without MASKED these comparisons with the range of the tile fold away.
        inside = tokens < seq_len if MASKED else tokens >= 0
        places = _places(table_ptr, tokens, inside, kv_head, block_stride, BLOCK_SIZE, HEAD_DIM)[:, None] + lanes[None, :]
        if MASKED:
            mask = inside[:, None] & (lanes < HEAD_DIM)[None, :]
        else:
            mask = (lanes < HEAD_DIM)[None, :]
        k = tl.load(cache_ptr + places, mask=mask, other=0.0).to(COMPUTE)
        scores = _scores(q, k, scale, SOFTCAP)
        if MASKED:
            seen = tokens[None, :] <= positions[:, None]
            if WINDOW is not None:
                seen = seen & (tokens[None, :] > positions[:, None] - WINDOW)
            scores = tl.where(seen, scores, float("-inf"))
        higher = tl.maximum(highest, tl.max(scores, axis=1))
        shift = higher
        if WINDOW is not None:
            # A tile before a row's window leaves its maximum at -inf; exp2(-inf - -inf) would be NaN.
            shift = tl.where(higher == float("-inf"), 0.0, higher)
        weights = tl.exp2(scores - shift[:, None])
        decay = tl.exp2(highest - shift)
        total = total * decay + tl.sum(weights, axis=1)
        sums = sums * decay[:, None]
        v = tl.load(cache_ptr + value_offset + places, mask=mask, other=0.0).to(COMPUTE)
        sums = tl.dot(weights.to(COMPUTE), v, sums, input_precision="ieee")
        highest = higher
    return highest, total, sums


@triton.jit
def _prefill_kernel(
    q_ptr, cache_ptr, tables_ptr, seq_lens_ptr, query_start_ptr, out_ptr,
    scale, block_stride, table_stride, first_sequence,
    Q_HEADS: tl.constexpr, KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    LANES: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    WINDOW: tl.constexpr, SOFTCAP: tl.constexpr, COMPUTE: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """A tile of BLOCK_M rows of one sequence and kv head; row r is query r // heads_per_group, head r % heads_per_group."""
    if PDL:
        cuda.gdc_launch_dependents()
        cuda.gdc_wait()
    sequence = first_sequence + tl.program_id(2)
    kv_head = tl.program_id(1)
    heads_per_group: tl.constexpr = Q_HEADS // KV_HEADS
    query_begin = tl.load(query_start_ptr + sequence)
    num_queries = tl.load(query_start_ptr + sequence + 1) - query_begin
    seq_len = tl.load(seq_lens_ptr + sequence)
    num_rows = num_queries * heads_per_group
    # The last tiles see the most keys: they go first, and short ones fill the end of the launch.
    first_row = (tl.num_programs(0) - 1 - tl.program_id(0)) * BLOCK_M
    if first_row >= num_rows:
        return
    row = first_row + tl.arange(0, BLOCK_M)
    query = tl.minimum(row // heads_per_group, num_queries - 1)
    positions = seq_len - num_queries + query
    lanes = tl.arange(0, LANES)
    heads = (query_begin + query).to(tl.int64) * Q_HEADS + kv_head * heads_per_group + row % heads_per_group
    offsets = heads[:, None] * HEAD_DIM + lanes[None, :]
    real = (row < num_rows)[:, None] & (lanes < HEAD_DIM)[None, :]
    q = tl.load(q_ptr + offsets, mask=real, other=0.0).to(COMPUTE)

    lowest = seq_len - num_queries + first_row // heads_per_group
    last_query = tl.minimum((first_row + BLOCK_M - 1) // heads_per_group, num_queries - 1)
    end = seq_len - num_queries + last_query + 1
    table_ptr = tables_ptr + sequence.to(tl.int64) * table_stride
    value_offset = KV_HEADS * BLOCK_SIZE * HEAD_DIM
    highest = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    sums = tl.zeros([BLOCK_M, LANES], tl.float32)
    masked_from = 0
    if WINDOW is None:
        masked_from = (lowest + 1) // BLOCK_N * BLOCK_N
        highest, total, sums = _prefill_tile(
            q, highest, total, sums, 0, masked_from, positions, seq_len, cache_ptr, table_ptr, value_offset, kv_head,
            block_stride, scale, HEAD_DIM, LANES, BLOCK_SIZE, BLOCK_N, False, WINDOW, SOFTCAP, COMPUTE,
        )  # fmt: skip
    else:
        masked_from = tl.maximum(lowest - WINDOW + 1, 0) // BLOCK_N * BLOCK_N
    highest, total, sums = _prefill_tile(
        q, highest, total, sums, masked_from, end, positions, seq_len, cache_ptr, table_ptr, value_offset, kv_head,
        block_stride, scale, HEAD_DIM, LANES, BLOCK_SIZE, BLOCK_N, True, WINDOW, SOFTCAP, COMPUTE,
    )  # fmt: skip
    tl.store(out_ptr + offsets, (sums / total[:, None]).to(out_ptr.dtype.element_ty), mask=real)


@functools.lru_cache(maxsize=None)
def _arrivals(device: torch.device, size: int) -> torch.Tensor:
    """Counters of finished parts, zero between launches. Launches on one device share them, so they share one stream."""
    return torch.zeros(size, dtype=torch.int32, device=device)


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
    num_decodes: int,
    max_query_len: int,
    max_seq_len: int,
) -> torch.Tensor:
    """See the reference. A sequence of length 0 (padding among the decode rows) gives zeros."""
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    q = q.contiguous()
    if num_decodes:
        _decode(q, kv_cache, block_tables, seq_lens, out, scale, window, softcap, num_decodes, max_seq_len)
    if num_decodes < seq_lens.shape[0]:
        _prefill(q, kv_cache, block_tables, seq_lens, query_start, out, scale, window, softcap, num_decodes, max_query_len)
    return out


def _decode(
    q: torch.Tensor,
    kv_cache: torch.Tensor,
    block_tables: torch.Tensor,
    seq_lens: torch.Tensor,
    out: torch.Tensor,
    scale: float,
    window: int | None,
    softcap: float | None,
    num_decodes: int,
    max_seq_len: int,
) -> None:
    q_heads, head_dim = q.shape[1:]
    kv_heads, block_size = kv_cache.shape[2:4]
    lanes = power_of_two(head_dim, least=16)
    group = power_of_two(q_heads // kv_heads, least=16)
    block_n = 64 if q.element_size() == 2 and lanes <= 128 else 32
    min_split = 128
    reach = max_seq_len if window is None else min(max_seq_len, window + block_n)
    splits = max(1, min(4 * multiprocessors(q.device) // (num_decodes * kv_heads), -(-reach // min_split), 64))
    splits = power_of_two(splits)
    partial = out if splits == 1 else q.new_empty(num_decodes * kv_heads * splits * group * (lanes + 2), dtype=torch.float32)
    arrivals = _arrivals(q.device, 1 << 16)
    _decode_kernel[(num_decodes, kv_heads, splits)](
        q, kv_cache, block_tables, seq_lens, out, partial, arrivals,
        scale, kv_cache.stride(0), block_tables.stride(0), min_split,
        Q_HEADS=q_heads, KV_HEADS=kv_heads, HEAD_DIM=head_dim, BLOCK_SIZE=block_size,
        GROUP=group, LANES=lanes, BLOCK_N=block_n, SPLITS=splits, WINDOW=window, SOFTCAP=softcap,
        COMPUTE=_compute_dtype(q.dtype), num_warps=4, num_stages=3, **dependent_launch(q.device),
    )  # fmt: skip


def _prefill(
    q: torch.Tensor,
    kv_cache: torch.Tensor,
    block_tables: torch.Tensor,
    seq_lens: torch.Tensor,
    query_start: torch.Tensor,
    out: torch.Tensor,
    scale: float,
    window: int | None,
    softcap: float | None,
    num_decodes: int,
    max_query_len: int,
) -> None:
    q_heads, head_dim = q.shape[1:]
    kv_heads, block_size = kv_cache.shape[2:4]
    lanes = power_of_two(head_dim, least=16)
    rows = max_query_len * (q_heads // kv_heads)
    block_m, block_n, warps, stages = _prefill_shape(q.dtype, lanes, rows)
    _prefill_kernel[(-(-rows // block_m), kv_heads, seq_lens.shape[0] - num_decodes)](
        q, kv_cache, block_tables, seq_lens, query_start, out,
        scale, kv_cache.stride(0), block_tables.stride(0), num_decodes,
        Q_HEADS=q_heads, KV_HEADS=kv_heads, HEAD_DIM=head_dim, BLOCK_SIZE=block_size,
        LANES=lanes, BLOCK_M=block_m, BLOCK_N=block_n, WINDOW=window, SOFTCAP=softcap,
        COMPUTE=_compute_dtype(q.dtype), num_warps=warps, num_stages=stages, **dependent_launch(q.device),
    )  # fmt: skip


def _prefill_shape(dtype: torch.dtype, lanes: int, rows: int) -> tuple[int, int, int, int]:
    """BLOCK_M, BLOCK_N, warps and pipeline stages."""
    if dtype == torch.float32:
        return 32, 32, 4, 1
    if lanes > 128:
        return 64, 32, 4, 2
    return (128, 64, 8, 3) if rows > 64 else (64, 64, 4, 3)


def _compute_dtype(dtype: torch.dtype) -> tl.dtype:
    return {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16, torch.float32: tl.float32}[dtype]
