"""Divides the queries of a step's longer sequences into tiles, one per program.

Only the device knows how many queries a sequence has, so a kernel computes the tiles, once a step for all layers; a captured
launch of it serves every division of the same number of tokens into sequences.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from streamserve_kernels.launch import kernel

_CHUNK = 256


@triton.jit
def _num_tiles(query_start_ptr, sequences, present, HEADS_PER_GROUP: tl.constexpr, BLOCK_M: tl.constexpr):
    """Number of tiles of each sequence; 0 where it is not `present`."""
    begin = tl.load(query_start_ptr + sequences, mask=present, other=0)
    end = tl.load(query_start_ptr + sequences + 1, mask=present, other=0)
    return tl.cdiv((end - begin) * HEADS_PER_GROUP, BLOCK_M)


@kernel(do_not_specialize=["first_sequence", "num_sequences", "num_tiles"], do_not_specialize_on_alignment=["query_start_ptr"])
def _tiles_kernel(
    query_start_ptr, records_ptr, first_sequence, num_sequences, num_tiles,
    HEADS_PER_GROUP: tl.constexpr, BLOCK_M: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Write the tiles of one sequence. Lets no successor start early: every layer reads them before its `gdc_wait`."""
    index = tl.program_id(0)
    lanes = tl.arange(0, CHUNK)
    before = 0
    for begin in range(0, index, CHUNK):
        others = begin + lanes
        before += tl.sum(_num_tiles(query_start_ptr, first_sequence + others, others < index, HEADS_PER_GROUP, BLOCK_M), axis=0)
    num_own = tl.sum(_num_tiles(query_start_ptr, first_sequence + index + lanes, lanes == 0, HEADS_PER_GROUP, BLOCK_M), axis=0)
    for begin in range(0, num_own, CHUNK):
        tile = begin + lanes
        record_ptrs = records_ptr + (before + tile) * 2
        tl.store(record_ptrs, first_sequence + index + tile * 0, mask=tile < num_own)
        # The last tiles see the most keys: they start first, so that short ones fill the end of the launch.
        tl.store(record_ptrs + 1, (num_own - 1 - tile) * BLOCK_M, mask=tile < num_own)
    if index == num_sequences - 1:
        for begin in range(before + num_own, num_tiles, CHUNK):
            unused = begin + lanes
            tl.store(records_ptr + unused * 2, unused * 0 - 1, mask=unused < num_tiles)


def make_tiles(
    query_start: torch.Tensor, *, first_sequence: int, num_tokens: int, heads_per_group: int, block_m: int
) -> torch.Tensor:
    """The tiles of all sequences from `first_sequence` on: [tiles, 2] int32, a sequence and the tile's first row.

    A sequence's rows are its queries times the heads that share a kv head. There are as many records as the worst division of
    `num_tokens` queries into these sequences needs; unused ones have sequence -1.

    query_start  [sequences + 1]  int32
    """
    num_sequences = query_start.shape[0] - 1 - first_sequence
    num_tiles = (num_tokens * heads_per_group + num_sequences * (block_m - 1)) // block_m
    records = torch.empty(num_tiles, 2, dtype=torch.int32, device=query_start.device)
    _tiles_kernel[(num_sequences,)](
        query_start, records, first_sequence, num_sequences, num_tiles,
        HEADS_PER_GROUP=heads_per_group, BLOCK_M=block_m, CHUNK=_CHUNK,
    )  # fmt: skip
    return records
