"""Splits the cached tokens of a step's decode rows into runs of similar length, one per program (split-KV).

Only the device knows the lengths, so a kernel computes the splits, once a step for all layers with the same window; a captured
launch of it serves every context length.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from streamserve_kernels.launch import kernel

RECORD = 8
"""Words of a split's record."""

_CHUNK = 256


class DecodeSchedule(NamedTuple):
    """All splits: the first of each row in the order of rows, then the others; a row without cached tokens has one empty split.

    records    [num_rows + spare, 8]  int32: row, first token, the one after the last, number of splits of all rows before,
               index of the split in its row, number of splits of the row, tokens of the row including an excluded one, unused.
               Unused records have 0 splits.
    num_rows   the row of the first `num_rows` records, and without a window their first token, follow from their index
    """

    records: torch.Tensor
    num_rows: int

    @property
    def programs(self) -> int:
        return self.records.shape[0]


@triton.jit
def _cached_range(seq_lens_ptr, rows, num_rows, TILE: tl.constexpr, EXCLUDED: tl.constexpr, WINDOW: tl.constexpr):
    """First token to read of each row, and the one after the last; an empty range for rows past the last."""
    seq_len = tl.load(seq_lens_ptr + rows, mask=rows < num_rows, other=0)
    start = seq_len * 0
    if WINDOW is not None:
        start = tl.maximum(seq_len - WINDOW, 0) // TILE * TILE
    return start, tl.maximum(seq_len - EXCLUDED, 0)


@triton.jit
def _split_sizes(lengths, longest, TILE: tl.constexpr):
    """Number of splits of each length, and tokens of a split: similar lengths, none above `longest`."""
    splits = tl.maximum(tl.cdiv(lengths, longest), 1)
    split_len = tl.maximum(tl.cdiv(tl.cdiv(lengths, splits), TILE), 1) * TILE
    return tl.maximum(tl.cdiv(lengths, split_len), 1), split_len


@kernel(do_not_specialize=["num_rows", "spare", "min_tokens"], do_not_specialize_on_alignment=["seq_lens_ptr"])
def _schedule_kernel(
    seq_lens_ptr, records_ptr, num_rows, spare, min_tokens,
    TILE: tl.constexpr, EXCLUDED: tl.constexpr, WINDOW: tl.constexpr, RECORD: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Write the splits of one row. Lets no successor start early: every layer reads the records before its `gdc_wait`."""
    row = tl.program_id(0)
    tokens = 0
    for begin in range(0, num_rows, CHUNK):
        start, end = _cached_range(seq_lens_ptr, begin + tl.arange(0, CHUNK), num_rows, TILE, EXCLUDED, WINDOW)
        tokens += tl.sum(tl.maximum(end - start, 0), axis=0)
    # Each row has one split, and `spare` more are divided among them.
    longest = tl.maximum(tl.cdiv(tl.cdiv(tokens, tl.maximum(spare, 1)), TILE) * TILE, min_tokens)
    if spare == 0:
        longest = tokens + 1
    first = 0
    for begin in range(0, row, CHUNK):
        rows = begin + tl.arange(0, CHUNK)
        start, end = _cached_range(seq_lens_ptr, rows, num_rows, TILE, EXCLUDED, WINDOW)
        before, _ = _split_sizes(end - start, longest, TILE)
        first += tl.sum(tl.where(rows < row, before, 0), axis=0)
    start, end = _cached_range(seq_lens_ptr, row, num_rows, TILE, EXCLUDED, WINDOW)
    splits, split_len = _split_sizes(end - start, longest, TILE)
    if row == num_rows - 1:
        for begin in range(first + splits, num_rows + spare, CHUNK):
            unused = begin + tl.arange(0, CHUNK)
            tl.store(records_ptr + unused * RECORD + 5, unused * 0, mask=unused < num_rows + spare)
    for begin in range(0, splits, CHUNK):
        split = begin + tl.arange(0, CHUNK)
        mask = split < splits
        record_ptrs = records_ptr + tl.where(split == 0, row, num_rows + first - row + split - 1) * RECORD
        tl.store(record_ptrs, row + split * 0, mask=mask)
        tl.store(record_ptrs + 1, start + split * split_len, mask=mask)
        tl.store(record_ptrs + 2, tl.minimum(start + (split + 1) * split_len, end), mask=mask)
        tl.store(record_ptrs + 3, first + split * 0, mask=mask)
        tl.store(record_ptrs + 4, split, mask=mask)
        tl.store(record_ptrs + 5, splits + split * 0, mask=mask)
        tl.store(record_ptrs + 6, end + EXCLUDED + split * 0, mask=mask)


def make_schedule(
    seq_lens: torch.Tensor,
    *,
    num_rows: int,
    spare: int,
    min_tokens: int,
    tile: int,
    excludes_last: bool,
    window: int | None,
) -> DecodeSchedule:
    """The splits of the first `num_rows` sequences.

    seq_lens       [sequences]  int32
    spare          most splits beyond one for each row
    min_tokens     rows are not divided into splits shorter than this, a multiple of `tile`
    excludes_last  leave out each row's last token, which is not in the cache yet
    """
    records = torch.empty(num_rows + spare, RECORD, dtype=torch.int32, device=seq_lens.device)
    _schedule_kernel[(num_rows,)](
        seq_lens, records, num_rows, spare, min_tokens,
        TILE=tile, EXCLUDED=int(excludes_last), WINDOW=window, RECORD=RECORD, CHUNK=_CHUNK,
    )  # fmt: skip
    return DecodeSchedule(records, num_rows)
