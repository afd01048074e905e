"""Row updates and input gathering, against a naive computation over Python lists."""

from __future__ import annotations

import random

import pytest
import torch

from streamserve_kernels import RowLayout, accept_drafts, apply_row_deltas, gather_inputs, make_row_tables, scatter_sampled
from tests.support.sampling import int32

CPU = torch.device("cpu")


def test_a_row_has_a_place_for_the_id_sampled_after_its_last_token() -> None:
    layout = RowLayout(max_model_len=40, max_blocks=3)
    assert layout.words % 32 == 0
    assert layout.token_ids + 41 <= layout.words
    tables = make_row_tables(2, 40, 3, CPU)
    scatter_sampled(tables, int32(1), int32(40), torch.tensor([9]))
    assert tables.token_ids[1].tolist() == [0] * 40 + [9]
    assert tables.num_tokens.tolist() == [1, 41, 1]
    assert int((tables.state != 0).sum()) == 4


def test_views_share_the_rows_memory() -> None:
    tables = make_row_tables(2, 8, 2, CPU)
    tables.temperature[1] = 0.5
    word = tables.state[1, RowLayout.TEMPERATURE]
    assert word.view(torch.float32) == 0.5
    assert tables.block_tables.shape == (3, 1, 2)
    assert tables.padding_row == 2


def test_deltas_copy_runs_of_words_into_rows() -> None:
    tables = make_row_tables(3, 16, 4, CPU)
    payload = torch.arange(100, 120, dtype=torch.int32)
    segments = torch.tensor([[0, 17, 0, 3], [2, 0, 5, 1], [1, 20, 10, 4]], dtype=torch.int32)
    apply_row_deltas(tables, segments, payload)
    expected = torch.zeros_like(tables.state)
    expected[:, RowLayout.NUM_TOKENS] = 1
    expected[0, 17:20] = payload[0:3]
    expected[2, 0] = payload[5]
    expected[1, 20:24] = payload[10:14]
    assert torch.equal(tables.state, expected)


def test_a_run_of_words_may_go_behind_the_rows_tokens() -> None:
    tables = make_row_tables(2, 16, 1, CPU)
    tables.num_tokens[1] = 5
    apply_row_deltas(tables, int32(1, -1, 0, 3).view(1, 4), int32(7, 8, 9))
    assert tables.token_ids[1].tolist() == [0] * 5 + [7, 8, 9] + [0] * 9
    assert tables.token_ids[0].tolist() == [0] * 17


def test_a_negative_start_counts_back_from_the_tokens_that_the_row_has() -> None:
    tables = make_row_tables(2, 32, 2, CPU)
    tables.num_tokens[:2] = int32(7, 20)
    tables.token_ids.copy_(torch.arange(33, dtype=torch.int32).expand(3, 33))
    got = gather_inputs(tables, int32(0, 1, 0), int32(-1, -3, 2), int32(0, 1, 4, 5), num_tokens=5, block_size=16)
    assert got.positions.tolist() == got.token_ids.tolist() == [6, 17, 18, 19, 2]
    assert got.seq_lens.tolist() == [7, 20, 3]


def test_the_padding_row_has_one_token_for_ever() -> None:
    tables = make_row_tables(2, 32, 2, CPU)
    for _ in range(3):
        scatter_sampled(tables, int32(2, 0, 2), int32(1, 4, 1), torch.tensor([9, 9, 9]))
        assert tables.num_tokens.tolist() == [5, 1, 1]


def test_drafts_are_accepted_as_far_as_they_are_what_was_sampled_in_their_places() -> None:
    rng = random.Random(0)
    for _ in range(50):
        tables = make_row_tables(6, 40, 3, CPU)
        tables.token_ids.copy_(torch.randint(0, 3, tables.token_ids.shape))
        tables.num_tokens.copy_(torch.randint(1, 36, tables.num_tokens.shape))
        rows = rng.sample(range(6), rng.randint(1, 6))
        sampled = [[rng.randrange(3) for _ in range(rng.randint(1, 5))] for _ in rows]
        ends = [sum(map(len, sampled[:place])) for place in range(len(rows) + 1)]
        texts = tables.token_ids.tolist()
        lengths = tables.num_tokens.tolist()
        lines = torch.tensor([token_id for ids in sampled for token_id in ids])
        accepted = accept_drafts(tables, int32(*rows), int32(*ends), lines, most=max(map(len, sampled))).tolist()
        for row, ids, count in zip(rows, sampled, accepted, strict=True):
            length, drafts = lengths[row], texts[row][lengths[row] :]
            expected = 1
            while expected < len(ids) and drafts[expected - 1] == ids[expected - 1]:
                expected += 1
            assert count == expected
            texts[row][length : length + count] = ids[:count]
            lengths[row] += count
        assert tables.token_ids.tolist() == texts
        assert tables.num_tokens.tolist() == lengths


def test_every_layer_group_has_a_block_table_before_the_token_ids() -> None:
    tables = make_row_tables(2, 8, 3, CPU, num_groups=2)
    tables.token_ids.fill_(-1)
    tables.block_tables[1] = torch.arange(1, 7).view(2, 3)
    words = tables.state[1]
    assert [words[tables.layout.block_table(group) + 1].item() for group in (0, 1)] == [2, 5]
    assert words[tables.layout.token_ids] == -1
    assert bool((tables.block_tables[[0, 2]] == 0).all())


@pytest.mark.parametrize("num_groups", [1, 3])
def test_gathered_inputs_equal_a_walk_over_the_rows(num_groups: int) -> None:
    rng = random.Random(0)
    num_rows, max_len, block_size = 9, 200, 16
    for _ in range(30):
        tables = make_row_tables(num_rows, max_len, 13, CPU, num_groups=num_groups)
        tables.token_ids.copy_(torch.randint(0, 1000, tables.token_ids.shape))
        tables.block_tables[:num_rows] = torch.randperm(num_rows * num_groups * 13).view(num_rows, num_groups, 13)
        rows = rng.sample(range(num_rows), rng.randint(1, num_rows))
        counts = sorted((rng.choice([1, 1, 5, 40, 0]) for _ in rows), key=lambda count: count != 1)
        starts = [rng.randint(0, max_len - count) for count in counts]
        ends = [sum(counts[:place]) for place in range(len(counts) + 1)]
        got = gather_inputs(tables, int32(*rows), int32(*starts), int32(*ends), num_tokens=ends[-1], block_size=block_size)
        tokens = [
            (row, position)
            for row, start, count in zip(rows, starts, counts, strict=True)
            for position in range(start, start + count)
        ]
        assert got.token_ids.tolist() == [int(tables.token_ids[row, position]) for row, position in tokens]
        assert got.positions.tolist() == [position for _, position in tokens]
        assert got.slot_mapping.tolist() == [
            [
                int(tables.block_tables[row, group, position // block_size]) * block_size + position % block_size
                for row, position in tokens
            ]
            for group in range(num_groups)
        ]
        assert got.seq_lens.tolist() == [start + count for start, count in zip(starts, counts, strict=True)]
        assert torch.equal(got.block_tables, tables.block_tables[rows].transpose(0, 1))
        assert got.block_tables.is_contiguous()
        assert (got.block_tables.dtype, got.seq_lens.dtype) == (torch.int32, torch.int32)


def test_tokens_of_the_padding_row_are_written_nowhere() -> None:
    tables = make_row_tables(2, 32, 2, CPU)
    rows = int32(1, tables.padding_row, tables.padding_row)
    got = gather_inputs(tables, rows, int32(3, 0, 0), int32(0, 1, 2, 3), num_tokens=3, block_size=16)
    assert got.slot_mapping.tolist() == [[3, -1, -1]]
    assert got.seq_lens.tolist() == [4, 1, 1]
