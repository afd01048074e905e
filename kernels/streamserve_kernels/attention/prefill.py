"""Attention of sequences with several queries in Triton, over the paged cache (FlashAttention-2, Dao, 2023).

The query heads that share a kv head are rows of one tile, so keys and values are read once per kv head. Queries may come from
the fused projection: they are then normed and rotated when loaded. The step's keys and values are in the cache (kv_write.py).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from triton.language.extra import cuda

from streamserve_kernels.attention.decode import ROTATED, AttentionLayer
from streamserve_kernels.attention.kv_format import in_bytes, kv_format, widen_bytes
from streamserve_kernels.attention.prefill_schedule import make_tiles
from streamserve_kernels.attention.tiles import attention_dtype, block_ids, narrowed, pair_dims, query_factor, scaled
from streamserve_kernels.launch import dependent_launch, kernel, multiprocessors, power_of_two
from streamserve_kernels.reference.attention.arguments import StepSequences, StepTokens
from streamserve_kernels.reference.attention.shared import Shared


@triton.jit
def _rotate(first, second, cos_sin_ptr, positions, lanes, mask, half: tl.constexpr):
    """The members of pairs [BLOCK_M, LANES / 2], rotated by their positions; unchanged without a table."""
    if cos_sin_ptr is not None:
        angle_ptrs = cos_sin_ptr + positions[:, None] * (2 * half) + lanes[None, :]
        cos = tl.load(angle_ptrs, mask=mask, other=0.0)
        sin = tl.load(angle_ptrs + half, mask=mask, other=0.0)
        first, second = first * cos - second * sin, second * cos + first * sin
    return first, second


@triton.jit
def _load_rotated(
    query_ptrs, present, positions, cos_sin_ptr, q_norm_ptr, eps,
    HEAD_DIM: tl.constexpr, LANES: tl.constexpr, BLOCK_M: tl.constexpr, NORM: tl.constexpr, NORM_ROTATED: tl.constexpr,
    INTERLEAVED: tl.constexpr, QUERY_BETA: tl.constexpr, QUERY_LENGTH: tl.constexpr,
):  # fmt: skip
    """Load queries [BLOCK_M, LANES], norm and rotate them.

    Each half of a head fills half of the lanes (`_dims`); INTERLEAVED, dimensions are where they were.
    """
    half: tl.constexpr = HEAD_DIM // 2
    lanes = tl.arange(0, LANES // 2)
    dims, partners = pair_dims(lanes, half, INTERLEAVED)
    mask = present[:, None] & (lanes < half)[None, :]
    first = tl.load(query_ptrs + dims[None, :], mask=mask, other=0.0)
    second = tl.load(query_ptrs + partners[None, :], mask=mask, other=0.0)
    dtype: tl.constexpr = first.dtype
    first = first.to(tl.float32)
    second = second.to(tl.float32)
    if NORM_ROTATED:
        first, second = _rotate(first, second, cos_sin_ptr, positions, lanes, mask, half)
        first = first.to(dtype).to(tl.float32)
        second = second.to(dtype).to(tl.float32)
    if NORM:
        scale = tl.rsqrt((tl.sum(first * first, axis=1) + tl.sum(second * second, axis=1)) / HEAD_DIM + eps)[:, None]
        first = first * scale * tl.load(q_norm_ptr + dims, mask=lanes < half, other=0.0).to(tl.float32)[None, :]
        second = second * scale * tl.load(q_norm_ptr + partners, mask=lanes < half, other=0.0).to(tl.float32)[None, :]
        first = first.to(dtype).to(tl.float32)
        second = second.to(dtype).to(tl.float32)
    if not NORM_ROTATED:
        first, second = _rotate(first, second, cos_sin_ptr, positions, lanes, mask, half)
    if QUERY_BETA is not None:
        factor = query_factor(positions, QUERY_BETA, QUERY_LENGTH)[:, None]
        first *= factor
        second *= factor
    both = tl.join(first.to(dtype), second.to(dtype))
    if not INTERLEAVED:
        both = tl.permute(both, (0, 2, 1))
    return tl.reshape(both, [BLOCK_M, LANES])


@triton.jit
def _dims(HEAD_DIM: tl.constexpr, LANES: tl.constexpr, HALVES: tl.constexpr):
    """Dimension of a head in each lane, HEAD_DIM or more for none; with HALVES each half fills half of the lanes."""
    lanes = tl.arange(0, LANES)
    if HALVES and HEAD_DIM < LANES:
        inner = lanes % (LANES // 2)
        lanes = tl.where(inner < HEAD_DIM // 2, lanes // (LANES // 2) * (HEAD_DIM // 2) + inner, HEAD_DIM)
    return lanes


@triton.jit
def _load_numbers(ptrs, mask, FORMAT: tl.constexpr, WIDENS_BY: tl.constexpr, COMPUTE: tl.constexpr):
    """Load keys or values [tokens, LANES] to multiply; zeros where they are masked out."""
    if FORMAT is None:
        numbers = tl.load(ptrs, mask=mask, other=0.0)
    else:
        numbers = widen_bytes(tl.load(ptrs, mask=mask, other=0), FORMAT, WIDENS_BY)
    return numbers.to(COMPUTE)


@triton.jit
def _attend_range(
    q, lanes, highest, total, sums, begin, end, positions, lowest, seq_len, cache_ptr, table_ptr, value_offset, kv_head,
    block_stride, scale,
    HEAD_DIM: tl.constexpr, BLOCK_SIZE: tl.constexpr, BLOCK_N: tl.constexpr, MASKED: tl.constexpr,
    WINDOW: tl.constexpr, SOFTCAP: tl.constexpr, COMPUTE: tl.constexpr, FORMAT: tl.constexpr, WIDENS_BY: tl.constexpr,
):  # fmt: skip
    """Attend to the keys from `begin` to `end`; without MASKED every query sees them all, and `end` is a multiple of BLOCK_N.

    lanes   [LANES], from `_dims`
    lowest  of `positions`: what is before its window may be another's, and NaN
    """
    for start in range(begin, end, BLOCK_N):
        tokens = start + tl.arange(0, BLOCK_N)
        inside = tokens < seq_len
        if WINDOW is not None:
            inside = inside & (tokens > lowest - WINDOW)
        blocks = block_ids(table_ptr, start, seq_len - 1 if MASKED else start + BLOCK_N, BLOCK_SIZE, BLOCK_N).to(tl.int64)
        offsets = blocks * block_stride + (kv_head * BLOCK_SIZE + tokens % BLOCK_SIZE) * HEAD_DIM
        offsets = offsets[:, None] + lanes[None, :]
        if MASKED:
            mask = inside[:, None] & (lanes < HEAD_DIM)[None, :]
        else:
            mask = (lanes < HEAD_DIM)[None, :]
        k = _load_numbers(cache_ptr + offsets, mask, FORMAT, WIDENS_BY, COMPUTE)
        scores = tl.dot(q, tl.trans(k), input_precision="ieee")
        to_log2 = scale * 1.4426950408889634
        if SOFTCAP is not None:
            scores = scaled(scores, scale, SOFTCAP)
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
        v = _load_numbers(cache_ptr + value_offset + offsets, mask, FORMAT, WIDENS_BY, COMPUTE)
        sums = tl.dot(weights.to(COMPUTE), v, sums, input_precision="ieee")
        highest = higher
    return highest, total, sums


@kernel(do_not_specialize_on_alignment=["seq_lens_ptr", "query_start_ptr"])
def _prefill_kernel(
    q_ptr, cos_sin_ptr, q_norm_ptr, sinks_ptr, cache_ptr, tables_ptr, seq_lens_ptr, query_start_ptr, tiles_ptr, out_ptr,
    scale, eps, value_scale, q_stride, block_stride, table_stride,
    Q_HEADS: tl.constexpr, KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    LANES: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, ROTATE: tl.constexpr, NORM: tl.constexpr,
    NORM_ROTATED: tl.constexpr, INTERLEAVED: tl.constexpr, QUERY_BETA: tl.constexpr, QUERY_LENGTH: tl.constexpr,
    WINDOW: tl.constexpr, SOFTCAP: tl.constexpr, COMPUTE: tl.constexpr, FORMAT: tl.constexpr, WIDENS_BY: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """One tile of BLOCK_M rows of one sequence and kv head: row r is query r // heads_per_group, head r % heads_per_group.

    With ROTATE `q_ptr` is the fused projection, whose query heads are not normed and rotated yet. With FORMAT the cache has
    bytes of 8-bit floats, and is multiplied in fp16.
    """
    if PDL:
        cuda.gdc_launch_dependents()
    # This may exit without `gdc_wait`: the launch completes only after its other programs, which do wait.
    sequence = tl.load(tiles_ptr + tl.program_id(0) * 2)
    if sequence < 0:
        return
    first_row = tl.load(tiles_ptr + tl.program_id(0) * 2 + 1)
    kv_head = tl.program_id(1)
    heads_per_group: tl.constexpr = Q_HEADS // KV_HEADS
    query_begin = tl.load(query_start_ptr + sequence)
    num_queries = tl.load(query_start_ptr + sequence + 1) - query_begin
    seq_len = tl.load(seq_lens_ptr + sequence)
    num_rows = num_queries * heads_per_group
    row = first_row + tl.arange(0, BLOCK_M)
    query = tl.minimum(row // heads_per_group, num_queries - 1)
    positions = seq_len - num_queries + query
    lanes = _dims(HEAD_DIM, LANES, ROTATE and not INTERLEAVED)
    head = kv_head * heads_per_group + row % heads_per_group
    token = (query_begin + query).to(tl.int64)
    present = row < num_rows
    mask = present[:, None] & (lanes < HEAD_DIM)[None, :]
    query_ptrs = q_ptr + (token * q_stride + head * HEAD_DIM)[:, None]
    if PDL:
        cuda.gdc_wait()
    if ROTATE:
        q = _load_rotated(
            query_ptrs, present, positions, cos_sin_ptr, q_norm_ptr, eps, HEAD_DIM, LANES, BLOCK_M, NORM, NORM_ROTATED,
            INTERLEAVED, QUERY_BETA, QUERY_LENGTH,
        )  # fmt: skip
    else:
        q = tl.load(query_ptrs + lanes[None, :], mask=mask, other=0.0)
    if FORMAT is None:
        q = q.to(COMPUTE)
    else:
        q, scale = narrowed(q, scale, COMPUTE)

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
        highest, total, sums = _attend_range(
            q, lanes, highest, total, sums, 0, masked_from, positions, lowest, seq_len, cache_ptr, table_ptr, value_offset,
            kv_head, block_stride, scale, HEAD_DIM, BLOCK_SIZE, BLOCK_N, False, WINDOW, SOFTCAP, COMPUTE,
            FORMAT, WIDENS_BY,
        )  # fmt: skip
    else:
        masked_from = tl.maximum(lowest - WINDOW + 1, 0) // BLOCK_N * BLOCK_N
    highest, total, sums = _attend_range(
        q, lanes, highest, total, sums, masked_from, end, positions, lowest, seq_len, cache_ptr, table_ptr, value_offset,
        kv_head, block_stride, scale, HEAD_DIM, BLOCK_SIZE, BLOCK_N, True, WINDOW, SOFTCAP, COMPUTE,
        FORMAT, WIDENS_BY,
    )  # fmt: skip
    if sinks_ptr is not None:
        to_log2 = scale * 1.4426950408889634 if SOFTCAP is None else 1.0
        total += tl.exp2(tl.load(sinks_ptr + head) * 1.4426950408889634 - highest * to_log2)
    out_ptrs = out_ptr + (token * Q_HEADS + head)[:, None] * HEAD_DIM + lanes[None, :]
    y = sums / total[:, None]
    if FORMAT is not None:
        y *= value_scale
    tl.store(out_ptrs, y.to(out_ptr.dtype.element_ty), mask=mask)


def prefill(
    layer: AttentionLayer,
    q: torch.Tensor,
    tokens: StepTokens | None,
    kv_cache: torch.Tensor,
    sequences: StepSequences,
    out: torch.Tensor,
    shared: Shared,
) -> None:
    """Attend from the queries of the sequences that follow the decode rows.

    q       [tokens, q_heads * head_dim], or with `tokens` the fused projection
    shared  the step's: its layers use the same list of tiles
    """
    q_heads, kv_heads, head_dim, q_norm, _, eps, norm_rotated, interleaved, query_scaling = layer.heads
    scale, window, softcap, sinks = layer.scoring
    block_tables, seq_lens, query_start, first_sequence, _ = sequences
    lanes = power_of_two(head_dim, least=16)
    heads_per_group = q_heads // kv_heads
    num_tokens = q.shape[0] - first_sequence
    block_m, block_n, warps, stages, registers = prefill_shape(layer, q.dtype, q.device, num_tokens)
    _, cos_sin, _ = tokens or ROTATED
    beta, length = query_scaling or (None, None)
    tiles = shared.get(
        ("prefill tiles", heads_per_group, block_m),
        lambda: make_tiles(
            query_start,
            first_sequence=first_sequence,
            num_tokens=num_tokens,
            heads_per_group=heads_per_group,
            block_m=block_m,
        ),
    )
    cache = kv_format(kv_cache, layer.kv_scales)
    _prefill_kernel[(tiles.shape[0], kv_heads)](
        q, cos_sin, q_norm, sinks, in_bytes(kv_cache), block_tables, seq_lens, query_start, tiles, out,
        scale * cache.key_scale, eps, cache.value_scale, q.stride(0), kv_cache.stride(0), block_tables.stride(0),
        Q_HEADS=q_heads, KV_HEADS=kv_heads, HEAD_DIM=head_dim, BLOCK_SIZE=kv_cache.shape[3],
        LANES=lanes, BLOCK_M=block_m, BLOCK_N=block_n, ROTATE=tokens is not None, NORM=q_norm is not None,
        NORM_ROTATED=norm_rotated, INTERLEAVED=interleaved, QUERY_BETA=beta, QUERY_LENGTH=length,
        WINDOW=window, SOFTCAP=softcap, COMPUTE=attention_dtype(q.dtype, kv_cache.dtype), FORMAT=cache.name,
        WIDENS_BY=cache.widens_by, num_warps=warps, num_stages=stages, maxnreg=registers, **dependent_launch(q.device),
    )  # fmt: skip


def prefill_shape(
    layer: AttentionLayer, dtype: torch.dtype, device: torch.device, num_tokens: int
) -> tuple[int, int, int, int, int | None]:
    """Choose BLOCK_M, BLOCK_N, warps, pipeline stages, and the most registers of a thread, for `num_tokens` queries."""
    if dtype == torch.float32:
        return 32, 32, 4, 1, None
    if layer.heads.head_dim > 128:
        return 64, 32, 4, 2, None
    if 2 * -(-num_tokens * layer.heads.q_heads // 128) <= 3 * multiprocessors(device):
        return 64, 64, 4, 2, None
    # With 128 registers two programs share a multiprocessor, and one multiplies while the other exponentiates.
    return 128, 64, 8, 2, 128
