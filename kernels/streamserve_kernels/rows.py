"""Row updates and input gathering in Triton: one launch each.

The specification is `reference/rows.py`. None of these kernels lets its successor start early (launch.py): what they write,
every later kernel of the step may read ahead of its own turn.
"""

from __future__ import annotations

import torch
import triton.language as tl

from .launch import kernel
from .reference.rows import GatheredInputs
from .row_tables import RowTables

_CHUNK = 1024


@kernel(do_not_specialize_on_alignment=["segments_ptr", "payload_ptr"])
def _apply_kernel(state_ptr, segments_ptr, payload_ptr, row_stride, CHUNK: tl.constexpr):
    """One segment."""
    segment = segments_ptr + tl.program_id(0) * 4
    target = state_ptr + tl.load(segment).to(tl.int64) * row_stride + tl.load(segment + 1)
    source = payload_ptr + tl.load(segment + 2)
    count = tl.load(segment + 3)
    for first in range(0, count, CHUNK):
        words = first + tl.arange(0, CHUNK)
        tl.store(target + words, tl.load(source + words, mask=words < count), mask=words < count)


@kernel(do_not_specialize=["num_tokens"], do_not_specialize_on_alignment=["rows_ptr", "starts_ptr", "query_start_ptr"])
def _gather_kernel(
    ids_ptr, tables_ptr, rows_ptr, starts_ptr, query_start_ptr,
    token_ids_ptr, positions_ptr, slots_ptr, block_tables_ptr, seq_lens_ptr,
    row_stride, max_blocks, padding_row, num_tokens,
    BLOCK_SIZE: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """One chunk of one sequence: of its tokens, and of its block table of one layer group."""
    sequence = tl.program_id(0)
    lanes = tl.program_id(1) * CHUNK + tl.arange(0, CHUNK)
    row = tl.load(rows_ptr + sequence)
    start = tl.load(starts_ptr + sequence)
    begin = tl.load(query_start_ptr + sequence)
    count = tl.load(query_start_ptr + sequence + 1) - begin
    words = row.to(tl.int64) * row_stride
    group = tl.program_id(2).to(tl.int64)
    table_ptr = tables_ptr + words + group * max_blocks
    listed = lanes < max_blocks
    blocks = tl.load(table_ptr + lanes, mask=listed, other=0)
    listed_ptr = block_tables_ptr + (group * tl.num_programs(0) + sequence) * max_blocks
    tl.store(listed_ptr + lanes, blocks, mask=listed)
    present = lanes < count
    position = start + lanes
    block = tl.load(table_ptr + position // BLOCK_SIZE, mask=present, other=0).to(tl.int64)
    slot = tl.where(row + tl.zeros_like(lanes) == padding_row, -1, block * BLOCK_SIZE + position % BLOCK_SIZE)
    tl.store(slots_ptr + group * num_tokens + begin + lanes, slot, mask=present)
    # The groups agree on the rest.
    tl.store(seq_lens_ptr + sequence, start + count)
    token = tl.load(ids_ptr + words + position, mask=present, other=0)
    tl.store(token_ids_ptr + begin + lanes, token.to(tl.int64), mask=present)
    tl.store(positions_ptr + begin + lanes, position.to(tl.int64), mask=present)


@kernel(do_not_specialize=["num_lines"], do_not_specialize_on_alignment=["rows_ptr", "positions_ptr"])
def _scatter_kernel(ids_ptr, rows_ptr, positions_ptr, sampled_ptr, num_lines, row_stride, CHUNK: tl.constexpr):
    lines = tl.program_id(0) * CHUNK + tl.arange(0, CHUNK)
    inside = lines < num_lines
    row = tl.load(rows_ptr + lines, mask=inside, other=0).to(tl.int64)
    position = tl.load(positions_ptr + lines, mask=inside, other=0)
    token = tl.load(sampled_ptr + lines, mask=inside, other=0).to(tl.int32)
    tl.store(ids_ptr + row * row_stride + position, token, mask=inside)


def apply_row_deltas(tables: RowTables, segments: torch.Tensor, payload: torch.Tensor) -> None:
    """See the reference."""
    if segments.shape[0]:
        _apply_kernel[(segments.shape[0],)](tables.state, segments, payload, tables.state.stride(0), CHUNK=_CHUNK)


def gather_inputs(
    tables: RowTables,
    rows: torch.Tensor,
    starts: torch.Tensor,
    query_start: torch.Tensor,
    *,
    num_tokens: int,
    block_size: int,
) -> GatheredInputs:
    """See the reference."""
    num_sequences, num_groups, max_blocks = rows.shape[0], tables.layout.num_groups, tables.layout.max_blocks
    token_ids, positions = (torch.empty(num_tokens, dtype=torch.int64, device=rows.device) for _ in range(2))
    inputs = GatheredInputs(
        token_ids,
        positions,
        torch.empty(num_groups, num_tokens, dtype=torch.int64, device=rows.device),
        torch.empty(num_groups, num_sequences, max_blocks, dtype=torch.int32, device=rows.device),
        torch.empty(num_sequences, dtype=torch.int32, device=rows.device),
    )
    most = max(max_blocks, num_tokens)
    _gather_kernel[(num_sequences, -(-most // _CHUNK), num_groups)](
        tables.token_ids, tables.block_tables, rows, starts, query_start, *inputs,
        tables.state.stride(0), max_blocks, tables.padding_row, num_tokens, BLOCK_SIZE=block_size, CHUNK=_CHUNK,
    )  # fmt: skip
    return inputs


def scatter_sampled(tables: RowTables, rows: torch.Tensor, positions: torch.Tensor, token_ids: torch.Tensor) -> None:
    """See the reference."""
    num_lines = rows.shape[0]
    _scatter_kernel[(-(-num_lines // 256),)](
        tables.token_ids, rows, positions, token_ids, num_lines, tables.state.stride(0), CHUNK=256
    )
