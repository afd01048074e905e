"""Row updates and input gathering, in torch."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from streamserve_kernels.row_tables import RowTables


class GatheredInputs(NamedTuple):
    """A step's model inputs.

    token_ids     [tokens]  int64
    positions     [tokens]  int64
    slot_mapping  [groups, tokens]  int64, -1 for tokens of the padding row
    block_tables  [groups, sequences, max_blocks]  int32
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

    No two segments of one call overlap.
    """
    for row, column, source, count in segments.tolist():
        tables.state[row, column : column + count] = payload[source : source + count]


def gather_inputs(
    tables: RowTables, rows: Tensor, starts: Tensor, query_start: Tensor, *, num_tokens: int, block_size: int
) -> GatheredInputs:
    """Read what a step feeds the model out of the rows: no id that was sampled on the device visits the host before.

    rows         [sequences]      int32; the padding row for entries that only fill a captured size
    starts       [sequences]      int32, position of the first token to compute
    query_start  [sequences + 1]  int32, prefix sums of the tokens to compute; an entry may have none
    num_tokens   query_start[-1], which the host knows
    """
    counts = query_start[1:] - query_start[:-1]
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
    """Write sampled ids into their rows, where the next step finds them.

    rows       [lines]  int32, distinct but for the padding row
    positions  [lines]  int32, the place of each id in its row
    token_ids  [lines]  int64
    """
    tables.token_ids[rows, positions] = token_ids.int()
