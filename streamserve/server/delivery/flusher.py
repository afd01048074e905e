"""The streams of one API worker that have something to write, written together once per turn of its event loop.

A step's tokens come for all streams at once. Writing at the end of the turn instead of in the middle of it joins what several
choices of one request, or several steps, have produced for the same client.
"""

from __future__ import annotations

import asyncio
from typing import Protocol


class Flushable(Protocol):
    """Something with bytes to write."""

    def flush(self) -> None:
        """Write what is ready. Never waits, never raises."""
        ...


class Flusher:
    """Flushes each stream that was added since the last turn."""

    def __init__(self) -> None:
        self._due: list[Flushable] = []

    def add(self, stream: Flushable) -> None:
        """Flush `stream` at the end of this turn; a stream adds itself once per turn."""
        if not self._due:
            asyncio.get_running_loop().call_soon(self._flush)
        self._due.append(stream)

    def _flush(self) -> None:
        due, self._due = self._due, []
        for stream in due:
            stream.flush()
