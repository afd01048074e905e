"""Paged attention in Triton: split-KV decode and tiled prefill over the same cache.

The specification is `reference/attention.py`. A batch's leading decode rows go to `_decode_kernel`, whose programs share out a
sequence's context (Flash-Decoding, Dao et al., 2023); longer queries go to `_prefill_kernel` (FlashAttention-2, Dao, 2023).
In both the query heads that share a kv head are rows of one tile, so keys and values are read once per kv head. What a launch
covers is decided from host integers alone; lengths are read on the device, so a captured launch serves every context length.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from triton.language.extra import cuda

from .kv_write import rotary_write
from .launch import MAX_ARRIVALS, arrivals, dependent_launch, multiprocessors, power_of_two

_PART = 128
"""Tokens that a part of a sequence's context has at least."""

_AT_ONCE = tl.constexpr(4)
"""Parts whose loads are in flight together when they are added up."""


@triton.jit
def _block_ids(table_ptr, start, last, BLOCK_SIZE: tl.constexpr, BLOCK_N: tl.constexpr):
    """The blocks of the tokens from `start`, a multiple of BLOCK_N: [BLOCK_N], or one for all; read up to token `last`."""
    if BLOCK_SIZE % BLOCK_N == 0:
        blocks = tl.load(table_ptr + start // BLOCK_SIZE, mask=start <= last, other=0)
    else:
        tokens = start + tl.arange(0, BLOCK_N)
        blocks = tl.load(table_ptr + tokens // BLOCK_SIZE, mask=tokens <= last, other=0)
    return blocks


@triton.jit
def _scaled(scores, scale, SOFTCAP: tl.constexpr):
    """Scaled and capped scores in units of log2(e), so that exp2 makes them weights."""
    if SOFTCAP is None:
        scores = scores * (scale * 1.4426950408889634)
    else:
        # tanh(z) is 2 sigmoid(2 z) - 1
        scores = (2.0 * tl.sigmoid(scores * (2.0 * scale / SOFTCAP)) - 1.0) * (SOFTCAP * 1.4426950408889634)
    return scores


@triton.jit
def _load_tile(
    cache_ptr, blocks, tokens, end, kv_head, block_stride,
    HEAD_DIM: tl.constexpr, KV_HEADS: tl.constexpr, BLOCK_SIZE: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """Keys and values [tokens, LANES] of the tokens before `end`, zeros elsewhere."""
    lanes = tl.arange(0, LANES)
    mask = (tokens < end)[:, None] & (lanes < HEAD_DIM)[None, :]
    entry = blocks.to(tl.int64) * block_stride + (kv_head * BLOCK_SIZE + tokens % BLOCK_SIZE) * HEAD_DIM
    ptrs = cache_ptr + entry[:, None] + lanes[None, :]
    return tl.load(ptrs, mask=mask, other=0.0), tl.load(ptrs + KV_HEADS * BLOCK_SIZE * HEAD_DIM, mask=mask, other=0.0)


@triton.jit
def _turned(
    x, partner, weight, partner_weight, cos, sin, eps, HEAD_DIM: tl.constexpr, NORM: tl.constexpr, ROTATE: tl.constexpr
):
    """Heads [heads, LANES] normed and rotated; `partner` holds at each place what is half a head away."""
    dtype = x.dtype
    if NORM:
        wide = x.to(tl.float32)
        scale = tl.rsqrt(tl.sum(wide * wide, axis=1) / HEAD_DIM + eps)[:, None]
        x = (wide * scale * weight).to(dtype)
        partner = (partner.to(tl.float32) * scale * partner_weight).to(dtype)
    if ROTATE:
        x = (x.to(tl.float32) * cos + partner.to(tl.float32) * sin).to(dtype)
    return x


@triton.jit(do_not_specialize_on_alignment=["positions_ptr", "slots_ptr", "seq_lens_ptr"])
def _decode_kernel(
    q_ptr, positions_ptr, cos_sin_ptr, slots_ptr, q_norm_ptr, k_norm_ptr,
    cache_ptr, tables_ptr, seq_lens_ptr, out_ptr, partial_ptr, arrivals_ptr,
    scale, eps, q_stride, block_stride, table_stride, max_blocks, min_split,
    Q_HEADS: tl.constexpr, KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    GROUP: tl.constexpr, LANES: tl.constexpr, BLOCK_N: tl.constexpr, SPLIT: tl.constexpr, AHEAD: tl.constexpr,
    WINDOW: tl.constexpr, SOFTCAP: tl.constexpr, ROTATE: tl.constexpr, NORM: tl.constexpr, COMPUTE: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """One sequence, one kv head, one part of the context; the last part to finish adds the parts up.

    With ROTATE `q_ptr` is the fused projection: the token's query heads and key are normed and rotated here, and its key and
    value written to the cache. Otherwise queries are ready and the token's key and value are in the cache.

    The tokens before this one were written by earlier steps. With AHEAD, for launches of few programs, the first tile of them
    is on its way to registers before the predecessor is done. Without, tiles stream through shared memory, which leaves
    registers for more programs at a time.

    partial_ptr   fp32 [sequences, kv_heads, splits, GROUP, LANES + 2]: unnormalised sums, then maximum and denominator
    arrivals_ptr  int32 [sequences * kv_heads], zero before and after
    """
    if PDL:
        cuda.gdc_launch_dependents()
    sequence = tl.program_id(0).to(tl.int64)
    kv_head = tl.program_id(1)
    heads_per_group: tl.constexpr = Q_HEADS // KV_HEADS
    seq_len = tl.load(seq_lens_ptr + sequence)
    earlier = seq_len - 1
    start = 0
    if WINDOW is not None:
        start = tl.maximum(seq_len - WINDOW, 0) // BLOCK_N * BLOCK_N
    if not SPLIT:
        split = 0
        parts = 1
        end = earlier
    else:
        split = tl.program_id(2)
        splits = tl.num_programs(2)
        per_split = tl.cdiv(tl.maximum(tl.cdiv(earlier - start, splits), min_split), BLOCK_N) * BLOCK_N
        parts = tl.maximum(tl.cdiv(earlier - start, per_split), 1)
        start += split * per_split
        end = tl.minimum(start + per_split, earlier)
        # Without waiting: what comes after waits for the first part, and that one for what came before.
        if split >= parts:
            return
    table_ptr = tables_ptr + sequence * table_stride
    # Ids past the end of a table's used part are fetched with the others, and never followed.
    reach = max_blocks * BLOCK_SIZE - 1
    if AHEAD:
        blocks = _block_ids(table_ptr, start, reach, BLOCK_SIZE, BLOCK_N)
        blocks_next = _block_ids(table_ptr, start + BLOCK_N, reach, BLOCK_SIZE, BLOCK_N)
        tokens = start + tl.arange(0, BLOCK_N)
        k, v = _load_tile(cache_ptr, blocks, tokens, end, kv_head, block_stride, HEAD_DIM, KV_HEADS, BLOCK_SIZE, LANES)

    group = tl.arange(0, GROUP)
    lanes = tl.arange(0, LANES)
    partner_lanes = (lanes + HEAD_DIM // 2) % HEAD_DIM
    inside = (lanes < HEAD_DIM)[None, :]
    used = group < heads_per_group
    cos, sin, q_weight, q_partner_weight, k_weight, k_partner_weight = 1.0, 0.0, 1.0, 1.0, 1.0, 1.0
    if ROTATE:
        slot = tl.load(slots_ptr + sequence)
        if cos_sin_ptr is not None:
            angles = cos_sin_ptr + tl.load(positions_ptr + sequence) * HEAD_DIM + lanes % (HEAD_DIM // 2)
            cos = tl.load(angles)[None, :]
            sin = tl.load(angles + HEAD_DIM // 2)[None, :]
            sin = tl.where((lanes < HEAD_DIM // 2)[None, :], -sin, sin)
    if NORM:
        q_weight = tl.load(q_norm_ptr + lanes[None, :], mask=inside, other=0.0).to(tl.float32)
        q_partner_weight = tl.load(q_norm_ptr + partner_lanes[None, :]).to(tl.float32)
        k_weight = tl.load(k_norm_ptr + lanes[None, :], mask=inside, other=0.0).to(tl.float32)
        k_partner_weight = tl.load(k_norm_ptr + partner_lanes[None, :]).to(tl.float32)
    if PDL:
        cuda.gdc_wait()

    query_ptrs = q_ptr + sequence * q_stride + (kv_head * heads_per_group + group)[:, None] * HEAD_DIM
    q = tl.load(query_ptrs + lanes[None, :], mask=used[:, None] & inside, other=0.0)
    if ROTATE:
        key_ptrs = q_ptr + sequence * q_stride + (Q_HEADS + kv_head) * HEAD_DIM
        value_ptrs = key_ptrs + KV_HEADS * HEAD_DIM
    else:
        last = tl.maximum(earlier, 0)
        block = tl.load(table_ptr + last // BLOCK_SIZE, mask=earlier >= 0, other=0).to(tl.int64)
        key_ptrs = cache_ptr + block * block_stride + (kv_head * BLOCK_SIZE + last % BLOCK_SIZE) * HEAD_DIM
        value_ptrs = key_ptrs + KV_HEADS * BLOCK_SIZE * HEAD_DIM
    present = inside & (lanes[None, :] * 0 < seq_len)
    own_key = tl.load(key_ptrs + lanes[None, :], mask=present, other=0.0)
    own_value = tl.load(value_ptrs + lanes[None, :], mask=present, other=0.0)
    if ROTATE:
        q_partner = tl.load(query_ptrs + partner_lanes[None, :], mask=used[:, None], other=0.0)
        key_partner = tl.load(key_ptrs + partner_lanes[None, :], mask=present, other=0.0)
        turned: tl.constexpr = cos_sin_ptr is not None
        q = _turned(q, q_partner, q_weight, q_partner_weight, cos, sin, eps, HEAD_DIM, NORM, turned)
    highest = tl.full([GROUP], float("-inf"), tl.float32)
    total = tl.zeros([GROUP], tl.float32)
    sums = tl.zeros([GROUP, LANES], tl.float32)
    wide_q = q.to(COMPUTE)
    for begin in range(start, end, BLOCK_N):
        tokens = begin + tl.arange(0, BLOCK_N)
        if not AHEAD:
            blocks = _block_ids(table_ptr, begin, reach, BLOCK_SIZE, BLOCK_N)
            k, v = _load_tile(cache_ptr, blocks, tokens, end, kv_head, block_stride, HEAD_DIM, KV_HEADS, BLOCK_SIZE, LANES)
        scores = _scaled(tl.dot(wide_q, tl.trans(k.to(COMPUTE)), input_precision="ieee"), scale, SOFTCAP)
        seen = tokens < end
        if WINDOW is not None:
            seen = seen & (tokens >= seq_len - WINDOW)
        scores = tl.where(seen[None, :], scores, float("-inf"))
        higher = tl.maximum(highest, tl.max(scores, axis=1))
        # Nothing seen so far keeps the maximum at -inf; exp2(-inf - -inf) would be NaN.
        shift = tl.where(higher == float("-inf"), 0.0, higher)
        weights = tl.exp2(scores - shift[:, None])
        decay = tl.exp2(highest - shift)
        total = total * decay + tl.sum(weights, axis=1)
        sums = tl.dot(weights.to(COMPUTE), v.to(COMPUTE), sums * decay[:, None], input_precision="ieee")
        highest = higher
        if AHEAD:
            k, v = _load_tile(
                cache_ptr, blocks_next, tokens + BLOCK_N, end, kv_head, block_stride, HEAD_DIM, KV_HEADS, BLOCK_SIZE, LANES
            )
            blocks_next = _block_ids(table_ptr, begin + 2 * BLOCK_N, reach, BLOCK_SIZE, BLOCK_N)

    # The first part takes the token's own key and value, and stores them.
    if ROTATE:
        own_key = _turned(own_key, key_partner, k_weight, k_partner_weight, cos, sin, eps, HEAD_DIM, NORM, turned)
        entry = cache_ptr + (slot // BLOCK_SIZE) * block_stride + (kv_head * BLOCK_SIZE + slot % BLOCK_SIZE) * HEAD_DIM
        written = inside & (split + lanes[None, :] * 0 == 0) & (lanes[None, :] * 0 <= slot)
        tl.store(entry + lanes[None, :], own_key, mask=written)
        tl.store(entry + KV_HEADS * BLOCK_SIZE * HEAD_DIM + lanes[None, :], own_value, mask=written)
    own = _scaled(tl.sum(q.to(tl.float32) * own_key.to(tl.float32), axis=1), scale, SOFTCAP)
    own = tl.where((split + group * 0 == 0) & (seq_len > 0), own, float("-inf"))
    higher = tl.maximum(highest, own)
    shift = tl.where(higher == float("-inf"), 0.0, higher)
    weight = tl.exp2(own - shift)
    decay = tl.exp2(highest - shift)
    total = total * decay + weight
    sums = sums * decay[:, None] + weight[:, None] * own_value.to(tl.float32)
    highest = higher

    heads = sequence * Q_HEADS + kv_head * heads_per_group + group
    out_ptrs = out_ptr + heads[:, None] * HEAD_DIM + lanes[None, :]
    real = used[:, None] & (lanes < HEAD_DIM)[None, :]
    if SPLIT:  # noqa: SIM102 (decides what is compiled)
        if parts > 1:
            place = sequence * KV_HEADS + kv_head
            width: tl.constexpr = LANES + 2
            part_rows = ((place * splits + split) * GROUP + group) * width
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
            for first in range(0, parts, _AT_ONCE):
                tops = ()
                shares = ()
                partials = ()
                for index in tl.static_range(_AT_ONCE):
                    live = used & (first + index + group * 0 < parts)
                    part_rows = ((place * splits + first + index) * GROUP + group) * width
                    part_ptrs = partial_ptr + part_rows[:, None] + lanes[None, :]
                    tops = tops + (
                        tl.load(partial_ptr + part_rows + LANES, mask=live, other=float("-inf"), cache_modifier=".cg"),
                    )
                    shares = shares + (
                        tl.load(partial_ptr + part_rows + LANES + 1, mask=live, other=0.0, cache_modifier=".cg"),
                    )
                    partials = partials + (tl.load(part_ptrs, mask=live[:, None], other=0.0, cache_modifier=".cg"),)
                for index in tl.static_range(_AT_ONCE):
                    higher = tl.maximum(highest, tops[index])
                    shift = tl.where(higher == float("-inf"), 0.0, higher)
                    decay = tl.exp2(highest - shift)
                    weight = tl.exp2(tops[index] - shift)
                    total = total * decay + shares[index] * weight
                    sums = sums * decay[:, None] + partials[index] * weight[:, None]
                    highest = higher
    y = sums / tl.where(total == 0.0, 1.0, total)[:, None]
    tl.store(out_ptrs, y.to(out_ptr.dtype.element_ty), mask=real)


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
        inside = tokens < seq_len
        blocks = _block_ids(table_ptr, start, seq_len - 1 if MASKED else start + BLOCK_N, BLOCK_SIZE, BLOCK_N).to(tl.int64)
        places = blocks * block_stride + (kv_head * BLOCK_SIZE + tokens % BLOCK_SIZE) * HEAD_DIM
        places = places[:, None] + lanes[None, :]
        if MASKED:
            mask = inside[:, None] & (lanes < HEAD_DIM)[None, :]
        else:
            mask = (lanes < HEAD_DIM)[None, :]
        k = tl.load(cache_ptr + places, mask=mask, other=0.0).to(COMPUTE)
        scores = tl.dot(q, tl.trans(k), input_precision="ieee")
        to_log2 = scale * 1.4426950408889634
        if SOFTCAP is not None:
            scores = _scaled(scores, scale, SOFTCAP)
            to_log2 = 1.0
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
        weights = tl.exp2(scores * to_log2 - (shift * to_log2)[:, None])
        decay = tl.exp2((highest - shift) * to_log2)
        total = total * decay + tl.sum(weights, axis=1)
        sums = sums * decay[:, None]
        v = tl.load(cache_ptr + value_offset + places, mask=mask, other=0.0).to(COMPUTE)
        sums = tl.dot(weights.to(COMPUTE), v, sums, input_precision="ieee")
        highest = higher
    return highest, total, sums


@triton.jit(
    do_not_specialize=["first_sequence", "first_query"], do_not_specialize_on_alignment=["seq_lens_ptr", "query_start_ptr"]
)
def _prefill_kernel(
    q_ptr, cache_ptr, tables_ptr, seq_lens_ptr, query_start_ptr, out_ptr,
    scale, block_stride, table_stride, first_sequence, first_query,
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
    q = tl.load(q_ptr + offsets - first_query * (Q_HEADS * HEAD_DIM), mask=real, other=0.0).to(COMPUTE)

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
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    num_decodes: int,
    max_query_len: int,
    max_seq_len: int,
) -> torch.Tensor:
    """See the reference. Decode rows rotate, write and attend in one launch; the tokens before theirs are of earlier steps."""
    fusible = head_dim % 2 == 0 and (cos_sin is None or cos_sin.shape[-1] == head_dim)
    first = num_decodes if fusible else 0
    shape = _Shape(q_heads, kv_heads, head_dim, scale, window, softcap)
    out = qkv.new_empty(qkv.shape[0], q_heads, head_dim)
    if first:
        rotation = _Rotation(positions, cos_sin, slot_mapping, q_norm, k_norm, eps)
        _decode(shape, qkv, rotation, kv_cache, block_tables, seq_lens, out, first, max_seq_len)
    if first < qkv.shape[0]:
        q = rotary_write(
            qkv[first:], positions[first:], cos_sin, kv_cache, slot_mapping[first:],
            q_heads=q_heads, kv_heads=kv_heads, head_dim=head_dim, q_norm=q_norm, k_norm=k_norm, eps=eps,
        )  # fmt: skip
        if first < num_decodes:
            _decode(shape, q.flatten(1), None, kv_cache, block_tables, seq_lens, out, num_decodes, max_seq_len)
        if num_decodes < seq_lens.shape[0]:
            _prefill(shape, q, first, kv_cache, block_tables, seq_lens, query_start, out, num_decodes, max_query_len)
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
    num_decodes: int,
    max_query_len: int,
    max_seq_len: int,
) -> torch.Tensor:
    """See the reference. A sequence of length 0 (padding among the decode rows) gives zeros.

    Of decode rows' caches only the last token may have been written by the kernel just before.
    """
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    q = q.contiguous()
    shape = _Shape(q.shape[1], kv_cache.shape[2], q.shape[2], scale, window, softcap)
    if num_decodes:
        _decode(shape, q.flatten(1), None, kv_cache, block_tables, seq_lens, out, num_decodes, max_seq_len)
    if num_decodes < seq_lens.shape[0]:
        _prefill(shape, q, 0, kv_cache, block_tables, seq_lens, query_start, out, num_decodes, max_query_len)
    return out


class _Shape(NamedTuple):
    """What all launches of one layer share."""

    q_heads: int
    kv_heads: int
    head_dim: int
    scale: float
    window: int | None
    softcap: float | None


class _Rotation(NamedTuple):
    """What the fused decode needs beyond attention; see `rotary_write`."""

    positions: torch.Tensor
    cos_sin: torch.Tensor | None
    slots: torch.Tensor
    q_norm: torch.Tensor | None
    k_norm: torch.Tensor | None
    eps: float


def _decode(
    shape: _Shape,
    q: torch.Tensor,
    rotation: _Rotation | None,
    kv_cache: torch.Tensor,
    block_tables: torch.Tensor,
    seq_lens: torch.Tensor,
    out: torch.Tensor,
    num_decodes: int,
    max_seq_len: int,
) -> None:
    group, lanes, block_n, splits, min_split, warps, stages = decode_shape(shape, q, num_decodes, max_seq_len)
    partial = None
    if splits > 1:
        partial = q.new_empty(num_decodes * shape.kv_heads * splits * group * (lanes + 2), dtype=torch.float32)
    turn = rotation or _Rotation(None, None, None, None, None, 0.0)  # type: ignore[arg-type]
    _decode_kernel[(num_decodes, shape.kv_heads, splits)](
        q, turn.positions, turn.cos_sin, turn.slots, turn.q_norm, turn.k_norm,
        kv_cache, block_tables, seq_lens, out, partial, arrivals(q.device),
        shape.scale, turn.eps, q.stride(0), kv_cache.stride(0), block_tables.stride(0), block_tables.shape[1], min_split,
        Q_HEADS=shape.q_heads, KV_HEADS=shape.kv_heads, HEAD_DIM=shape.head_dim, BLOCK_SIZE=kv_cache.shape[3],
        GROUP=group, LANES=lanes, BLOCK_N=block_n, SPLIT=splits > 1, AHEAD=stages == 1,
        WINDOW=shape.window, SOFTCAP=shape.softcap, ROTATE=rotation is not None, NORM=turn.q_norm is not None,
        COMPUTE=_compute_dtype(q.dtype), num_warps=warps, num_stages=stages, **dependent_launch(q.device),
    )  # fmt: skip


def decode_shape(
    shape: _Shape, q: torch.Tensor, num_decodes: int, max_seq_len: int
) -> tuple[int, int, int, int, int, int, int]:
    """GROUP, LANES, BLOCK_N, parts at most, tokens of a part at least, warps, pipeline stages (1 is AHEAD)."""
    lanes = power_of_two(shape.head_dim, least=32)
    group = power_of_two(shape.q_heads // shape.kv_heads, least=16)
    is_small = q.element_size() == 2 and lanes <= 128
    # Parts beyond what fills the device cost a launch of empty programs and a reduction.
    pairs = num_decodes * shape.kv_heads
    programs = 2 * multiprocessors(q.device)
    reach = max_seq_len if shape.window is None else min(max_seq_len, shape.window + 64)
    splits = max(1, min(2 * programs // pairs, -(-reach // _PART), 64))
    if pairs * splits > MAX_ARRIVALS:
        splits = 1
    if not is_small:
        return group, lanes, 32, splits, _PART, 4, 3
    if pairs <= programs:
        return group, lanes, 128, splits, _PART, 8 if pairs <= programs // 8 else 4, 1
    return group, lanes, 64, splits, _PART, 4, 2


def _prefill(
    shape: _Shape,
    q: torch.Tensor,
    first_query: int,
    kv_cache: torch.Tensor,
    block_tables: torch.Tensor,
    seq_lens: torch.Tensor,
    query_start: torch.Tensor,
    out: torch.Tensor,
    first_sequence: int,
    max_query_len: int,
) -> None:
    lanes = power_of_two(shape.head_dim, least=16)
    rows = max_query_len * (shape.q_heads // shape.kv_heads)
    block_m, block_n, warps, stages = prefill_shape(q.dtype, lanes, rows)
    _prefill_kernel[(-(-rows // block_m), shape.kv_heads, seq_lens.shape[0] - first_sequence)](
        q, kv_cache, block_tables, seq_lens, query_start, out,
        shape.scale, kv_cache.stride(0), block_tables.stride(0), first_sequence, first_query,
        Q_HEADS=shape.q_heads, KV_HEADS=shape.kv_heads, HEAD_DIM=shape.head_dim, BLOCK_SIZE=kv_cache.shape[3],
        LANES=lanes, BLOCK_M=block_m, BLOCK_N=block_n, WINDOW=shape.window, SOFTCAP=shape.softcap,
        COMPUTE=_compute_dtype(q.dtype), num_warps=warps, num_stages=stages, **dependent_launch(q.device),
    )  # fmt: skip


def prefill_shape(dtype: torch.dtype, lanes: int, rows: int) -> tuple[int, int, int, int]:
    """BLOCK_M, BLOCK_N, warps and pipeline stages."""
    if dtype == torch.float32:
        return 32, 32, 4, 1
    if lanes > 128:
        return 64, 32, 4, 2
    return 64, 64, 4, 2


def _compute_dtype(dtype: torch.dtype) -> tl.dtype:
    return {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16, torch.float32: tl.float32}[dtype]
