"""Sampling under top_k, top_p or min_p in Triton, without sorting the vocabulary.

A line first finds the logit below which it keeps nothing, by bisecting the bits of a float: among the likeliest few thousand
tokens, and only where those don't hold all that it keeps, in passes over the line.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .launch import kernel
from .sampling_noise import exponential, line_keys
from .sampling_tensors import SamplingTensors

_CHUNK = 4096
_GROUP = 32
_CANDIDATES = 256
"""Groups of tokens that a line looks into first."""


@triton.jit
def _ordered(x):
    """int32 that compare as the floats `x` do."""
    bits = x.to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def _above(logits_ptr, vocab, temperature, top, bound, CHUNK: tl.constexpr):
    """How many logits are at or above `bound` (as `_ordered`), and the sum of their exp(z - top)."""
    counts = tl.zeros([CHUNK], tl.int32)
    masses = tl.zeros([CHUNK], tl.float32)
    for first in range(0, vocab, CHUNK):
        tokens = first + tl.arange(0, CHUNK)
        z = tl.load(logits_ptr + tokens, mask=tokens < vocab, other=float("-inf")).to(tl.float32) / temperature
        kept = (tokens < vocab) & (_ordered(z).to(tl.int64) >= bound)
        counts += kept.to(tl.int32)
        masses += tl.where(kept, tl.exp(z - top), 0.0)
    return tl.sum(counts, axis=0), tl.sum(masses, axis=0)


@kernel(do_not_specialize_on_alignment=["lines_ptr", "rows_ptr"])
def _outline_kernel(
    logits_ptr, lines_ptr, rows_ptr, temperature_ptr, maxima_ptr, tops_ptr, masses_ptr,
    vocab, parts, num_groups, row_stride, CHUNK: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """Of a chunk of a line's scaled logits: the maximum of every group of tokens, the chunk's, and its sum of exp(z - top)."""
    index = tl.program_id(0)
    part = tl.program_id(1)
    groups: tl.constexpr = CHUNK // GROUP
    line = tl.load(lines_ptr + index).to(tl.int64)
    temperature = tl.load(temperature_ptr + tl.load(rows_ptr + line).to(tl.int64) * row_stride)
    group = part * groups + tl.arange(0, groups)
    tokens = group[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    z = tl.load(logits_ptr + line * vocab + tokens, mask=tokens < vocab, other=float("-inf")).to(tl.float32) / temperature
    maxima = tl.max(z, axis=1)
    top = tl.max(maxima, axis=0)
    shift = tl.where(top == float("-inf"), 0.0, top)
    tl.store(maxima_ptr + index * num_groups + group, maxima, mask=group < num_groups)
    tl.store(tops_ptr + index * parts + part, top)
    tl.store(masses_ptr + index * parts + part, tl.sum(tl.sum(tl.exp(z - shift), axis=1), axis=0))


@triton.jit
def _count(keys, bound):
    """How many of `keys` are at or above `bound`."""
    return tl.sum((keys >= bound).to(tl.int32), axis=0)


@triton.jit
def _likeliest(
    maxima_ptr, chosen_ptr, vocab, num_groups, lowest, ceiling,
    GROUPS: tl.constexpr, GROUP: tl.constexpr, CANDIDATES: tl.constexpr,
):  # fmt: skip
    """The tokens of the CANDIDATES groups with the largest maxima, which of them exist, and a bound that no other reaches."""
    group = tl.arange(0, GROUPS)
    maxima = tl.load(maxima_ptr + group, mask=group < num_groups, other=float("-inf"))
    maxima_keys = tl.where(group < num_groups, _ordered(maxima).to(tl.int64), lowest - 1)
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
    place = tl.cumsum(selected.to(tl.int32), axis=0) - 1
    tl.store(chosen_ptr + place, group, mask=selected)
    # The groups' numbers change threads through memory.
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
    """The largest bound, at least `low`, at or above which the weights sum up to `mass`, as far as it tells keys apart."""
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
    vocab, parts, num_groups, row_stride,
    PARTS: tl.constexpr, GROUPS: tl.constexpr, GROUP: tl.constexpr, CANDIDATES: tl.constexpr, CHUNK: tl.constexpr,
    FAST: tl.constexpr,
):  # fmt: skip
    """One line: bisect for the k-th largest logit, then for the bound of the nucleus, then choose among what is left.

    The CANDIDATES groups with the largest maxima hold every token above some bound. Nearly always all that a line keeps is
    above it, and the line is done with these few tokens in registers; where it is not, bisection goes over the whole line.

    maxima_ptr, tops_ptr, masses_ptr  what `_outline_kernel` found
    chosen_ptr  int32 [lines, CANDIDATES], for the groups' numbers
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
    part = tl.arange(0, PARTS)
    tops = tl.load(tops_ptr + index * parts + part, mask=part < parts, other=float("-inf"))
    masses = tl.load(masses_ptr + index * parts + part, mask=part < parts, other=0.0)
    top = tl.max(tops, axis=0)
    everything = tl.sum(masses * tl.exp(tops - top), axis=0)
    lowest = tl.full([], -(1 << 31), tl.int64)
    ceiling = _ordered(top).to(tl.int64) + 1

    maxima_ptr += index * num_groups
    tokens, present, bound = _likeliest(
        maxima_ptr, chosen_ptr + index * CANDIDATES, vocab, num_groups, lowest, ceiling, GROUPS, GROUP, CANDIDATES
    )
    z = tl.load(line_ptr + tokens, mask=present, other=float("-inf")).to(tl.float32) / temperature
    keys = tl.where(present, _ordered(z).to(tl.int64), lowest - 1)
    weights = tl.where(present, tl.exp(z - top), 0.0)

    wanted = lowest
    if min_p > 0.0:
        wanted = _ordered(top + tl.log(min_p)).to(tl.int64)
    floor = wanted
    complete = (_count(keys, bound) >= top_k) | (top_k == 0)
    if complete & (top_k > 0):
        floor = tl.maximum(floor, _kth_largest(keys, bound, ceiling, top_k))
    # What is below the bound is known in sum only.
    complete = complete & ((floor >= bound) | ((floor == lowest) & (top_p < 1.0)))
    if complete & (top_p < 1.0):
        total = everything
        if floor >= bound:
            total = tl.sum(tl.where(keys >= floor, weights, 0.0), axis=0)
        low = tl.maximum(floor, bound)
        complete = tl.sum(tl.where(keys >= low, weights, 0.0), axis=0) >= top_p * total
        if complete:
            floor = _nucleus(keys, weights, low, ceiling, top_p * total)
    if complete:
        race = tl.where(keys >= floor, weights / exponential(a, b, tokens, FAST), -1.0)
        token = tl.min(tl.where(race == tl.max(race, axis=0), tokens, vocab - 1), axis=0)
    else:
        token = _search_line(line_ptr, vocab, temperature, top, wanted, top_k, top_p, a, b, CHUNK, FAST)
    tl.store(out_ptr + line, token.to(tl.int64))


@triton.jit
def _search_line(line_ptr, vocab, temperature, top, floor, top_k, top_p, a, b, CHUNK: tl.constexpr, FAST: tl.constexpr):
    """The restricted choice by passes over the whole line; `floor` is what min_p asks for."""
    ceiling = _ordered(top).to(tl.int64) + 1
    if top_k > 0:
        low = tl.full([], -(1 << 31), tl.int64)
        high = ceiling
        while high - low > 1:
            middle = (low + high) >> 1
            count, mass = _above(line_ptr, vocab, temperature, top, middle, CHUNK)
            if count >= top_k:
                low = middle
            else:
                high = middle
            if count == top_k:
                high = low + 1
        floor = tl.maximum(floor, low)
    if top_p < 1.0:
        size, total = _above(line_ptr, vocab, temperature, top, floor, CHUNK)
        low = floor
        high = ceiling
        rest = 0
        while (high - low > 1) & (size - rest > 1):
            middle = (low + high) >> 1
            count, mass = _above(line_ptr, vocab, temperature, top, middle, CHUNK)
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
        race = tl.where(_ordered(z).to(tl.int64) >= floor, tl.exp(z - top) / exponential(a, b, tokens, FAST), -1.0)
        best_ids = tl.where(race > best, tokens, best_ids)
        best = tl.maximum(best, race)
    return tl.min(tl.where(best == tl.max(best, axis=0), best_ids, vocab - 1), axis=0)


def choose_restricted(logits: torch.Tensor, p: SamplingTensors, lines: torch.Tensor, token_ids: torch.Tensor) -> None:
    """Fill in the tokens of `lines`."""
    tables, row_stride = p.tables, p.tables.state.stride(0)
    count, vocab = lines.shape[0], logits.shape[1]
    parts, num_groups = triton.cdiv(vocab, _CHUNK), triton.cdiv(vocab, _GROUP)
    maxima = torch.empty(count, num_groups, dtype=torch.float32, device=logits.device)
    tops, masses = torch.empty(2, count, parts, dtype=torch.float32, device=logits.device)
    chosen = torch.empty(count, _CANDIDATES, dtype=torch.int32, device=logits.device)
    _outline_kernel[(count, parts)](
        logits, lines, p.rows, tables.temperature, maxima, tops, masses, vocab, parts, num_groups, row_stride,
        CHUNK=_CHUNK, GROUP=_GROUP, num_warps=8,
    )  # fmt: skip
    _restricted_kernel[(count,)](
        logits, lines, p.rows, p.positions, tables.temperature, tables.seed_low, tables.seed_high,
        tables.top_k, tables.top_p, tables.min_p, maxima, tops, masses, chosen, token_ids, vocab, parts, num_groups, row_stride,
        PARTS=triton.next_power_of_2(parts), GROUPS=triton.next_power_of_2(num_groups), GROUP=_GROUP, CANDIDATES=_CANDIDATES,
        CHUNK=min(16384, triton.next_power_of_2(vocab)), FAST=not logits.is_cpu, num_warps=16,
    )  # fmt: skip
