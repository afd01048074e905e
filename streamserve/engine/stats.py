"""Figures of the step loop that the scheduler does not know: its heartbeat, and how long aborts take.

Lives on the engine's event loop; times are arguments.
"""

from __future__ import annotations

import msgspec

from streamserve.types import EngineStats


class LoopStats:
    """Iterations and aborts of one step loop."""

    def __init__(self) -> None:
        self._busy_since: float | None = None
        self._num_aborts = 0
        self._abort_latency_s = 0.0

    def begin_iteration(self, now: float) -> None:
        """Restart the heartbeat's age."""
        self._busy_since = now

    def begin_idle(self) -> None:
        """Stop the heartbeat's age until the next iteration: the loop waits for work."""
        self._busy_since = None

    def count_abort(self, latency_s: float) -> None:
        """Count a sequence whose blocks and row were freed `latency_s` after its reader had left."""
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
