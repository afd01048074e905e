"""What a TTL store keeps, and what goes first."""

from __future__ import annotations

from streamserve.server.delivery.retention import TtlStore


class Thing:
    def __init__(self, *, ended_at: float | None = 0.0, num_bytes: int = 1) -> None:
        self.ended_at = ended_at
        self.num_bytes = num_bytes


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def kept(clock: Clock, *, max_items: int = 100, max_bytes: int = 1000) -> TtlStore[str, Thing]:
    return TtlStore(ttl_s=10.0, max_items=max_items, max_bytes=max_bytes, clock=clock)


def test_what_has_ended_expires_and_what_runs_does_not() -> None:
    clock = Clock()
    things = kept(clock)
    running = Thing(ended_at=None)
    things.put("ended", Thing())
    things.put("running", running)
    assert things.get("ended") is not None
    clock.now = 100.0
    assert things.get("ended") is None
    assert things.get("running") is running
    running.ended_at = 100.0
    assert things.get("running") is running
    clock.now = 109.0
    assert things.get("running") is running
    clock.now = 110.0
    assert things.get("running") is None


def test_time_runs_from_the_end_and_not_from_when_somebody_looks() -> None:
    clock = Clock()
    things = kept(clock)
    late, early = Thing(ended_at=None), Thing(ended_at=None)
    things.put("late", late)
    things.put("early", early)
    early.ended_at, late.ended_at = 5.0, 8.0
    clock.now = 16.0
    assert [things.get(name) is not None for name in ("early", "late")] == [False, True]
    clock.now = 18.0
    assert things.get("late") is None


def test_what_runs_or_has_just_ended_is_recent() -> None:
    clock = Clock()
    things = kept(clock)
    things.put("running", Thing(ended_at=None))
    things.put("ended", Thing(ended_at=0.0))
    clock.now = 1.0
    assert things.num_recent(2.0) == 2
    clock.now = 3.0
    assert things.num_recent(2.0) == 1


def test_the_oldest_goes_when_there_are_too_many_or_too_much() -> None:
    for things, size in ((kept(Clock(), max_items=2), 1), (kept(Clock(), max_bytes=20), 10)):
        for name in "abc":
            things.put(name, Thing(num_bytes=size))
        assert [things.get(name) is not None for name in "abc"] == [False, True, True]


def test_removing_makes_room() -> None:
    things = kept(Clock(), max_bytes=20)
    for name in "ab":
        things.put(name, Thing(num_bytes=10))
    assert things.remove("a") is not None
    assert things.remove("a") is None
    things.put("c", Thing(num_bytes=10))
    assert [things.get(name) is not None for name in "abc"] == [False, True, True]
    assert len(things) == 2


def test_only_what_runs_is_told_as_running() -> None:
    things = kept(Clock())
    running = Thing(ended_at=None)
    things.put("running", running)
    things.put("ended", Thing())
    assert things.running() == [running]


def test_an_id_that_comes_again_stands_for_the_later_one() -> None:
    things = kept(Clock(), max_bytes=20)
    later = Thing(num_bytes=10)
    for thing in (Thing(num_bytes=10), later):
        things.put("again", thing)
        assert things.get("again") is thing
    things.put("other", Thing(num_bytes=10))
    assert things.get("again") is later
    assert len(things) == 2
