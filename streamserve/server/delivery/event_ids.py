"""Ids of the events of a stream that a client can continue after a dropped connection, and the headers about them.

An id names the stream and the event's number in its log, so that the Last-Event-ID header (HTML Living Standard, 9.2.4) says
all that any API worker needs to continue. Pure functions.
"""

from __future__ import annotations

from typing import NamedTuple

from streamserve.errors import InvalidParameter

LAST_EVENT_ID = "Last-Event-ID"
RESUME = "X-Stream-Resume"
STREAM_ID = b"x-stream-id"
"""Header of an answer that can be continued; its value names the stream."""

_MAX_DIGITS = 18
_FLAGS = {"1": True, "true": True, "0": False, "false": False, "": False}


class Place(NamedTuple):
    """A place in a stream; `number` is that of the event that comes next."""

    stream_id: str
    number: int


def event_id(stream_id: str, number: int) -> bytes:
    """The line that gives an event of an SSE stream its id."""
    return b"id: %b:%d\n" % (stream_id.encode(), number)


def place_after(last_event_id: str) -> Place:
    """The place behind the event with this id. Raises `InvalidParameter`."""
    stream_id, found, number = last_event_id.rpartition(":")
    if not (found and number.isascii() and number.isdigit() and len(number) <= _MAX_DIGITS):
        raise InvalidParameter(LAST_EVENT_ID, "must be the id of an event, as its stream carried it")
    return Place(stream_id, int(number) + 1)


def asks_to_resume(header: str) -> bool:
    """Whether an X-Stream-Resume header asks for a stream that can be continued. Raises `InvalidParameter`."""
    wanted = _FLAGS.get(header.lower())
    if wanted is None:
        raise InvalidParameter(RESUME, "must be 1 or 0")
    return wanted
