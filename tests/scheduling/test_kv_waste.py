"""How much memory is held and empty on the mixed workload of `benchmarks/kv_waste.py`."""

from __future__ import annotations

import pytest

from benchmarks.kv_waste import BLOCK_SIZE, CACHE_SIZES, measure, new_scheduler, report, snapshots


@pytest.mark.parametrize("name", CACHE_SIZES)
def test_at_most_four_percent_of_the_memory_held_is_empty(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    waste = measure(CACHE_SIZES[name], seed=0)
    with capsys.disabled():
        print(f"\n{report(name, CACHE_SIZES[name], waste)}")
    assert waste.average <= 0.04
    assert (waste.num_preemptions > 0) == (name == "small")


def test_a_sequence_never_holds_more_than_part_of_a_block_beyond_its_tokens() -> None:
    for snapshot in snapshots(new_scheduler(CACHE_SIZES["small"]), seed=1):
        assert snapshot.held - snapshot.filled - snapshot.pending < BLOCK_SIZE * snapshot.num_sequences
