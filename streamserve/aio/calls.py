"""Calls over a connection: numbers them, matches results to them, and fails them when the connection ends.

Runs on one event loop. Knows no encoding and no transport: the owner of the connection sends calls and reports results.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class PendingCalls(Generic[T]):
    """Calls that have been sent and have no result yet."""

    def __init__(self) -> None:
        self._results: dict[int, asyncio.Future[T]] = {}
        self._numbers = itertools.count()
        self._reason: Exception | None = None

    @property
    def is_closed(self) -> bool:
        """Whether calls fail at once."""
        return self._reason is not None

    def require_open(self) -> None:
        """Raise the reason of `close`, if calls fail at once."""
        if self._reason is not None:
            raise self._reason

    async def call(self, send: Callable[[int], None]) -> T:
        """Send a call with a number of its own, and return its result.

        send  sends the call, given its number; what it raises is raised here

        Raises the error that the call is failed with, and the reason of `close` when that comes first.
        """
        self.require_open()
        number = next(self._numbers)
        result: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._results[number] = result
        try:
            send(number)
            return await result
        finally:
            del self._results[number]

    def complete(self, number: int, result: T) -> None:
        """Return `result` from a call; ignored when its caller has been cancelled."""
        pending = self._results.get(number)
        if pending is not None and not pending.done():
            pending.set_result(result)

    def fail(self, number: int, error: Exception) -> None:
        """Raise `error` from a call; ignored when its caller has been cancelled."""
        pending = self._results.get(number)
        if pending is not None and not pending.done():
            pending.set_exception(error)

    def close(self, reason: Exception) -> None:
        """Raise `reason` from every pending call, and from later ones until `reopen`. Only the first reason counts."""
        if self._reason is not None:
            return
        self._reason = reason
        for number in self._results:
            self.fail(number, reason)

    def reopen(self) -> None:
        """Take calls again, for a new connection."""
        self._reason = None
