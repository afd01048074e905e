"""The WebSockets that are open at one API worker: to count them, and to close all of them when the worker ends.

Lives on one API worker's event loop; every method but the waiting is synchronous.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic
from typing import NamedTuple, Protocol

import anyio


class Closing(NamedTuple):
    """Why a socket is closed."""

    code: int
    reason: str


class Leave(NamedTuple):
    """A request to close sockets that carry no stream.

    since    when it was made, by `time.monotonic`
    quiet_s  how long a socket must have been silent, so that what its client has just sent is still answered
    """

    closing: Closing
    since: float
    quiet_s: float = 0.0

    def due_at(self, quiet_since: float, opened_at: float) -> float:
        """When to close a socket that has been silent, and without a stream, since `quiet_since`."""
        return min(quiet_since + self.quiet_s, max(self.since, opened_at) + LONGEST_LEAVE_S)


LONGEST_LEAVE_S = 30.0
"""Seconds after which a socket that must go is closed between two streams, however short the silence."""

RESTARTING = Closing(1001, "the server is being restarted: connect again")
DRAINING = Closing(1001, "the server is shutting down")
FAILED = Closing(1011, "the engine has stopped")


class Socket(Protocol):
    """One open WebSocket."""

    def leave(self, leave: Leave) -> None:
        """Close once every stream has had its ending and the silence has lasted for long enough. Idempotent."""
        ...


class OpenSockets:
    """Sockets from their acceptance until they are closed."""

    def __init__(self) -> None:
        self._sockets: set[Socket] = set()
        self._leave: Leave | None = None
        self._idle = anyio.Event()
        self._idle.set()

    def __len__(self) -> int:
        return len(self._sockets)

    @contextmanager
    def registered(self, socket: Socket) -> Iterator[None]:
        """Count `socket` while the block runs."""
        self._sockets.add(socket)
        if self._idle.is_set():
            self._idle = anyio.Event()
        if self._leave is not None:
            socket.leave(self._leave)
        try:
            yield
        finally:
            self._sockets.remove(socket)
            if not self._sockets:
                self._idle.set()

    def leave(self, closing: Closing, *, quiet_s: float = 0.0) -> None:
        """Close each socket once its streams have had their endings; one that opens later, too.

        quiet_s  as in `Leave`
        """
        self._leave = Leave(closing, monotonic(), quiet_s)
        for socket in list(self._sockets):
            socket.leave(self._leave)

    async def wait_idle(self) -> None:
        """Returns once no socket is open."""
        await self._idle.wait()
