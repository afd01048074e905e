"""Row updates and input gathering, in torch."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from streamserve_kernels.rows.tables import BEHIND_TOKENS, PADDING_TOKENS, RowTables


class GatheredInputs(NamedTuple):
    """A step's model inputs.

    token_ids     [tokens]  int64
    positions     [tokens]  int64
    slot_mapping  [groups, tokens]  int64, -1 for tokens of the padding row
    block_tables  [groups, sequences, max_blocks]  int32; entries past a sequence's end may hold anything
    seq_lens      [sequences]  int32, tokens in the cache once this step has run
    """

    token_ids: Tensor
    positions: Tensor
    slot_mapping: Tensor
    block_tables: Tensor
    seq_lens: Tensor


def apply_row_deltas(tables: RowTables, segments: Tensor, payload: Tensor) -> None:
    """Copy runs of words into rows, in order.

    segments  [segments, 4]  int32: row, first word in the row, first word in the payload, number of words
    payload   [words]        int32

    A first word of `BEHIND_TOKENS` stands for the place behind the row's last token. No two segments of one call overlap, and
    none is relative to a number of tokens that another one sets.
    """
    for row, column, source, count in segments.tolist():
        first = tables.layout.token_ids + int(tables.num_tokens[row]) if column == BEHIND_TOKENS else column
        tables.state[row, first : first + count] = payload[source : source + count]


def gather_inputs(
    tables: RowTables, rows: Tensor, starts: Tensor, query_start: Tensor, *, num_tokens: int, block_size: int
) -> GatheredInputs:
    """Read what a step feeds the model out of the rows: no id that was sampled on the device visits the host before.

    rows         [sequences]      int32; the padding row for entries that only fill a captured size
    starts       [sequences]      int32, position of the first token to compute; negative ones count back from the number of
                                  tokens that the row has, which the host need not know
    query_start  [sequences + 1]  int32, prefix sums of the tokens to compute; an entry may have none
    num_tokens   query_start[-1], which the host knows
    """
    counts = query_start[1:] - query_start[:-1]
    starts = torch.where(starts < 0, tables.num_tokens[rows] + starts, starts)
    block_tables = tables.block_tables.index_select(0, rows).transpose(0, 1).contiguous()
    seq_lens = starts + counts
    if num_tokens == rows.shape[0] and bool((counts == 1).all()):
        positions, token_rows, tables_of_tokens = starts.long(), rows, block_tables
    else:
        sequence = torch.repeat_interleave(counts, output_size=num_tokens)
        offsets = torch.arange(num_tokens, device=rows.device) - query_start[sequence]
        positions, token_rows = starts[sequence] + offsets, rows[sequence]
        tables_of_tokens = block_tables[:, sequence]
    token_ids = tables.token_ids[token_rows, positions].long()
    places = (positions // block_size).expand(block_tables.shape[0], -1)
    blocks = tables_of_tokens.gather(2, places.unsqueeze(2)).squeeze(2)
    slots = blocks.long() * block_size + positions % block_size
    return GatheredInputs(token_ids, positions, slots.masked_fill(token_rows == tables.padding_row, -1), block_tables, seq_lens)


def scatter_sampled(tables: RowTables, rows: Tensor, positions: Tensor, token_ids: Tensor) -> None:
    """Write sampled ids into their rows, which have one token more then: the next step begins there.

    rows       [lines]  int32, distinct but for the padding row
    positions  [lines]  int32, the place of each id in its row: the number of tokens the row has
    token_ids  [lines]  int64; for `NO_TOKEN` token 0 is written, since the row's next step reads an embedding
    """
    tables.token_ids[rows, positions] = token_ids.clamp(min=0).int()
    tables.num_tokens[rows] = positions + 1
    tables.num_tokens[tables.padding_row] = PADDING_TOKENS


def accept_drafts(tables: RowTables, rows: Tensor, line_start: Tensor, token_ids: Tensor, *, most: int) -> Tensor:
    """Write sampled ids into rows with drafts behind their last token, as far as those agree (Leviathan et al., 2023).

    A row's first id was sampled behind its own tokens, each further one behind one draft more, and counts only if all drafts
    before it are the ids sampled in their places. Sampling is keyed by position, so these are the ids that steps without drafts
    would have sampled.

    rows        [sequences]      int32, distinct
    line_start  [sequences + 1]  int32, prefix sums of the ids sampled for each row, at least one
    token_ids   [lines]          int64; `NO_TOKEN` agrees with no draft and is written as token 0
    most        the largest number of ids of a row
    returns     [sequences]      int32, how many of its ids each row took: it has so many tokens more
    """
    counts = (line_start[1:] - line_start[:-1]).unsqueeze(1)
    lane = torch.arange(most, device=rows.device)
    sampled = token_ids[(line_start[:-1].unsqueeze(1) + lane).clamp(max=len(token_ids) - 1)].int()
    places = (tables.num_tokens[rows].unsqueeze(1) + lane).clamp(max=tables.token_ids.shape[1] - 1)
    agrees = (tables.token_ids[rows.unsqueeze(1), places] == sampled) & (lane < counts - 1)
    accepted = 1 + agrees.int().cumprod(1).sum(1)
    taken = lane < accepted.unsqueeze(1)
    tables.token_ids[rows.unsqueeze(1).expand_as(places)[taken], places[taken]] = sampled[taken].clamp(min=0)
    tables.num_tokens[rows] += accepted.int()
    return accepted.int()
