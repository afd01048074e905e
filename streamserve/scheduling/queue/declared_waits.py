"""Requests whose clients say how long they wait for an answer, and when each of them has waited for too long.

Runs on the engine's event loop. Reads no clock: the time is an argument.
"""

from __future__ import annotations

import heapq
import math
from itertools import count

from streamserve.scheduling.sequence import Request

_WAITING_SHARE = 0.5
"""Of the time that a client waits for its answer, what it may spend in the queue."""

_LEAST_SWEPT = 64


class DeclaredWaits:
    """Requests in the order in which their waits are over; those that have begun or ended meanwhile are left out."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Request]] = []
        self._numbers = count()
        self._sweep_at = _LEAST_SWEPT

    def add(self, request: Request) -> None:
        """Watch a request; one whose client does not say how long it waits isn't watched."""
        if request.patience_s is None:
            return
        if len(self._heap) >= self._sweep_at:
            self._heap = [entry for entry in self._heap if entry[2].waits]
            heapq.heapify(self._heap)
            self._sweep_at = max(_LEAST_SWEPT, 2 * len(self._heap))
        heapq.heappush(self._heap, (request.arrived_at + longest_wait_s(request.patience_s), next(self._numbers), request))

    def next(self) -> float:
        """When the next one has waited for too long; infinite for never."""
        while self._heap and not self._heap[0][2].waits:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else math.inf

    def pop_overdue(self, now: float) -> Request | None:
        """One that has waited for too long, no longer watched; None when there is none."""
        return heapq.heappop(self._heap)[2] if self.next() <= now else None


def longest_wait_s(patience_s: float | None) -> float:
    """Seconds in the queue that leave time for the answer; infinite for a client that does not say how long it waits."""
    return math.inf if patience_s is None else patience_s * _WAITING_SHARE


__all__ = ["DeclaredWaits", "longest_wait_s"]
