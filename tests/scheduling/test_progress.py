"""What sequences that ask are told before their first token: their place in the queue, then how far their prompt is."""

from __future__ import annotations

from streamserve.types.progress import PrefillProgress, Progress, QueueProgress
from tests.scheduling.play import Play, spec

CHUNK = {"max_num_batched_tokens": 8, "max_num_seqs": 1, "num_blocks": 32}


def reports(play: Play, name: str) -> list[Progress]:
    return [delta.progress for delta in play.deltas[name] if delta.progress is not None]


def test_a_prompt_is_reported_when_it_begins_and_after_each_chunk_to_its_end() -> None:
    play = Play(**CHUNK)
    play.add(spec("a", 20, max_tokens=2, reports_progress=True))
    while not play.tokens("a"):
        play.now += 0.01
        play.step()
    told = reports(play, "a")
    assert all(isinstance(each, PrefillProgress) for each in told)
    assert [(each.total, each.cache, each.processed) for each in told if isinstance(each, PrefillProgress)] == [
        (20, 0, 0), (20, 0, 8), (20, 0, 16), (20, 0, 20),
    ]  # fmt: skip
    times = [each.time_ms for each in told if isinstance(each, PrefillProgress)]
    assert times == sorted(times)
    assert times[0] == 0
    play.finish()
    assert len(reports(play, "a")) == 4, "nothing after the first token"
    assert play.deltas["a"][-1].progress is None


def test_what_the_cache_has_counts_as_processed_from_the_start() -> None:
    play = Play(**CHUNK)
    play.add(spec("a", [1] * 20, max_tokens=1))
    play.finish()
    play.add(spec("b", [1] * 20, max_tokens=1, reports_progress=True))
    play.finish(outstanding=1)
    first = reports(play, "b")[0]
    assert isinstance(first, PrefillProgress)
    assert (first.total, first.cache, first.processed) == (20, 16, 16)


def test_places_in_the_queue_are_reported_at_once_and_when_they_have_changed() -> None:
    play = Play(**CHUNK)
    play.add(spec("first", 4, max_tokens=30), spec("second", 4, max_tokens=30), spec("third", 4, reports_progress=True))
    play.step()
    assert reports(play, "third") == [], "most sequences have a row before anyone could read of a queue"
    play.now = 0.1
    play.step()
    assert reports(play, "third") == [QueueProgress(2, None)]
    for _ in range(20):
        play.now += 0.1
        play.step()
    assert len(reports(play, "third")) == 1, "its place has not changed"
    while not play.deltas["second"]:
        play.now += 0.1
        play.step()
    for _ in range(12):
        play.now += 0.1
        play.step()
    queued = [each for each in reports(play, "third") if isinstance(each, QueueProgress)]
    assert [each.position for each in queued] == [2, 1]
    assert queued[1].wait_s is not None
    assert 1.0 < queued[1].wait_s < 4.0, "two have left the queue in some four seconds"


def test_those_that_do_not_ask_are_told_nothing_and_are_no_part_of_any_report() -> None:
    play = Play(**CHUNK)
    play.add(*(spec(name, 20) for name in "abc"))
    play.finish()
    assert all(delta.progress is None for deltas in play.deltas.values() for delta in deltas)
    assert all(delta.token_ids for deltas in play.deltas.values() for delta in deltas)


def test_a_sequence_that_leaves_the_queue_is_forgotten() -> None:
    play = Play(**CHUNK)
    play.add(spec("first", 4, max_tokens=30), spec("gone", 4, reports_progress=True))
    play.step()
    play.abort("gone")
    for _ in range(3):
        play.now += 1.0
        play.step()
    assert reports(play, "gone") == []
    assert play.scheduler.progress.of_queue(play.now + 100) == []


def test_a_continued_sequence_with_tokens_reports_nothing() -> None:
    play = Play(**CHUNK)
    play.add(spec("a", 20, generated_token_ids=[5], reports_progress=True))
    play.finish()
    assert reports(play, "a") == []
