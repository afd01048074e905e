"""Work on large requests, which must not hold up the event loop that other requests are answered on.

Threads take turns with the loop at the interpreter; what no thread can interrupt is one call into C, so that such calls get
bounded amounts (`json_body`). Lives on one API worker's event loop.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

from anyio import CapacityLimiter, to_thread

from streamserve.server.http.bodies.body_memory import BodyMemory

T = TypeVar("T")

AT_ONCE_BYTES = 16 << 10
"""Requests up to this size are worked on where they are: it takes a few milliseconds, whatever they hold."""

AT_A_TIME = 2
"""Large requests that are worked on side by side; the others wait as bytes."""


class CallRunner(Protocol):
    """Runs a function on the event loop (`at_once`) or off it (`LargeWork.run`)."""

    def __call__(self, call: Callable[[], T], /) -> Awaitable[T]: ...


async def at_once(call: Callable[[], T]) -> T:
    """Run a function on the event loop."""
    return call()


class LargeWork:
    """The threads for large requests of one API worker, and the memory for their bodies."""

    def __init__(self) -> None:
        self.memory = BodyMemory()
        self._limiter = CapacityLimiter(AT_A_TIME)

    async def run(self, call: Callable[[], T]) -> T:
        """Run a function on a thread; wait for one, if need be."""
        return await to_thread.run_sync(call, limiter=self._limiter)

    def runner(self, num_bytes: int) -> CallRunner:
        """What runs the work on a request of this size."""
        return self.run if num_bytes > AT_ONCE_BYTES else at_once
