"""Sequences come, wait, pause, and go: admission at the door, abort and pause in every state, time, continuation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from streamserve.errors import ContextLengthExceeded, InvalidParameter, PromptTooLarge, QueueFull
from streamserve.scheduling.plan import StepResult
from streamserve.types import ErrorInfo
from tests.scheduling.oracle import EOS, VOCABULARY, expected
from tests.scheduling.play import Play, rows, spec
from tests.support.scheduler_invariants import check_invariants


def queued(play: Play) -> None:
    play.scheduler.pause("other")  # nothing is planned: a stays in the queue


def prefilling(play: Play) -> None:
    assert play.submit()
    assert play.scheduler.registry.sequences["a"].num_computed < 20


def decoding(play: Play) -> None:
    while not play.deltas["a"]:
        play.step()


def in_flight(play: Play) -> None:
    decoding(play)
    play.submit()
    play.submit()


def paused(play: Play) -> None:
    decoding(play)
    play.scheduler.pause("a")


def paused_in_flight(play: Play) -> None:
    in_flight(play)
    play.scheduler.pause("a")


def paused_in_queue(play: Play) -> None:
    play.scheduler.pause("a")


def preempted(play: Play) -> None:
    decoding(play)
    play.scheduler.pause("a")
    play.add(spec("hungry", 4 * 60, max_tokens=2))
    while play.scheduler.registry.sequences["a"].is_resident:
        play.step()
    play.scheduler.resume("a")


STATES = [queued, prefilling, decoding, in_flight, paused, paused_in_flight, paused_in_queue, preempted]


@pytest.mark.parametrize("reach", STATES)
def test_abort_frees_row_and_blocks_at_once_in_every_state(reach: Callable[[Play], None]) -> None:
    play = Play(max_num_batched_tokens=16, max_model_len=1024)
    play.add(spec("a", 20))
    reach(play)
    tables = play.scheduler.registry.sequences["a"].tables
    used, held = play.used_blocks(), sum(len(table.block_ids) for table in tables)
    before = play.tokens("a")
    play.abort("a")
    assert play.used_blocks() == used - held
    check_invariants(play.scheduler)
    plan = play.submit()
    assert plan is None or all(len(start.token_ids) != 20 for start in plan.starts)
    while play.outstanding:
        play.commit()
    play.finish()
    assert play.output("a").finish_reason == "abort"
    assert play.tokens("a") == before
    assert not play.scheduler.has_work
    assert play.used_blocks() == 0


@pytest.mark.parametrize("reach", STATES)
def test_pause_and_resume_in_every_state_change_no_token(reach: Callable[[Play], None]) -> None:
    play = Play(max_num_batched_tokens=16, max_model_len=1024)
    play.add(spec("a", 20), spec("b", 7))
    reach(play)
    assert play.scheduler.pause("a")
    assert play.scheduler.pause("a")
    play.finish()
    told = len(play.tokens("a"))
    assert "a" in play.scheduler.registry.sequences
    assert not play.scheduler.has_runnable
    assert play.scheduler.has_work
    assert play.submit() is None
    assert play.scheduler.resume("a")
    assert play.scheduler.resume("a")
    play.finish()
    assert told < 8
    assert play.tokens("a") == expected(spec("a", 20))[0]


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("prompt_token_ids", {"prompt": [1, 50]}),
        ("prompt_token_ids", {"prompt": [-1]}),
        ("generated_token_ids", {"generated_token_ids": [50]}),
        ("stop_token_ids", {"stop_token_ids": [50]}),
        ("allowed_token_ids", {"allowed_token_ids": [7, 50]}),
        ("logit_bias", {"logit_bias": {50: 1.0}}),
        ("bad_words", {"bad_words_token_ids": [[1], [2, 50, 3]]}),
    ],
)
def test_an_id_that_the_model_does_not_have_is_refused_at_the_door(name: str, fields: dict[str, Any]) -> None:
    play = Play(vocab_size=50)
    with pytest.raises(InvalidParameter, match="between 0 and 49") as raised:
        play.add(spec("a", **{"prompt": [1], **fields}))
    assert raised.value.param == name
    assert not play.scheduler.has_work


def test_unknown_sequences_are_nobody() -> None:
    play = Play()
    assert play.scheduler.abort("x") is None
    assert not play.scheduler.pause("x")
    assert not play.scheduler.resume("x")


def test_abort_passes_on_its_reason_and_error() -> None:
    play = Play()
    play.add(spec("a"))
    error = ErrorInfo("slow_consumer", "the reader took nothing for 60 s")
    delta = play.scheduler.abort("a", "error", error)
    assert delta is not None
    assert (delta.finish_reason, delta.error, delta.token_ids) == ("error", error, [])


def test_a_paused_sequence_still_gets_its_tokens_in_flight() -> None:
    play = Play()
    play.add(spec("a"))
    play.submit()
    play.submit()
    play.scheduler.pause("a")
    assert play.submit() is None
    assert len(play.commit()["a"]) + len(play.commit()["a"]) == 2


def test_time_is_up_for_running_waiting_and_paused_sequences() -> None:
    play = Play(max_num_seqs=1)
    play.add(*(spec(name, max_time_s=5.0) for name in "abc"), spec("d", max_time_s=9.0))
    play.scheduler.pause("c")
    play.step()
    assert play.scheduler.next_deadline(0.0) == 5.0
    assert play.scheduler.expire(4.9) == []
    ended = play.scheduler.expire(5.0)
    assert [(name, delta.finish_reason) for name, delta in ended] == [("a", "time"), ("b", "time"), ("c", "time")]
    assert play.scheduler.next_deadline(5.0) == 9.0
    play.finish()
    assert play.output("d").finish_reason == "length"
    assert play.scheduler.next_deadline(9.0) is None


def test_no_step_is_spent_on_a_sequence_whose_time_is_up() -> None:
    play = Play()
    play.add(spec("a", max_time_s=5.0))
    play.submit()
    play.now = 5.0
    assert play.submit() is None
    assert play.commit() == {"a": []}
    assert play.output("a").finish_reason == "time"
    assert play.scheduler.expire(6.0) == []


def test_a_token_that_comes_in_time_comes_before_the_end() -> None:
    play = Play()
    play.add(spec("a", max_time_s=5.0))
    play.submit()
    play.now = 5.0
    play.commit()
    assert [(len(delta.token_ids), delta.finish_reason) for delta in play.deltas["a"]] == [(1, None), (0, "time")]


def test_continuing_is_the_same_as_never_having_stopped() -> None:
    whole = expected(spec("a", max_tokens=10, stop_token_ids=[EOS], min_tokens=6))[0]
    play = Play()
    play.add(spec("a", max_tokens=10, stop_token_ids=[EOS], min_tokens=6, generated_token_ids=whole[:4]))
    plan = play.submit()
    assert plan is not None
    assert (plan.starts[0].num_prompt_tokens, plan.starts[0].token_ids[6:]) == (6, whole[:4])
    play.finish()
    assert play.tokens("a") == whole[4:]


def test_the_queue_is_bounded_and_free_rows_count() -> None:
    play = Play(max_num_seqs=2, max_queue=1)
    play.add(*(spec(name) for name in "abc"))
    with pytest.raises(QueueFull):
        play.add(spec("d"))
    play.submit()
    with pytest.raises(QueueFull):
        play.add(spec("d"))
    play.abort("a")
    play.add(spec("d"))


@pytest.mark.parametrize(
    ("changes", "error", "match"),
    [
        ({"prompt": []}, InvalidParameter, "at least one token"),
        ({"prompt": [-1]}, InvalidParameter, "prompt_token_ids"),
        ({"prompt": [2**31]}, InvalidParameter, "prompt_token_ids"),
        ({"max_tokens": 0}, InvalidParameter, "max_tokens"),
        ({"generated_token_ids": [1] * 8}, InvalidParameter, "nothing is left"),
        ({"prompt": 60, "max_tokens": 5}, ContextLengthExceeded, "context is 64"),
        ({"prompt": 40, "max_tokens": 10}, PromptTooLarge, "holds 48 tokens"),
        ({"name": "taken"}, InvalidParameter, "in use"),
    ],
)
def test_what_can_never_run_is_refused_and_changes_nothing(changes: dict[str, object], error: type, match: str) -> None:
    play = Play(num_blocks=12, max_model_len=64)
    play.add(spec("taken"))
    with pytest.raises(error, match=match):
        play.add(spec(**({"name": "a"} | changes)))  # type: ignore[arg-type]
    assert list(play.scheduler.registry.sequences) == ["taken"]
    play.finish()
    assert play.tokens("taken") == expected(spec("taken"))[0]


def test_the_largest_sequence_that_fits_is_admitted() -> None:
    play = Play(num_blocks=12, max_model_len=49)
    play.add(spec("a", 40, max_tokens=9))
    play.finish()
    assert play.tokens("a") == expected(spec("a", 40, max_tokens=9))[0]


def test_priorities_order_the_queue_under_the_priority_policy() -> None:
    play = Play(max_num_seqs=1, policy="priority")
    play.add(spec("low", priority=1), spec("high", 9, priority=-1), spec("middle"))
    assert rows(play.submit()) == {0: (0, 9, True)}
    assert [sequence.sequence_id for sequence in play.scheduler.registry.waiting] == ["middle", "low"]


def test_the_stop_token_is_the_stop_reason_and_is_told() -> None:
    every = list(range(VOCABULARY))
    play = Play()
    play.add(spec("a", stop_token_ids=every))
    play.finish()
    output = play.output("a")
    assert (output.finish_reason, output.stop_reason, output.token_ids) == ("stop", output.token_ids[0], output.token_ids[:1])


def test_no_stop_token_ends_a_sequence_before_min_tokens() -> None:
    params = {"stop_token_ids": list(range(12)), "min_tokens": 5, "max_tokens": 40}
    play = Play()
    play.add(spec("a", **params))
    play.finish()
    assert (play.tokens("a"), "stop") == expected(spec("a", **params))
    assert len(play.tokens("a")) >= 6


def test_a_stop_token_sampled_too_early_ends_nothing() -> None:
    play = Play()
    play.add(spec("a", stop_token_ids=[EOS], min_tokens=2))
    reasons = []
    for index in range(2):
        step = play.scheduler.schedule(0.0)
        assert step is not None
        reasons.append(play.scheduler.commit(step, StepResult(index, [[EOS]]), 0.0)[0][1].finish_reason)
    assert reasons == [None, "stop"]


def test_stats_count_what_happened() -> None:
    play = Play(max_num_seqs=1)
    play.add(spec("a", max_tokens=3), spec("b", max_tokens=3), spec("c"))
    play.scheduler.pause("c")
    play.submit()
    stats = play.scheduler.stats()
    assert (stats.num_requests_running, stats.num_requests_waiting, stats.num_requests_paused) == (1, 1, 1)
    assert (stats.kv_blocks_total, stats.kv_blocks_used) == (64, 2)
    play.finish()
    stats = play.scheduler.stats()
    assert (stats.prompt_tokens, stats.generation_tokens, stats.kv_blocks_used, stats.steps) == (12, 6, 0, 6)
