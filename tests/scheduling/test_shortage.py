"""What the device lacked the memory for ends, with two steps outstanding too; others go on, in smaller steps."""

from __future__ import annotations

import msgspec

from tests.scheduling.oracle import expected
from tests.scheduling.play import Play, spec
from tests.support.scheduler_invariants import check_invariants


def fail(play: Play, *names: str, most_tokens: int | None = None) -> None:
    """Have the oldest step outstanding lack the memory for these sequences."""
    step, result = play.outstanding[0]
    rows = [play.row_of(name) for name in names]
    play.outstanding[0] = step, msgspec.structs.replace(result, failed_rows=rows, most_tokens=most_tokens)


def test_sequences_that_did_not_fit_end_with_steps_outstanding_and_others_do_not_notice() -> None:
    play = Play(num_blocks=64)
    decoding, other, prompt = spec("decoding"), spec("other", max_tokens=20), spec("prompt", 100)
    play.add(decoding, other)
    play.step()
    play.add(prompt)
    play.submit()
    play.submit()
    fail(play, "decoding", "prompt")
    play.commit()
    check_invariants(play.scheduler)
    for name in ("decoding", "prompt"):
        assert play.output(name).finish_reason == "error"
        assert play.output(name).error is not None
        assert play.output(name).error.code == "out_of_memory"  # type: ignore[union-attr]
    play.finish()
    assert play.tokens("other") == expected(other)[0]
    assert play.used_blocks() == 0
    again = spec("again", prompt.prompt_token_ids)
    play.add(again)
    play.finish()
    assert play.tokens("again") == expected(again)[0], "a block that was never computed got into the prefix cache"


def test_later_steps_are_no_larger_than_what_fits_and_hold_a_token_of_each_row() -> None:
    play = Play()
    play.add(spec("long", 120))
    play.submit()
    fail(play, most_tokens=20)
    play.commit()
    assert play.submit().num_tokens == 20  # type: ignore[union-attr]
    fail(play, most_tokens=2)
    play.commit()
    assert play.submit().num_tokens == play.scheduler.limits.max_num_seqs  # type: ignore[union-attr]
    assert play.scheduler.stats().divided_steps == 2
    play.finish()
    assert play.tokens("long") == expected(spec("long", 120))[0]


def test_prompts_that_may_not_be_divided_are_planned_whole_all_the_same() -> None:
    play = Play(enable_chunked_prefill=False, max_num_batched_tokens=128)
    play.add(spec("one", 100))
    play.submit()
    fail(play, most_tokens=50)
    play.commit()
    play.add(spec("two", 100))
    play.finish()
    assert play.tokens("two") == expected(spec("two", 100))[0]
