"""The router: where requests go by what was sent where and how loaded replicas are."""

from __future__ import annotations

import random
from collections import Counter
from itertools import count

import pytest

from streamserve.routing.policy import Candidate, RoutingPolicy, choose
from streamserve.routing.prefix_index import PrefixIndex, index_bytes
from streamserve.routing.prefix_keys import PrefixKeys, prefix_keys
from streamserve.routing.router import Router

IDLE = [0, 0, 0]
_fresh = count(1)


def prompt(num_tokens: int = 160) -> PrefixKeys:
    """A prompt that shares nothing with another."""
    start = next(_fresh) << 16
    return prefix_keys(range(start, start + num_tokens))


def test_a_conversation_stays_on_its_replica() -> None:
    router = Router(3)
    turns = list(range(200))
    first = router.route(prefix_keys(turns), IDLE)
    for _ in range(5):
        router.route(prompt(), IDLE)
        turns += range(1000, 1100)
        assert router.route(prefix_keys(turns), IDLE) == first


def test_prompts_that_share_nothing_take_turns() -> None:
    router = Router(3)
    assert Counter(router.route(prompt(), IDLE) for _ in range(30)) == {0: 10, 1: 10, 2: 10}


def test_of_two_replicas_that_have_a_prefix_the_less_loaded_one_is_taken() -> None:
    router = Router(3)
    shared = prompt()
    assert {router.route(shared, [0, None, None]), router.route(shared, [None, 0, None])} == {0, 1}
    assert router.route(shared, [5, 4, 5]) == 1


def test_the_longest_prefix_wins_over_a_shorter_one() -> None:
    router = Router(2)
    router.route(prefix_keys(range(160)), [0, None])
    router.route(prefix_keys(range(1600)), [None, 0])
    assert router.route(prefix_keys(range(2000)), [0, 1]) == 1


def test_a_hot_prefix_does_not_overload_its_replica_while_others_are_idle() -> None:
    router = Router(3)
    loads = [0, 0, 0]
    hot = prompt(100_000)
    for _ in range(300):
        chosen = router.route(hot, loads)
        assert chosen is not None
        loads[chosen] += 1
        assert max(loads) <= max(router.policy.max_imbalance * sum(loads) / 3 + 1, min(loads) + router.policy.slack + 1)
    assert min(loads) > 60


def test_a_few_cached_tokens_do_not_outweigh_a_loaded_replica() -> None:
    router = Router(2)
    header = list(range(16))
    router.route(prefix_keys(header), [0, None])
    assert router.route(prefix_keys([*header, *range(500, 700)]), [6, 0]) == 1


def test_a_replica_that_takes_no_requests_gets_none() -> None:
    router = Router(2)
    shared = prompt()
    assert router.route(shared, [0, None]) == 0
    assert router.route(shared, [None, 9]) == 1
    assert router.route(shared, [None, None]) is None


def test_a_replica_that_was_forgotten_has_no_prefix() -> None:
    router = Router(2)
    shared = prompt()
    router.route(shared, [0, None])
    router.forget(0)
    [first, second] = router.candidates(shared, [0, 0])
    assert first == Candidate(0, cached_tokens=0, last_chosen=0)
    assert second == Candidate(0, cached_tokens=0, last_chosen=0)


def test_salts_keep_prompts_apart() -> None:
    router = Router(2)
    router.route(prefix_keys(range(160), salt="one"), [0, None])
    [first, _] = router.candidates(prefix_keys(range(160), salt="two"), [0, 0])
    assert first is not None
    assert first.cached_tokens == 0


def test_an_index_in_shared_memory_serves_several_routers() -> None:
    memory = bytearray(index_bytes(2, 64))
    one, other = (Router(2, index=PrefixIndex(2, num_slots=64, words=memoryview(memory).cast("Q"))) for _ in range(2))
    shared = prompt()
    assert one.route(shared, [None, 0]) == 1
    assert other.route(shared, [0, 0]) == 1


def test_an_index_keeps_its_size_and_forgets_older_prompts() -> None:
    index = PrefixIndex(1, num_slots=64)
    old, new = prompt(), prompt()
    index.add(0, old)
    for _ in range(100):
        index.add(0, prompt())
    index.add(0, new)
    assert index.cached_tokens(0, new) == 160
    assert index.cached_tokens(0, old) == 0


def test_a_prefix_is_known_though_a_key_before_its_end_was_forgotten() -> None:
    index = PrefixIndex(1, num_slots=1024)
    keys = prefix_keys(range(160))
    index.add(0, PrefixKeys(keys.num_tokens, keys.keys[1:], keys.ends[1:]))
    assert index.cached_tokens(0, keys) == 160


def test_a_table_has_a_power_of_two_of_slots() -> None:
    with pytest.raises(ValueError, match="power of two"):
        PrefixIndex(1, num_slots=100)


def test_someone_is_chosen_however_many_are_in_the_way() -> None:
    rng = random.Random(3)
    policy = RoutingPolicy()
    for _ in range(2000):
        candidates = [
            None if rng.random() < 0.3 else Candidate(rng.randrange(200), rng.randrange(5000), rng.randrange(9))
            for _ in range(rng.randrange(1, 6))
        ]
        there = [number for number, each in enumerate(candidates) if each is not None]
        chosen = choose(candidates, policy)
        assert chosen in there if there else chosen is None
