"""One task that sleeps until there is something for it to do.

asyncio and not anyio: woken once per token, where an event object per nap would cost more than the token.
"""

from __future__ import annotations

import asyncio


class Wakeup:
    """Woken any number of times, sleeps once less: a call that comes while nobody sleeps ends the next sleep at once."""

    __slots__ = ("_is_due", "_sleeper")

    def __init__(self) -> None:
        self._is_due = False
        self._sleeper: asyncio.Future[None] | None = None

    def set(self) -> None:
        """Wake the sleeper. Never blocks."""
        self._is_due = True
        if self._sleeper is not None and not self._sleeper.done():
            self._sleeper.set_result(None)

    async def wait(self) -> None:
        """Sleep until `set`; may end early, so look again at what was waited for. For one task at a time."""
        if not self._is_due:
            self._sleeper = asyncio.get_running_loop().create_future()
            try:
                await self._sleeper
            finally:
                self._sleeper = None
        self._is_due = False
