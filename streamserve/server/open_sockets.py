"""The WebSockets that are open at one API worker: to count them, and to close all of them when the server ends.

Lives on one API worker's event loop; every method but the waiting is synchronous.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple, Protocol

import anyio


class Closing(NamedTuple):
    """Why a socket is closed."""

    code: int
    reason: str


RESTARTING = Closing(1001, "the server is being restarted: connect again")
DRAINING = Closing(1001, "the server is shutting down")
FAILED = Closing(1011, "the engine has stopped")


class Socket(Protocol):
    """One open WebSocket."""

    def leave(self, closing: Closing) -> None:
        """Take nothing new, and close once every stream has had its ending. Idempotent."""
        ...


class OpenSockets:
    """Sockets from their acceptance until they are closed."""

    def __init__(self) -> None:
        self._sockets: set[Socket] = set()
        self._leaving: Closing | None = None
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
        if self._leaving is not None:
            socket.leave(self._leaving)
        try:
            yield
        finally:
            self._sockets.remove(socket)
            if not self._sockets:
                self._idle.set()

    def leave(self, closing: Closing) -> None:
        """Close each socket once its streams have had their endings; one that opens later, too."""
        self._leaving = closing
        for socket in list(self._sockets):
            socket.leave(closing)

    async def wait_idle(self) -> None:
        """Returns once no socket is open."""
        await self._idle.wait()
