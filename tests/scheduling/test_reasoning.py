"""Reasoning with a budget, and reasoning that is ended: to the token, whatever is in flight."""

from __future__ import annotations

from typing import Any

import pytest

from streamserve.scheduling.reasoning import ReasoningLimit
from streamserve.types import ReasoningMarks, SequenceSpec, StructuredOutputs
from tests.scheduling.oracle import CLOSE, FIRST_OF_ENDING, LAST_OF_ENDING, OPEN, expected, marks
from tests.scheduling.play import Play, rows, spec

ENDING = [FIRST_OF_ENDING, LAST_OF_ENDING]


def thinking(name: str, budget: int | None, **changes: Any) -> SequenceSpec:
    """A sequence whose prompt ended inside reasoning, and that does not end it by itself."""
    return spec(name, **{"reasoning": marks(has_begun=True), "reasoning_budget": budget, "max_tokens": 20, **changes})


def follow(limit: ReasoningLimit, *token_ids: int) -> list[list[int] | None]:
    """What is forced before each of these tokens, and behind the last one."""
    forced = [limit.plan()]
    for token_id in token_ids:
        limit.accept(token_id)
        forced.append(limit.plan())
    return forced


@pytest.mark.parametrize("budget", [0, 1, 2, 7])
@pytest.mark.parametrize("outstanding", [1, 2])
def test_reasoning_has_as_many_tokens_as_its_budget_and_then_the_closing_mark(budget: int, outstanding: int) -> None:
    play, one = Play(), thinking("a", budget)
    play.add(one, spec("b"))
    play.finish(outstanding)
    assert play.tokens("a") == expected(one)[0]
    assert play.tokens("a")[budget : budget + 2] == ENDING
    assert play.tokens("b") == expected(spec("b"))[0]


def test_a_sequence_below_its_budget_overlaps_as_any_other_and_behind_its_reasoning_too() -> None:
    play = Play()
    play.add(thinking("a", 4, max_tokens=10))
    planned = []
    while play.scheduler.has_runnable or play.outstanding:
        planned.append(play.submit() is not None)
        if len(play.outstanding) == 2 or not planned[-1]:
            play.commit()
    # Waiting for a commit costs a turn at the budget and at each token of the mark, and none elsewhere.
    assert planned.count(False) == 4


def test_reasoning_is_ended_behind_the_tokens_in_flight() -> None:
    play = Play()
    play.add(thinking("a", None, seed=3), spec("b"))
    for _ in range(3):
        play.submit()
        if len(play.outstanding) == 2:
            play.commit()
    in_flight = len(play.outstanding)
    known = len(play.tokens("a"))
    assert play.scheduler.end_reasoning("a")
    assert rows(play.submit()).keys() == {1}
    play.finish()
    assert play.tokens("a")[known + in_flight :][:2] == ENDING
    assert len(play.tokens("a")) == 20
    assert play.tokens("b") == expected(spec("b"))[0]
    assert not play.scheduler.end_reasoning("a")


def test_reasoning_that_is_over_is_not_ended_again() -> None:
    play, one = Play(), thinking("a", 1)
    play.add(one)
    for _ in range(5):
        play.step()
    play.scheduler.end_reasoning("a")
    play.finish()
    assert play.tokens("a") == expected(one)[0]


@pytest.mark.parametrize("budget", [None, 3])
def test_a_sequence_that_waits_is_ended_at_its_first_token(budget: int | None) -> None:
    play = Play()
    play.add(thinking("a", budget))
    play.scheduler.end_reasoning("a")
    play.finish()
    assert play.tokens("a")[:2] == ENDING


def test_a_preempted_sequence_keeps_its_budget() -> None:
    play, one = Play(max_num_seqs=1), thinking("a", 5)
    play.add(one, spec("b"))
    for _ in range(3):
        play.step()
    play.scheduler.pause("a")
    play.finish()
    play.scheduler.resume("a")
    play.finish()
    assert play.tokens("a") == expected(one)[0]


@pytest.mark.parametrize("num_generated", [3, 5, 6, 7, 9])
def test_another_engine_goes_on_as_the_first_would_have(num_generated: int) -> None:
    whole = expected(thinking("a", 5))[0]
    play = Play()
    play.add(thinking("a", 5, generated_token_ids=whole[:num_generated]))
    play.finish()
    assert play.tokens("a") == whole[num_generated:]


def test_a_mask_of_the_constraint_allows_no_more_than_the_mark() -> None:
    class Anything:
        is_complete, spent_s = False, 0.0

        def __init__(self) -> None:
            self.accepted: list[int] = []

        def bitmask(self) -> bytes:
            return (0xFFFFFF).to_bytes(4, "little")

        def accept(self, token_id: int) -> None:
            self.accepted.append(token_id)

    play, constraint = Play(), Anything()
    play.add(thinking("a", 2, structured_outputs=StructuredOutputs(regex="x"), max_tokens=6), constraint=constraint)
    play.finish()
    assert play.tokens("a")[2:4] == ENDING
    assert constraint.accepted == play.tokens("a")


def test_what_begins_no_reasoning_is_not_limited() -> None:
    limit = ReasoningLimit(marks(has_begun=False), 0)
    assert follow(limit, 1, 2, 3, OPEN, 4) == [None] * 6
    assert limit.is_over


def test_reasoning_that_the_model_begins_is_limited_from_its_mark_on() -> None:
    assert follow(ReasoningLimit(marks(has_begun=False), 2), 1, OPEN, 4, 5) == [None] * 4 + [[FIRST_OF_ENDING]]


def test_reasoning_that_the_model_ends_in_time_is_left_alone() -> None:
    limit = ReasoningLimit(marks(has_begun=True), 3)
    assert follow(limit, 1, 2, CLOSE, 4, 5, 6) == [None] * 7
    assert limit.is_over


def test_a_mark_that_the_model_has_begun_is_only_finished() -> None:
    limit = ReasoningLimit(marks(has_begun=True), 2)
    assert follow(limit, 1, FIRST_OF_ENDING, LAST_OF_ENDING) == [None, None, [LAST_OF_ENDING], None]
    assert limit.is_over


def test_all_messages_of_reasoning_share_a_budget_and_the_next_message_is_none() -> None:
    channel, analysis, final, commentary, body, end, start = range(1, 8)
    channels = ReasoningMarks(
        opens=[[channel, analysis, body]],
        closes=[[end]],
        answers=[[channel, final]],
        ending=[[end], [start], [channel], [final, commentary]],
        anywhere=True,
    )
    limit = ReasoningLimit(channels, 3)
    first = [channel, analysis, body, 9, 9, end]
    assert follow(limit, *first) == [None] * 7
    called = [start, channel, commentary, body, 9, end]
    assert follow(limit, *called) == [None] * 7
    again = [start, channel, analysis, body, 9]
    assert follow(limit, *again) == [None] * 5 + [[end]]
    assert follow(limit, end, start, channel, commentary) == [[end], [start], [channel], [final, commentary], None]
    assert not limit.is_over
    assert follow(limit, body, 9, end, start, channel, final, 9) == [None] * 8
    assert limit.is_over
