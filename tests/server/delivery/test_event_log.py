"""The ring between a maker and its readers."""

from __future__ import annotations

import anyio
import anyio.lowlevel
import pytest

from streamserve.server.apis.responses.events import ResponseEvent
from streamserve.server.delivery.event_log import (
    Cursor,
    EventLog,
    LogLimits,
    ResumeGap,
)

pytestmark = pytest.mark.anyio


def events(count: int) -> list[ResponseEvent]:
    return [ResponseEvent("kind", b'"n":%d' % number) for number in range(count)]


def nothing() -> None:
    return


def taken(cursor: Cursor[ResponseEvent]) -> list[int]:
    numbers = []
    while (event := cursor.take()) is not None:
        numbers.append(event[0])
    return numbers


def test_a_reader_gets_every_event_from_where_it_begins() -> None:
    log: EventLog[ResponseEvent] = EventLog()
    log.append(events(3))
    with log.read(1, nothing) as cursor:
        assert taken(cursor) == [1, 2]
        log.append(events(2))
        assert cursor.has_next
        assert taken(cursor) == [3, 4]
        assert not cursor.is_at_end
        log.end()
        assert cursor.is_at_end


def test_a_reader_is_told_of_what_it_may_take() -> None:
    log: EventLog[ResponseEvent] = EventLog()
    told: list[int] = []
    with log.read(0, lambda: told.append(log.next_number)):
        log.append(events(1))
        log.end()
    log.append(events(1))
    assert told == [0, 1, 1]


@pytest.mark.parametrize("limits", [LogLimits(window=2, max_events=4), LogLimits(window=2, max_bytes=20)])
def test_the_ring_forgets_the_oldest_and_says_so(limits: LogLimits) -> None:
    log: EventLog[ResponseEvent] = EventLog(limits)
    log.append(events(10))
    with log.read(6, nothing) as cursor:
        assert taken(cursor) == [6, 7, 8, 9]
    for number in (0, 5, 11):
        with pytest.raises(ResumeGap):
            log.read(number, nothing)


def test_a_second_reader_that_falls_behind_is_told_and_the_first_is_not_held_up() -> None:
    log: EventLog[ResponseEvent] = EventLog(LogLimits(window=2, max_events=4))
    with log.read(0, nothing) as fast, log.read(0, nothing) as slow:
        for number in range(10):
            log.append(events(1))
            assert taken(fast) == [number]
        with pytest.raises(ResumeGap):
            slow.take()


async def test_the_maker_waits_for_the_fastest_reader_only() -> None:
    log: EventLog[ResponseEvent] = EventLog(LogLimits(window=2))
    has_room = anyio.Event()

    async def make() -> None:
        await log.wait_for_room()
        has_room.set()

    log.append(events(2))
    await log.wait_for_room()
    async with anyio.create_task_group() as tasks:
        with log.read(0, nothing), log.read(0, nothing) as fast:
            tasks.start_soon(make)
            await anyio.wait_all_tasks_blocked()
            assert not has_room.is_set()
            fast.take()
            with anyio.fail_after(5):
                await has_room.wait()


async def test_the_maker_goes_on_when_its_last_reader_leaves() -> None:
    left = []
    log: EventLog[ResponseEvent] = EventLog(LogLimits(window=1), on_unread=lambda: left.append(True))
    log.append(events(5))
    async with anyio.create_task_group() as tasks:
        with log.read(0, nothing):
            tasks.start_soon(log.wait_for_room)
            await anyio.wait_all_tasks_blocked()
        assert left == [True]


def test_nobody_is_missed_once_the_log_has_ended() -> None:
    left = []
    log: EventLog[ResponseEvent] = EventLog(on_unread=lambda: left.append(True))
    with log.read(0, nothing):
        log.end()
    assert left == []


def test_an_event_is_written_alike_for_both_transports() -> None:
    event = ResponseEvent("kind", b'"text":"\xc3\xb6"')
    assert event.message(3, b'"s"') == '{"type":"kind","stream_id":"s","sequence_number":3,"text":"ö"}'
    assert event.message(3, None) == '{"type":"kind","sequence_number":3,"text":"ö"}'
    assert event.server_sent(3) == 'event: kind\ndata: {"type":"kind","sequence_number":3,"text":"ö"}\n\n'.encode()
