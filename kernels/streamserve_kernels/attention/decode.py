"""Attention of decode rows in Triton: one launch rotates, writes the new keys and values, and attends.

Split-KV as in Flash-Decoding (Dao et al., 2023): each program takes one kv head of one split of a row's context
(decode_schedule.py), and the last program of a row to finish combines its splits. The query heads that share a kv head are rows
of one tile, so keys and values are read once per kv head.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from triton.language.extra import cuda

from streamserve_kernels.attention.decode_schedule import RECORD, DecodeSchedule
from streamserve_kernels.attention.kv_format import in_words, kv_format, round_to_bytes, widen_bytes, widen_words
from streamserve_kernels.attention.tiles import (
    angles,
    attention_dtype,
    block_ids,
    narrowed,
    norm_and_rotate,
    norm_weights,
    partner_of,
    query_factor,
    scaled,
)
from streamserve_kernels.launch import MAX_ARRIVALS, arrivals, dependent_launch, kernel, multiprocessors, power_of_two
from streamserve_kernels.reference.attention.arguments import Heads, Scoring, StepTokens
from streamserve_kernels.reference.attention.kv_format import KvScales, is_eight_bit

_UNROLL = tl.constexpr(4)
"""Splits whose loads are in flight together when they are combined."""


ROTATED = (None, None, None)
"""In place of the step's tokens, where heads are normed and rotated already."""


class AttentionLayer(NamedTuple):
    """A layer's attention; `kv_scales` are those of an 8-bit cache, None for 1."""

    heads: Heads
    scoring: Scoring
    kv_scales: KvScales | None


class DecodeShape(NamedTuple):
    """How a batch's decode rows are launched.

    tile        tokens of a tile
    spare       most splits beyond one for each row
    min_tokens  tokens of a split at least, where a row has several
    stages      of the pipeline; 1 takes tiles through registers
    """

    tile: int
    spare: int
    min_tokens: int
    warps: int
    stages: int


@triton.jit
def _load_split(record_ptr, program, num_rows, WINDOW: tl.constexpr):
    """Row, first token, the one after the last, index in the row, splits of the row (see `DecodeSchedule`).

    Of a row's first split, row and first token need no load, so that reading its blocks need not wait for the record.
    """
    later = program >= num_rows
    sequence = tl.load(record_ptr, mask=later, other=program).to(tl.int64)
    if WINDOW is None:
        start = tl.load(record_ptr + 1, mask=later, other=0)
    else:
        start = tl.load(record_ptr + 1)
    return sequence, start, tl.load(record_ptr + 2), tl.load(record_ptr + 4), tl.load(record_ptr + 5)


@triton.jit
def _is_seen(tokens, end, seq_len, WINDOW: tl.constexpr):
    """Which tokens of a split the query sees."""
    seen = tokens < end
    if WINDOW is not None:
        seen = seen & (tokens >= seq_len - WINDOW)
    return seen


@triton.jit
def _load_tile(
    cache_ptr, blocks, tokens, seen, kv_head, block_stride,
    HEAD_DIM: tl.constexpr, KV_HEADS: tl.constexpr, BLOCK_SIZE: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """Load keys and values [tokens, LANES] of the tokens that are seen; zeros elsewhere, where there may be another's NaN."""
    lanes = tl.arange(0, LANES)
    mask = seen[:, None] & (lanes < HEAD_DIM)[None, :]
    entry = blocks.to(tl.int64) * block_stride + (kv_head * BLOCK_SIZE + tokens % BLOCK_SIZE) * HEAD_DIM
    ptrs = cache_ptr + entry[:, None] + lanes[None, :]
    return tl.load(ptrs, mask=mask, other=0.0), tl.load(ptrs + KV_HEADS * BLOCK_SIZE * HEAD_DIM, mask=mask, other=0.0)


@triton.jit
def _store_token(
    cache_ptr, key, value, slot, split, kv_head, block_stride,
    HEAD_DIM: tl.constexpr, KV_HEADS: tl.constexpr, BLOCK_SIZE: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """Store a key and a value [1, LANES] in their slot; only in a row's first split, and not for a padding slot."""
    lanes = tl.arange(0, LANES)[None, :]
    ptrs = cache_ptr + (slot // BLOCK_SIZE) * block_stride + (kv_head * BLOCK_SIZE + slot % BLOCK_SIZE) * HEAD_DIM + lanes
    written = (lanes < HEAD_DIM) & (split + lanes * 0 == 0) & (lanes * 0 <= slot)
    tl.store(ptrs, key, mask=written)
    tl.store(ptrs + KV_HEADS * BLOCK_SIZE * HEAD_DIM, value, mask=written)


@triton.jit
def _rounded(heads, inverse, FORMAT: tl.constexpr):
    """Heads [1, LANES] as they will be read, and the words [1, LANES / 2] to store."""
    stored = round_to_bytes(heads.to(tl.float32) * inverse, FORMAT)
    even, odd = _parts(stored, FORMAT)
    return widen_bytes(stored, FORMAT, "arithmetic"), (even | (odd << 8)).to(tl.int16)


@triton.jit
def _numbers(loaded, FORMAT: tl.constexpr, WIDENS_BY: tl.constexpr, COMPUTE: tl.constexpr):
    """What was loaded of heads, as parts to multiply: all of their dimensions, or of words the even ones and the odd ones."""
    if FORMAT is None:
        numbers = (loaded.to(COMPUTE),)
    else:
        even, odd = widen_words(loaded, FORMAT, WIDENS_BY)
        numbers = (even.to(COMPUTE), odd.to(COMPUTE))  # type: ignore[assignment]
    return numbers


@triton.jit
def _parts(heads, FORMAT: tl.constexpr):
    """Heads [heads, LANES] in the parts of `_numbers`."""
    if FORMAT is None:
        parts = (heads,)
    else:
        parts = tl.split(tl.reshape(heads, [heads.shape[0], heads.shape[1] // 2, 2]))
    return parts


@triton.jit
def _whole(parts, FORMAT: tl.constexpr):
    """Heads [heads, LANES] of their parts."""
    if FORMAT is None:
        heads = parts[0]
    else:
        heads = tl.interleave(parts[0], parts[1])
    return heads


@triton.jit
def _attend(
    q, k, v, seen, highest, total, sums, scale,
    SOFTCAP: tl.constexpr, COMPUTE: tl.constexpr, FORMAT: tl.constexpr, WIDENS_BY: tl.constexpr,
):  # fmt: skip
    """One tile of the online softmax: maxima, denominators and unnormalised sums, updated by its tokens.

    q, sums  parts of heads
    k, v     [tokens, ..] as they were loaded
    """
    keys = _numbers(k, FORMAT, WIDENS_BY, COMPUTE)
    scores = tl.dot(q[0], tl.trans(keys[0]), input_precision="ieee")
    if FORMAT is not None:
        scores = tl.dot(q[1], tl.trans(keys[1]), scores, input_precision="ieee")
    scores = scaled(scores, scale, SOFTCAP)
    scores = tl.where(seen[None, :], scores, float("-inf"))
    higher = tl.maximum(highest, tl.max(scores, axis=1))
    # Nothing seen so far keeps the maximum at -inf; exp2(-inf - -inf) would be NaN.
    shift = tl.where(higher == float("-inf"), 0.0, higher)
    weights = tl.exp2(scores - shift[:, None])
    decay = tl.exp2(highest - shift)
    total = total * decay + tl.sum(weights, axis=1)
    weights = weights.to(COMPUTE)
    values = _numbers(v, FORMAT, WIDENS_BY, COMPUTE)
    first = tl.dot(weights, values[0], sums[0] * decay[:, None], input_precision="ieee")
    if FORMAT is None:
        sums = (first,)
    else:
        sums = (first, tl.dot(weights, values[1], sums[1] * decay[:, None], input_precision="ieee"))
    return higher, total, sums


@triton.jit
def _merge(highest, total, sums, other_highest, other_total, other_sums):
    """Merge the softmax states of two disjoint sets of tokens."""
    higher = tl.maximum(highest, other_highest)
    shift = tl.where(higher == float("-inf"), 0.0, higher)
    decay = tl.exp2(highest - shift)
    weight = tl.exp2(other_highest - shift)
    return higher, total * decay + other_total * weight, sums * decay[:, None] + other_sums * weight[:, None]


@triton.jit
def _store_partial(partial_ptr, index, highest, total, sums, used, GROUP: tl.constexpr, LANES: tl.constexpr):
    """Store the softmax state of one split for `_combine`."""
    state_ptrs = partial_ptr + (index * GROUP + tl.arange(0, GROUP)) * (LANES + 2)
    tl.store(state_ptrs[:, None] + tl.arange(0, LANES)[None, :], sums, mask=used[:, None])
    tl.store(state_ptrs + LANES, highest, mask=used)
    tl.store(state_ptrs + LANES + 1, total, mask=used)


@triton.jit
def _combine(partial_ptr, first_split, splits, used, GROUP: tl.constexpr, LANES: tl.constexpr):
    """Merge the stored states of a row's splits, in their order."""
    group = tl.arange(0, GROUP)
    lanes = tl.arange(0, LANES)
    width: tl.constexpr = LANES + 2
    highest = tl.full([GROUP], float("-inf"), tl.float32)
    total = tl.zeros([GROUP], tl.float32)
    sums = tl.zeros([GROUP, LANES], tl.float32)
    for begin in range(0, splits, _UNROLL):
        highests = ()
        totals = ()
        all_sums = ()
        for index in tl.static_range(_UNROLL):
            mask = used & (begin + index + group * 0 < splits)
            rows = partial_ptr + ((first_split + begin + index) * GROUP + group) * width
            split_highest = tl.load(rows + LANES, mask=mask, other=float("-inf"), cache_modifier=".cg")
            split_total = tl.load(rows + LANES + 1, mask=mask, other=0.0, cache_modifier=".cg")
            split_sums = tl.load(rows[:, None] + lanes[None, :], mask=mask[:, None], other=0.0, cache_modifier=".cg")
            highests = highests + (split_highest,)  # type: ignore[assignment]
            totals = totals + (split_total,)  # type: ignore[assignment]
            all_sums = all_sums + (split_sums,)  # type: ignore[assignment]
        for index in tl.static_range(_UNROLL):
            highest, total, sums = _merge(highest, total, sums, highests[index], totals[index], all_sums[index])
    return highest, total, sums


@kernel(do_not_specialize=["num_rows"], do_not_specialize_on_alignment=["positions_ptr", "slots_ptr"])
def _decode_kernel(
    q_ptr, positions_ptr, cos_sin_ptr, slots_ptr, q_norm_ptr, k_norm_ptr, sinks_ptr,
    cache_ptr, tables_ptr, records_ptr, out_ptr, partial_ptr, arrivals_ptr,
    scale, eps, key_inverse, value_inverse, value_scale, q_stride, block_stride, table_stride, max_blocks, num_rows,
    Q_HEADS: tl.constexpr, KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    GROUP: tl.constexpr, LANES: tl.constexpr, BLOCK_N: tl.constexpr, PREFETCH: tl.constexpr,
    WINDOW: tl.constexpr, SOFTCAP: tl.constexpr, ROTATE: tl.constexpr, NORM: tl.constexpr, NORM_ROTATED: tl.constexpr,
    INTERLEAVED: tl.constexpr, QUERY_BETA: tl.constexpr, QUERY_LENGTH: tl.constexpr, COMPUTE: tl.constexpr,
    FORMAT: tl.constexpr, WIDENS_BY: tl.constexpr, RECORD: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Attend to one split of a row, one kv head.

    With ROTATE `q_ptr` is the fused projection: the token's query heads and key are normed and rotated here, its key and value
    are stored in the cache, and the splits cover the tokens of earlier steps. Otherwise queries are ready and the splits cover
    all tokens. With FORMAT the cache has words of two 8-bit floats. With PREFETCH, for launches of few programs, the first
    tile is loaded into registers before the predecessor is done. Without, tiles stream through shared memory, which leaves
    registers for more programs at a time.

    partial_ptr   fp32 [kv_heads, splits, GROUP, LANES + 2]: unnormalised sums, then maximum and denominator
    arrivals_ptr  int32 [kv_heads, rows], zero before and after
    """
    if PDL:
        cuda.gdc_launch_dependents()
        if not ROTATE:
            cuda.gdc_wait()
    kv_head = tl.program_id(0)
    heads_per_group: tl.constexpr = Q_HEADS // KV_HEADS
    record_ptr = records_ptr + tl.program_id(1) * RECORD
    # This may exit without `gdc_wait`: the launch completes only after its other programs, which do wait.
    if tl.load(record_ptr + 5, mask=tl.program_id(1) >= num_rows, other=1) == 0:
        return
    sequence, start, end, split, splits = _load_split(record_ptr, tl.program_id(1), num_rows, WINDOW)
    # What a head takes in the cache, and lanes for it.
    width: tl.constexpr = HEAD_DIM if FORMAT is None else HEAD_DIM // 2
    width_lanes: tl.constexpr = LANES if FORMAT is None else LANES // 2
    table_ptr = tables_ptr + sequence * table_stride
    # Table entries past a sequence's last block are loaded with the others, and not used.
    last_token = max_blocks * BLOCK_SIZE - 1
    seq_len = end
    if WINDOW is not None:
        seq_len = tl.load(record_ptr + 6)
    if PREFETCH:
        blocks = block_ids(table_ptr, start, last_token, BLOCK_SIZE, BLOCK_N)
        blocks_next = block_ids(table_ptr, start + BLOCK_N, last_token, BLOCK_SIZE, BLOCK_N)
        tokens = start + tl.arange(0, BLOCK_N)
        seen = _is_seen(tokens, end, seq_len, WINDOW)
        k, v = _load_tile(cache_ptr, blocks, tokens, seen, kv_head, block_stride, width, KV_HEADS, BLOCK_SIZE, width_lanes)

    group = tl.arange(0, GROUP)
    lanes = tl.arange(0, LANES)
    partner_lanes = partner_of(lanes, HEAD_DIM, INTERLEAVED)
    inside = (lanes < HEAD_DIM)[None, :]
    used = group < heads_per_group
    cos, sin, q_weight, q_partner_weight, k_weight, k_partner_weight = 1.0, 0.0, 1.0, 1.0, 1.0, 1.0
    rotates: tl.constexpr = ROTATE and cos_sin_ptr is not None
    if ROTATE:
        slot = tl.load(slots_ptr + sequence)
    if rotates:
        cos, sin = angles(cos_sin_ptr, tl.load(positions_ptr + sequence + tl.arange(0, 1)), HEAD_DIM, LANES, INTERLEAVED)
    if QUERY_BETA is not None:
        scale *= query_factor(tl.load(positions_ptr + sequence), QUERY_BETA, QUERY_LENGTH)
    if NORM:
        q_weight, q_partner_weight = norm_weights(q_norm_ptr, HEAD_DIM, LANES, INTERLEAVED)
        k_weight, k_partner_weight = norm_weights(k_norm_ptr, HEAD_DIM, LANES, INTERLEAVED)
    if PDL:
        cuda.gdc_wait()

    query_ptrs = q_ptr + sequence * q_stride + (kv_head * heads_per_group + group)[:, None] * HEAD_DIM
    q = tl.load(query_ptrs + lanes[None, :], mask=used[:, None] & inside, other=0.0)
    if ROTATE:
        key_ptrs = q_ptr + sequence * q_stride + (Q_HEADS + kv_head) * HEAD_DIM
        new_key = tl.load(key_ptrs + lanes[None, :], mask=inside, other=0.0)
        new_value = tl.load(key_ptrs + KV_HEADS * HEAD_DIM + lanes[None, :], mask=inside, other=0.0)
        q_partner = tl.load(query_ptrs + partner_lanes[None, :], mask=used[:, None], other=0.0)
        key_partner = tl.load(key_ptrs + partner_lanes[None, :], mask=inside, other=0.0)
        q = norm_and_rotate(
            q, q_partner, q_weight, q_partner_weight, cos, sin, eps, HEAD_DIM, NORM, NORM_ROTATED, rotates
        )  # fmt: skip
    highest = tl.full([GROUP], float("-inf"), tl.float32)
    total = tl.zeros([GROUP], tl.float32)
    parts = _parts(tl.zeros([GROUP, LANES], tl.float32), FORMAT)
    tile_q, tile_scale = q.to(COMPUTE), scale
    if FORMAT is not None:
        tile_q, tile_scale = narrowed(q, scale, COMPUTE)
    tile_q = _parts(tile_q, FORMAT)
    for begin in range(start, end, BLOCK_N):
        tokens = begin + tl.arange(0, BLOCK_N)
        seen = _is_seen(tokens, end, seq_len, WINDOW)
        if not PREFETCH:
            blocks = block_ids(table_ptr, begin, last_token, BLOCK_SIZE, BLOCK_N)
            k, v = _load_tile(
                cache_ptr, blocks, tokens, seen, kv_head, block_stride, width, KV_HEADS, BLOCK_SIZE, width_lanes
            )  # fmt: skip
        highest, total, parts = _attend(
            tile_q, k, v, seen, highest, total, parts, tile_scale, SOFTCAP, COMPUTE, FORMAT, WIDENS_BY
        )  # fmt: skip
        if PREFETCH:
            seen_next = _is_seen(tokens + BLOCK_N, end, seq_len, WINDOW)
            k, v = _load_tile(
                cache_ptr, blocks_next, tokens + BLOCK_N, seen_next, kv_head, block_stride, width, KV_HEADS, BLOCK_SIZE,
                width_lanes,
            )  # fmt: skip
            blocks_next = block_ids(table_ptr, begin + 2 * BLOCK_N, last_token, BLOCK_SIZE, BLOCK_N)

    sums = _whole(parts, FORMAT)
    if ROTATE:
        # The first split adds the new token's own key and value, and stores them.
        new_key = norm_and_rotate(
            new_key, key_partner, k_weight, k_partner_weight, cos, sin, eps, HEAD_DIM, NORM, NORM_ROTATED, rotates
        )  # fmt: skip
        key_entry, value_entry = new_key, new_value
        if FORMAT is not None:
            new_key, key_entry = _rounded(new_key, key_inverse, FORMAT)
            new_value, value_entry = _rounded(new_value, value_inverse, FORMAT)
        _store_token(
            cache_ptr, key_entry, value_entry, slot, split, kv_head, block_stride, width, KV_HEADS, BLOCK_SIZE, width_lanes
        )
        score = scaled(tl.sum(q.to(tl.float32) * new_key.to(tl.float32), axis=1), scale, SOFTCAP)
        score = tl.where(split + group * 0 == 0, score, float("-inf"))
        highest, total, sums = _merge(highest, total, sums, score, 1.0, new_value.to(tl.float32))

    if splits > 1:
        first = kv_head * tl.num_programs(1) + tl.load(record_ptr + 3)
        _store_partial(partial_ptr, first + split, highest, total, sums, used, GROUP, LANES)
        # Every thread's stores must be out before the one thread that announces this split.
        tl.debug_barrier()
        counter_ptr = arrivals_ptr + sequence * KV_HEADS + kv_head
        if tl.atomic_add(counter_ptr, 1, sem="acq_rel", scope="gpu") != splits - 1:
            return
        tl.store(counter_ptr, 0)
        highest, total, sums = _combine(partial_ptr, first, splits, used, GROUP, LANES)
    heads = sequence * Q_HEADS + kv_head * heads_per_group + group
    if sinks_ptr is not None:
        sink = tl.load(sinks_ptr + kv_head * heads_per_group + group, mask=used, other=0.0) * 1.4426950408889634
        highest, total, sums = _merge(highest, total, sums, sink, 1.0, tl.zeros_like(sums))
    y = sums / tl.where(total == 0.0, 1.0, total)[:, None]
    if FORMAT is not None:
        y *= value_scale
    out_ptrs = out_ptr + heads[:, None] * HEAD_DIM + lanes[None, :]
    tl.store(out_ptrs, y.to(out_ptr.dtype.element_ty), mask=used[:, None] & inside)


def decode(
    layer: AttentionLayer,
    q: torch.Tensor,
    tokens: StepTokens | None,
    kv_cache: torch.Tensor,
    block_tables: torch.Tensor,
    shape: DecodeShape,
    schedule: DecodeSchedule,
    out: torch.Tensor,
) -> None:
    """Attend from the decode rows, which come first in `q` and `out`; with `tokens`, `q` is the fused projection."""
    q_heads, kv_heads, head_dim, q_norm, k_norm, eps, norm_rotated, interleaved, query_scaling = layer.heads
    scale, window, softcap, sinks = layer.scoring
    positions, cos_sin, slots = tokens or ROTATED
    lanes = power_of_two(head_dim, least=32)
    group = power_of_two(q_heads // kv_heads, least=16)
    partial = q.new_empty(kv_heads * schedule.programs * group * (lanes + 2), dtype=torch.float32)
    beta, length = query_scaling or (None, None)
    cache = kv_format(kv_cache, layer.kv_scales)
    words = in_words(kv_cache)
    _decode_kernel[(kv_heads, schedule.programs)](
        q, positions, cos_sin, slots, q_norm, k_norm, sinks,
        words, block_tables, schedule.records, out, partial, arrivals(q.device),
        scale * cache.key_scale, eps, cache.key_inverse, cache.value_inverse, cache.value_scale,
        q.stride(0), words.stride(0), block_tables.stride(0), block_tables.shape[1],
        schedule.num_rows,
        Q_HEADS=q_heads, KV_HEADS=kv_heads, HEAD_DIM=head_dim, BLOCK_SIZE=kv_cache.shape[3],
        GROUP=group, LANES=lanes, BLOCK_N=shape.tile, PREFETCH=shape.stages == 1,
        WINDOW=window, SOFTCAP=softcap, ROTATE=tokens is not None, NORM=q_norm is not None,
        NORM_ROTATED=norm_rotated, INTERLEAVED=interleaved, QUERY_BETA=beta, QUERY_LENGTH=length,
        COMPUTE=attention_dtype(q.dtype, kv_cache.dtype), FORMAT=cache.name, WIDENS_BY=cache.widens_by, RECORD=RECORD,
        num_warps=shape.warps, num_stages=shape.stages,
        **dependent_launch(q.device),
    )  # fmt: skip


def decode_shape(
    layer: AttentionLayer, dtype: torch.dtype, cache: torch.Tensor, num_rows: int, max_seq_len: int
) -> DecodeShape:
    """Choose the launch for `num_rows` rows of this dtype over `cache`, on its device."""
    kv_heads, window = layer.heads.kv_heads, layer.scoring.window
    reach = max_seq_len if window is None else min(max_seq_len, window + 64)
    pairs, programs = num_rows * kv_heads, 2 * multiprocessors(cache.device)
    wide = dtype.itemsize == 4 or layer.heads.head_dim > 128
    if pairs > 3 * programs:
        # Many rows: long ones are split so that no program finishes long after the others.
        shape = DecodeShape(64, 8 * programs // kv_heads, 512, 4, 2)
    elif pairs > programs:
        shape = DecodeShape(64, programs // kv_heads, 128, 4, 2)
    elif 2 * pairs > programs:
        # One wave of programs holds all rows: only rows twice as long as the others are worth combining.
        shape = DecodeShape(64, num_rows // 2, 128, 4, 1)
    else:
        # Few rows: they are split until the device is full.
        shape = DecodeShape(128, programs // pairs * num_rows, 128, 8 if 8 * pairs <= programs else 4, 1)
    if is_eight_bit(cache.dtype):
        # Numbers are widened in the layout that they are multiplied in, which only shared memory brings them into.
        shape = shape._replace(warps=8 if shape.tile == 128 else 4, stages=2)
    most = num_rows * (-(-reach // shape.min_tokens) - 1) if pairs <= MAX_ARRIVALS else 0
    shape = shape._replace(spare=min(shape.spare, most))
    return shape._replace(tile=32, warps=4, stages=3) if wide else shape
