"""The splits of the cached tokens of decode rows: every token once, in splits of similar length."""

from __future__ import annotations

import random

import pytest
import torch

from tests.support.kernel_cases import DEVICE, triton_area

decode_schedule = triton_area("attention.decode_schedule")
TILE = 32


def splits_of(lengths: list[int], *, spare: int, min_tokens: int = 64, window: int | None = None) -> list[tuple[int, ...]]:
    """Row, first token, end, splits of the rows before, index in the row, and splits of the row; in the order of rows."""
    lens = torch.tensor([length + 1 for length in lengths], dtype=torch.int32, device=DEVICE)
    schedule = decode_schedule.make_schedule(
        lens, num_rows=len(lengths), spare=spare, min_tokens=min_tokens, tile=TILE, excludes_last=True, window=window
    )
    assert schedule.programs == len(lengths) + spare
    records = [tuple(record[:6]) for record in schedule.records.tolist()]
    used = [record for record in records if record[5] > 0]
    assert records[: len(used)] == used, "splits come first, then unused records"
    assert [record[0] for record in records[: len(lengths)]] == list(range(len(lengths)))
    assert all(record[4] == 0 for record in records[: len(lengths)])
    return sorted(used, key=lambda record: (record[0], record[4]))


@pytest.mark.parametrize("spare", [0, 3, 40])
def test_every_token_is_in_one_split(spare: int) -> None:
    rng = random.Random(spare)
    lengths = [0, 1, 31, 32, 33, 700, *(rng.randint(0, 400) for _ in range(20))]
    splits = splits_of(lengths, spare=spare)
    for row, length in enumerate(lengths):
        own = [split for split in splits if split[0] == row]
        assert [token for _, begin, end, *_ in own for token in range(begin, end)] == list(range(length))
        assert [(first, index, count) for *_, first, index, count in own] == [
            (splits.index(own[0]), index, len(own)) for index in range(len(own))
        ]


def test_long_rows_are_split_evenly_and_short_ones_not_at_all() -> None:
    splits = splits_of([1000, 60, 1000, 64], spare=10)
    sizes = [[end - begin for row, begin, end, *_ in splits if row == wanted] for wanted in range(4)]
    assert sizes[1] == [60]
    assert sizes[3] == [64]
    assert len(sizes[0]) > 1
    assert max(sizes[0]) - min(sizes[0]) <= TILE * len(sizes[0])
    assert all(size % TILE == 0 for size in sizes[0][:-1])


def test_without_spare_programs_rows_stay_whole() -> None:
    assert [split[5] for split in splits_of([4000, 10], spare=0)] == [1, 1]


def test_a_window_leaves_out_what_lies_before_it() -> None:
    (split,) = splits_of([500], spare=0, window=100)
    assert split[1:3] == ((501 - 100) // TILE * TILE, 500)
