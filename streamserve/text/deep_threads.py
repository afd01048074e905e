"""Threads for a foreign library's work on what a client wrote: few at a time, deep of stack, and waited for only so long.

Owned by one event loop, which waits here; the work runs beside it. A library that walks its input by recursion ends the whole
process when the stack is used up, and no exception tells of it: so each piece of work gets a fresh thread, with all the stack
that an input within its limits could use. A thread can't be stopped: one that takes too long is waited for no more, yet keeps
its place until it ends, so that at no time more than a few run. Knows nothing of the work.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

import anyio

from streamserve.errors import QueueFull

T = TypeVar("T")

_starting = threading.Lock()


class DeepThreads:
    """See the module.

    max_threads  pieces of work at a time
    timeout_s    how long a piece of work may take; and how long it may wait for its turn
    stack_bytes  address space of each stack; memory only as it is used
    """

    def __init__(self, max_threads: int, *, timeout_s: float, stack_bytes: int) -> None:
        self._places = anyio.Semaphore(max_threads)
        self._timeout_s = timeout_s
        self._stack_bytes = stack_bytes

    async def run(self, work: Callable[[], T]) -> T:
        """What `work` returns or raises.

        Raises `TimeoutError` when it takes longer than it may, `QueueFull` when others did not let it have a turn.
        """
        await self._take_place()
        outcome: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        try:
            self._start(partial(self._work, work, outcome, asyncio.get_running_loop()))
        except BaseException:
            self._places.release()
            raise
        with anyio.fail_after(self._timeout_s):
            return await outcome

    async def _take_place(self) -> None:
        try:
            with anyio.fail_after(self._timeout_s):
                await self._places.acquire()
        except TimeoutError:
            raise QueueFull("others' work of this kind takes long: try again in some seconds", retry_after_s=5.0) from None

    def _start(self, body: Callable[[], None]) -> None:
        # The size is the process's: threads that others start meanwhile get it too, which costs them address space only.
        with _starting:
            before = threading.stack_size(self._stack_bytes)
            try:
                threading.Thread(target=body, name="deep", daemon=True).start()
            finally:
                threading.stack_size(before)

    def _work(self, work: Callable[[], T], outcome: asyncio.Future[T], loop: asyncio.AbstractEventLoop) -> None:
        finish: Callable[[Any], None] = outcome.set_result
        try:
            value: Any = work()
        except BaseException as error:
            finish, value = outcome.set_exception, error
        with suppress(RuntimeError):  # the loop has closed, and nobody waits any more
            loop.call_soon_threadsafe(self._end, outcome, finish, value)

    def _end(self, outcome: asyncio.Future[T], finish: Callable[[Any], None], value: Any) -> None:
        self._places.release()
        if not outcome.done():
            finish(value)
