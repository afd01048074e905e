"""Sequences whose next token needs the host: planned only when it knows all the others."""

from __future__ import annotations

from typing import Any

import pytest

from streamserve.errors import InvalidParameter, UnsupportedParameter
from streamserve.types import SequenceSpec, StructuredOutputs
from tests.scheduling.oracle import EOS, expected
from tests.scheduling.play import Play, rows, spec


class OneOf:
    """Allows, at each place, one of the given tokens; finished after the last place."""

    spent_s = 0.0

    def __init__(self, *places: set[int]) -> None:
        self.places = list(places)

    def bitmask(self) -> bytes:
        return sum(1 << token_id for token_id in self.places[0]).to_bytes(4, "little")

    def accept(self, token_id: int) -> None:
        if self.is_complete or token_id not in self.places[0]:
            raise ValueError(f"token {token_id} is not allowed here")
        del self.places[0]

    @property
    def is_complete(self) -> bool:
        return not self.places


def constrained(name: str, prompt: int | list[int] = 6, **changes: Any) -> SequenceSpec:
    return spec(name, prompt, structured_outputs=StructuredOutputs(regex="x"), **changes)


def test_a_constrained_sequence_is_not_planned_while_a_token_is_in_flight_and_others_are() -> None:
    play = Play()
    play.add(constrained("a"), constraint=OneOf({3}, {5, 6}, {7}))
    play.add(spec("b"))
    assert rows(play.submit()).keys() == {0, 1}
    assert rows(play.submit()).keys() == {1}
    play.commit()
    assert rows(play.submit()).keys() == {0, 1}
    play.finish()
    assert play.tokens("a") in ([3, 5, 7], [3, 6, 7])
    assert (play.output("a").finish_reason, play.output("a").stop_reason) == ("stop", None)
    assert play.tokens("b") == expected(spec("b"))[0]
    assert play.scheduler.stats().wasted_tokens == 0


@pytest.mark.parametrize(
    ("others", "params"),
    [
        ("allowed_token_ids", {"allowed_token_ids": [1, 4]}),
        ("bad_words", {"bad_words_token_ids": [[3], [5]]}),
        ("allowed_token_ids and bad_words", {"allowed_token_ids": [1, 3], "bad_words_token_ids": [[3]]}),
        ("min_tokens", {"min_tokens": 2, "stop_token_ids": [3, 5]}),
    ],
)
def test_a_constraint_that_other_parameters_leave_no_first_token_is_refused(others: str, params: dict[str, Any]) -> None:
    """Such a request was answered with token 0, again and again."""
    play = Play()
    with pytest.raises(InvalidParameter, match=f"structured_outputs: allow only tokens that {others} exclude"):
        play.add(constrained("a", **params), constraint=OneOf({3, 5}, {4}))
    play.add(constrained("a", min_tokens=2, stop_token_ids=[3], bad_words_token_ids=[[5, 4]]), constraint=OneOf({3, 5}, {4}))


def test_the_bitmask_goes_with_the_step_that_samples() -> None:
    play = Play(max_num_batched_tokens=8)
    play.add(constrained("a", 13), constraint=OneOf({3}, {4}))
    first, second = play.submit(), play.submit()
    assert first is not None
    assert second is not None
    assert [first.work[0].allowed_bitmask, second.work[0].allowed_bitmask] == [None, (1 << 3).to_bytes(4, "little")]


class Slow(OneOf):
    """Each mask takes 10 ms."""

    def bitmask(self) -> bytes:
        self.spent_s += 0.01
        return super().bitmask()


def test_sequences_whose_masks_take_long_take_turns_and_all_come_to_their_ends() -> None:
    """A mask may take as long as the grammar library permits, and a request may have 128 outputs."""
    play = Play(num_blocks=256, max_num_seqs=16, max_num_batched_tokens=128)
    slow = {f"slow{index}": Slow(*[{3}] * 5) for index in range(12)}
    for name, constraint in slow.items():
        play.add(constrained(name), constraint=constraint)
    play.add(spec("other", max_tokens=40))
    num_steps, last_s = 0, 0.0
    while play.submit() is not None:
        spent_s = sum(each.spent_s for each in slow.values())
        # 15 and 5 ms, and in each case the mask that was begun.
        assert spent_s - last_s <= 0.0301
        num_steps, last_s = num_steps + 1, spent_s
        play.commit()
    assert num_steps >= 40
    assert all(play.tokens(name) == [3] * 5 for name in slow)
    assert play.tokens("other") == expected(spec("other", max_tokens=40))[0]


def test_where_those_that_were_left_out_end_the_first_have_their_turn_again() -> None:
    play = Play(num_blocks=256, max_num_seqs=8, max_num_batched_tokens=128)
    for index in range(4):
        play.add(constrained(f"slow{index}", max_tokens=30), constraint=Slow(*[{3}] * 30))
    for _ in range(8):
        play.submit()
        play.commit()
    for index in (2, 3):
        play.scheduler.abort(f"slow{index}")
    play.finish()
    assert play.tokens("slow0") == play.tokens("slow1") == [3] * 30


def test_a_cached_prompt_for_whose_mask_no_time_is_left_takes_its_row_and_goes_on_in_the_next_step() -> None:
    """It was planned with no token at all."""
    tokens = list(range(9))
    play = Play(num_blocks=64, max_num_batched_tokens=128)
    play.add(spec("before", tokens))
    play.finish()
    for name in ("a", "b"):
        play.add(constrained(name, tokens), constraint=Slow({3}, {4}))
    assert [count for _, count, _ in rows(play.submit()).values()] == [1]
    assert play.scheduler.registry.sequences["b"].is_resident
    play.finish()
    assert play.tokens("a") == play.tokens("b") == [3, 4]


def test_without_chunks_a_prompt_for_whose_mask_no_time_is_left_waits_whole() -> None:
    play = Play(num_blocks=64, max_num_batched_tokens=128, enable_chunked_prefill=False)
    for name in ("a", "b"):
        play.add(constrained(name, 9), constraint=Slow({3}, {4}))
    assert [count for _, count, _ in rows(play.submit()).values()] == [9]
    play.finish()
    assert play.tokens("a") == play.tokens("b") == [3, 4]


def test_a_stop_token_ends_a_constrained_sequence_as_any_other() -> None:
    play = Play()
    play.add(constrained("a", stop_token_ids=[EOS]), constraint=OneOf({3}, {EOS}, {4}))
    play.finish()
    assert play.tokens("a") == [3, EOS]
    assert play.output("a").stop_reason == EOS


def test_its_length_ends_a_constrained_sequence() -> None:
    play = Play()
    play.add(constrained("a", max_tokens=2), constraint=OneOf({3}, {4}, {5}))
    play.finish()
    assert (play.tokens("a"), play.output("a").finish_reason) == ([3, 4], "length")


def test_a_preempted_constrained_sequence_goes_on_where_it_was() -> None:
    play = Play(max_num_seqs=1)
    play.add(constrained("a"), constraint=OneOf({3}, {4}, {5}))
    play.add(spec("b"))
    play.submit()
    play.scheduler.pause("a")
    play.finish()
    play.scheduler.resume("a")
    play.finish()
    assert play.tokens("a") == [3, 4, 5]


def test_a_token_that_the_constraint_refuses_fails_its_sequence_alone() -> None:
    class Fickle(OneOf):
        def accept(self, token_id: int) -> None:
            raise ValueError("changed my mind")

    play = Play()
    play.add(constrained("a"), constraint=Fickle({3}))
    play.add(spec("b"))
    play.finish()
    output = play.output("a")
    assert output.finish_reason == "error"
    assert output.error is not None
    assert output.error.code == "structure_too_complex"
    assert play.tokens("a") == []
    assert play.tokens("b") == expected(spec("b"))[0]


def test_a_continued_constrained_sequence_has_accepted_what_came_before() -> None:
    play = Play()
    play.add(constrained("a", generated_token_ids=[3]), constraint=OneOf({3}, {4}, {5}))
    play.finish()
    assert play.tokens("a") == [4, 5]
    with pytest.raises(InvalidParameter, match="do not follow"):
        play.add(constrained("b", generated_token_ids=[9]), constraint=OneOf({3}))
    with pytest.raises(InvalidParameter, match="nothing is left"):
        play.add(constrained("b", generated_token_ids=[3]), constraint=OneOf({3}))


def test_structured_outputs_are_never_ignored() -> None:
    with pytest.raises(UnsupportedParameter):
        Play().add(constrained("a"))
