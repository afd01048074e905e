"""How long sequences wait for their first row: what may be expected, by how fast the queue drains, and what clients bear.

Runs on the engine's event loop. Reads no clock: the time is an argument.
"""

from __future__ import annotations

import math
from collections import deque

_REMEMBERED_S = 5.0
"""Time constant of the average that `DrainRate` is."""

_WINDOW_S = 10.0
_LEAST_DEPARTURES = 16
"""Requests that must have been given up within `_WINDOW_S`, and more than were answered, before that says something."""

_LEAST_WAIT_S = 2.0
"""Seconds that a client must have waited: who leaves sooner has changed its mind."""

_DOUBLES_S = 60.0
_FORGOTTEN_S = 600.0


class DrainRate:
    """Sequences that leave a queue for their first row, per second, while there are some to leave it."""

    def __init__(self) -> None:
        self._count = 0.0
        self._seconds = 0.0
        self._at = 0.0

    def resume(self, now: float) -> None:
        """There is somebody again: the time until now does not count."""
        self._at = now

    def observe(self, now: float, num_started: int) -> None:
        """Count sequences that have left the queue since the last call."""
        kept = math.exp((self._at - now) / _REMEMBERED_S)
        self._count *= kept
        self._seconds = self._seconds * kept + _REMEMBERED_S * (1.0 - kept)
        self._at = now
        self._count += num_started

    @property
    def is_known(self) -> bool:
        """Whether somebody has waited for long enough to tell."""
        return self._seconds >= 0.1

    def wait_s(self, num_ahead: float) -> float:
        """Seconds until so many have left; 0 before anything is known."""
        if not self.is_known:
            return 0.0
        return num_ahead * self._seconds / max(self._count, 0.5)


class Patience:
    """How long requests of one tenant wait before their clients give up, as far as they have shown it.

    A queue in which requests wait longer than that serves nobody: whoever's turn comes has left, or is about to. So once more
    are given up than answered, none is to wait for longer than half of what those have borne. The bound rises with time, to see
    whether the clients of the day bear more, and is forgotten in the end.
    """

    def __init__(self) -> None:
        self._given_up: deque[tuple[float, float]] = deque()
        self._answered: deque[float] = deque()
        self._limit_s = math.inf
        self._limited_at = 0.0

    def answered(self, now: float) -> None:
        """A request has ended by itself."""
        self._answered.append(now)
        self._drop_old(now)

    def gave_up(self, now: float, waited_s: float) -> None:
        """A client has left, and what it waited for was its turn."""
        if waited_s < _LEAST_WAIT_S:
            return
        self._given_up.append((now, waited_s))
        self._drop_old(now)
        if len(self._given_up) >= max(_LEAST_DEPARTURES, len(self._answered) + 1):
            waits = sorted(waited_s for _, waited_s in self._given_up)
            self._limit_s, self._limited_at = waits[len(waits) // 2] / 2, now
            self._given_up.clear()

    def limit_s(self, now: float) -> float:
        """Seconds that a request should not wait beyond; infinite where nothing speaks against it."""
        since_s = now - self._limited_at
        return self._limit_s * 2.0 ** (since_s / _DOUBLES_S) if since_s < _FORGOTTEN_S else math.inf

    def _drop_old(self, now: float) -> None:
        while self._given_up and self._given_up[0][0] < now - _WINDOW_S:
            self._given_up.popleft()
        while self._answered and self._answered[0] < now - _WINDOW_S:
            self._answered.popleft()


__all__ = ["DrainRate", "Patience"]
