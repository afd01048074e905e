"""Turns of the API workers at finding out whose sequence ends engines: suspects of one worker at a time, and nobody's new ones.

On the engine's loop. Each worker resumes its own suspects one after another, and takes one that loses an engine for the cause;
but only the engine knows what the others have it begin meanwhile. Knows no links and no streams.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager

import anyio

SETTLE_TIMEOUT_S = 10.0
"""Seconds that sequences get to generate a token before it is taken that they end no engine."""

POLL_INTERVAL_S = 0.02
"""Seconds between two looks at whether they have. Nobody looks but after an engine has ended."""


class SuspectTurns:
    """Whose turn it is.

    unprogressed  the sequences of which the engine has generated no token
    """

    def __init__(self, unprogressed: Callable[[], set[str]]) -> None:
        self._unprogressed = unprogressed
        self._worker: object | None = None
        self._num_suspects = 0
        self._is_free = anyio.Event()

    def may_begin(self, worker: object) -> bool:
        """Whether new sequences of this worker may begin."""
        return self._worker in (None, worker)

    async def wait(self, worker: object) -> None:
        """Return once new sequences of this worker may begin."""
        while not self.may_begin(worker):
            await self._is_free.wait()

    @asynccontextmanager
    async def turn(self, worker: object) -> AsyncIterator[None]:
        """Wait until it is this worker's turn and what the engine had before has a token; suspects begin inside the block."""
        await self.wait(worker)
        is_first, self._worker = self._worker is None, worker
        if is_first:
            self._is_free = anyio.Event()
        self._num_suspects += 1
        try:
            if is_first:
                await self.settle(self._unprogressed())
            yield
        finally:
            self._num_suspects -= 1
            if not self._num_suspects:
                self._worker = None
                self._is_free.set()

    async def settle(self, sequence_ids: Iterable[str]) -> None:
        """Return once each of these has a token, has ended or is paused, or after `SETTLE_TIMEOUT_S`."""
        waiting = set(sequence_ids)
        with anyio.move_on_after(SETTLE_TIMEOUT_S):
            while waiting := waiting & self._unprogressed():  # noqa: ASYNC110
                await anyio.sleep(POLL_INTERVAL_S)
