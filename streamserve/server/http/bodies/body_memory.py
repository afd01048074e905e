"""How much memory the bodies hold that are on their way to become requests: those that still arrive, and those that wait to be
read.

Without a bound a client with a few hundred connections, and a body on each that never ends, would take all there is. Lives on
one API worker's event loop; bodies of HTTP requests and messages of WebSockets share it.
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Self

from streamserve.errors import Unavailable

MAX_BYTES = 256 << 20
"""Of all bodies that are counted: sixteen of the largest size."""

UNCOUNTED_BYTES = 64 << 10
"""Bodies up to this size are not counted: each connection may hold as much as that anyway."""


class TooManyBodies(Unavailable):
    """The server holds as many large bodies as it may."""

    code = "too_many_bodies"

    def __init__(self) -> None:
        super().__init__("too many large requests are arriving: try again in a moment, or send smaller ones")


class BodyMemory:
    """The bodies of one API worker.

    max_bytes  that they may hold in all
    """

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self.num_bytes = 0
        self.max_bytes = max_bytes
        self._held: dict[HeldBody, None] = {}

    def hold(self, drop: Callable[[], None] | None = None) -> HeldBody:
        """Hold a body within a block.

        drop  called when it has to go, while it still arrives; None for a body that is complete
        """
        return HeldBody(self, drop)

    def count(self, body: HeldBody, num_bytes: int) -> None:
        """A body has more bytes: those that have been arriving for longest make room. Raises `TooManyBodies` without room."""
        if body.num_bytes <= UNCOUNTED_BYTES:
            return
        self.num_bytes += num_bytes if body in self._held else body.num_bytes
        self._held[body] = None
        for other in list(self._held):
            if self.num_bytes <= self.max_bytes:
                return
            if other.drop is not None:
                self.release(other)
                other.drop()
        if self.num_bytes > self.max_bytes:
            raise TooManyBodies

    def release(self, body: HeldBody) -> None:
        """Count a body no longer. Idempotent."""
        if body in self._held:
            del self._held[body]
            self.num_bytes -= body.num_bytes


class HeldBody:
    """One body; leaving its block releases it."""

    def __init__(self, memory: BodyMemory, drop: Callable[[], None] | None) -> None:
        self.num_bytes = 0
        self.drop = drop
        self._memory = memory

    def grow(self, num_bytes: int) -> None:
        """Count more of it. Raises `TooManyBodies` when there is no room."""
        self.num_bytes += num_bytes
        self._memory.count(self, num_bytes)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._memory.release(self)
