"""The cached tokens of a step's decode rows as parts of about the same length, one for each program.

Lengths are known to the device alone, so a kernel makes the list, once a step for all layers with the same window; a captured
launch of it serves every context length.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from .launch import kernel

RECORD = 8
"""Words of a part's record."""

_CHUNK = 256


class DecodeSchedule(NamedTuple):
    """All parts: the first of each row in the rows' order, then all others; a row of no cached tokens has one empty part.

    records    [num_rows + spare, 8]  int32: row, the part's first token and the one after its last, how many parts the rows
               before have, the part's own index among the row's, how many the row has, and the row's tokens with the one left
               out. Records beyond the last say that their row has 0 parts.
    num_rows   so many records can be told the row of, and without a window the first token, before they are read
    """

    records: torch.Tensor
    num_rows: int

    @property
    def programs(self) -> int:
        return self.records.shape[0]


@triton.jit
def _cached(seq_lens_ptr, rows, num_rows, TILE: tl.constexpr, OWN: tl.constexpr, WINDOW: tl.constexpr):
    """The first token to read of each row, and the one after the last; none for rows past the last."""
    seq_len = tl.load(seq_lens_ptr + rows, mask=rows < num_rows, other=0)
    start = seq_len * 0
    if WINDOW is not None:
        start = tl.maximum(seq_len - WINDOW, 0) // TILE * TILE
    return start, tl.maximum(seq_len - OWN, 0)


@triton.jit
def _shares(lengths, longest, TILE: tl.constexpr):
    """In how many parts to read each length, and the tokens of a part: about equal ones, none beyond `longest`."""
    parts = tl.maximum(tl.cdiv(lengths, longest), 1)
    share = tl.maximum(tl.cdiv(tl.cdiv(lengths, parts), TILE), 1) * TILE
    return tl.maximum(tl.cdiv(lengths, share), 1), share


@kernel(do_not_specialize=["num_rows", "spare", "least"], do_not_specialize_on_alignment=["seq_lens_ptr"])
def _schedule_kernel(
    seq_lens_ptr, records_ptr, num_rows, spare, least,
    TILE: tl.constexpr, OWN: tl.constexpr, WINDOW: tl.constexpr, RECORD: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """One row's parts. It lets no successor start early: what it writes, every layer reads ahead of its turn."""
    row = tl.program_id(0)
    tokens = 0
    for begin in range(0, num_rows, CHUNK):
        start, end = _cached(seq_lens_ptr, begin + tl.arange(0, CHUNK), num_rows, TILE, OWN, WINDOW)
        tokens += tl.sum(tl.maximum(end - start, 0), axis=0)
    # Rows have one part each, and `spare` more among them.
    longest = tl.maximum(tl.cdiv(tl.cdiv(tokens, tl.maximum(spare, 1)), TILE) * TILE, least)
    if spare == 0:
        longest = tokens + 1
    first = 0
    for begin in range(0, row, CHUNK):
        rows = begin + tl.arange(0, CHUNK)
        start, end = _cached(seq_lens_ptr, rows, num_rows, TILE, OWN, WINDOW)
        before, _ = _shares(end - start, longest, TILE)
        first += tl.sum(tl.where(rows < row, before, 0), axis=0)
    start, end = _cached(seq_lens_ptr, row, num_rows, TILE, OWN, WINDOW)
    parts, share = _shares(end - start, longest, TILE)
    if row == num_rows - 1:
        for begin in range(first + parts, num_rows + spare, CHUNK):
            unused = begin + tl.arange(0, CHUNK)
            tl.store(records_ptr + unused * RECORD + 5, unused * 0, mask=unused < num_rows + spare)
    for begin in range(0, parts, CHUNK):
        part = begin + tl.arange(0, CHUNK)
        live = part < parts
        record_ptrs = records_ptr + tl.where(part == 0, row, num_rows + first - row + part - 1) * RECORD
        tl.store(record_ptrs, row + part * 0, mask=live)
        tl.store(record_ptrs + 1, start + part * share, mask=live)
        tl.store(record_ptrs + 2, tl.minimum(start + (part + 1) * share, end), mask=live)
        tl.store(record_ptrs + 3, first + part * 0, mask=live)
        tl.store(record_ptrs + 4, part, mask=live)
        tl.store(record_ptrs + 5, parts + part * 0, mask=live)
        tl.store(record_ptrs + 6, end + OWN + part * 0, mask=live)


def make_schedule(
    seq_lens: torch.Tensor, *, num_rows: int, spare: int, least: int, tile: int, own: bool, window: int | None
) -> DecodeSchedule:
    """The parts of the first `num_rows` sequences.

    seq_lens  [sequences]  int32
    spare     how many parts there may be beyond one for each row
    least     tokens under which a row is not parted, a multiple of `tile`
    own       leave out each row's last token, which is not in the cache yet
    """
    records = torch.empty(num_rows + spare, RECORD, dtype=torch.int32, device=seq_lens.device)
    _schedule_kernel[(num_rows,)](
        seq_lens, records, num_rows, spare, least, TILE=tile, OWN=int(own), WINDOW=window, RECORD=RECORD, CHUNK=_CHUNK
    )
    return DecodeSchedule(records, num_rows)
