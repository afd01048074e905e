"""What the loop knows about itself and the scheduler does not: is it turning, and how fast do the departed go.

Lives on the engine's loop; plain arithmetic, the clock's readings are arguments.
"""

from __future__ import annotations

import msgspec

from streamserve.types import EngineStats


class LoopStats:
    """Turns and aborts of one engine loop."""

    def __init__(self) -> None:
        self._busy_since: float | None = None
        self._num_aborts = 0
        self._abort_latency_s = 0.0

    def turned(self, now: float) -> None:
        """The loop has begun a turn."""
        self._busy_since = now

    def idled(self) -> None:
        """The loop waits for work, which is no sign of trouble however long it lasts."""
        self._busy_since = None

    def aborted(self, latency_s: float) -> None:
        """A sequence left early and has given everything back, `latency_s` after its reader had gone."""
        self._num_aborts += 1
        self._abort_latency_s += max(0.0, latency_s)

    def complete(self, stats: EngineStats, now: float) -> EngineStats:
        """The scheduler's snapshot with the loop's own figures filled in."""
        return msgspec.structs.replace(
            stats,
            heartbeat_s=0.0 if self._busy_since is None else max(0.0, now - self._busy_since),
            num_aborts=self._num_aborts,
            abort_latency_s=self._abort_latency_s,
        )
