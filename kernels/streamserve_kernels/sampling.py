"""Choosing the next token in Triton, without sorting the vocabulary and without asking the device anything.

The specification is `reference/sampling.py`. Every line's choice is an argmax of logits, or of probabilities over noise; which
one, its row says. Lines restricted by top_k, top_p or min_p first find the logit below which they keep nothing, by bisecting
the bits of a float: among the likeliest few thousand tokens, and only where those don't hold all that a line keeps, in passes
over the line.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from triton.language.extra import cuda
from triton.language.extra.cuda import libdevice

from .launch import dependent_launch, kernel
from .reference.logit_edits import penalise
from .reference.sampling import token_logprobs
from .sampling_tensors import BadWords, SampledTokens, SamplingTensors

__all__ = ["sample", "token_logprobs"]

_CHUNK = 4096
_GROUP = 32
_CANDIDATES = 256
"""Groups of tokens that a restricted line looks into first."""


@triton.jit
def _mix(h):
    h ^= h >> 16
    h *= 0x85EBCA6B
    h ^= h >> 13
    h *= 0xC2B2AE35
    h ^= h >> 16
    return h


@triton.jit
def _line_keys(seed_low, seed_high, position):
    """The two keys of a line, uint32 (reference/noise.py)."""
    golden = tl.full([], 0x9E3779B9, tl.uint32)
    a = _mix(seed_low.to(tl.uint32, bitcast=True) ^ _mix(position.to(tl.uint32, bitcast=True) + golden))
    b = _mix(seed_high.to(tl.uint32, bitcast=True) ^ a ^ tl.full([], 0x85EBCA77, tl.uint32))
    return a, b


@triton.jit
def _exponential(a, b, tokens, FAST: tl.constexpr):
    """-log(u) of `tokens` (reference/noise.py); the 23 bits are the same to the bit.

    With FAST by the hardware's logarithm, which is absolutely precise: near u = 1, where the likely winners are, by a series.
    """
    h = (tokens.to(tl.uint32, bitcast=True) * tl.full([], 0x9E3779B1, tl.uint32)) ^ a
    h ^= h >> 16
    h *= tl.full([], 0x7FEB352D, tl.uint32)
    h ^= b
    h ^= h >> 15
    h *= tl.full([], 0x846CA68B, tl.uint32)
    odd = (2 * (h >> 9) + 1).to(tl.int32)
    u = odd.to(tl.float32) * 5.9604644775390625e-08
    if FAST:
        rest = (16777216 - odd).to(tl.float32) * 5.9604644775390625e-08
        series = rest * (1.0 + rest * (0.5 + rest * (0.3333333333 + rest * (0.25 + rest * 0.2))))
        noise = tl.where(rest < 0.0625, series, libdevice.fast_log2f(u) * -0.6931471805599453)
    else:
        noise = -tl.log(u)
    return noise


@kernel(do_not_specialize_on_alignment=["rows_ptr", "positions_ptr"])
def _scores_kernel(
    logits_ptr, rows_ptr, positions_ptr, temperature_ptr, seed_low_ptr, seed_high_ptr, best_ptr, best_ids_ptr,
    vocab, parts, row_stride, CHUNK: tl.constexpr, FAST: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """The best score of one chunk of one line, and the first token that has it."""
    if PDL:
        cuda.gdc_launch_dependents()
    line = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    tokens = part * CHUNK + tl.arange(0, CHUNK)
    row = tl.load(rows_ptr + line).to(tl.int64) * row_stride
    temperature = tl.load(temperature_ptr + row)
    a, b = _line_keys(tl.load(seed_low_ptr + row), tl.load(seed_high_ptr + row), tl.load(positions_ptr + line))
    if PDL:
        cuda.gdc_wait()
    z = tl.load(logits_ptr + line * vocab + tokens, mask=tokens < vocab, other=float("-inf")).to(tl.float32)
    score = z
    if temperature > 0.0:
        # The race of reference/noise.py in logarithms, so that chunks compare as they are and nothing is divided.
        noise = _exponential(a, b, tokens, FAST)
        score = z * (1.4426950408889634 / temperature) - (libdevice.fast_log2f(noise) if FAST else tl.log2(noise))
    best = tl.max(score, axis=0)
    first = tl.min(tl.where(score == best, tokens, vocab - 1), axis=0)
    tl.store(best_ptr + line * parts + part, best)
    tl.store(best_ids_ptr + line * parts + part, first)


@kernel()
def _best_kernel(best_ptr, best_ids_ptr, out_ptr, parts, vocab, PARTS: tl.constexpr, PDL: tl.constexpr):
    """The best chunk of one line."""
    if PDL:
        cuda.gdc_launch_dependents()
        cuda.gdc_wait()
    line = tl.program_id(0).to(tl.int64)
    part = tl.arange(0, PARTS)
    scores = tl.load(best_ptr + line * parts + part, mask=part < parts, other=float("-inf"))
    ids = tl.load(best_ids_ptr + line * parts + part, mask=part < parts, other=vocab - 1)
    token = tl.min(tl.where(scores == tl.max(scores, axis=0), ids, vocab - 1), axis=0)
    tl.store(out_ptr + line, token.to(tl.int64))


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
    a, b = _line_keys(tl.load(seed_low_ptr + row), tl.load(seed_high_ptr + row), tl.load(positions_ptr + line))
    line_ptr = logits_ptr + line * vocab
    part = tl.arange(0, PARTS)
    tops = tl.load(tops_ptr + index * parts + part, mask=part < parts, other=float("-inf"))
    masses = tl.load(masses_ptr + index * parts + part, mask=part < parts, other=0.0)
    top = tl.max(tops, axis=0)
    everything = tl.sum(masses * tl.exp(tops - top), axis=0)
    lowest = tl.full([], -(1 << 31), tl.int64)
    ceiling = _ordered(top).to(tl.int64) + 1

    group = tl.arange(0, GROUPS)
    maxima = tl.load(maxima_ptr + index * num_groups + group, mask=group < num_groups, other=float("-inf"))
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
    tl.store(chosen_ptr + index * CANDIDATES + place, group, mask=selected)
    # The groups' numbers change threads through memory.
    tl.debug_barrier()
    slot = tl.arange(0, CANDIDATES)
    used = slot < tl.sum(selected.to(tl.int32), axis=0)
    numbers = tl.load(chosen_ptr + index * CANDIDATES + slot, mask=used, other=0)
    tokens = tl.reshape(numbers[:, None] * GROUP + tl.arange(0, GROUP)[None, :], [CANDIDATES * GROUP])
    present = tl.reshape(tl.broadcast_to(used[:, None], [CANDIDATES, GROUP]), [CANDIDATES * GROUP]) & (tokens < vocab)
    z = tl.load(line_ptr + tokens, mask=present, other=float("-inf")).to(tl.float32) / temperature
    keys = tl.where(present, _ordered(z).to(tl.int64), lowest - 1)
    weights = tl.where(present, tl.exp(z - top), 0.0)

    wanted = lowest
    if min_p > 0.0:
        wanted = _ordered(top + tl.log(min_p)).to(tl.int64)
    floor = wanted
    complete = (_count(keys, bound) >= top_k) | (top_k == 0)
    if complete & (top_k > 0):
        low = bound
        high = ceiling
        while high - low > 1:
            middle = (low + high) >> 1
            count = _count(keys, middle)
            if count >= top_k:
                low = middle
            else:
                high = middle
            if count == top_k:
                high = low + 1
        floor = tl.maximum(floor, low)
    # What is below the bound is known in sum only.
    complete = complete & ((floor >= bound) | ((floor == lowest) & (top_p < 1.0)))
    if complete & (top_p < 1.0):
        total = everything
        if floor >= bound:
            total = tl.sum(tl.where(keys >= floor, weights, 0.0), axis=0)
        low = tl.maximum(floor, bound)
        complete = tl.sum(tl.where(keys >= low, weights, 0.0), axis=0) >= top_p * total
        high = ceiling
        size = _count(keys, low)
        rest = 0
        while complete & (high - low > 1) & (size - rest > 1):
            middle = (low + high) >> 1
            count = _count(keys, middle)
            if tl.sum(tl.where(keys >= middle, weights, 0.0), axis=0) >= top_p * total:
                low = middle
                size = count
            else:
                high = middle
                rest = count
        floor = low
    if complete:
        race = tl.where(keys >= floor, weights / _exponential(a, b, tokens, FAST), -1.0)
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
        race = tl.where(_ordered(z).to(tl.int64) >= floor, tl.exp(z - top) / _exponential(a, b, tokens, FAST), -1.0)
        best_ids = tl.where(race > best, tokens, best_ids)
        best = tl.maximum(best, race)
    return tl.min(tl.where(best == tl.max(best, axis=0), best_ids, vocab - 1), axis=0)


@kernel(do_not_specialize_on_alignment=["lines_ptr", "bits_ptr"])
def _mask_kernel(logits_ptr, lines_ptr, bits_ptr, vocab, num_words, CHUNK: tl.constexpr):
    """Ban what one mask leaves out, in one chunk of its line."""
    mask = tl.program_id(0)
    line = tl.load(lines_ptr + mask).to(tl.int64)
    tokens = tl.program_id(1) * CHUNK + tl.arange(0, CHUNK)
    word = tl.load(bits_ptr + mask * num_words + tokens // 32, mask=tokens < vocab, other=-1)
    banned = ((word >> (tokens % 32)) & 1) == 0
    tl.store(logits_ptr + line * vocab + tokens, tl.full([CHUNK], float("-inf"), tl.float32), mask=banned & (tokens < vocab))


@kernel(do_not_specialize=["count"], do_not_specialize_on_alignment=["lines_ptr", "ids_ptr", "values_ptr"])
def _edit_kernel(logits_ptr, lines_ptr, ids_ptr, values_ptr, count, vocab, CHUNK: tl.constexpr):
    """Add to single logits; atomic, since one token may have several edits."""
    edits = tl.program_id(0) * CHUNK + tl.arange(0, CHUNK)
    inside = edits < count
    line = tl.load(lines_ptr + edits, mask=inside, other=0).to(tl.int64)
    token = tl.load(ids_ptr + edits, mask=inside, other=0)
    tl.atomic_add(logits_ptr + line * vocab + token, tl.load(values_ptr + edits, mask=inside, other=0.0), mask=inside)


@kernel(
    do_not_specialize=["length"],
    do_not_specialize_on_alignment=["lines_ptr", "prefixes_ptr", "last_ptr", "rows_ptr", "positions_ptr"],
)
def _bad_word_kernel(
    logits_ptr, lines_ptr, prefixes_ptr, last_ptr, rows_ptr, positions_ptr, ids_ptr, num_prompt_ptr,
    length, vocab, row_stride, LENGTH: tl.constexpr,
):  # fmt: skip
    """Ban the last id of one word where the ids before it end the generated tokens."""
    word = tl.program_id(0)
    line = tl.load(lines_ptr + word).to(tl.int64)
    row = tl.load(rows_ptr + line).to(tl.int64) * row_stride
    place = tl.arange(0, LENGTH)
    prefix = tl.load(prefixes_ptr + word * length + place, mask=place < length, other=-1)
    position = tl.load(positions_ptr + line) - length + place
    generated = position >= tl.load(num_prompt_ptr + row)
    tail = tl.load(ids_ptr + row + position, mask=(place < length) & (position >= 0), other=-2)
    differs = (prefix >= 0) & ((tail != prefix) | (generated == 0))
    if tl.sum(differs.to(tl.int32), axis=0) == 0:
        tl.store(logits_ptr + line * vocab + tl.load(last_ptr + word), float("-inf"))


def sample(logits: torch.Tensor, parameters: SamplingTensors) -> SampledTokens:
    """See the reference. A line is greedy where its row's temperature is 0, which is what leaving it out of the lists means."""
    edited = _edit(logits.contiguous(), parameters)
    token_ids = _choose(edited, parameters)
    if parameters.logprobs is None:
        return SampledTokens(token_ids)
    lines = parameters.logprobs.lines
    return SampledTokens(token_ids, token_logprobs(logits[lines], token_ids[lines], parameters.logprobs.num_top))


def _choose(logits: torch.Tensor, p: SamplingTensors) -> torch.Tensor:
    num_lines, vocab = logits.shape
    token_ids = torch.empty(num_lines, dtype=torch.int64, device=logits.device)
    tables, row_stride = p.tables, p.tables.state.stride(0)
    num_restricted = 0 if p.restricted is None else p.restricted.shape[0]
    if num_restricted < num_lines:
        parts = triton.cdiv(vocab, _CHUNK)
        best = torch.empty(num_lines, parts, dtype=torch.float32, device=logits.device)
        best_ids = torch.empty(num_lines, parts, dtype=torch.int32, device=logits.device)
        options = dependent_launch(logits.device)
        _scores_kernel[(num_lines, parts)](
            logits, p.rows, p.positions, tables.temperature, tables.seed_low, tables.seed_high, best, best_ids,
            vocab, parts, row_stride, CHUNK=_CHUNK, FAST=logits.is_cuda, num_warps=8, **options,
        )  # fmt: skip
        _best_kernel[(num_lines,)](
            best, best_ids, token_ids, parts, vocab, PARTS=triton.next_power_of_2(parts), num_warps=1, **options
        )
    if p.restricted is not None:
        _choose_restricted(logits, p, p.restricted, token_ids)
    return token_ids


def _choose_restricted(logits: torch.Tensor, p: SamplingTensors, lines: torch.Tensor, token_ids: torch.Tensor) -> None:
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
        CHUNK=min(16384, triton.next_power_of_2(vocab)), FAST=logits.is_cuda, num_warps=16,
    )  # fmt: skip


def _edit(logits: torch.Tensor, p: SamplingTensors) -> torch.Tensor:
    if p.masks is None and p.edits is None and p.bad_words is None and p.penalties is None:
        return logits
    edited = logits.to(torch.float32, copy=True)
    vocab = logits.shape[1]
    if p.masks is not None:
        num_masks, num_words = p.masks.bits.shape
        _mask_kernel[(num_masks, triton.cdiv(vocab, _CHUNK))](
            edited, p.masks.lines, p.masks.bits, vocab, num_words, CHUNK=_CHUNK
        )
    if p.edits is not None:
        count = p.edits.lines.shape[0]
        _edit_kernel[(triton.cdiv(count, 256),)](
            edited, p.edits.lines, p.edits.token_ids, p.edits.values, count, vocab, CHUNK=256
        )
    if p.bad_words is not None:
        _ban(edited, p.bad_words, p)
    if p.penalties is not None:
        penalise(edited, p.penalties, p.tables, p.rows, p.positions)
    return edited


def _ban(edited: torch.Tensor, words: BadWords, p: SamplingTensors) -> None:
    count, length = words.prefixes.shape
    tables = p.tables
    _bad_word_kernel[(count,)](
        edited, words.lines, words.prefixes, words.last, p.rows, p.positions, tables.token_ids, tables.num_prompt_tokens,
        length, edited.shape[1], tables.state.stride(0), LENGTH=triton.next_power_of_2(length), num_warps=1,
    )  # fmt: skip
