"""Sampling under restrictions (top_k, say) in Triton, without sorting the vocabulary.

A line first finds its threshold, the logit below which it keeps no token, by bisecting the bits of a float: among the likeliest
few thousand tokens, and only where these may not include all that it keeps, in passes over the line.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from streamserve_kernels.launch import kernel
from streamserve_kernels.sampling.noise import exponential, line_keys
from streamserve_kernels.sampling.tensors import SamplingTensors

_CHUNK = 4096
_GROUP = 32
_CANDIDATES = 256
"""Groups of tokens that a line examines first."""


@triton.jit
def _sortable(x):
    """Map floats to int32 in the same order."""
    bits = x.to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def _count_and_mass(logits_ptr, vocab, temperature, top, bound, CHUNK: tl.constexpr):
    """Number of logits at or above `bound` (a `_sortable`), and the sum of their exp(z - top)."""
    counts = tl.zeros([CHUNK], tl.int32)
    masses = tl.zeros([CHUNK], tl.float32)
    for first in range(0, vocab, CHUNK):
        tokens = first + tl.arange(0, CHUNK)
        z = tl.load(logits_ptr + tokens, mask=tokens < vocab, other=float("-inf")).to(tl.float32) / temperature
        kept = (tokens < vocab) & (_sortable(z).to(tl.int64) >= bound)
        counts += kept.to(tl.int32)
        masses += tl.where(kept, tl.exp(z - top), 0.0)
    return tl.sum(counts, axis=0), tl.sum(masses, axis=0)


@kernel(do_not_specialize_on_alignment=["lines_ptr", "rows_ptr"])
def _maxima_kernel(
    logits_ptr, lines_ptr, rows_ptr, temperature_ptr, maxima_ptr, tops_ptr, masses_ptr,
    vocab, num_chunks, num_groups, row_stride, CHUNK: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """Find the maxima of the groups of one chunk of scaled logits, that of the chunk, and its sum of exp(z - top).

    NaN counts as +inf, for a maximum passes it over.
    """
    index = tl.program_id(0)
    chunk = tl.program_id(1)
    groups: tl.constexpr = CHUNK // GROUP
    line = tl.load(lines_ptr + index).to(tl.int64)
    temperature = tl.load(temperature_ptr + tl.load(rows_ptr + line).to(tl.int64) * row_stride)
    group = chunk * groups + tl.arange(0, groups)
    tokens = group[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    z = tl.load(logits_ptr + line * vocab + tokens, mask=tokens < vocab, other=float("-inf")).to(tl.float32) / temperature
    z = tl.where(z != z, float("inf"), z)
    maxima = tl.max(z, axis=1)
    top = tl.max(maxima, axis=0)
    shift = tl.where(top == float("-inf"), 0.0, top)
    tl.store(maxima_ptr + index * num_groups + group, maxima, mask=group < num_groups)
    tl.store(tops_ptr + index * num_chunks + chunk, top)
    tl.store(masses_ptr + index * num_chunks + chunk, tl.sum(tl.sum(tl.exp(z - shift), axis=1), axis=0))


@triton.jit
def _count(keys, bound):
    """Number of `keys` at or above `bound`."""
    return tl.sum((keys >= bound).to(tl.int32), axis=0)


@triton.jit
def _candidates(
    maxima_ptr, chosen_ptr, vocab, num_groups, lowest, ceiling,
    GROUPS: tl.constexpr, GROUP: tl.constexpr, CANDIDATES: tl.constexpr,
):  # fmt: skip
    """Tokens of the CANDIDATES groups with the largest maxima, which of them exist, and a bound that no other token reaches."""
    group = tl.arange(0, GROUPS)
    maxima = tl.load(maxima_ptr + group, mask=group < num_groups, other=float("-inf"))
    maxima_keys = tl.where(group < num_groups, _sortable(maxima).to(tl.int64), lowest - 1)
    bound = lowest
    if num_groups > CANDIDATES:
        low = lowest
        bound = ceiling
        while bound - low > 1:
            middle = (low + bound) >> 1
            if _count(maxima_keys, middle) <= CANDIDATES:
                bound = middle
            else:
                low = middle
    selected = maxima_keys >= bound
    index = tl.cumsum(selected.to(tl.int32), axis=0) - 1
    tl.store(chosen_ptr + index, group, mask=selected)
    # Memory carries the group numbers from the threads that found them to those that read them.
    tl.debug_barrier()
    slot = tl.arange(0, CANDIDATES)
    used = slot < tl.sum(selected.to(tl.int32), axis=0)
    numbers = tl.load(chosen_ptr + slot, mask=used, other=0)
    tokens = tl.reshape(numbers[:, None] * GROUP + tl.arange(0, GROUP)[None, :], [CANDIDATES * GROUP])
    present = tl.reshape(tl.broadcast_to(used[:, None], [CANDIDATES, GROUP]), [CANDIDATES * GROUP]) & (tokens < vocab)
    return tokens, present, bound


@triton.jit
def _kth_largest(keys, low, high, top_k):
    """The top_k-th largest key; at least `low`, below `high`."""
    while high - low > 1:
        middle = (low + high) >> 1
        count = _count(keys, middle)
        if count >= top_k:
            low = middle
        else:
            high = middle
        if count == top_k:
            high = low + 1
    return low


@triton.jit
def _nucleus(keys, weights, low, high, mass):
    """The largest bound, at least `low`, at or above which weights sum to `mass`; stops early once one key is left in doubt."""
    size = _count(keys, low)
    rest = 0
    while (high - low > 1) & (size - rest > 1):
        middle = (low + high) >> 1
        count = _count(keys, middle)
        if tl.sum(tl.where(keys >= middle, weights, 0.0), axis=0) >= mass:
            low = middle
            size = count
        else:
            high = middle
            rest = count
    return low


@kernel(do_not_specialize_on_alignment=["lines_ptr", "rows_ptr", "positions_ptr"])
def _restricted_kernel(
    logits_ptr, lines_ptr, rows_ptr, positions_ptr, temperature_ptr, seed_low_ptr, seed_high_ptr,
    top_k_ptr, top_p_ptr, min_p_ptr, maxima_ptr, tops_ptr, masses_ptr, chosen_ptr, out_ptr,
    vocab, num_chunks, num_groups, row_stride,
    CHUNKS: tl.constexpr, GROUPS: tl.constexpr, GROUP: tl.constexpr, CANDIDATES: tl.constexpr, CHUNK: tl.constexpr,
    FAST: tl.constexpr,
):  # fmt: skip
    """Sample one line: bisect for the k-th largest logit, then for the bound of the nucleus, then choose among what is kept.

    The CANDIDATES groups with the largest maxima include every token above some bound. Nearly always all kept tokens are above
    it, and these candidates, in registers, suffice; otherwise the search takes passes over the whole line.

    maxima_ptr, tops_ptr, masses_ptr  results of `_maxima_kernel`
    chosen_ptr  int32 [lines, CANDIDATES], scratch for group numbers
    """
    index = tl.program_id(0)
    line = tl.load(lines_ptr + index).to(tl.int64)
    row = tl.load(rows_ptr + line).to(tl.int64) * row_stride
    temperature = tl.load(temperature_ptr + row)
    top_k = tl.load(top_k_ptr + row)
    top_p = tl.load(top_p_ptr + row)
    min_p = tl.load(min_p_ptr + row)
    a, b = line_keys(tl.load(seed_low_ptr + row), tl.load(seed_high_ptr + row), tl.load(positions_ptr + line))
    line_ptr = logits_ptr + line * vocab
    chunk = tl.arange(0, CHUNKS)
    tops = tl.load(tops_ptr + index * num_chunks + chunk, mask=chunk < num_chunks, other=float("-inf"))
    masses = tl.load(masses_ptr + index * num_chunks + chunk, mask=chunk < num_chunks, other=0.0)
    top = tl.max(tops, axis=0)
    total_mass = tl.sum(masses * tl.exp(tops - top), axis=0)
    lowest = tl.full([], -(1 << 31), tl.int64)
    ceiling = _sortable(top).to(tl.int64) + 1

    maxima_ptr += index * num_groups
    tokens, present, bound = _candidates(
        maxima_ptr, chosen_ptr + index * CANDIDATES, vocab, num_groups, lowest, ceiling, GROUPS, GROUP, CANDIDATES
    )
    z = tl.load(line_ptr + tokens, mask=present, other=float("-inf")).to(tl.float32) / temperature
    keys = tl.where(present, _sortable(z).to(tl.int64), lowest - 1)
    weights = tl.where(present, tl.exp(z - top), 0.0)

    min_p_floor = lowest
    if min_p > 0.0:
        min_p_floor = _sortable(top + tl.log(min_p)).to(tl.int64)
    floor = min_p_floor
    complete = (_count(keys, bound) >= top_k) | (top_k == 0)
    if complete & (top_k > 0):
        floor = tl.maximum(floor, _kth_largest(keys, bound, ceiling, top_k))
    # Below the bound only the sum of the weights is known.
    complete = complete & ((floor >= bound) | ((floor == lowest) & (top_p < 1.0)))
    if complete & (top_p < 1.0):
        total = total_mass
        if floor >= bound:
            total = tl.sum(tl.where(keys >= floor, weights, 0.0), axis=0)
        low = tl.maximum(floor, bound)
        complete = tl.sum(tl.where(keys >= low, weights, 0.0), axis=0) >= top_p * total
        if complete:
            floor = _nucleus(keys, weights, low, ceiling, top_p * total)
    if complete:
        score = tl.where(keys >= floor, weights / exponential(a, b, tokens, FAST), -1.0)
        token = tl.min(tl.where(score == tl.max(score, axis=0), tokens, vocab - 1), axis=0)
    else:
        token = _search_line(line_ptr, vocab, temperature, top, min_p_floor, top_k, top_p, a, b, CHUNK, FAST)
    token = tl.where((top > float("-inf")) & (top < float("inf")), token, -1)  # NO_TOKEN
    tl.store(out_ptr + line, token.to(tl.int64))


@triton.jit
def _search_line(line_ptr, vocab, temperature, top, floor, top_k, top_p, a, b, CHUNK: tl.constexpr, FAST: tl.constexpr):
    """Sample by passes over the whole line; `floor` is the threshold of min_p."""
    ceiling = _sortable(top).to(tl.int64) + 1
    if top_k > 0:
        low = tl.full([], -(1 << 31), tl.int64)
        high = ceiling
        while high - low > 1:
            middle = (low + high) >> 1
            count, mass = _count_and_mass(line_ptr, vocab, temperature, top, middle, CHUNK)
            if count >= top_k:
                low = middle
            else:
                high = middle
            if count == top_k:
                high = low + 1
        floor = tl.maximum(floor, low)
    if top_p < 1.0:
        size, total = _count_and_mass(line_ptr, vocab, temperature, top, floor, CHUNK)
        low = floor
        high = ceiling
        rest = 0
        while (high - low > 1) & (size - rest > 1):
            middle = (low + high) >> 1
            count, mass = _count_and_mass(line_ptr, vocab, temperature, top, middle, CHUNK)
            if mass >= top_p * total:
                low = middle
                size = count
            else:
                high = middle
                rest = count
        floor = low
    best = tl.full([CHUNK], -1.0, tl.float32)
    best_ids = tl.zeros([CHUNK], tl.int32)
    for first in range(0, vocab, CHUNK):
        tokens = first + tl.arange(0, CHUNK)
        z = tl.load(line_ptr + tokens, mask=tokens < vocab, other=float("-inf")).to(tl.float32) / temperature
        score = tl.where(_sortable(z).to(tl.int64) >= floor, tl.exp(z - top) / exponential(a, b, tokens, FAST), -1.0)
        best_ids = tl.where(score > best, tokens, best_ids)
        best = tl.maximum(best, score)
    return tl.min(tl.where(best == tl.max(best, axis=0), best_ids, vocab - 1), axis=0)


def choose_restricted(logits: torch.Tensor, p: SamplingTensors, lines: torch.Tensor, token_ids: torch.Tensor) -> None:
    """Sample the restricted `lines`, [..] int32, and write their tokens into `token_ids`, [lines of logits] int64."""
    tables, row_stride = p.tables, p.tables.state.stride(0)
    count, vocab = lines.shape[0], logits.shape[1]
    num_chunks, num_groups = triton.cdiv(vocab, _CHUNK), triton.cdiv(vocab, _GROUP)
    maxima = torch.empty(count, num_groups, dtype=torch.float32, device=logits.device)
    tops, masses = torch.empty(2, count, num_chunks, dtype=torch.float32, device=logits.device)
    chosen = torch.empty(count, _CANDIDATES, dtype=torch.int32, device=logits.device)
    _maxima_kernel[(count, num_chunks)](
        logits, lines, p.rows, tables.temperature, maxima, tops, masses, vocab, num_chunks, num_groups, row_stride,
        CHUNK=_CHUNK, GROUP=_GROUP, num_warps=8,
    )  # fmt: skip
    _restricted_kernel[(count,)](
        logits, lines, p.rows, p.positions, tables.temperature, tables.seed_low, tables.seed_high,
        tables.top_k, tables.top_p, tables.min_p, maxima, tops, masses, chosen, token_ids,
        vocab, num_chunks, num_groups, row_stride,
        CHUNKS=triton.next_power_of_2(num_chunks), GROUPS=triton.next_power_of_2(num_groups), GROUP=_GROUP,
        CANDIDATES=_CANDIDATES, CHUNK=min(16384, triton.next_power_of_2(vocab)), FAST=not logits.is_cpu, num_warps=16,
    )  # fmt: skip
