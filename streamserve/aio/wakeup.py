"""A wakeup: the event that one task waits for again and again.

asyncio and not anyio: waited for once per token, where an event object per wait would cost more than the token.
"""

from __future__ import annotations

import asyncio

import anyio


class Wakeup:
    """An event for one waiter that resets itself: a `set` without a waiter ends the next `wait` at once."""

    __slots__ = ("_is_set", "_waiter")

    def __init__(self) -> None:
        self._is_set = False
        self._waiter: asyncio.Future[None] | None = None

    def set(self) -> None:
        """Wake the waiter. Never blocks."""
        self._is_set = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def wait(self) -> None:
        """Wait for `set`. May return early, so check again what is waited for.

        Raises `anyio.BusyResourceError` while another task waits.
        """
        if self._waiter is not None:
            raise anyio.BusyResourceError("waiting for")
        if not self._is_set:
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        self._is_set = False
