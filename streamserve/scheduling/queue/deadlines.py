"""When sequences with a time budget must end.

Runs on the engine's event loop. Reads no clock: the time is an argument, in seconds of whatever clock the driver uses
throughout.
"""

from __future__ import annotations

import heapq

from streamserve.scheduling.sequence import Order, Sequence


class Deadlines:
    """Sequences by deadline. One that ended is dropped when it comes to the top, so ending costs nothing here."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, Order, Sequence]] = []

    def add(self, sequence: Sequence) -> None:
        """Watch a sequence; one without a deadline isn't watched."""
        if sequence.deadline is not None:
            heapq.heappush(self._heap, (sequence.deadline, sequence.order, sequence))

    def next(self) -> float | None:
        """The earliest deadline of a live sequence."""
        while self._heap and self._heap[0][2].finish_reason is not None:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def pop_overdue(self, now: float) -> Sequence | None:
        """A live sequence whose deadline has passed, no longer watched; None when there is none."""
        deadline = self.next()
        return heapq.heappop(self._heap)[2] if deadline is not None and deadline <= now else None


__all__ = ["Deadlines"]
