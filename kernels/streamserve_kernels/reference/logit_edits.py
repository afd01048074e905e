"""Edits of logits before temperature, in vLLM's order: masks, biases and bans, bad words, penalties. In torch."""

from __future__ import annotations

import torch
from torch import Tensor

from streamserve_kernels.rows.tables import RowTables
from streamserve_kernels.sampling.tensors import BadWords, LogitEdits, Penalties, SamplingTensors, TokenMasks

_NEVER = float("-inf")


def edit_logits(logits: Tensor, parameters: SamplingTensors) -> Tensor:
    """The logits [lines, vocab] after all edits: a changed fp32 copy, or `logits` itself when no line has any."""
    p = parameters
    if p.masks is None and p.edits is None and p.bad_words is None and p.penalties is None:
        return logits
    edited = logits.to(torch.float32, copy=True)
    if p.masks is not None:
        _apply_masks(edited, p.masks)
    if p.edits is not None:
        _apply_edits(edited, p.edits)
    if p.bad_words is not None:
        _ban_bad_words(edited, p.bad_words, p.tables, p.rows, p.positions)
    if p.penalties is not None:
        penalise(edited, p.penalties, p.tables, p.rows, p.positions)
    return edited


def _apply_masks(logits: Tensor, masks: TokenMasks) -> None:
    bit = torch.arange(32, dtype=torch.int32, device=logits.device)
    banned = ((masks.bits.unsqueeze(2) >> bit) & 1).flatten(1)[:, : logits.shape[1]] == 0
    for line, ban in zip(masks.lines.tolist(), banned, strict=True):
        logits[line].masked_fill_(ban, _NEVER)


def _apply_edits(logits: Tensor, edits: LogitEdits) -> None:
    for line, first, count in zip(edits.lines.tolist(), edits.firsts.tolist(), edits.counts.tolist(), strict=True):
        logits[line].index_add_(0, edits.token_ids[first : first + count], edits.values[first : first + count])


def _ban_bad_words(logits: Tensor, words: BadWords, tables: RowTables, rows: Tensor, positions: Tensor) -> None:
    """Ban `last` where the generated tokens end with the prefix."""
    word_rows = rows[words.lines]
    length = words.prefixes.shape[1]
    indices = positions[words.lines].unsqueeze(1) - torch.arange(length, 0, -1, device=rows.device)
    tail = tables.token_ids[word_rows.unsqueeze(1), indices.clamp(min=0)]
    generated = indices >= tables.num_prompt_tokens[word_rows].unsqueeze(1)
    matched = ((words.prefixes < 0) | (generated & (tail == words.prefixes))).all(1)
    logits[words.lines[matched], words.last[matched]] = _NEVER


def penalise(logits: Tensor, penalties: Penalties, tables: RowTables, rows: Tensor, positions: Tensor) -> None:
    """Apply penalties in place: repetition over prompt and output (Keskar et al., 2019), presence and frequency over the output
    (OpenAI's formula).

    Works on the tokens of a sequence, not on the vocabulary: each occurrence computes its token's new logit from the old one,
    so that repeated tokens write the same number twice. Ids sampled by a step in flight count, since they are in the row.
    """
    lines = penalties.lines
    line_rows, num_tokens = rows[lines], positions[lines].unsqueeze(1)
    index = torch.arange(penalties.max_tokens, device=rows.device)
    tokens = tables.token_ids[line_rows, : penalties.max_tokens].long()
    tokens = torch.where(index < num_tokens, tokens, tokens[:, :1])
    generated = (index < num_tokens) & (index >= tables.num_prompt_tokens[line_rows].unsqueeze(1))
    counts = torch.zeros(len(lines), logits.shape[1], device=rows.device).scatter_add_(1, tokens, generated.float())
    count = counts.gather(1, tokens)

    repetition, frequency, presence = (
        column[line_rows].unsqueeze(1)
        for column in (tables.repetition_penalty, tables.frequency_penalty, tables.presence_penalty)
    )
    where = (lines.long().unsqueeze(1), tokens)
    old = logits[where]
    new = torch.where(old > 0, old / repetition, old * repetition)
    logits[where] = new - frequency * count - presence * (count > 0)
