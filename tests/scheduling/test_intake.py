"""What the queue takes, what it refuses and when to come back, and how long anything in it waits."""

from __future__ import annotations

import math
from contextlib import suppress
from typing import Any

import pytest

from streamserve.errors import InvalidParameter, QueueFull, RateLimited
from streamserve.types import Quota, Quotas, Tenant
from tests.scheduling.play import Play, spec
from tests.support.scheduler_invariants import check_invariants

GREEDY, POLITE = Tenant(name="greedy"), Tenant(name="polite")


def add(play: Play, name: str, prompt: int = 6, n: int = 1, **fields: Any) -> None:
    """Add a request of `n` outputs."""
    whole = spec(name, prompt, **fields)
    specs = [spec(f"{name}-{index}", whole.prompt_token_ids, **fields) for index in range(n)]
    play.scheduler.add_request(specs, play.now, [None] * n)


def refused(play: Play, name: str, **fields: Any) -> QueueFull:
    with pytest.raises(QueueFull) as refusal:
        add(play, name, **fields)
    check_invariants(play.scheduler)
    return refusal.value


def run(play: Play, seconds: float, step_s: float = 0.1) -> None:
    """Steps of `step_s` each."""
    end = play.now + seconds
    while play.now < end - 1e-9:
        play.now += step_s
        if play.submit() is not None:
            play.commit()
        else:
            play.record(play.scheduler.expire(play.now))


def error_of(play: Play, name: str) -> str | None:
    [*_, last] = play.deltas[name]
    return None if last.error is None else last.error.code


def test_prompts_that_wait_are_bounded_in_tokens() -> None:
    play = Play(max_num_seqs=1, max_queue_tokens=20)
    add(play, "a", 8)
    add(play, "b", 8)
    refused(play, "c", prompt=8)
    play.step()
    add(play, "c", 8)
    with pytest.raises(InvalidParameter, match="may ever wait"):
        add(play, "d", 8, n=3)


def test_a_request_is_queued_whole_or_not_at_all() -> None:
    play = Play(max_num_seqs=2, max_queue=2)
    add(play, "a", n=3)
    refused(play, "b", n=2)
    assert sorted(play.scheduler.registry.sequences) == ["a-0", "a-1", "a-2"]


def test_a_key_may_fill_its_part_of_the_queue_and_leaves_the_rest_to_others() -> None:
    tenant = Tenant(name="greedy", max_queue_share=0.5)
    play = Play(max_num_seqs=1, max_queue=8)
    for index in range(5):
        add(play, f"greedy{index}", tenant=tenant)
    refused(play, "more", tenant=tenant)
    for index in range(4):
        add(play, f"polite{index}", tenant=POLITE)


def test_a_key_has_as_many_requests_at_a_time_as_it_may_however_many_outputs_they_have() -> None:
    tenant = Tenant(name="limited", max_concurrency=2)
    play = Play()
    add(play, "a", n=3, tenant=tenant)
    add(play, "b", tenant=tenant, max_tokens=2)
    assert isinstance(refused(play, "c", tenant=tenant), RateLimited)
    add(play, "other", tenant=POLITE)
    play.step()
    play.step()
    add(play, "c", tenant=tenant)


def test_requests_a_minute_come_back_one_after_another() -> None:
    tenant = Tenant(name="limited", requests_per_minute=6)
    play = Play(num_blocks=1024, max_num_seqs=64)
    for index in range(6):
        add(play, f"a{index}", tenant=tenant)
    assert refused(play, "b", tenant=tenant).retry_after_s == pytest.approx(10.0)
    play.now += 9.0
    assert refused(play, "b", tenant=tenant).retry_after_s == pytest.approx(1.0)
    play.now += 1.1
    add(play, "b", tenant=tenant)


def test_a_limit_that_changes_counts_what_was_used() -> None:
    play = Play(num_blocks=1024, max_num_seqs=64)
    for index in range(5):
        add(play, f"a{index}", tenant=Tenant(name="limited", requests_per_minute=6))
    refused(play, "b", tenant=Tenant(name="limited", requests_per_minute=3))
    for index in range(5):
        add(play, f"c{index}", tenant=Tenant(name="limited", requests_per_minute=10))


def test_tokens_of_outputs_count_once_they_are_known_and_may_be_owed() -> None:
    tenant = Tenant(name="limited", tokens_per_minute=60)
    play = Play(num_blocks=1024)
    add(play, "a", 40, n=2, max_tokens=30, tenant=tenant)
    add(play, "b", 20, tenant=tenant, max_tokens=1)
    assert refused(play, "c", prompt=5, tenant=tenant).retry_after_s == pytest.approx(5.0)
    play.finish()
    assert refused(play, "c", prompt=5, tenant=tenant).retry_after_s == pytest.approx(5.0 + 61.0)
    play.now += 67.0
    add(play, "c", 5, tenant=tenant)


def test_a_prompt_of_more_than_a_minutes_tokens_waits_for_a_full_minute_and_runs() -> None:
    tenant = Tenant(name="limited", tokens_per_minute=60)
    play = Play(num_blocks=1024, max_model_len=512)
    add(play, "a", 100, tenant=tenant)
    assert refused(play, "b", prompt=100, tenant=tenant).retry_after_s == pytest.approx(100.0)


def test_a_sequence_that_continues_is_not_counted_twice() -> None:
    tenant = Tenant(name="limited", requests_per_minute=1, max_concurrency=1)
    play = Play()
    add(play, "a", tenant=tenant)
    add(play, "b", tenant=tenant, generated_token_ids=[7])


def test_what_has_waited_too_long_is_told_so_and_never_computed() -> None:
    play = Play(max_num_seqs=1, max_queue_time_s=2.0)
    add(play, "running", max_tokens=50)
    add(play, "waits", n=2)
    assert play.scheduler.next_deadline(0.0) == 2.0
    run(play, 1.9)
    assert not play.deltas["waits-0"]
    run(play, 0.2)
    assert {error_of(play, f"waits-{index}") for index in range(2)} == {"queue_timeout"}
    assert play.deltas["waits-0"][0].error.retry_after_s >= 1.0  # type: ignore[union-attr]
    assert play.scheduler.counters.prompt_tokens == 6
    run(play, 4.0)
    assert error_of(play, "running-0") is None


def test_a_request_that_has_begun_waits_for_its_other_outputs_and_after_a_preemption() -> None:
    play = Play(max_num_seqs=1, max_queue_time_s=2.0)
    add(play, "a", n=3, max_tokens=30)
    run(play, 9.2)
    assert [play.output(f"a-{index}").finish_reason for index in range(3)] == ["length"] * 3


def test_nobody_is_queued_to_wait_for_longer_than_allowed() -> None:
    """One sequence a second leaves the queue here."""
    play = Play(max_num_seqs=1, max_queue_time_s=4.0)
    add(play, "first", max_tokens=10)
    run(play, 0.1)
    for index in range(3):
        add(play, f"a{index}", max_tokens=10)
    run(play, 2.0)
    accepted = 0
    with pytest.raises(QueueFull, match=r"are to wait for 4\.0 s at most") as refusal:
        for accepted in range(20):
            add(play, f"b{accepted}", max_tokens=10)
    assert 2 <= accepted <= 6
    assert 1.0 <= refusal.value.retry_after_s < 3.0
    add(play, "polite", tenant=POLITE)


def test_the_queue_says_when_it_will_have_room_again() -> None:
    play = Play(max_num_seqs=1, max_queue=8)
    for index in range(9):
        add(play, f"a{index}", max_tokens=20)
    run(play, 4.1)
    while len(play.scheduler.registry.waiting) < 8:
        add(play, f"b{len(play.scheduler.registry.sequences)}", max_tokens=20)
    assert refused(play, "c").retry_after_s == pytest.approx(2.0, abs=1.0)
    assert refused(play, "c", n=4).retry_after_s > refused(play, "c").retry_after_s


def offered(play: Play, *, per_second: int, seconds: int, patience_s: float) -> int:
    """Requests that end within their clients' patience, of so many a second; clients leave when it ends."""
    leaves: list[tuple[float, str]] = []
    good = 0
    for tick in range(seconds * 10):
        for index in range(per_second // 10):
            name = f"t{tick}.{index}"
            try:
                add(play, name, max_tokens=9)
            except QueueFull:
                continue
            leaves.append((play.now + patience_s, f"{name}-0"))
        run(play, 0.1)
        while leaves and leaves[0][0] <= play.now:
            name = leaves.pop(0)[1]
            good += name not in play.scheduler.registry.sequences and error_of(play, name) is None
            play.scheduler.abort(name, left_at=play.now)
    return good


@pytest.mark.parametrize("max_queue_time_s", [None, 3.0])
def test_at_ten_times_what_it_can_do_a_server_does_what_it_can(max_queue_time_s: float | None) -> None:
    """4 rows of 10 steps each are 4 a second. With a queue of 4096 and no bound on time not one of 16 561 was answered."""
    play = Play(num_blocks=256, max_num_seqs=4, max_queue=4096, max_queue_time_s=max_queue_time_s)
    assert offered(play, per_second=40, seconds=60, patience_s=10.0) >= 0.9 * 4 * 60


def test_clients_that_say_how_long_they_wait_are_answered_or_refused_and_none_gives_up() -> None:
    """Ten times what 4 rows can do, from the first moment on: nothing has to be learned."""
    play = Play(num_blocks=256, max_num_seqs=4, max_queue=4096)
    longest = 0.0
    for tick in range(300):
        for index in range(4):
            with suppress(QueueFull):
                add(play, f"t{tick}.{index}", max_tokens=9, patience_s=10.0)
        run(play, 0.1)
        requests = [sequence.request for sequence in play.scheduler.registry.sequences.values()]
        longest = max([longest, *(play.now - request.arrived_at for request in requests if not request.has_begun)])
    assert longest <= 5.1
    ended = [name for name, deltas in play.deltas.items() if deltas[-1].finish_reason == "length"]
    assert len(ended) >= 0.9 * 4 * 30


def test_a_client_that_waits_for_less_is_told_so_sooner_than_one_that_does_not_say() -> None:
    play = Play(max_num_seqs=1, max_queue=64)
    add(play, "running", max_tokens=100)
    run(play, 0.1)
    add(play, "silent")
    add(play, "hasty", patience_s=2.0)
    add(play, "patient", patience_s=1e6)
    run(play, 1.3)
    assert error_of(play, "hasty-0") == "queue_timeout"
    assert {"silent-0", "patient-0"} <= play.scheduler.registry.sequences.keys()
    assert refused(play, "hasty2", patience_s=2.0).holds_s == 0, "others may be taken"
    add(play, "other")


def test_requests_that_begin_are_not_watched_for_their_clients_patience() -> None:
    play = Play(num_blocks=4096, max_num_seqs=4, max_queue=4096)
    for index in range(1000):
        add(play, f"r{index}", max_tokens=1, patience_s=1e6)
        run(play, 0.1)
    assert len(play.scheduler.intake._declared._heap) < 200


def test_a_refusal_says_how_long_it_holds_for_all_requests_of_its_key() -> None:
    play = Play(max_num_seqs=1, max_queue=2, max_queue_tokens=30)
    add(play, "a")
    play.step()
    add(play, "b")
    assert refused(play, "c", n=2).holds_s == 0, "one would fit"
    assert refused(play, "c", prompt=28).holds_s == 0, "a shorter one would fit"
    add(play, "c")
    assert refused(play, "d").holds_s == math.inf
    tenant = Tenant(name="limited", max_concurrency=1, requests_per_minute=1)
    play = Play()
    add(play, "a", tenant=tenant)
    assert refused(play, "b", tenant=tenant).holds_s == math.inf
    play.scheduler.abort("a-0")
    refusal = refused(play, "b", tenant=tenant)
    assert refusal.holds_s == refusal.retry_after_s == pytest.approx(60.0)


def test_departures_are_counted_from_the_queue_and_at_the_end() -> None:
    play = Play(max_num_seqs=1, max_queue=4)
    intake = play.scheduler.intake
    add(play, "a")
    add(play, "b")
    assert intake.num_departures == 0
    play.step()
    begun = intake.num_departures
    play.scheduler.abort("b-0")
    assert 0 < begun < intake.num_departures


def test_what_a_key_may_still_use_is_known_and_comes_back() -> None:
    tenant = Tenant(name="limited", requests_per_minute=6, tokens_per_minute=60)
    play = Play(num_blocks=64)
    intake = play.scheduler.intake
    assert intake.quotas(Tenant(name="free"), play.now) is None
    add(play, "a", prompt=6, max_tokens=4, tenant=tenant)
    quotas = intake.quotas(tenant, play.now)
    assert quotas == Quotas(Quota(6, 5), Quota(60, 54))
    run(play, 1.0)
    later = intake.quotas(tenant, play.now)
    assert later is not None
    assert later.tokens is not None
    assert later.requests is not None
    assert (later.requests.level, later.tokens.level) == (pytest.approx(5.1), pytest.approx(51.0)), "the output counts, too"
    assert quotas.after(10.0) == Quotas(Quota(6, 6), Quota(60, 60))
    assert later.tokens.reset_s == pytest.approx(9.0)


def test_clients_that_wait_for_as_long_as_it_takes_are_all_served() -> None:
    play = Play(num_blocks=256, max_num_seqs=4, max_queue=4096)
    good = offered(play, per_second=40, seconds=10, patience_s=1e9)
    run(play, 110.0)
    assert good == 0
    assert len(play.deltas) == 400
    assert not any(error_of(play, name) for name in play.deltas)


def test_clients_of_one_key_that_give_up_say_nothing_of_anothers() -> None:
    play = Play(num_blocks=256, max_num_seqs=1, max_queue=4096)
    add(play, "running", max_tokens=100)
    for index in range(32):
        add(play, f"greedy{index}", tenant=GREEDY)
        add(play, f"polite{index}", tenant=POLITE)
    run(play, 2.0)
    for index in range(32):
        play.scheduler.abort(f"greedy{index}-0", left_at=play.now)
    add(play, "greedy", tenant=GREEDY)
    refused(play, "more", tenant=GREEDY)
    add(play, "polite", tenant=POLITE)
