"""The events of one stream, between the task that makes them and whoever reads them.

Numbered from 0, kept in a ring that is bounded in events and bytes, read through cursors: by a WebSocket, by an SSE stream,
again after a dropped connection. The fastest reader sets the pace: the maker waits while even that one is a window behind, so
that a reader who stalls makes the engine's stream merge, pause and fail as any other. A slower second reader may fall out of
the ring; its cursor raises `ResumeGap`. Lives on one API worker's event loop; knows neither transports nor APIs.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Generic, NamedTuple, Self, TypeVar

from streamserve.aio.wakeup import Wakeup
from streamserve.errors import InvalidRequest
from streamserve.server.delivery.events import LoggedEvent

E = TypeVar("E", bound=LoggedEvent)


class ResumeGap(InvalidRequest):
    """The requested events are no longer kept, or not made yet."""

    status = 410
    code = "resume_gap"


class LogLimits(NamedTuple):
    """Bounds of one log: the maker may be `window` events ahead; of the ring's bounds the tighter holds, down to one window."""

    window: int = 32
    max_events: int = 16384
    max_bytes: int = 4 << 20


class EventLog(Generic[E]):
    """A bounded ring of numbered events.

    on_read    called when a reader begins
    on_unread  called when the last reader has left a log that is not at its end
    """

    def __init__(
        self,
        limits: LogLimits | None = None,
        *,
        on_read: Callable[[], None] | None = None,
        on_unread: Callable[[], None] | None = None,
    ) -> None:
        self._limits = limits or LogLimits()
        self._on_read = on_read
        self._on_unread = on_unread
        self._events: deque[E] = deque()
        self._dropped = 0
        self._cursors: list[Cursor[E]] = []
        self._room = Wakeup()
        self.num_bytes = 0
        self.is_complete = False

    @property
    def next_number(self) -> int:
        """The number that the next event gets."""
        return self._dropped + len(self._events)

    @property
    def is_read(self) -> bool:
        return bool(self._cursors)

    def append(self, events: Iterable[E]) -> None:
        """Add events. Never blocks; `wait_for_room` does."""
        for event in events:
            self._events.append(event)
            self.num_bytes += event.num_bytes
        self._forget_oldest()
        self._tell_readers()

    def end(self) -> None:
        """Mark the log as complete. Idempotent."""
        self.is_complete = True
        self._tell_readers()

    async def wait_for_room(self) -> None:
        """Return once a reader is less than a window behind, or none reads at all."""
        while self.is_read and self.next_number - max(each.number for each in self._cursors) >= self._limits.window:
            await self._room.wait()

    def read(self, number: int, ready: Callable[[], None]) -> Cursor[E]:
        """A reader that begins at event `number`; `ready` is called whenever it may have something to take, and now.

        Raises `ResumeGap` when that event is gone already, or lies ahead of the next one.
        """
        if not self._dropped <= number <= self.next_number:
            raise ResumeGap(f"events {self._dropped} to {self.next_number - 1} are kept, {number} is not among them")
        cursor = Cursor(self, number, ready)
        self._cursors.append(cursor)
        if self._on_read is not None:
            self._on_read()
        ready()
        return cursor

    def event(self, number: int) -> E | None:
        """One event; None when it has not been made yet. Raises `ResumeGap` when it is gone."""
        if number < self._dropped:
            raise ResumeGap(f"this reader fell behind: events before {self._dropped} are kept no longer")
        place = number - self._dropped
        return self._events[place] if place < len(self._events) else None

    def advanced(self) -> None:
        """A cursor has advanced: its log may have room again."""
        self._room.set()

    def leave(self, cursor: Cursor[E]) -> None:
        """Remove a cursor."""
        if cursor in self._cursors:
            self._cursors.remove(cursor)
            self._room.set()
            if not self.is_read and not self.is_complete and self._on_unread is not None:
                self._on_unread()

    def _forget_oldest(self) -> None:
        limits = self._limits
        while len(self._events) > limits.window and (
            len(self._events) > limits.max_events or self.num_bytes > limits.max_bytes
        ):
            self.num_bytes -= self._events.popleft().num_bytes
            self._dropped += 1

    def _tell_readers(self) -> None:
        for cursor in self._cursors:
            cursor.ready()


class Cursor(Generic[E]):
    """One reader's place in a log; leave its `with` block to stop reading.

    number  of the event that comes next
    """

    __slots__ = ("_log", "number", "ready")

    def __init__(self, log: EventLog[E], number: int, ready: Callable[[], None]) -> None:
        self._log = log
        self.number = number
        self.ready = ready

    @property
    def has_next(self) -> bool:
        return self.number < self._log.next_number

    @property
    def is_at_end(self) -> bool:
        """Whether everything was taken that will ever come."""
        return self._log.is_complete and not self.has_next

    def take(self) -> tuple[int, E] | None:
        """The next event and its number; None when it has not been made yet. Raises `ResumeGap`."""
        event = self._log.event(self.number)
        if event is None:
            return None
        number = self.number
        self.number += 1
        self._log.advanced()
        return number, event

    def close(self) -> None:
        self._log.leave(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
