"""Prompts seen before are not computed again; prompts that only look alike are."""

from __future__ import annotations

import pytest

from streamserve.kv_groups import KvGroups
from streamserve.scheduling.kv.allocator import KvAllocator
from streamserve.scheduling.kv.blocks import BlockPool
from streamserve.scheduling.kv.prefix_cache import PrefixBlock, PrefixCache
from streamserve.scheduling.sequence import Request, Sequence
from streamserve.types import ANYONE
from tests.scheduling.oracle import expected
from tests.scheduling.play import Play, rows, spec

SHARED = list(range(100, 112))


def matched(cache: PrefixCache, prefix: list[PrefixBlock]) -> list[int]:
    return cache.match(prefix)[0].block_ids


def first_start(play: Play) -> int:
    plan = play.submit()
    assert plan is not None
    return plan.work[0].start


def test_a_second_prompt_starts_after_the_blocks_it_shares() -> None:
    play = Play()
    play.add(spec("a", [*SHARED, 1, 2]))
    play.finish()
    play.add(spec("b", [*SHARED, 3]))
    assert first_start(play) == 12
    play.finish()
    assert play.output("b").cached_tokens == 12
    assert play.tokens("b") == expected(spec("b", [*SHARED, 3]))[0]
    assert play.scheduler.stats().prefix_cache_hits == 12
    assert play.scheduler.stats().prefix_cache_queries == 14 + 13


def test_cached_tokens_are_told_once() -> None:
    play = Play()
    play.add(spec("a", SHARED))
    play.finish()
    play.add(spec("b", SHARED))
    play.finish()
    assert [delta.cached_tokens for delta in play.deltas["b"]] == [8] + [0] * 7


def test_cached_tokens_are_tokens_of_the_prompt() -> None:
    play = Play()
    play.add(spec("a", SHARED, max_tokens=9))
    play.finish()
    play.add(spec("b", SHARED[:10], max_tokens=11, generated_token_ids=[*SHARED[10:], *play.tokens("a")[:8]]))
    assert first_start(play) == 16
    play.finish()
    assert play.output("b").cached_tokens == 10


def test_a_block_is_entered_once() -> None:
    allocator = KvAllocator(8, KvGroups(4), 64, enable_prefix_caching=True)
    sequence = Sequence(spec("a", 11), (0, 0), None, None, Request(ANYONE, 0.0))
    allocator.admit(sequence, 0)
    assert sequence.next_full == 4
    allocator.commit(sequence, 9)
    assert sequence.next_full == 12


def test_the_last_token_of_a_prompt_is_always_computed() -> None:
    play = Play()
    play.add(spec("a", SHARED))
    play.finish()
    play.add(spec("b", SHARED))
    assert rows(play.submit())[play.row_of("b")] == (8, 4, True)


def test_generated_tokens_are_shared_with_the_next_turn() -> None:
    play = Play()
    play.add(spec("a", SHARED, max_tokens=9))
    play.finish()
    play.add(spec("b", [*SHARED, *play.tokens("a"), 7]))
    assert first_start(play) == 20


def test_blocks_of_a_step_in_flight_are_not_shared() -> None:
    play = Play()
    play.add(spec("a", SHARED))
    play.submit()
    play.add(spec("b", [*SHARED, 1]))
    plan = play.submit()
    assert plan is not None
    assert rows(plan)[play.row_of("b")] == (0, 13, True)
    play.commit()
    play.add(spec("c", [*SHARED, 1]))
    assert rows(play.submit())[play.row_of("c")][0] == 12
    play.finish()
    for name in "bc":
        assert play.tokens(name) == expected(spec(name, [*SHARED, 1]))[0]


def test_a_running_sequence_shares_its_blocks() -> None:
    play = Play()
    play.add(spec("a", SHARED, max_tokens=20))
    play.step()
    play.add(spec("b", [*SHARED, 5]))
    play.step()
    a, b = play.scheduler.registry.sequences["a"], play.scheduler.registry.sequences["b"]
    assert a.tables[0].block_ids[:3] == b.tables[0].block_ids[:3]
    play.abort("a")
    play.finish()
    assert play.tokens("b") == expected(spec("b", [*SHARED, 5]))[0]


def test_other_salts_share_nothing() -> None:
    play = Play()
    play.add(spec("a", SHARED, cache_salt="one"))
    play.finish()
    play.add(spec("b", SHARED, cache_salt="two"), spec("c", SHARED, cache_salt="one"))
    plan = play.submit()
    assert [rows(plan)[play.row_of(name)][0] for name in "bc"] == [0, 8]


def test_equal_blocks_after_different_beginnings_are_different() -> None:
    play = Play()
    play.add(spec("a", [1, 2, 3, 4, *SHARED]))
    play.finish()
    play.add(spec("b", [1, 2, 3, 5, *SHARED]))
    assert first_start(play) == 0


def test_it_can_be_switched_off() -> None:
    play = Play(enable_prefix_caching=False)
    play.add(spec("a", SHARED))
    play.finish()
    play.add(spec("b", SHARED))
    assert first_start(play) == 0


@pytest.mark.parametrize(("probe", "hit"), [([1] * 8, 8), ([2] * 8, 4)])
def test_least_recently_used_blocks_are_reused_first_and_tails_before_heads(probe: list[int], hit: int) -> None:
    play = Play(num_blocks=9, max_num_seqs=4)
    old, recent = [1] * 8, [2] * 8
    play.add(spec("a", old, max_tokens=1))
    play.finish()
    play.add(spec("b", recent, max_tokens=1))
    play.finish()
    play.add(spec("c", [*old, 9], max_tokens=1))  # old is used again
    play.finish()
    play.add(spec("d", 24, max_tokens=1))  # evicts one block of 4 cached ones: the tail of recent
    play.finish()
    play.add(spec("e", [*probe, 3], max_tokens=1))
    assert first_start(play) == hit


def test_prompt_logprobs_skip_the_cache() -> None:
    play = Play()
    play.add(spec("a", SHARED))
    play.finish()
    play.add(spec("b", SHARED, prompt_logprobs=1))
    assert first_start(play) == 0


def test_a_hash_collision_is_no_hit() -> None:
    allocator = KvAllocator(8, KvGroups(4), 64, enable_prefix_caching=True, digest=lambda data: b"always the same")
    one = Sequence(spec("a", [1, 2, 3, 4, 5]), (0, 0), None, None, Request(ANYONE, 0.0))
    assert allocator.admit(one, 0)
    allocator.commit(one, 5)
    other = Sequence(spec("b", [1, 2, 3, 5, 5]), (0, 1), None, None, Request(ANYONE, 0.0))
    assert allocator.admit(other, 0)
    assert other.num_computed == 0
    same = Sequence(spec("c", [1, 2, 3, 4, 6]), (0, 2), None, None, Request(ANYONE, 0.0))
    assert allocator.admit(same, 0)
    assert same.num_computed == 4
    salted = Sequence(spec("d", [1, 2, 3, 4, 6], cache_salt="x"), (0, 3), None, None, Request(ANYONE, 0.0))
    assert allocator.admit(salted, 0)
    assert salted.num_computed == 0


def test_each_salt_has_blocks_of_its_own() -> None:
    cache = PrefixCache(KvGroups(4))
    prefixes: dict[str, list[PrefixBlock]] = {"one": [], "two": []}
    for block_id, (salt, prefix) in enumerate(prefixes.items()):
        cache.extend(prefix, [1, 2, 3, 4], 1, salt)
        assert cache.insert(0, prefix[0], block_id)
    assert [matched(cache, prefix) for prefix in prefixes.values()] == [[0], [1]]


def test_of_two_blocks_with_the_same_tokens_the_first_is_shared() -> None:
    cache = PrefixCache(KvGroups(4))
    prefix: list[PrefixBlock] = []
    cache.extend(prefix, [1, 2, 3, 4], 1, "")
    assert cache.insert(0, prefix[0], 5)
    assert not cache.insert(0, prefix[0], 6)
    assert matched(cache, prefix) == [5]
    cache.forget(5)
    assert matched(cache, prefix) == []


def test_taking_more_blocks_than_are_free_takes_and_evicts_none() -> None:
    evicted: list[int] = []
    pool = BlockPool(4, evicted.append)
    held = pool.take(3)
    assert held is not None
    pool.keep(held[0])
    pool.release(held[:1])
    assert pool.take(3) is None
    assert (pool.num_free, evicted) == (2, [])
    assert pool.take(2) is not None
    assert evicted == held[:1]
