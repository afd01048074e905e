"""Memory runs out: which sequences are preempted, when they resume, and that no tokens change."""

from __future__ import annotations

from tests.scheduling.oracle import expected
from tests.scheduling.play import Play, rows, spec


def resident(play: Play) -> set[str]:
    return {name for name, sequence in play.scheduler.registry.sequences.items() if sequence.is_resident}


def crowd(**changes: object) -> Play:
    """Three sequences of 7 tokens in 8 blocks of 4: the third block of each does not fit."""
    play = Play(num_blocks=8, **changes)
    play.add(*(spec(name, 7, max_tokens=12) for name in "abc"))
    return play


def test_the_most_recent_sequence_yields_first() -> None:
    play = crowd()
    for _ in range(2):
        play.step()
    assert resident(play) == {"a", "b", "c"}
    assert play.used_blocks() == 6
    play.step()  # a and b take the last two blocks, and c, lacking one, yields
    assert resident(play) == {"a", "b"}
    assert play.scheduler.stats().num_preemptions == 1
    play.finish()
    for name in "abc":
        assert (play.tokens(name), "length") == expected(spec(name, 7, max_tokens=12))
    stats = play.scheduler.stats()
    assert (stats.ended_preemptions.total, sum(stats.ended_preemptions.counts)) == (stats.num_preemptions, 3)


def test_under_the_priority_policy_the_lowest_priority_yields_first() -> None:
    play = Play(num_blocks=8, policy="priority")
    play.add(spec("low", 7, max_tokens=12, priority=5), spec("a", 7, max_tokens=12), spec("b", 7, max_tokens=12))
    for _ in range(3):
        play.step()
    assert resident(play) == {"a", "b"}


def test_under_fcfs_priorities_mean_nothing() -> None:
    play = Play(num_blocks=8)
    play.add(spec("low", 7, max_tokens=12, priority=5), spec("a", 7, max_tokens=12), spec("b", 7, max_tokens=12))
    for _ in range(3):
        play.step()
    assert resident(play) == {"low", "a"}


def test_a_paused_sequence_yields_before_any_running_one() -> None:
    play = crowd()
    play.step()
    play.scheduler.pause("a")
    for _ in range(9):
        play.step()
    assert resident(play) == {"b", "c"}
    assert play.scheduler.stats().num_requests_paused == 1
    play.scheduler.resume("a")
    play.finish()
    for name in "abc":
        assert (play.tokens(name), "length") == expected(spec(name, 7, max_tokens=12))


def test_a_preempted_sequence_returns_only_after_its_token_in_flight_is_committed() -> None:
    play = Play(num_blocks=5, enable_prefix_caching=False)
    play.add(spec("a", 4, max_tokens=9), spec("b", 4, max_tokens=9))
    play.submit()  # 0: both prompts
    for _ in range(4):
        play.submit()
        play.commit()
    assert resident(play) == {"a", "b"}
    plan = play.submit()  # both lack a third block; a takes the last one, b yields with a token in flight
    assert rows(plan).keys() == {play.row_of("a")}
    preempted = play.scheduler.registry.sequences["b"]
    assert (preempted.is_resident, preempted.num_in_flight) == (False, 1)
    play.abort("a")  # room enough, from here on
    assert play.submit() is None
    play.commit()
    assert preempted.num_in_flight == 0
    plan = play.submit()
    assert plan is not None
    assert [start.token_ids for start in plan.starts] == [preempted.token_ids[:9]]
    play.finish()
    assert (play.tokens("b"), "length") == expected(spec("b", 4, max_tokens=9))


def test_a_preempted_sequence_whose_token_in_flight_is_its_last_ends_without_running_again() -> None:
    play = Play(num_blocks=4)
    play.add(spec("a", 4, max_tokens=9), spec("b", 4, max_tokens=5))
    for _ in range(5):
        play.submit()
        if len(play.outstanding) == 2:
            play.commit()
    assert play.scheduler.registry.sequences["b"].num_known == 9
    play.submit()  # a lacks a third block; b has its last token in flight
    assert resident(play) == {"a"}
    play.finish()
    assert (play.tokens("b"), "length") == expected(spec("b", 4, max_tokens=5))
    assert play.scheduler.stats().wasted_tokens == 0


def test_a_preempted_sequence_goes_before_those_that_never_ran() -> None:
    play = crowd(max_num_seqs=3)
    play.add(spec("d", 7))
    for _ in range(3):
        play.step()
    assert [sequence.sequence_id for sequence in play.scheduler.registry.waiting] == ["c", "d"]


def test_a_preempted_sequence_finds_its_own_blocks_in_the_prefix_cache() -> None:
    play = crowd()
    for _ in range(3):
        play.step()
    play.abort("a")
    plan = play.submit()
    assert plan is not None
    assert [work.start for work in plan.work if work.row == play.row_of("c")] == [8]
    play.finish()
    stats = play.scheduler.stats()
    assert (stats.prompt_tokens, stats.prefix_cache_queries, stats.prefix_cache_hits) == (21, 21, 0)


def test_admission_leaves_a_block_for_each_running_sequence() -> None:
    play = Play(num_blocks=6)
    play.add(spec("a", 8, max_tokens=2), spec("b", 8, max_tokens=2), spec("c", 4, max_tokens=2))
    play.submit()
    assert resident(play) == {"a", "b"}  # 2 blocks are free: c needs 1 and the running ones may need 2
    play.finish()
    assert play.scheduler.stats().num_preemptions == 0
    assert play.tokens("c") == expected(spec("c", 4, max_tokens=2))[0]


def test_admission_leaves_one_percent_of_all_blocks() -> None:
    play = Play(num_blocks=300, max_num_seqs=2, max_model_len=4096, max_num_batched_tokens=4096)
    play.add(spec("a", 4), spec("b", 4 * 297))
    play.submit()
    assert resident(play) == {"a"}


def test_admission_leaves_nothing_when_nobody_runs() -> None:
    play = Play(num_blocks=100, max_model_len=1024, max_num_batched_tokens=512)
    play.add(spec("a", 399, max_tokens=2))
    play.submit()
    assert resident(play) == {"a"}


def test_a_prompt_that_is_preempted_half_way_is_not_in_the_step() -> None:
    play = Play(num_blocks=13, max_num_batched_tokens=6, max_num_seqs=2)
    play.add(spec("a", 4, max_tokens=14), spec("b", 40, max_tokens=2))
    while not play.scheduler.stats().num_preemptions:
        assert resident(play) <= {"a", "b"}
        plan = play.submit()
        play.commit()
    assert rows(plan).keys() == {play.row_of("a")}
    play.finish()
    assert play.tokens("b") == expected(spec("b", 40, max_tokens=2))[0]


def test_nothing_overtakes_the_first_in_the_queue() -> None:
    play = Play(num_blocks=8)
    play.add(spec("a", 16, max_tokens=4), spec("long", 24, max_tokens=4), spec("short", 2, max_tokens=4))
    play.submit()
    assert resident(play) == {"a"}


def test_a_sequence_as_large_as_the_cache_runs_alone() -> None:
    play = Play(num_blocks=4)
    play.add(spec("a", 3, max_tokens=6), spec("b", 9, max_tokens=8), spec("c", 3, max_tokens=6))
    play.finish()
    assert play.tokens("b") == expected(spec("b", 9, max_tokens=8))[0]
    assert play.used_blocks() == 0


def test_paused_sequences_yield_rows_and_blocks_to_those_that_wait() -> None:
    play = Play(max_num_seqs=1)
    play.add(spec("slow"), spec("b"))
    play.step()
    play.scheduler.pause("slow")
    play.step()
    assert resident(play) == {"b"}
    play.finish()
    assert play.output("b").finish_reason == "length"
    play.scheduler.resume("slow")
    play.finish()
    assert play.tokens("slow") == expected(spec("slow"))[0]


def test_paused_sequences_keep_their_blocks_when_giving_them_up_would_not_help() -> None:
    play = Play(num_blocks=8)
    play.add(spec("slow", 4), spec("a", 12, max_tokens=17), spec("big", 28, max_tokens=1))
    play.step()
    play.scheduler.pause("slow")
    play.step()
    assert "slow" in resident(play)
