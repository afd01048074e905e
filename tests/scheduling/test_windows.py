"""Layer groups that see windows: blocks go back while a sequence runs, and prefixes hit with what a window needs."""

from __future__ import annotations

import pytest

from streamserve.errors import PromptTooLarge
from streamserve.kv_groups import KvGroups
from streamserve.scheduling.kv.blocks import BlockTable
from streamserve.scheduling.kv.prefix_cache import PrefixBlock, PrefixCache
from tests.scheduling.oracle import expected
from tests.scheduling.play import Play, spec
from tests.support.scheduler_invariants import check_invariants


def tables_of(play: Play, name: str) -> list[BlockTable]:
    return play.scheduler.registry.sequences[name].tables


def held(play: Play, name: str) -> list[tuple[int, int]]:
    """Per layer group: the first block held, and the one after the last."""
    return [(table.first, table.end) for table in tables_of(play, name)]


def test_a_block_goes_back_once_no_later_token_sees_it() -> None:
    play = Play(windows=(None, 8))
    play.add(spec("a", 6, max_tokens=30))
    seen = {}
    while "a" in play.scheduler.registry.sequences:
        play.step()
        if "a" in play.scheduler.registry.sequences:
            seen[play.scheduler.registry.sequences["a"].num_computed] = held(play, "a")
    # The 17th token sees the 10th to itself, and the 21st the 14th.
    assert [seen[computed] for computed in (6, 15, 16, 20)] == [
        [(0, 2), (0, 2)],
        [(0, 4), (1, 4)],
        [(0, 4), (2, 4)],
        [(0, 5), (3, 5)],
    ]
    assert play.tokens("a") == expected(spec("a", 6, max_tokens=30))[0]


@pytest.mark.parametrize("outstanding", [1, 2])
def test_a_long_prompt_holds_a_window_and_its_chunks(outstanding: int) -> None:
    play = Play(windows=(8,), max_num_batched_tokens=16, max_model_len=1024)
    play.add(spec("a", 500, max_tokens=4))
    most = 0
    while play.scheduler.has_work:
        planned = play.submit()
        most = max(most, play.used_blocks())
        if planned is None or len(play.outstanding) == outstanding:
            play.commit()
        check_invariants(play.scheduler)
    assert most <= (8 + outstanding * 16) // 4 + 2
    assert play.tokens("a") == expected(spec("a", 500, max_tokens=4))[0]


def test_a_prompt_that_would_not_fit_if_all_were_kept_runs_to_its_end() -> None:
    play = Play(num_blocks=12, windows=(8,), max_num_batched_tokens=16, max_model_len=1024)
    play.add(spec("a", 300, max_tokens=40))
    play.finish()
    assert play.tokens("a") == expected(spec("a", 300, max_tokens=40))[0]
    assert play.scheduler.stats().num_preemptions == 0


@pytest.mark.parametrize("outstanding", [1, 2, 3])
@pytest.mark.parametrize("step_tokens", [3, 5, 16])
@pytest.mark.parametrize("window", range(1, 14))
def test_a_sequence_never_needs_more_blocks_than_it_is_said_to(window: int, step_tokens: int, outstanding: int) -> None:
    groups = KvGroups(4, (window,))
    one = spec("a", 50, max_tokens=50)
    play = Play(
        num_blocks=groups.blocks_for(99, step_tokens), windows=(window,), max_num_batched_tokens=step_tokens, max_num_seqs=1
    )
    play.add(one)
    play.finish(outstanding)
    assert play.tokens("a") == expected(one)[0]
    assert play.scheduler.stats().num_preemptions == 0


def test_what_one_group_alone_can_not_hold_is_refused_with_the_length_that_it_can() -> None:
    play = Play(num_blocks=64, windows=(None, 8), max_num_batched_tokens=16, max_model_len=1024)
    groups = play.scheduler.limits.groups
    longest = groups.longest(64, 16, 1024)
    assert groups.blocks_for(longest, 16) == 64 < groups.blocks_for(longest + 1, 16)
    with pytest.raises(PromptTooLarge, match=f"holds {longest} tokens"):
        play.add(spec("long", longest, max_tokens=2))
    play.add(spec("a", longest - 1, max_tokens=2))
    play.finish()
    assert play.tokens("a") == expected(spec("a", longest - 1, max_tokens=2))[0]


@pytest.mark.parametrize("window", [None, 1, 7, 100])
def test_the_longest_sequence_is_the_longest_that_needs_no_more(window: int | None) -> None:
    groups = KvGroups(16, (None, window))
    for num_blocks in range(2, 40):
        longest = groups.longest(num_blocks, 5, 10_000)
        assert groups.blocks_for(longest, 5) <= num_blocks
        assert longest == 10_000 or groups.blocks_for(longest + 1, 5) > num_blocks


def test_a_prefix_hits_with_the_blocks_that_a_window_still_sees() -> None:
    play = Play(windows=(None, 8))
    shared = list(range(100, 140))
    play.add(spec("a", shared, max_tokens=4))
    play.finish()
    play.add(spec("b", [*shared, 1, 2]))
    play.submit()
    assert held(play, "b") == [(0, 11), (8, 11)]
    play.finish()
    assert play.output("b").cached_tokens == 40
    assert play.tokens("b") == expected(spec("b", [*shared, 1, 2]))[0]


def test_blocks_given_back_serve_a_shorter_prefix_until_they_are_needed() -> None:
    play = Play(windows=(None, 8), max_num_batched_tokens=16)
    shared = list(range(100, 140))
    play.add(spec("a", shared, max_tokens=20))
    for _ in range(6):
        play.step()
    assert held(play, "a")[1][0] > 5
    play.add(spec("b", [*shared[:20], 1, 2]))
    play.submit()
    assert held(play, "b") == [(0, 6), (3, 6)]
    assert play.scheduler.registry.sequences["b"].num_computed == 22
    play.commit()
    assert play.output("b").cached_tokens == 20
    play.finish()
    assert play.tokens("b") == expected(spec("b", [*shared[:20], 1, 2]))[0]


def prefix_of(cache: PrefixCache, num_blocks: int) -> list[PrefixBlock]:
    prefix: list[PrefixBlock] = []
    cache.extend(prefix, list(range(4 * num_blocks)), num_blocks, "")
    return prefix


@pytest.mark.parametrize(
    ("full", "windowed", "end", "first"),
    [
        ("11111", "11111", 5, 3),
        ("11111", "00011", 5, 3),
        ("11111", "11110", 4, 2),
        ("11011", "11111", 2, 0),
        ("11111", "01101", 3, 1),
        ("11111", "10101", 1, 0),
        ("11111", "01010", 0, 0),
        ("00000", "11111", 0, 0),
    ],
)
def test_a_hit_ends_where_every_group_has_what_it_needs(full: str, windowed: str, end: int, first: int) -> None:
    cache = PrefixCache(KvGroups(4, (None, 8)))
    prefix = prefix_of(cache, 5)
    for group, present in enumerate((full, windowed)):
        for index, flag in enumerate(present):
            if flag == "1":
                assert cache.insert(group, prefix[index], 10 * group + index)
    tables = cache.match(prefix)
    assert [(table.first, table.end, table.block_ids) for table in tables] == [
        (0, end, list(range(end))),
        (first, end, list(range(10 + first, 10 + end))),
    ]


def test_no_group_takes_a_block_of_another_for_its_own() -> None:
    cache = PrefixCache(KvGroups(4, (None, 8)))
    prefix = prefix_of(cache, 2)
    assert cache.insert(0, prefix[0], 3)
    assert [table.end for table in cache.match(prefix)] == [0, 0]
    cache.forget(3)
    assert cache.insert(1, prefix[0], 3)
    assert cache.contents(3) == (1, prefix[0])


def two_prompts_under_way(num_blocks: int) -> Play:
    """A step each, the first one paused."""
    play = Play(num_blocks=num_blocks, windows=(16,), max_num_batched_tokens=32, max_num_seqs=2, max_model_len=512)
    play.add(spec("first", 200, max_tokens=2))
    play.step()
    play.scheduler.pause("first")
    play.add(spec("later", 200, max_tokens=2))
    play.step()
    assert held(play, "first") == held(play, "later") == [(4, 8)]
    return play


def test_an_earlier_prompt_takes_the_blocks_of_a_later_one_under_way() -> None:
    play = two_prompts_under_way(num_blocks=14)
    play.scheduler.resume("first")
    plan = play.submit()
    assert plan is not None
    assert [(work.row, work.count) for work in plan.work] == [(play.row_of("first"), 32)]
    assert not tables_of(play, "later")
    play.finish()
    for name in ("first", "later"):
        assert play.tokens(name) == expected(spec(name, 200, max_tokens=2))[0]


def test_a_prompt_takes_the_blocks_of_a_paused_one() -> None:
    play = two_prompts_under_way(num_blocks=14)
    plan = play.submit()
    assert plan is not None
    assert [(work.row, work.count) for work in plan.work] == [(play.row_of("later"), 32)]
    assert not tables_of(play, "first")


def test_a_chunk_is_as_long_as_the_blocks_that_can_be_had() -> None:
    play = Play(num_blocks=14, windows=(16,), max_num_batched_tokens=32, max_model_len=512)
    play.add(spec("a", 200, max_tokens=2))
    plans = [play.submit() for _ in range(3)]
    assert [plan and [(work.start, work.count) for work in plan.work] for plan in plans] == [[(0, 32)], [(32, 24)], None]
    play.commit()
    plan = play.submit()
    assert plan is not None
    assert [(work.start, work.count) for work in plan.work] == [(56, 16)]
    play.finish()
    assert play.tokens("a") == expected(spec("a", 200, max_tokens=2))[0]


@pytest.mark.parametrize("ending", ["abort", "pause"])
def test_every_group_gives_its_blocks_back(ending: str) -> None:
    play = Play(windows=(None, 8, 5), num_blocks=40, max_num_batched_tokens=16, max_num_seqs=2)
    play.add(spec("a", 30, max_tokens=8))
    play.step()
    play.step()
    assert play.used_blocks() == sum(len(table.block_ids) for table in tables_of(play, "a"))
    if ending == "abort":
        play.abort("a")
        assert play.used_blocks() == 0
        return
    play.scheduler.pause("a")
    play.add(spec("b", 60, max_tokens=8), spec("c", 20, max_tokens=3))
    play.finish()
    assert "a" not in {sequence.sequence_id for sequence in play.scheduler.registry.rows.paused}
    assert play.used_blocks() == 0
    play.scheduler.resume("a")
    play.finish()
    assert play.tokens("a") == expected(spec("a", 30, max_tokens=8))[0]
