"""Sampling of the next token in Triton, without sorting the vocabulary and without synchronising with the device.

The specification is `reference/sampling.py`. The choice of a line is an argmax of its logits, or of probabilities divided by
noise where its row has a temperature. Restricted lines have their own kernel (restricted.py).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from triton.language.extra import cuda
from triton.language.extra.cuda import libdevice

from streamserve_kernels.launch import dependent_launch, kernel
from streamserve_kernels.reference.logit_edits import penalise
from streamserve_kernels.reference.sampling import token_logprobs
from streamserve_kernels.sampling.noise import exponential, line_keys
from streamserve_kernels.sampling.restricted import choose_restricted
from streamserve_kernels.sampling.tensors import BadWords, SampledTokens, SamplingTensors

__all__ = ["sample", "token_logprobs"]

_CHUNK = 4096


@kernel(do_not_specialize_on_alignment=["rows_ptr", "positions_ptr"])
def _scores_kernel(
    logits_ptr, rows_ptr, positions_ptr, temperature_ptr, seed_low_ptr, seed_high_ptr, best_ptr, best_ids_ptr,
    vocab, num_chunks, row_stride, CHUNK: tl.constexpr, FAST: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Find the best score of one chunk of one line, and the first token that has it; +inf where a logit is NaN or +inf."""
    if PDL:
        cuda.gdc_launch_dependents()
    line = tl.program_id(0).to(tl.int64)
    chunk = tl.program_id(1)
    tokens = chunk * CHUNK + tl.arange(0, CHUNK)
    row = tl.load(rows_ptr + line).to(tl.int64) * row_stride
    temperature = tl.load(temperature_ptr + row)
    a, b = line_keys(tl.load(seed_low_ptr + row), tl.load(seed_high_ptr + row), tl.load(positions_ptr + line))
    if PDL:
        cuda.gdc_wait()
    z = tl.load(logits_ptr + line * vocab + tokens, mask=tokens < vocab, other=float("-inf")).to(tl.float32)
    score = z
    if temperature > 0.0:
        # The quotients of reference/noise.py as logarithms: scores of chunks compare without a softmax over the line.
        noise = exponential(a, b, tokens, FAST)
        score = z * (1.4426950408889634 / temperature) - (libdevice.fast_log2f(noise) if FAST else tl.log2(noise))
    # A maximum passes NaN over.
    best = tl.max(tl.where(score != score, float("inf"), score), axis=0)
    first = tl.min(tl.where(score == best, tokens, vocab - 1), axis=0)
    tl.store(best_ptr + line * num_chunks + chunk, best)
    tl.store(best_ids_ptr + line * num_chunks + chunk, first)


@kernel()
def _best_kernel(best_ptr, best_ids_ptr, out_ptr, num_chunks, vocab, CHUNKS: tl.constexpr, PDL: tl.constexpr):
    """Write the token of the best chunk of one line, or NO_TOKEN."""
    if PDL:
        cuda.gdc_launch_dependents()
        cuda.gdc_wait()
    line = tl.program_id(0).to(tl.int64)
    chunk = tl.arange(0, CHUNKS)
    scores = tl.load(best_ptr + line * num_chunks + chunk, mask=chunk < num_chunks, other=float("-inf"))
    ids = tl.load(best_ids_ptr + line * num_chunks + chunk, mask=chunk < num_chunks, other=vocab - 1)
    best = tl.max(scores, axis=0)
    token = tl.min(tl.where(scores == best, ids, vocab - 1), axis=0)
    token = tl.where((best > float("-inf")) & (best < float("inf")), token, -1)
    tl.store(out_ptr + line, token.to(tl.int64))


@kernel(do_not_specialize_on_alignment=["lines_ptr", "bits_ptr"])
def _mask_kernel(logits_ptr, lines_ptr, bits_ptr, vocab, num_words, CHUNK: tl.constexpr):
    """Ban the tokens that one mask does not allow, in one chunk of its line."""
    mask = tl.program_id(0)
    line = tl.load(lines_ptr + mask).to(tl.int64)
    tokens = tl.program_id(1) * CHUNK + tl.arange(0, CHUNK)
    word = tl.load(bits_ptr + mask * num_words + tokens // 32, mask=tokens < vocab, other=-1)
    banned = ((word >> (tokens % 32)) & 1) == 0
    tl.store(logits_ptr + line * vocab + tokens, tl.full([CHUNK], float("-inf"), tl.float32), mask=banned & (tokens < vocab))


@kernel(do_not_specialize_on_alignment=["lines_ptr", "firsts_ptr", "counts_ptr", "ids_ptr", "values_ptr"])
def _edit_kernel(logits_ptr, lines_ptr, firsts_ptr, counts_ptr, ids_ptr, values_ptr, vocab, CHUNK: tl.constexpr):
    """Add values to single logits of a line; atomically, since a token may have several edits."""
    use = tl.program_id(0)
    place = tl.program_id(1) * CHUNK + tl.arange(0, CHUNK)
    inside = place < tl.load(counts_ptr + use)
    edits = tl.load(firsts_ptr + use) + place
    line = tl.load(lines_ptr + use).to(tl.int64)
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
    """Ban the last id of one bad word where the generated tokens end with the ids before it."""
    word = tl.program_id(0)
    line = tl.load(lines_ptr + word).to(tl.int64)
    row = tl.load(rows_ptr + line).to(tl.int64) * row_stride
    index = tl.arange(0, LENGTH)
    prefix = tl.load(prefixes_ptr + word * length + index, mask=index < length, other=-1)
    position = tl.load(positions_ptr + line) - length + index
    generated = position >= tl.load(num_prompt_ptr + row)
    tail = tl.load(ids_ptr + row + position, mask=(index < length) & (position >= 0), other=-2)
    differs = (prefix >= 0) & ((tail != prefix) | (generated == 0))
    if tl.sum(differs.to(tl.int32), axis=0) == 0:
        tl.store(logits_ptr + line * vocab + tl.load(last_ptr + word), float("-inf"))


def sample(logits: torch.Tensor, parameters: SamplingTensors) -> SampledTokens:
    """`reference.sampling.sample`; lines in neither list are greedy because the temperature in their row is 0."""
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
        num_chunks = triton.cdiv(vocab, _CHUNK)
        best = torch.empty(num_lines, num_chunks, dtype=torch.float32, device=logits.device)
        best_ids = torch.empty(num_lines, num_chunks, dtype=torch.int32, device=logits.device)
        options = dependent_launch(logits.device)
        _scores_kernel[(num_lines, num_chunks)](
            logits, p.rows, p.positions, tables.temperature, tables.seed_low, tables.seed_high, best, best_ids,
            vocab, num_chunks, row_stride, CHUNK=_CHUNK, FAST=not logits.is_cpu, num_warps=8, **options,
        )  # fmt: skip
        _best_kernel[(num_lines,)](
            best, best_ids, token_ids, num_chunks, vocab, CHUNKS=triton.next_power_of_2(num_chunks), num_warps=1, **options
        )
    if p.restricted is not None:
        choose_restricted(logits, p, p.restricted, token_ids)
    return token_ids


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
        edits = p.edits
        _edit_kernel[(edits.lines.shape[0], triton.cdiv(edits.max_count, 256))](
            edited, edits.lines, edits.firsts, edits.counts, edits.token_ids, edits.values, vocab, CHUNK=256
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
