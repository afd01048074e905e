"""How much a tenant may use of something in a minute.

Runs on the engine's event loop. Reads no clock: the time is an argument.
"""

from __future__ import annotations

import math

from streamserve.types import Quota


class TokenBucket:
    """An amount that a minute refills, from empty to full, and that use takes from; it may owe.

    What a request will use is not known when it begins. So it begins when there is as much as is known, and takes the rest when
    it ends: the next one waits until that is paid back.
    """

    def __init__(self) -> None:
        self._per_minute = math.inf
        self._level = math.inf
        self._at = 0.0

    def wait_s(self, amount: float, per_minute: float | None, now: float) -> float:
        """Seconds until `amount` can be taken, or a minute's worth where it is more; 0 for now.

        per_minute  what a minute refills from now on; None for no limit
        """
        self._refill(math.inf if per_minute is None else per_minute, now)
        lacking = min(amount, self._per_minute) - self._level
        return max(0.0, 60.0 * lacking / self._per_minute) if lacking > 0 else 0.0

    def quota(self, per_minute: float | None, now: float) -> Quota | None:
        """What is left now; None without a limit. `per_minute` as of `wait_s`."""
        self._refill(math.inf if per_minute is None else per_minute, now)
        return None if per_minute is None else Quota(per_minute, self._level)

    def take(self, amount: float) -> None:
        """Take an amount, whether it is there or not."""
        self._level -= amount

    def _refill(self, per_minute: float, now: float) -> None:
        if per_minute != self._per_minute:
            # Another limit than before, or the first: what has been used counts against the new one.
            used = self._per_minute - self._level if self._per_minute < math.inf else 0.0
            self._per_minute, self._level = per_minute, per_minute - used
        elif per_minute < math.inf:
            self._level = min(per_minute, self._level + per_minute * (now - self._at) / 60.0)
        self._at = now


__all__ = ["TokenBucket"]
