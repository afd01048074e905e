"""The tiles of the queries of longer sequences: every row in one tile, and no tile without rows."""

from __future__ import annotations

import pytest
import torch

from tests.support.kernel_cases import DEVICE, triton_area

prefill_schedule = triton_area("attention.prefill_schedule")


def tiles_of(counts: list[int], *, first: int, heads: int, block_m: int) -> list[tuple[int, int]]:
    starts = torch.tensor([0, *torch.tensor(counts).cumsum(0).tolist()], dtype=torch.int32, device=DEVICE)
    records = prefill_schedule.make_tiles(
        starts, first_sequence=first, num_tokens=sum(counts[first:]), heads_per_group=heads, block_m=block_m
    )
    return [tuple(record) for record in records.tolist()]


@pytest.mark.parametrize("first", [0, 2])
@pytest.mark.parametrize("counts", [[1, 1, 5], [1, 1, 16, 0, 33, 0, 0], [1, 1, *range(2, 40)], [1, 1, 9000, 2]])
def test_every_row_is_in_one_tile(counts: list[int], first: int) -> None:
    tiles = tiles_of(counts, first=first, heads=3, block_m=32)
    used = [tile for tile in tiles if tile[0] >= 0]
    assert tiles[: len(used)] == used, "tiles come first, then unused records"
    rows = {sequence: range(0, 3 * count, 32) for sequence, count in enumerate(counts) if sequence >= first}
    expected = [(sequence, row) for sequence in rows for row in rows[sequence]]
    assert sorted(used) == expected


def test_the_last_tiles_of_a_sequence_go_first() -> None:
    assert [row for _, row in tiles_of([40], first=0, heads=2, block_m=32)[:3]] == [64, 32, 0]
