"""Row updates and input gathering in Triton: one launch each.

The specification is `reference/rows.py`. None of these kernels lets its successor start early (launch.py): what they write,
every later kernel of the step may read ahead of its own turn.
"""

from __future__ import annotations

import torch
import triton.language as tl

from streamserve_kernels.launch import kernel, power_of_two
from streamserve_kernels.reference.rows import GatheredInputs
from streamserve_kernels.rows.tables import RowTables

_CHUNK = 1024


@kernel(do_not_specialize_on_alignment=["segments_ptr", "payload_ptr"])
def _apply_kernel(
    state_ptr, lengths_ptr, segments_ptr, payload_ptr, row_stride, TOKEN_IDS: tl.constexpr, CHUNK: tl.constexpr
):  # fmt: skip
    """One segment."""
    segment = segments_ptr + tl.program_id(0) * 4
    words = tl.load(segment).to(tl.int64) * row_stride
    column = tl.load(segment + 1)
    if column == -1:  # BEHIND_TOKENS
        column = TOKEN_IDS + tl.load(lengths_ptr + words)
    target = state_ptr + words + column
    source = payload_ptr + tl.load(segment + 2)
    count = tl.load(segment + 3)
    for first in range(0, count, CHUNK):
        lanes = first + tl.arange(0, CHUNK)
        tl.store(target + lanes, tl.load(source + lanes, mask=lanes < count), mask=lanes < count)


@kernel(do_not_specialize=["num_tokens"], do_not_specialize_on_alignment=["rows_ptr", "starts_ptr", "query_start_ptr"])
def _gather_kernel(
    ids_ptr, lengths_ptr, tables_ptr, rows_ptr, starts_ptr, query_start_ptr,
    token_ids_ptr, positions_ptr, slots_ptr, block_tables_ptr, seq_lens_ptr,
    row_stride, max_blocks, padding_row, num_tokens,
    BLOCK_SIZE: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """One chunk of one sequence: of its tokens, and of its block table of one layer group."""
    sequence = tl.program_id(0)
    lanes = tl.program_id(1) * CHUNK + tl.arange(0, CHUNK)
    row = tl.load(rows_ptr + sequence)
    words = row.to(tl.int64) * row_stride
    start = tl.load(starts_ptr + sequence)
    start = tl.where(start < 0, start + tl.load(lengths_ptr + words), start)
    begin = tl.load(query_start_ptr + sequence)
    count = tl.load(query_start_ptr + sequence + 1) - begin
    group = tl.program_id(2).to(tl.int64)
    table_ptr = tables_ptr + words + group * max_blocks
    # Entries past the sequence's end are left as they are: nothing follows them.
    listed = lanes < tl.cdiv(start + count, BLOCK_SIZE)
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
def _scatter_kernel(
    ids_ptr, lengths_ptr, rows_ptr, positions_ptr, sampled_ptr, num_lines, row_stride, padding_row, CHUNK: tl.constexpr
):  # fmt: skip
    lines = tl.program_id(0) * CHUNK + tl.arange(0, CHUNK)
    inside = lines < num_lines
    row = tl.load(rows_ptr + lines, mask=inside, other=0).to(tl.int64)
    position = tl.load(positions_ptr + lines, mask=inside, other=0)
    token = tl.maximum(tl.load(sampled_ptr + lines, mask=inside, other=0).to(tl.int32), 0)
    tl.store(ids_ptr + row * row_stride + position, token, mask=inside)
    tl.store(lengths_ptr + row * row_stride, position + 1, mask=inside & (row != padding_row))


@kernel(do_not_specialize_on_alignment=["rows_ptr", "line_start_ptr"])
def _accept_kernel(
    ids_ptr, lengths_ptr, rows_ptr, line_start_ptr, sampled_ptr, accepted_ptr, row_stride, LANES: tl.constexpr
):  # fmt: skip
    """One sequence."""
    sequence = tl.program_id(0)
    lanes = tl.arange(0, LANES)
    words = tl.load(rows_ptr + sequence).to(tl.int64) * row_stride
    begin = tl.load(line_start_ptr + sequence)
    count = tl.load(line_start_ptr + sequence + 1) - begin
    length = tl.load(lengths_ptr + words)
    sampled = tl.load(sampled_ptr + begin + lanes, mask=lanes < count, other=0).to(tl.int32)
    draft = tl.load(ids_ptr + words + length + lanes, mask=lanes < count - 1, other=0)
    agrees = (draft == sampled) & (lanes < count - 1)
    accepted = 1 + tl.min(tl.where(agrees, LANES, lanes), axis=0)
    tl.store(ids_ptr + words + length + lanes, tl.maximum(sampled, 0), mask=lanes < accepted)
    tl.store(lengths_ptr + words, length + accepted)
    tl.store(accepted_ptr + sequence, accepted)


def apply_row_deltas(tables: RowTables, segments: torch.Tensor, payload: torch.Tensor) -> None:
    """`reference.rows.apply_row_deltas` in one launch."""
    if segments.shape[0]:
        _apply_kernel[(segments.shape[0],)](
            tables.state, tables.num_tokens, segments, payload, tables.state.stride(0),
            TOKEN_IDS=tables.layout.token_ids, CHUNK=_CHUNK,
        )  # fmt: skip


def gather_inputs(
    tables: RowTables,
    rows: torch.Tensor,
    starts: torch.Tensor,
    query_start: torch.Tensor,
    *,
    num_tokens: int,
    block_size: int,
) -> GatheredInputs:
    """`reference.rows.gather_inputs` in one launch."""
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
        tables.token_ids, tables.num_tokens, tables.block_tables, rows, starts, query_start, *inputs,
        tables.state.stride(0), max_blocks, tables.padding_row, num_tokens, BLOCK_SIZE=block_size, CHUNK=_CHUNK,
    )  # fmt: skip
    return inputs


def scatter_sampled(tables: RowTables, rows: torch.Tensor, positions: torch.Tensor, token_ids: torch.Tensor) -> None:
    """`reference.rows.scatter_sampled` in one launch."""
    num_lines = rows.shape[0]
    _scatter_kernel[(-(-num_lines // 256),)](
        tables.token_ids, tables.num_tokens, rows, positions, token_ids, num_lines, tables.state.stride(0), tables.padding_row,
        CHUNK=256,
    )  # fmt: skip


def accept_drafts(
    tables: RowTables, rows: torch.Tensor, line_start: torch.Tensor, token_ids: torch.Tensor, *, most: int
) -> torch.Tensor:
    """`reference.rows.accept_drafts` in one launch."""
    accepted = torch.empty_like(rows)
    _accept_kernel[(rows.shape[0],)](
        tables.token_ids, tables.num_tokens, rows, line_start, token_ids, accepted, tables.state.stride(0),
        # One warp: with more, one could write the row before another has read it.
        LANES=power_of_two(most), num_warps=1,
    )  # fmt: skip
    return accepted
